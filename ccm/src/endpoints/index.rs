//! Objects of a watch by the Service that they belong to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use crate::infra::slices::InfraSlice;

/// Objects by the Service that they belong to.
#[derive(Debug)]
pub(crate) struct Index<S, V> {
    services: HashMap<S, BTreeMap<String, V>>,
    /// The Service of each object, by the object's name (with its namespace where there are several).
    places: HashMap<String, S>,
}

impl<S, V> Default for Index<S, V> {
    fn default() -> Self {
        Self { services: HashMap::new(), places: HashMap::new() }
    }
}

impl<S: Clone + Eq + Hash, V: PartialEq> Index<S, V> {
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

impl<S> Index<S, InfraSlice> {
    /// The UIDs of all slices.
    pub(crate) fn uids(&self) -> HashSet<String> {
        self.services.values().flat_map(BTreeMap::values).map(|slice| slice.uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_where_it_belongs_now() {
        let mut index = Index::default();
        assert_eq!(index.put("s1", Some("a"), 1), ["a"]);
        assert!(index.put("s1", Some("a"), 1).is_empty(), "nothing new");
        assert_eq!(index.put("s1", Some("b"), 1), ["a", "b"], "it moved");
        assert_eq!((index.of(&"a").count(), index.of(&"b").count()), (0, 1));
        assert_eq!(index.put("s1", None, 1), ["b"], "it lost its label");
        assert_eq!(index.remove("s1"), None);
        index.put("s2", Some("a"), 2);
        index.put("s3", Some("a"), 3);
        assert_eq!(index.retain(&["s3".to_owned()].into()), ["a"]);
        assert_eq!(index.of(&"a").collect::<Vec<_>>(), [&3]);
    }
}
