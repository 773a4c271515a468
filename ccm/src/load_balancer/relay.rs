//! Copies infra's events about a mirror (no address left in the pool, refused by the cloud) to the guest's Service. It
//! needs the right to watch events in the infra namespace, which not every operator grants; without that right it is
//! off, and the right is asked for again.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event as CoreEvent, ObjectReference};
use kube::Resource;
use kube::api::{Api, ObjectMeta};
use kube::runtime::watcher::{self, Event};
use serde::Deserialize;
use serving::Tasks;
use tokio::time::sleep;

use crate::{
    access::InfraCluster,
    announcer::{EventSink, Kind},
    call::is_watch_forbidden,
    load_balancer::{announce::reference, index::Index},
    unreadable::Readable,
    watching::watch,
};

/// Events about Services only.
const ABOUT_SERVICES: &str = "involvedObject.kind=Service";

/// How long a refused watch is not tried again: an API server that starts refuses what it allows a moment later.
const ASK_AGAIN: Duration = Duration::from_mins(5);

/// An event, with the fields that are read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "CoreEvent")]
#[serde(rename_all = "camelCase")]
struct InfraEvent {
    metadata: ObjectMeta,
    involved_object: ObjectReference,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(rename = "type", default)]
    kind: String,
}

/// Starts to relay events from now on.
pub(crate) fn start(infra: &InfraCluster, index: Index, events: EventSink, tasks: &Tasks) {
    let api: Api<Readable<InfraEvent>> = Api::namespaced(infra.client.clone(), &infra.namespace);
    let reader = infra.reader.clone();
    let config = watcher::Config::default().fields(ABOUT_SERVICES);
    tasks.spawn_until_done("the relay of the infra cluster's events", async move {
        let mut was_refused = false;
        loop {
            let mut said = std::pin::pin!(watch(api.clone(), config.clone(), reader.clone()));
            while let Some(event) = said.next().await {
                match event {
                    Ok(Event::Apply(Readable(Ok(event)))) => relay(&event, &index, &events),
                    Ok(_) => {}
                    Err(error) if is_watch_forbidden(&error) => break,
                    Err(error) => tracing::debug!(%error, "the watch of infra's events failed"),
                }
            }
            if !std::mem::replace(&mut was_refused, true) {
                tracing::info!(
                    "no right to watch events in the infra namespace: its words about load balancers are not relayed; the right is asked for again every {ASK_AGAIN:?}"
                );
            }
            sleep(ASK_AGAIN).await;
        }
    });
}

fn relay(event: &InfraEvent, index: &Index, events: &EventSink) {
    let name = event.involved_object.name.as_deref().unwrap_or_default();
    let Some(guest) = index.guest_of(name) else { return };
    let kind = if event.kind == "Warning" { Kind::Warning } else { Kind::Normal };
    let note = format!("infra cluster: {}", event.message);
    events.emit(&reference(&guest), kind, &event.reason, &note);
}
