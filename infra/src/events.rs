//! The warnings about a claim or a VMI. What CDI, the infra storage and virt-controller are refused (a quota, an admission
//! policy, a full pool) stands in events of these objects, and often nowhere else: of a VMI that runs, virt-controller writes
//! no condition (KubeVirt 1.9, `updateStatus` in `pkg/virt-controller/watch/vmi/lifecycle.go`).

use cluster::{Error, WhenPaused};
use kube::api::ListParams;
use kubevirt::null_as_default;
use serde::Deserialize;

use crate::{
    infra::Infra,
    list::List,
    reader::{EVENTS, accepting_all},
};

/// Most events of one object that are read: the API server keeps those of one hour, and one reason is one event.
const MOST: u32 = 50;
/// Most texts that are reported, the newest first.
const MOST_TEXTS: usize = 2;

/// The part of an event that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    #[serde(deserialize_with = "null_as_default")]
    reason: String,
    #[serde(deserialize_with = "null_as_default")]
    message: String,
    /// When it happened the last time (RFC 3339, so that texts compare as times do).
    #[serde(deserialize_with = "null_as_default")]
    last_timestamp: String,
}

impl Infra {
    /// The newest warnings about the object of this UID, as `reason: message`; none where the right to list events was not
    /// granted.
    pub async fn warnings_about(&self, uid: &str) -> Result<Vec<String>, Error> {
        if !self.may_list_events() {
            return Ok(Vec::new());
        }
        let about = format!("involvedObject.uid={uid},type=Warning");
        let params = ListParams::default().fields(&about).limit(MOST);
        let reader = &self.shared.reader;
        let request = accepting_all(reader.requests(EVENTS).list(&params));
        let events: List<Event> = reader.server.read(request, WhenPaused::Fail).await?;
        // One that can't be read was reported; the others still give their reasons.
        let readable =
            events.items.into_iter().filter_map(|event| reader.odd.read_of(EVENTS.plural, event).ok());
        Ok(newest(readable.collect()))
    }
}

fn newest(mut events: Vec<Event>) -> Vec<String> {
    events.sort_by(|one, other| other.last_timestamp.cmp(&one.last_timestamp));
    let mut texts: Vec<String> = Vec::new();
    for event in events {
        let text = format!("{}: {}", event.reason, event.message);
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.truncate(MOST_TEXTS);
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, at: &str) -> Event {
        Event { reason: reason.into(), message: "m".into(), last_timestamp: at.into() }
    }

    #[test]
    fn the_newest_warnings_come_first_and_each_once() {
        let events = vec![
            event("Old", "2026-11-29T10:00:00Z"),
            event("ErrCreatingPVCPrime", "2026-11-29T10:00:09Z"),
            event("ErrCreatingPVCPrime", "2026-11-29T10:00:08Z"),
            event("ProvisioningFailed", "2026-11-29T10:00:07Z"),
        ];
        assert_eq!(newest(events), ["ErrCreatingPVCPrime: m", "ProvisioningFailed: m"]);
        assert!(newest(Vec::new()).is_empty());
    }

    #[test]
    fn an_event_without_a_time_is_read() {
        let event: Event = serde_json::from_str(r#"{"reason": "R", "lastTimestamp": null}"#).unwrap();
        assert_eq!(newest(vec![event]), ["R: "]);
    }
}
