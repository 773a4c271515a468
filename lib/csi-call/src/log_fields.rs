//! The ids that stand in every log line of an operation: fields of the span that is open around the handler. Whoever
//! opens the span declares them empty, and the handler records them once it has the decoded request; nothing else of a
//! request is ever logged, so a `secrets` map can't be.

use tracing::Span;

/// Field: the volume (or snapshot) that the request names.
pub const VOLUME_ID: &str = "volume_id";
/// Field: the node that the request names.
pub const NODE_ID: &str = "node_id";

/// Records the volume of the operation that is being handled. An empty id is not recorded.
pub fn record_volume(id: &str) {
    record(VOLUME_ID, id);
}

/// Records the node of the operation that is being handled. An empty id is not recorded.
pub fn record_node(id: &str) {
    record(NODE_ID, id);
}

fn record(field: &str, id: &str) {
    if !id.is_empty() {
        Span::current().record(field, id);
    }
}
