//! Events on Nodes, in the form that the framework's recorders write: core/v1, in the namespace `default`.

use std::fmt::Debug;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use crate::{access::chain, announcer::event_name, call::call, guest::nodes::GuestNode};

/// The namespace of events about objects without one (client-go, `record.EventRecorder`).
const NAMESPACE: &str = "default";
/// Source of the events of initialisation and upkeep.
pub const NODE_SOURCE: &str = "cloud-node-controller";
/// Source of the events of shutdown and deletion.
pub const LIFECYCLE_SOURCE: &str = "cloud-node-lifecycle-controller";

/// An event about a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The controller that reports it.
    pub source: &'static str,
    /// Whether it is a warning.
    pub warning: bool,
    /// The reason, as in the framework if that has one.
    pub reason: &'static str,
    /// The message, one sentence.
    pub message: String,
}

/// Writes events about Nodes.
#[derive(Clone)]
pub struct Announcer {
    events: Api<Event>,
}

impl Announcer {
    /// Writes its events in the guest.
    pub fn new(guest: Client) -> Self {
        Self { events: Api::namespaced(guest, NAMESPACE) }
    }

    /// Writes an event. A failure is only logged, because no decision depends on an event.
    pub async fn announce(&self, node: &GuestNode, said: &Announcement) {
        let event = event(node, said, Timestamp::now());
        let what = || format!("create event {} of node {}", said.reason, node.claims.name);
        if let Err(error) = call(what, self.events.create(&PostParams::default(), &event)).await {
            tracing::warn!(error = chain(&error), "an event could not be written");
        }
    }
}

fn event(node: &GuestNode, said: &Announcement, now: Timestamp) -> Event {
    let name = &node.claims.name;
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(name, now)),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(node.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some(if said.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(said.reason.to_owned()),
        message: Some(said.message.clone()),
        source: Some(EventSource { component: Some(said.source.to_owned()), host: None }),
        reporting_component: Some(said.source.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::nodes::Claims;

    #[test]
    fn an_event_is_the_frameworks() {
        let claims = Claims { name: "w1".into(), ..Claims::default() };
        let node = GuestNode { uid: "u".into(), claims, ..GuestNode::default() };
        let said =
            Announcement { source: NODE_SOURCE, warning: false, reason: "Synced", message: "m".into() };
        let event = event(&node, &said, Timestamp::from_nanosecond(255).unwrap());
        assert_eq!(event.metadata.name.as_deref(), Some("w1.ff"));
        assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Normal"), Some("Synced")));
        assert_eq!(event.source.unwrap().component.as_deref(), Some("cloud-node-controller"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
    }
}
