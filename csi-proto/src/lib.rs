//! The Container Storage Interface, generated from the vendored `proto/csi.proto` and nothing else.
//! The version of the specification is recorded in `proto/README.md`.

/// A moment, as messages carry it; reads RFC 3339.
pub use prost_types::Timestamp;

/// Messages, clients and servers of package `csi.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
    tonic::include_proto!("csi.v1");
}
