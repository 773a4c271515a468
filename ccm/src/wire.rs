//! Parts of API objects as the API writes them, shared by the types of both clusters.

pub mod endpoint_slice;
pub mod ip_family;
pub mod metadata;
pub mod service;
pub mod system_uuid;
pub mod topology_labels;
