//! A watch that lasts as long as the right to it.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;

use crate::{
    access::chain,
    call::{is_watch_answered, is_watch_forbidden},
};

/// Why writing ended: a cluster refused a call.
#[derive(Debug)]
pub(crate) struct Refused(pub String);

/// Objects per page of a list.
const PAGE: u32 = 100;

/// What a watch does with its events.
pub(crate) trait Follow<K> {
    /// An object was added or changed.
    fn put(&self, object: K);
    /// An object was deleted.
    fn remove(&self, object: K);
    /// The list is complete: `living` has the [`key`] of every object.
    fn complete(&self, living: &HashSet<String>);
}

/// The key of an object.
pub(crate) fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// Watches all objects of `api`; ends when the API server refuses that.
pub(crate) async fn watch<K>(
    api: Api<K>,
    selector: Option<String>,
    what: &'static str,
    follower: &impl Follow<K>,
) -> Refused
where
    K: Resource<DynamicType: Default> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = watcher::Config::default().page_size(PAGE);
    config.label_selector = selector;
    let mut events = pin!(watcher(api, config).default_backoff());
    let (mut living, mut failing) = (HashSet::new(), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if is_watch_answered(&event) && std::mem::take(&mut failing) {
                    tracing::info!(what, "the watch is back");
                }
                match event {
                    Event::Init => living.clear(),
                    Event::InitApply(object) => {
                        living.insert(key(&object));
                        follower.put(object);
                    }
                    Event::InitDone => follower.complete(&std::mem::take(&mut living)),
                    Event::Apply(object) => follower.put(object),
                    Event::Delete(object) => follower.remove(object),
                }
            }
            Err(error) if is_watch_forbidden(&error) => {
                return Refused(format!("no right to watch {what}"));
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(what, error = chain(&error), "the watch failed; endpoints stay as they are");
            }
            Err(error) => tracing::debug!(what, %error, "the watch fails still"),
        }
    }
    Refused(format!("the watch of {what} ended"))
}
