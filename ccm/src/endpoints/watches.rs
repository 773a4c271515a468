//! The slices and Nodes of both clusters, reduced to what the planners need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;

use crate::{access::chain, call::is_watch_forbidden, endpoints::controller::Ended};

/// Objects per page of a list.
const PAGE: u32 = 100;

/// Objects by the Service that they belong to.
#[derive(Debug)]
pub(crate) struct Shelf<S, V> {
    services: HashMap<S, BTreeMap<String, V>>,
    /// The Service of each object, by the object's name (with its namespace where there are several).
    places: HashMap<String, S>,
}

impl<S, V> Default for Shelf<S, V> {
    fn default() -> Self {
        Self { services: HashMap::new(), places: HashMap::new() }
    }
}

impl<S: Clone + Eq + Hash, V: PartialEq> Shelf<S, V> {
    /// All objects of a Service.
    pub(crate) fn of(&self, service: &S) -> impl Iterator<Item = &V> {
        self.services.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Adds or changes an object; returns the Services that this concerns.
    pub(crate) fn put(&mut self, name: &str, service: Option<S>, object: V) -> Vec<S> {
        let mut concerned = Vec::new();
        if self.places.get(name).is_some_and(|place| Some(place) != service.as_ref()) {
            concerned.extend(self.remove(name));
        }
        let Some(service) = service else { return concerned };
        self.places.insert(name.to_owned(), service.clone());
        let objects = self.services.entry(service.clone()).or_default();
        if objects.get(name) != Some(&object) {
            objects.insert(name.to_owned(), object);
            concerned.push(service);
        }
        concerned
    }

    /// Removes an object; returns the Service that this concerns.
    pub(crate) fn remove(&mut self, name: &str) -> Option<S> {
        let service = self.places.remove(name)?;
        if let Some(objects) = self.services.get_mut(&service) {
            objects.remove(name);
            if objects.is_empty() {
                self.services.remove(&service);
            }
        }
        Some(service)
    }

    /// Removes all objects that are not in `living`; returns the Services that this concerns.
    pub(crate) fn retain(&mut self, living: &HashSet<String>) -> Vec<S> {
        let gone: Vec<_> = self.places.keys().filter(|name| !living.contains(*name)).cloned().collect();
        gone.iter().filter_map(|name| self.remove(name)).collect()
    }
}

/// What a watch does with its events.
pub(crate) trait Follow<K> {
    /// An object was added or changed.
    fn put(&self, object: K);
    /// An object was deleted.
    fn remove(&self, object: K);
    /// The list is complete: `living` has the [`key`] of every object.
    fn complete(&self, living: &HashSet<String>);
}

/// The name of an object on a shelf.
pub(crate) fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// Watches all objects of `api`; ends when the API server refuses that.
pub(crate) async fn follow<K>(
    api: Api<K>,
    selector: Option<String>,
    what: &'static str,
    follower: &impl Follow<K>,
) -> Ended
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
                if std::mem::take(&mut failing) {
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
                return Ended::Forbidden(format!("no right to watch {what}"));
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(what, error = chain(&error), "the watch failed; endpoints stay as they are");
            }
            Err(error) => tracing::debug!(what, %error, "the watch fails still"),
        }
    }
    Ended::Forbidden(format!("the watch of {what} ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_where_it_belongs_now() {
        let mut shelf = Shelf::default();
        assert_eq!(shelf.put("s1", Some("a"), 1), ["a"]);
        assert!(shelf.put("s1", Some("a"), 1).is_empty(), "nothing new");
        assert_eq!(shelf.put("s1", Some("b"), 1), ["a", "b"], "it moved");
        assert_eq!((shelf.of(&"a").count(), shelf.of(&"b").count()), (0, 1));
        assert_eq!(shelf.put("s1", None, 1), ["b"], "it lost its label");
        assert_eq!(shelf.remove("s1"), None);
        shelf.put("s2", Some("a"), 2);
        shelf.put("s3", Some("a"), 3);
        assert_eq!(shelf.retain(&["s3".to_owned()].into()), ["a"]);
        assert_eq!(shelf.of(&"a").collect::<Vec<_>>(), [&3]);
    }
}
