//! Writes `core/v1` Events as client-go's recorder does: the same message about the same object is one Event with a count,
//! nothing is read (virt-handler may not), and what could not be written is not tried again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::queue::conflict;

/// Where events of cluster-scoped objects go.
const DEFAULT_NAMESPACE: &str = "default";
/// Bytes of the hash that distinguishes an object's events.
const NAME_HASH_BYTES: usize = 8;

/// An Event's `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Information.
    Normal,
    /// Something that an operator should see.
    Warning,
}

/// Writes the events of one component.
#[derive(Debug)]
pub(super) struct Recorder {
    component: &'static str,
    /// How often this recorder wrote each event, by namespace and name.
    counts: Mutex<BTreeMap<(String, String), i32>>,
}

impl Recorder {
    pub(super) fn new(component: &'static str) -> Self {
        Self { component, counts: Mutex::default() }
    }

    /// Tells `about` an event: kind, reason, message.
    pub(super) async fn tell(&self, client: &Client, about: &ObjectReference, words: (Kind, &str, &str)) {
        if let Err(error) = self.write(client, about, words).await {
            tracing::warn!(
                component = self.component,
                reason = words.1,
                "an event could not be written: {error}"
            );
        }
    }

    async fn write(
        &self,
        client: &Client,
        about: &ObjectReference,
        words: (Kind, &str, &str),
    ) -> Result<(), kube::Error> {
        let namespace = about.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let name = event_name(about, self.component, words.1, words.2);
        let now = Time(Timestamp::now());
        let count = self.count(namespace, &name);
        if count == 1 {
            let event = event(self.component, about, words, &name, &now);
            match events.create(&PostParams::default(), &event).await {
                // Told before this recorder was made; how often is not known.
                Err(error) if conflict(&error) => {}
                outcome => return outcome.map(drop),
            }
        }
        let mut again = json!({"lastTimestamp": now});
        if count > 1 {
            again["count"] = count.into();
        }
        events.patch(&name, &PatchParams::default(), &Patch::Merge(again)).await.map(drop)
    }

    fn count(&self, namespace: &str, name: &str) -> i32 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((namespace.to_owned(), name.to_owned())).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

fn event(
    component: &str,
    about: &ObjectReference,
    (kind, reason, message): (Kind, &str, &str),
    name: &str,
    now: &Time,
) -> Event {
    let component = Some(component.to_owned());
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: about.namespace.clone(),
        ..ObjectMeta::default()
    };
    Event {
        metadata,
        involved_object: about.clone(),
        type_: Some(if kind == Kind::Normal { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now.clone()),
        source: Some(EventSource { component: component.clone(), host: None }),
        reporting_component: component,
        ..Event::default()
    }
}

/// `<object>.<hash>`, the same for the same message.
fn event_name(about: &ObjectReference, component: &str, reason: &str, message: &str) -> String {
    let mut hash = Sha256::new();
    for part in [about.uid.as_deref().unwrap_or_default(), component, reason, message] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let name = format!("{}.", about.name.as_deref().unwrap_or_default());
    hash.finalize().iter().take(NAME_HASH_BYTES).fold(name, |name, byte| format!("{name}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_about_the_same_object_share_a_name() {
        let pvc = ObjectReference { name: Some("a".into()), uid: Some("1".into()), ..Default::default() };
        let other = ObjectReference { uid: Some("2".into()), ..pvc.clone() };
        let name = event_name(&pvc, "c", "r", "m");
        assert_eq!(name, event_name(&pvc, "c", "r", "m"));
        assert_ne!(name, event_name(&other, "c", "r", "m"));
        assert_ne!(name, event_name(&pvc, "c", "rm", ""));
        assert!(name.starts_with("a."));
    }
}
