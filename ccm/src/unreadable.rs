//! Objects that can't be read. Others write the objects of both clusters, and the API servers accept more than our types
//! do: a null time in a condition, for example. One such object must not hide the others of a list or a watch. It is
//! skipped, named in the log and counted, and what was read of it last stays.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{Resource, api::ObjectMeta};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// How many unreadable objects are remembered as named in the log; above it all are forgotten, and named again.
const MOST_NAMED: usize = 1000;

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
}

/// Reports the unreadable objects of one cluster. Clones share what they have reported.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    cluster: &'static str,
    skipped: SkippedMetrics,
    /// What the log has named.
    named: Arc<Mutex<HashSet<String>>>,
}

/// Counts the unreadable objects of both clusters. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct SkippedMetrics(Family<SkippedLabels, Counter>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SkippedLabels {
    cluster: &'static str,
    resource: String,
}

impl<'de, K: for<'a> Deserialize<'a>> Deserialize<'de> for Readable<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        Ok(Self(K::deserialize(&object).map_err(|error| Unreadable::of(&object, error.to_string()))))
    }
}

impl Unreadable {
    fn of(object: &Value, error: String) -> Self {
        let text = |key: &str| Some(object.get("metadata")?.get(key)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Self { metadata: Box::new(metadata), error }
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
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

impl SkippedMetrics {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_ccm_unreadable_objects",
            "Objects that could not be read and were skipped, by cluster and resource; each read of one counts",
            self.0.clone(),
        );
    }

    /// Counts one, so that a test sees the labels.
    #[cfg(test)]
    pub(crate) fn sample(&self) {
        self.count("sample", "sample");
    }

    fn count(&self, cluster: &'static str, resource: &str) {
        self.0.get_or_create(&SkippedLabels { cluster, resource: resource.to_owned() }).inc();
    }
}

impl Reader {
    /// Reports the unreadable objects of `cluster`.
    pub fn of(cluster: &'static str, skipped: SkippedMetrics) -> Self {
        Self { cluster, skipped, named: Arc::default() }
    }

    /// The object. If it can't be read, counts that and names the object in the log, once until something else is wrong
    /// with it.
    ///
    /// # Errors
    /// The object can't be read.
    pub fn read<K: Resource<DynamicType = ()>>(&self, object: Readable<K>) -> Result<K, Unreadable> {
        object.0.inspect_err(|unreadable| self.report(&K::plural(&()), unreadable))
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
        self.skipped.count(self.cluster, resource);
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
    use prometheus_client::encoding::text::encode;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case::wrong_type(json!({"metadata": {"name": "odd", "uid": "u"}, "spec": 7}), Some("odd"))]
    #[case::odd_metadata(json!({"metadata": {"name": "odd", "creationTimestamp": "yesterday"}}), Some("odd"))]
    #[case::no_metadata(json!({"spec": 7}), None)]
    #[case::no_object(json!("text"), None)]
    #[case::null(json!(null), None)]
    fn an_odd_object_does_not_hide_the_others_of_a_list(#[case] odd: Value, #[case] name: Option<&str>) {
        let list = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {},
            "items": [{"metadata": {"name": "a"}}, odd, {"metadata": {"name": "b"}}]});
        let list: ObjectList<Readable<Service>> = serde_json::from_value(list).unwrap();
        assert_eq!(list.items[1].meta().name.as_deref(), name);
        let (metrics, mut registry, mut text) =
            (SkippedMetrics::default(), Registry::default(), String::new());
        metrics.register(&mut registry);
        let read = Reader::of("guest", metrics).readable(list.items);
        assert_eq!(
            read.iter().map(|it| it.metadata.name.as_deref().unwrap()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        encode(&mut text, &registry).unwrap();
        let line = r#"kubevirt_ccm_unreadable_objects_total{cluster="guest",resource="services"} 1"#;
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn an_object_is_named_once_for_each_thing_that_is_wrong() {
        let reader = Reader::default();
        let odd = |error: &str| Unreadable::of(&json!({"metadata": {"name": "odd"}}), error.to_owned());
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
}
