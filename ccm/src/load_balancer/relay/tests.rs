//! What the guest's API server is asked to write for events of infra.

use super::*;
use crate::{
    access::GuestCluster,
    fake_api::FakeApi,
    guest_names::{GuestLabels, infra_name},
    load_balancer::{index::Writers, plan::PlanConfig},
};
use serde_json::{Value, json};

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";

/// A guest with one Service, and its events.
struct Relay {
    api: FakeApi,
    index: Index,
    pace: RelayPace,
    events: EventSink,
    _writers: Writers,
}

impl Relay {
    fn new() -> Self {
        let api = FakeApi::default();
        let identity =
            GuestLabels { cluster: "guest".parse().unwrap(), infra_labels: [].into(), former: [].into() };
        let (index, mut writers) = Index::new(&PlanConfig::of(identity), "hcp".to_owned());
        let web = json!({"metadata": {"name": "web", "namespace": "shop", "uid": UID}, "spec": {"type": "LoadBalancer"}});
        let event = Event::Apply(serde_json::from_value::<GuestService>(web).unwrap());
        writers.guests.apply_watcher_event(&event);
        index.guest_event(event);
        api.answer("POST /api/v1/namespaces/shop/events", 201, json!({"metadata": {}, "involvedObject": {}}));
        let events = EventSink::start(GuestCluster::over(api.client()), "test", &Tasks::default());
        Self { api, index, pace: RelayPace::default(), events, _writers: writers }
    }

    fn relay(&self, kind: &str, message: &str, count: u32, more: &Value) {
        let mut event = json!({"metadata": {"name": "e"}, "involvedObject": {"name": infra_name(UID)}, "type": kind,
            "reason": "nodeAssigned", "message": message, "count": count});
        for (key, value) in more.as_object().unwrap() {
            event[key] = value.clone();
        }
        relay(&serde_json::from_value(event).unwrap(), &self.index, &self.pace, &self.events);
    }

    /// The messages that were written to the guest.
    async fn written(&self) -> Vec<String> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let text = |made: crate::fake_api::Made| made.body["message"].as_str().unwrap_or("again").to_owned();
        self.api.made("POST").into_iter().chain(self.api.made("PATCH")).map(text).collect()
    }
}

/// metallb/metallb#3135: one event of infra, whose count goes up with each reconcile of each speaker.
#[tokio::test(start_paused = true)]
async fn an_event_that_infra_counts_up_a_thousand_times_is_one_write_to_the_guest() {
    let relay = Relay::new();
    for count in 1..=1000 {
        relay.relay("Normal", "announcing from node \"a\"", count, &json!({}));
    }
    assert_eq!(relay.written().await, ["infra cluster: announcing from node \"a\""]);
}

/// Three speakers in turn, as while an address moves to and fro.
#[tokio::test(start_paused = true)]
async fn texts_that_come_in_turn_are_each_written_once() {
    let relay = Relay::new();
    for text in ["a", "b", "c"].into_iter().cycle().take(999) {
        relay.relay("Normal", text, 1, &json!({}));
    }
    assert_eq!(relay.written().await.len(), 3);
}

/// Each text is new, and the program that writes them is named in either way.
#[tokio::test(start_paused = true)]
async fn a_flood_of_texts_is_cut_off_and_hides_neither_a_warning_nor_another_program() {
    let relay = Relay::new();
    let speaker = json!({"source": {"component": "speaker"}, "reportingComponent": ""});
    for number in 0..1000 {
        relay.relay("Normal", &format!("text {number}"), 1, &speaker);
    }
    relay.relay("Warning", "no address left", 1, &speaker);
    relay.relay("Normal", "assigned", 1, &json!({"reportingComponent": "controller"}));
    let written = relay.written().await;
    assert_eq!(written.len(), 27, "{written:?}");
    for text in ["infra cluster: no address left", "infra cluster: assigned"] {
        assert!(written.iter().any(|found| found == text), "{text} in {written:?}");
    }
}

/// Many Services, each with its burst: the queue has room for what the program itself reports.
#[tokio::test(start_paused = true)]
async fn infra_s_events_leave_room_for_our_own() {
    let relay = Relay::new();
    let about = reference(&relay.index.guest_of(&infra_name(UID)).unwrap());
    for number in 0..5000 {
        relay.events.emit_unless_busy(&about, Kind::Normal, "nodeAssigned", &number.to_string());
    }
    relay.events.emit(&about, Kind::Warning, "SyncLoadBalancerFailed", "ours");
    assert!(relay.written().await.iter().any(|text| text == "ours"));
}
