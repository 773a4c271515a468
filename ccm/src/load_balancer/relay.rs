//! Copies infra's events about a mirror (no address left in the pool, refused by the cloud) to the guest's Service. It
//! needs the right to watch events in the infra namespace, which not every operator grants; without that right it is
//! off, and the right is asked for again.
//!
//! Other programs decide how many events they write: MetalLB's speakers write one for each node and reconcile
//! (metallb/metallb#3135). Each relayed one is a write to the guest, so [`RelayPace`] limits them.

mod pace;

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event as CoreEvent, EventSource, ObjectReference};
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
    guest::services::GuestService,
    load_balancer::{announce::reference, index::Index},
    unreadable::Readable,
    watching::watch,
};

use pace::{RelayPace, Source};

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
    /// The program that wrote it, as the older recorders name it.
    source: Option<EventSource>,
    /// The same, as the newer ones do.
    reporting_component: Option<String>,
}

impl InfraEvent {
    fn kind(&self) -> Kind {
        if self.kind == "Warning" { Kind::Warning } else { Kind::Normal }
    }

    /// What its pace is counted by.
    fn source(&self, guest: &GuestService) -> Source {
        let reporting = self.reporting_component.clone().filter(|name| !name.is_empty());
        let component = reporting.or_else(|| self.source.as_ref()?.component.clone()).unwrap_or_default();
        Source { service: guest.uid().to_owned(), component, kind: self.kind() }
    }
}

/// Starts to relay events from now on.
pub(crate) fn start(infra: &InfraCluster, index: Index, events: EventSink, tasks: &Tasks) {
    let api: Api<Readable<InfraEvent>> = Api::namespaced(infra.client.clone(), &infra.namespace);
    let reader = infra.reader.clone();
    let config = watcher::Config::default().fields(ABOUT_SERVICES);
    tasks.spawn_until_done("the relay of the infra cluster's events", async move {
        let (mut was_refused, pace) = (false, RelayPace::default());
        loop {
            let mut said = std::pin::pin!(watch(api.clone(), config.clone(), reader.clone()));
            while let Some(event) = said.next().await {
                match event {
                    Ok(Event::Apply(Readable(Ok(event)))) => relay(&event, &index, &pace, &events),
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

fn relay(event: &InfraEvent, index: &Index, pace: &RelayPace, events: &EventSink) {
    let name = event.involved_object.name.as_deref().unwrap_or_default();
    let Some(guest) = index.guest_of(name) else { return };
    if !pace.takes(event.source(&guest), (&event.reason, &event.message)) {
        return;
    }
    let note = format!("infra cluster: {}", event.message);
    events.emit_unless_busy(&reference(&guest), event.kind(), &event.reason, &note);
}

#[cfg(test)]
mod tests;
