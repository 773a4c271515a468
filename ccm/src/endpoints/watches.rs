//! A watch that lasts as long as the right to it.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;

use crate::{
    access::chain,
    call::{is_watch_answered, is_watch_forbidden},
    unreadable::{Readable, Reader},
    watching,
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
    /// The object with this [`key`] was deleted.
    fn remove(&self, key: &str);
    /// The list is complete: `living` has the [`key`] of every object, also of those that can't be read: what is known of
    /// them stays.
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
    (api, reader): (Api<Readable<K>>, Reader),
    selector: Option<String>,
    what: &'static str,
    follower: &impl Follow<K>,
) -> Refused
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = watcher::Config::default().page_size(PAGE);
    config.label_selector = selector;
    let mut events = pin!(watching::watch(api, config, reader));
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
                        if let Ok(object) = object.0 {
                            follower.put(object);
                        }
                    }
                    Event::InitDone => follower.complete(&std::mem::take(&mut living)),
                    Event::Apply(Readable(Ok(object))) => follower.put(object),
                    Event::Apply(Readable(Err(_))) => {}
                    Event::Delete(object) => follower.remove(&key(&object)),
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
