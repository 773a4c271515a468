//! The watches of the Services of both clusters, which keep the index up to date.

use std::{fmt::Debug, sync::Arc};

use futures::StreamExt;
use kube::{
    Resource,
    api::{Api, ObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use serving::Tasks;

use crate::{
    access::{GuestCluster, InfraCluster, chain},
    call::is_watch_answered,
    config::policy::GuestPolicy,
    guest::services::GuestService,
    guest_names::CLUSTER_NAME_LABEL,
    infra::mirrors::InfraService,
    load_balancer::index::{Index, Writers},
    unreadable::Readable,
    watching::watch_known,
};

/// Objects per page of a list: small pages cost calls, large ones memory.
const PAGE: u32 = 100;

/// Starts both watches. Of the guest's Services only what `policy` lets reach infra is kept.
pub fn start(
    index: &Index,
    writers: Writers,
    (guest, infra): (&GuestCluster, &InfraCluster),
    policy: Arc<GuestPolicy>,
    tasks: &Tasks,
) {
    let config = watcher::Config::default().page_size(PAGE);
    let all = Api::<Readable<GuestService>>::all(guest.client.clone());
    let all = watch_known(all, config.clone(), guest.reader.clone(), last(index.guests()));
    let all = all
        .modify(move |service| service.slim(|annotations| policy.annotations.keep_read(annotations)))
        .reflect(writers.guests);
    let of_guest = index.clone();
    let following = follow(all, "guest", move |event| of_guest.guest_event(event));
    tasks.spawn("the watch of the guest's Services", following);

    let label = index.identity().cluster_label();
    let config = config.labels(&format!("{CLUSTER_NAME_LABEL}={label}"));
    let own = Api::<Readable<InfraService>>::namespaced(infra.client.clone(), &infra.namespace);
    let own = watch_known(own, config, infra.reader.clone(), last(index.mirror_store()));
    let own = own.reflect(writers.mirrors);
    let of_infra = index.clone();
    let following = follow(own, "infra", move |event| of_infra.infra_event(event));
    tasks.spawn("the watch of the infra Services", following);
}

/// What the store has of an object.
fn last<K>(store: Store<K>) -> impl Fn(&ObjectMeta) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    move |meta| {
        let reference = ObjectRef::new(meta.name.as_deref()?);
        let reference = match &meta.namespace {
            Some(namespace) => reference.within(namespace),
            None => reference,
        };
        store.get(&reference).map(|object| (*object).clone())
    }
}

/// Passes on each event; logs once when a watch fails, and once when it works again.
async fn follow<K>(
    events: impl futures::Stream<Item = watcher::Result<Event<K>>>,
    cluster: &'static str,
    hand_on: impl Fn(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut failing = false;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if is_watch_answered(&event) && std::mem::take(&mut failing) {
                    tracing::info!(cluster, "the watch of Services is back");
                }
                hand_on(event);
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(cluster, error = chain(&error), "the watch of Services failed");
            }
            Err(error) => tracing::debug!(cluster, %error, "the watch of Services fails still"),
        }
    }
}

#[cfg(test)]
mod tests;
