//! Events on objects of the guest, which its users read in `kubectl describe`. A task of its own writes them, so that
//! an event never delays a reconcile. An event that repeats an earlier one raises that one's count, as client-go's
//! recorder does.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use serving::Tasks;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::access::GuestCluster;

/// Events that may wait to be written; further ones are dropped and logged. Enough for two events for each of a
/// thousand Services.
const QUEUE: usize = 2000;
/// How long an event waits at most for more urgent calls. A call that hangs therefore holds up no event, and the events
/// of a storm are written at the rate that the upstream cloud provider has for all its calls (`--kube-api-qps`, 20 a
/// second).
const PATIENCE: Duration = Duration::from_millis(50);
/// If an event does not repeat within this time, the next one is a new Event object (client-go:
/// `defaultAggregateIntervalInSeconds`).
const REPEAT_WITHIN: Duration = Duration::from_mins(10);
/// How many written events are kept in memory. Above that the oldest is dropped, which costs one more Event object if
/// it repeats (client-go keeps 4096, `maxLruCacheEntries`).
const REMEMBERED: usize = 1000;
/// Longest note, in bytes, that the API accepts (validation of core/v1 Event).
const MAX_NOTE: usize = 1024;
/// Longest name of an object (`validation.IsDNS1123Subdomain`).
const MAX_NAME: usize = 253;
/// The namespace of events on objects without one.
const DEFAULT_NAMESPACE: &str = "default";

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// For information.
    Normal,
    /// Somebody should investigate.
    Warning,
}

/// Takes events for one component.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: mpsc::Sender<Note>,
    urgent: watch::Sender<usize>,
}

/// Marks work that is more urgent than events, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends it"]
pub struct Urgent(watch::Sender<usize>);

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What distinguishes one event from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Saying {
    uid: String,
    kind: Kind,
    reason: String,
    note: String,
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    saying: Saying,
    at: Timestamp,
}

struct Written {
    name: String,
    namespace: String,
    count: i32,
    at: Instant,
}

impl EventSink {
    /// Starts the task that writes events. `component` is the source that users see.
    pub fn start(guest: GuestCluster, component: &'static str, tasks: &Tasks) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let urgent = watch::Sender::default();
        tasks.spawn_until_done("the writer of events", write(guest, component, notes, urgent.subscribe()));
        Self { queue, urgent }
    }

    /// Announces work that is more urgent than events: the API servers should serve its calls first.
    pub fn urgent(&self) -> Urgent {
        self.urgent.send_modify(|count| *count += 1);
        Urgent(self.urgent.clone())
    }

    /// Queues an event of another program about an object. It is dropped while many events wait, so that our own have room.
    pub fn emit_unless_busy(&self, about: &ObjectReference, kind: Kind, reason: &str, note: &str) {
        if self.queue.capacity() > QUEUE / 2 {
            self.emit(about, kind, reason, note);
        } else {
            tracing::debug!(reason, "many events wait, so one of another program was dropped");
        }
    }

    /// Queues an event about an object.
    pub fn emit(&self, about: &ObjectReference, kind: Kind, reason: &str, note: &str) {
        let note = note[..note.floor_char_boundary(MAX_NOTE)].to_owned();
        let uid = about.uid.clone().unwrap_or_default();
        let saying = Saying { uid, kind, reason: reason.to_owned(), note };
        let note = Note { about: about.clone(), saying, at: Timestamp::now() };
        if let Err(error) = self.queue.try_send(note) {
            tracing::warn!(%error, reason, "an event was dropped");
        }
    }
}

async fn write(
    guest: GuestCluster,
    component: &'static str,
    mut notes: mpsc::Receiver<Note>,
    mut urgent: watch::Receiver<usize>,
) {
    let mut written: HashMap<Saying, Written> = HashMap::new();
    while let Some(note) = notes.recv().await {
        // Write the event when the urgent work is done, and at the latest after PATIENCE.
        drop(tokio::time::timeout(PATIENCE, urgent.wait_for(|count| *count == 0)).await);
        written.retain(|_, event| event.at.elapsed() < REPEAT_WITHIN);
        let known = written.get(&note.saying);
        match put(&guest, component, &note, known).await {
            Ok(event) => {
                make_room(&mut written);
                written.insert(note.saying, event);
            }
            Err(error) => {
                tracing::warn!(%error, reason = note.saying.reason, "an event could not be written");
                written.remove(&note.saying);
            }
        }
    }
}

/// Makes room for one more event by dropping the oldest.
fn make_room(written: &mut HashMap<Saying, Written>) {
    if written.len() >= REMEMBERED
        && let Some(oldest) =
            written.iter().min_by_key(|(_, event)| event.at).map(|(saying, _)| saying.clone())
    {
        written.remove(&oldest);
    }
}

async fn put(
    guest: &GuestCluster,
    component: &str,
    note: &Note,
    known: Option<&Written>,
) -> Result<Written, kube::Error> {
    let now = note.at;
    if let Some(known) = known {
        let api: Api<Event> = Api::namespaced(guest.client.clone(), &known.namespace);
        let count = known.count + 1;
        let patch = json!({ "count": count, "lastTimestamp": Time(now) });
        let patched = api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            Ok(_) => {
                let (name, namespace) = (known.name.clone(), known.namespace.clone());
                return Ok(Written { name, namespace, count, at: Instant::now() });
            }
            // The API server removes events after an hour; create a new one then.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let namespace = note.about.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let name = event_name(note.about.name.as_deref().unwrap_or_default(), now);
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        type_: Some(format!("{:?}", note.saying.kind)),
        reason: Some(note.saying.reason.clone()),
        message: Some(note.saying.note.clone()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(guest.client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await?;
    Ok(Written { name, namespace, count: 1, at: Instant::now() })
}

/// The name of a new event about the object of this name, in the form that client-go's recorder gives. The name of a Node
/// may have as many characters as an event's: then it is cut, and still followed by the time, so that names differ.
pub(crate) fn event_name(about: &str, now: Timestamp) -> String {
    let time = format!("{:x}", now.as_nanosecond());
    let room = MAX_NAME.saturating_sub(time.len() + 1);
    let about = about[..about.floor_char_boundary(room)].trim_end_matches(['.', '-']);
    format!("{about}.{time}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use rstest::rstest;

    #[rstest]
    #[case::short("w1", "w1.18bcfe567fd01c1d")]
    #[case::a_service(&"s".repeat(63), &format!("{}.18bcfe567fd01c1d", "s".repeat(63)))]
    #[case::longest(&"n".repeat(253), &format!("{}.18bcfe567fd01c1d", "n".repeat(236)))]
    #[case::cut_at_a_dot(&format!("{}.{}", "n".repeat(235), "d".repeat(17)), &format!("{}.18bcfe567fd01c1d", "n".repeat(235)))]
    fn the_name_of_an_event_is_never_too_long(#[case] about: &str, #[case] name: &str) {
        let now = Timestamp::from_nanosecond(0x18bc_fe56_7fd0_1c1d).unwrap();
        assert_eq!(event_name(about, now), name);
        assert!(event_name(about, now).len() <= MAX_NAME);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_waits_for_what_is_urgent_but_not_for_long() {
        let api = FakeApi::default();
        let sink = EventSink::start(GuestCluster::over(api.client()), "test", &Tasks::default());
        let urgent = [sink.urgent(), sink.urgent()];
        let about = ObjectReference { name: Some("web".to_owned()), ..ObjectReference::default() };
        for reason in ["First", "Second"] {
            sink.emit(&about, Kind::Normal, reason, "");
        }
        tokio::time::sleep(PATIENCE / 2).await;
        assert_eq!(api.made("POST").len(), 0);
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(api.made("POST").len(), 1, "patience ends for each");
        drop(urgent);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let made = api.made("POST");
        assert_eq!(
            made.iter().map(|made| made.body["reason"].as_str()).collect::<Vec<_>>(),
            [Some("First"), Some("Second")]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_a_thousand_is_forgotten_for_the_next() {
        let mut written = HashMap::new();
        let saying = |number: usize| Saying {
            uid: number.to_string(),
            kind: Kind::Normal,
            reason: "EnsuredLoadBalancer".to_owned(),
            note: String::new(),
        };
        for number in 0..=REMEMBERED {
            make_room(&mut written);
            let at = Instant::now();
            let event = Written { name: String::new(), namespace: String::new(), count: 1, at };
            written.insert(saying(number), event);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(written.len(), REMEMBERED);
        assert!(!written.contains_key(&saying(0)) && written.contains_key(&saying(1)));
    }
}
