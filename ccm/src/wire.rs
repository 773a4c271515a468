//! Parts of API objects, as they are on the wire, that the types of both clusters share.

pub mod endpoint_slice;
pub mod ip_family;
pub mod metadata;
pub mod service;
pub mod system_uuid;
pub mod topology_labels;
