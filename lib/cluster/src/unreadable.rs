//! Objects that can't be read. Others write the objects of both clusters, and the API servers accept more than our types
//! do: a null time in a condition, for example. One such object must not hide the others of a list or a watch. It is
//! skipped, named in the log and counted, and what was read of it last stays.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use serving::cut;

use crate::error::{Error, Failure};

/// How many unreadable objects are remembered as named in the log; above it all are forgotten, and named again.
const MOST_NAMED: usize = 1000;
/// Longest name of an object (Kubernetes, "Object Names and IDs"). A longer one is none, and is not kept.
const MAX_NAME: usize = 253;
/// Longest description of what is wrong with an object: the parser quotes the value that it did not expect.
const MAX_ERROR: usize = 512;

/// An object of an API server, or why it can't be read. Parsing it never fails.
#[derive(Clone, Debug)]
pub struct Readable<K>(pub Result<K, Unreadable>);

/// An object that can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Name, namespace, UID and version, as far as they can be read.
    pub metadata: Box<ObjectMeta>,
    /// What is wrong with it.
    pub error: String,
    /// Every text in it that may be a name.
    names: HashSet<String>,
}

/// Reports the unreadable objects of one cluster. Clones share what they have reported.
#[derive(Clone)]
pub struct Reader {
    cluster: &'static str,
    skipped: Arc<dyn CountSkipped>,
    /// What the log has named.
    named: Arc<Mutex<HashSet<String>>>,
}

/// Counts the objects that were skipped. The metrics themselves are in each program, because their names differ.
pub trait CountSkipped: Send + Sync + 'static {
    /// An object of this resource could not be read.
    fn skipped(&self, cluster: &'static str, resource: &str);
}

/// Counts nothing.
struct NotCounted;

impl CountSkipped for NotCounted {
    fn skipped(&self, _cluster: &'static str, _resource: &str) {}
}

impl Default for Reader {
    fn default() -> Self {
        Self::of("", NotCounted)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl<'de, K: for<'a> Deserialize<'a>> Deserialize<'de> for Readable<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        Ok(Self(K::deserialize(&object).map_err(|error| Unreadable::of(&object, &error.to_string()))))
    }
}

impl Unreadable {
    fn of(object: &Value, error: &str) -> Self {
        let text = |key: &str| {
            let text = object.get("metadata")?.get(key)?.as_str()?;
            (text.len() <= MAX_NAME).then(|| text.to_owned())
        };
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let (mut names, error) = (HashSet::new(), cut(error, MAX_ERROR).into_owned());
        collect_names(object, &mut names);
        Self { metadata: Box::new(metadata), error, names }
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether this name stands anywhere in it as a text of its own. Where it does not, the object refers to nothing of
    /// this name, whatever else it says.
    pub fn mentions(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The error of a call that needs this object.
    pub fn to_error(&self, verb: &'static str, resource: &str) -> Error {
        let failure = Failure::Unreadable(Arc::new(serde_json::Error::custom(&self.error)));
        let name = Some(self.name().to_owned()).filter(|name| !name.is_empty());
        Error { verb, resource: resource.to_owned(), name, failure: Box::new(failure) }
    }
}

fn collect_names(value: &Value, names: &mut HashSet<String>) {
    match value {
        Value::String(text) if text.len() <= MAX_NAME => {
            names.insert(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        Value::Object(fields) => fields.values().for_each(|field| collect_names(field, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Readable<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &*unreadable.metadata, K::meta)
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut *unreadable.metadata, K::meta_mut)
    }
}

impl Reader {
    /// Reports the unreadable objects of `cluster`.
    pub fn of(cluster: &'static str, skipped: impl CountSkipped) -> Self {
        Self { cluster, skipped: Arc::new(skipped), named: Arc::default() }
    }

    /// The object. If it can't be read, counts that and names the object in the log, once until something else is wrong
    /// with it.
    ///
    /// # Errors
    /// The object can't be read.
    pub fn read<K: Resource<DynamicType = ()>>(&self, object: Readable<K>) -> Result<K, Unreadable> {
        self.read_of(&K::plural(&()), object)
    }

    /// As [`Self::read`], for a type that does not know its resource.
    ///
    /// # Errors
    /// The object can't be read.
    pub fn read_of<K>(&self, resource: &str, object: Readable<K>) -> Result<K, Unreadable> {
        object.0.inspect_err(|unreadable| self.report(resource, unreadable))
    }

    /// Those of the objects that can be read; the others are reported.
    pub fn readable<K: Resource<DynamicType = ()>>(
        &self,
        objects: impl IntoIterator<Item = Readable<K>>,
    ) -> Vec<K> {
        objects.into_iter().filter_map(|object| self.read(object).ok()).collect()
    }

    /// Counts an unreadable object and names it in the log.
    pub fn report(&self, resource: &str, unreadable: &Unreadable) {
        self.skipped.skipped(self.cluster, resource);
        let namespace = unreadable.metadata.namespace.as_deref().unwrap_or_default();
        let (name, error) = (unreadable.name(), &unreadable.error);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() >= MOST_NAMED {
            named.clear();
        }
        if named.insert(format!("{resource} {namespace}/{name}: {error}")) {
            let cluster = self.cluster;
            tracing::warn!(
                cluster,
                resource,
                namespace,
                name,
                error,
                "an object can't be read and is skipped; what was read of it last stays, the others are served"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Service};
    use kube::core::ObjectList;
    use rstest::rstest;
    use serde_json::json;

    /// Keeps what is counted.
    #[derive(Clone, Default)]
    struct Counted(Arc<Mutex<Vec<String>>>);

    impl CountSkipped for Counted {
        fn skipped(&self, cluster: &'static str, resource: &str) {
            self.0.lock().unwrap().push(format!("{cluster} {resource}"));
        }
    }

    #[rstest]
    #[case::wrong_type(json!({"metadata": {"name": "odd", "uid": "u"}, "spec": 7}), Some("odd"))]
    #[case::odd_metadata(json!({"metadata": {"name": "odd", "creationTimestamp": "yesterday"}}), Some("odd"))]
    #[case::no_metadata(json!({"spec": 7}), None)]
    #[case::no_name(json!({"metadata": {"name": "x".repeat(254)}, "spec": 7}), None)]
    #[case::no_object(json!("text"), None)]
    #[case::null(json!(null), None)]
    fn an_odd_object_does_not_hide_the_others_of_a_list(#[case] odd: Value, #[case] name: Option<&str>) {
        let list = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {},
            "items": [{"metadata": {"name": "a"}}, odd, {"metadata": {"name": "b"}}]});
        let list: ObjectList<Readable<Service>> = serde_json::from_value(list).unwrap();
        assert_eq!(list.items[1].meta().name.as_deref(), name);
        let counted = Counted::default();
        let read = Reader::of("guest", counted.clone()).readable(list.items);
        assert_eq!(
            read.iter().map(|it| it.metadata.name.as_deref().unwrap()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(*counted.0.lock().unwrap(), ["guest services"]);
    }

    #[test]
    fn an_object_is_named_once_for_each_thing_that_is_wrong() {
        let reader = Reader::default();
        let odd = |error: &str| Unreadable::of(&json!({"metadata": {"name": "odd"}}), error);
        for error in ["a", "a", "b"] {
            reader.report("configmaps", &odd(error));
        }
        assert_eq!(reader.named.lock().unwrap().len(), 2);
        for number in 0..=MOST_NAMED {
            reader.report("configmaps", &odd(&number.to_string()));
        }
        assert!(reader.named.lock().unwrap().len() <= MOST_NAMED, "it does not grow without end");
    }

    #[test]
    fn a_good_object_is_read_as_ever() {
        let good: Readable<ConfigMap> =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).unwrap();
        assert_eq!(Reader::default().read(good).unwrap().data.unwrap()["k"], "v");
    }

    #[test]
    fn an_odd_object_still_shows_which_names_it_mentions() {
        let odd = json!({"metadata": {"name": "vm1"}, "spec": {"volumes": [{"name": "pvc-1"}, {"claim": "pvc-2"}, 7]}});
        let odd = Unreadable::of(&odd, "odd");
        assert!(odd.mentions("pvc-1") && odd.mentions("pvc-2") && odd.mentions("vm1"));
        assert!(!odd.mentions("pvc") && !odd.mentions("volumes"));
        assert_eq!(
            odd.to_error("list", "virtualmachines").to_string(),
            "list virtualmachines vm1: the answer can't be read: odd"
        );
    }

    #[test]
    fn an_error_that_quotes_megabytes_is_cut() {
        let odd = json!({"metadata": {"name": "a"}, "data": "x".repeat(3 << 20)});
        let odd: Readable<ConfigMap> = serde_json::from_value(odd).unwrap();
        let error = odd.0.unwrap_err().error;
        assert!(error.len() < MAX_ERROR + 64 && error.starts_with("invalid type"), "{}", error.len());
    }
}
