//! CDI's `DataVolume`: the part that we read, and the exact object that we create, as kubevirt/csi-driver creates it.

use std::collections::BTreeMap;

use kubevirt::{Metadata, ObjectName, null_as_default};
use serde::Deserialize;

use crate::{guest_guard::Guarded, quantity::Quantity};

/// API version of the objects that we create.
pub(crate) const API_VERSION: &str = "cdi.kubevirt.io/v1beta1";
/// Kind of a claim in a `dataSourceRef`.
const CLAIM_KIND: &str = "PersistentVolumeClaim";
/// Keeps CDI before 1.62 from deleting the object once it is populated. kubevirt/csi-driver sets it too; it is harmless
/// elsewhere.
pub const KEEP_AFTER_COMPLETION: &str = "cdi.kubevirt.io/storage.deleteAfterCompletion";

/// The part of a `DataVolume` that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Wire")]
pub struct DataVolume {
    /// Metadata.
    pub metadata: Metadata,
    /// Requested size in bytes; `None` when absent or not a quantity.
    pub size: Option<u64>,
    /// Requested infra storage class.
    pub storage_class: Option<String>,
    /// Requested access modes; empty = the `StorageProfile` decides.
    pub access_modes: Vec<String>,
    /// Whether modes and size are in `spec.storage` (as ours), not in `spec.pvc`.
    pub uses_storage: bool,
    /// Where its content comes from.
    pub source: DataVolumeSource,
    /// `status.phase` as CDI writes it; empty before CDI saw the object.
    pub phase: String,
    /// `status.conditions`.
    pub conditions: Vec<Condition>,
}

/// Where the content of a `DataVolume` comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DataVolumeSource {
    /// An empty disk.
    Blank,
    /// A `VolumeSnapshot` of the same namespace, by name.
    Snapshot(String),
    /// A claim of the same namespace, by name.
    Claim(String),
    /// Anything else: another namespace, an import, none.
    #[default]
    Other,
}

/// One condition of a `DataVolume` or of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// `Bound`, `Ready` or `Running` of a `DataVolume`; `Resizing` and others of a claim.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

impl DataVolume {
    /// Whether it is being deleted.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// CDI's own report of how far it is: the phase, and reason and message of each condition that is not true, each
    /// text once.
    pub fn progress(&self) -> String {
        let phase = match self.phase.as_str() {
            "" if self.conditions.is_empty() => "data volume not seen by CDI yet".to_owned(),
            "" => "data volume without a phase".to_owned(),
            phase => format!("data volume phase {phase}"),
        };
        let complaints = self.conditions.iter().filter(|c| c.status != "True" && !c.message.is_empty());
        let mut words = vec![phase];
        for complaint in complaints.map(|c| format!("{}: {}", c.reason, c.message)) {
            // CDI writes one message to several conditions.
            if !words.contains(&complaint) {
                words.push(complaint);
            }
        }
        words.join("; ")
    }
}

impl Guarded for DataVolume {
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    metadata: Metadata,
    spec: WireSpec,
    status: WireStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireSpec {
    source: Option<WireSource>,
    storage: Option<WireStorage>,
    pvc: Option<WireStorage>,
}

/// CDI admits one source only.
#[derive(Deserialize, Default)]
#[serde(default)]
struct WireSource {
    blank: Option<serde::de::IgnoredAny>,
    snapshot: Option<WireReference>,
    pvc: Option<WireReference>,
}

/// Names another object. CDI takes an empty namespace for that of the `DataVolume`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct WireReference {
    kind: String,
    #[serde(deserialize_with = "null_as_default")]
    namespace: String,
    name: String,
}

impl WireReference {
    /// The name, where the object is in `namespace`.
    fn in_namespace(self, namespace: &str) -> Option<String> {
        (self.namespace.is_empty() || self.namespace == namespace).then_some(self.name)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireStorage {
    #[serde(deserialize_with = "null_as_default")]
    access_modes: Vec<String>,
    storage_class_name: Option<String>,
    data_source_ref: Option<WireReference>,
    #[serde(deserialize_with = "null_as_default")]
    resources: WireResources,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireResources {
    #[serde(deserialize_with = "null_as_default")]
    requests: BTreeMap<String, Quantity>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireStatus {
    phase: String,
    #[serde(deserialize_with = "null_as_default")]
    conditions: Vec<Condition>,
}

impl From<Wire> for DataVolume {
    fn from(wire: Wire) -> Self {
        let uses_storage = wire.spec.storage.is_some();
        let storage = wire.spec.storage.or(wire.spec.pvc).unwrap_or_default();
        let size = storage.resources.requests.get("storage").and_then(Quantity::bytes);
        let source = source_of(wire.spec.source, storage.data_source_ref, &wire.metadata.namespace);
        Self {
            metadata: wire.metadata,
            size,
            storage_class: storage.storage_class_name,
            access_modes: storage.access_modes,
            uses_storage,
            source,
            phase: wire.status.phase,
            conditions: wire.status.conditions,
        }
    }
}

/// CDI refuses an object with both a source and a `dataSourceRef`.
fn source_of(
    source: Option<WireSource>,
    data_source_ref: Option<WireReference>,
    namespace: &str,
) -> DataVolumeSource {
    let named = match (source.unwrap_or_default(), data_source_ref) {
        (WireSource { blank: Some(_), .. }, _) => return DataVolumeSource::Blank,
        (WireSource { snapshot: Some(snapshot), .. }, _) => {
            snapshot.in_namespace(namespace).map(DataVolumeSource::Snapshot)
        }
        (WireSource { pvc: Some(claim), .. }, _) => {
            claim.in_namespace(namespace).map(DataVolumeSource::Claim)
        }
        (_, Some(reference)) if reference.kind == CLAIM_KIND => {
            reference.in_namespace(namespace).map(DataVolumeSource::Claim)
        }
        _ => None,
    };
    named.unwrap_or_default()
}

/// Where the content of a `DataVolume` to create comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewSource {
    /// An empty disk.
    Blank,
    /// CDI restores this `VolumeSnapshot` of the namespace.
    Snapshot(ObjectName),
    /// CDI clones this claim of the namespace. It waits while a pod uses the claim.
    Claim(ObjectName),
    /// The infra storage driver clones this claim of the namespace; CDI only makes the new claim.
    DataSourceRef(ObjectName),
}

/// A `DataVolume` to create, field by field as kubevirt/csi-driver creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDataVolume {
    /// Object name; also the CSI volume id and the name of the hotplugged volume.
    pub name: ObjectName,
    /// Annotations beyond the one that kubevirt/csi-driver sets.
    pub annotations: BTreeMap<String, String>,
    /// Size in bytes.
    pub size: u64,
    /// Infra storage class; `None` = infra's default.
    pub storage_class: Option<String>,
    /// Access modes; empty = the `StorageProfile` decides (usually RWX block, which keeps the VM live-migratable).
    pub access_modes: Vec<String>,
    /// Where the content comes from.
    pub source: NewSource,
}

impl NewDataVolume {
    /// The object as the API receives it.
    pub(crate) fn body(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<u8> {
        let mut annotations = self.annotations.clone();
        annotations.insert(KEEP_AFTER_COMPLETION.into(), "false".into());
        let mut storage = serde_json::json!({"resources": {"requests": {"storage": self.size.to_string()}}});
        if !self.access_modes.is_empty() {
            storage["accessModes"] = self.access_modes.clone().into();
        }
        if let Some(class) = &self.storage_class {
            storage["storageClassName"] = class.as_str().into();
        }
        let mut spec = serde_json::Map::new();
        let reference =
            |name: &ObjectName| serde_json::json!({"namespace": namespace, "name": name.as_str()});
        let source = match &self.source {
            NewSource::Blank => Some(serde_json::json!({"blank": {}})),
            NewSource::Snapshot(name) => Some(serde_json::json!({"snapshot": reference(name)})),
            NewSource::Claim(name) => Some(serde_json::json!({"pvc": reference(name)})),
            NewSource::DataSourceRef(name) => {
                storage["dataSourceRef"] = serde_json::json!({"kind": CLAIM_KIND, "name": name.as_str()});
                None
            }
        };
        spec.extend(source.map(|source| ("source".to_owned(), source)));
        spec.insert("storage".to_owned(), storage);
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": "DataVolume",
            "metadata": {"name": self.name.as_str(), "namespace": namespace, "labels": labels, "annotations": annotations},
            "spec": spec,
        })
        .to_string()
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn new(class: Option<&str>, modes: &[&str]) -> NewDataVolume {
        NewDataVolume {
            name: ObjectName::parse("pvc-1").unwrap(),
            annotations: BTreeMap::new(),
            size: 1 << 30,
            storage_class: class.map(Into::into),
            access_modes: modes.iter().map(|m| (*m).into()).collect(),
            source: NewSource::Blank,
        }
    }

    fn value(body: &[u8]) -> serde_json::Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn what_is_created_is_the_object_of_the_reference() {
        let labels = BTreeMap::from([("csi-driver/cluster".to_owned(), "tenant".to_owned())]);
        assert_eq!(
            value(&new(None, &[]).body("infra", &labels)),
            json!({
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataVolume",
                "metadata": {
                    "name": "pvc-1", "namespace": "infra",
                    "labels": {"csi-driver/cluster": "tenant"},
                    "annotations": {"cdi.kubevirt.io/storage.deleteAfterCompletion": "false"},
                },
                "spec": {
                    "source": {"blank": {}},
                    "storage": {"resources": {"requests": {"storage": "1073741824"}}},
                },
            })
        );
        let full = value(&new(Some("fast"), &["ReadWriteMany"]).body("infra", &labels));
        assert_eq!(full["spec"]["storage"]["storageClassName"], "fast");
        assert_eq!(full["spec"]["storage"]["accessModes"], json!(["ReadWriteMany"]));
    }

    #[test]
    fn what_we_create_reads_back_as_itself() {
        let body = new(Some("fast"), &["ReadWriteMany"]).body("n", &BTreeMap::new());
        let read: DataVolume = serde_json::from_slice(&body).unwrap();
        assert_eq!(read.size, Some(1 << 30));
        assert_eq!(read.storage_class.as_deref(), Some("fast"));
        assert_eq!(read.access_modes, ["ReadWriteMany"]);
        assert_eq!(read.source, DataVolumeSource::Blank);
        assert!(read.uses_storage && !read.deleting());
    }

    #[test]
    fn a_source_is_written_as_cdi_takes_it_and_read_back() {
        let name = || ObjectName::parse("x-1").unwrap();
        let with = |source| NewDataVolume { source, ..new(None, &[]) }.body("infra", &BTreeMap::new());
        let spec = |body: &[u8]| value(body)["spec"].clone();
        let read = |body: &[u8]| serde_json::from_slice::<DataVolume>(body).unwrap().source;
        let body = with(NewSource::Snapshot(name()));
        assert_eq!(spec(&body)["source"], json!({"snapshot": {"namespace": "infra", "name": "x-1"}}));
        assert_eq!(read(&body), DataVolumeSource::Snapshot("x-1".into()));
        let body = with(NewSource::Claim(name()));
        assert_eq!(spec(&body)["source"], json!({"pvc": {"namespace": "infra", "name": "x-1"}}));
        assert_eq!(read(&body), DataVolumeSource::Claim("x-1".into()));
        let body = with(NewSource::DataSourceRef(name()));
        assert_eq!(spec(&body).get("source"), None, "CDI refuses both");
        assert_eq!(
            spec(&body)["storage"]["dataSourceRef"],
            json!({"kind": "PersistentVolumeClaim", "name": "x-1"})
        );
        assert_eq!(read(&body), DataVolumeSource::Claim("x-1".into()));
    }

    #[test]
    fn a_source_elsewhere_is_none_of_ours() {
        for spec in [
            json!({"source": {"pvc": {"namespace": "other", "name": "x"}}}),
            json!({"source": {"snapshot": {"namespace": "other", "name": "x"}}}),
            json!({"storage": {"dataSourceRef": {"kind": "VolumeSnapshot", "name": "x"}}}),
            json!({"source": {"http": {}}}),
            json!({}),
        ] {
            let read: DataVolume =
                serde_json::from_value(json!({"metadata": {"namespace": "infra"}, "spec": spec})).unwrap();
            assert_eq!(read.source, DataVolumeSource::Other, "{spec}");
        }
    }

    #[test]
    fn progress_repeats_what_cdi_says() {
        let read: DataVolume = serde_json::from_value(json!({
            "metadata": {"name": "pvc-1"},
            "spec": {"pvc": {"resources": {"requests": {"storage": "1Gi"}}}, "source": {"http": {}}},
            "status": {"phase": "Pending", "conditions": [
                {"type": "Bound", "status": "Unknown", "reason": "ErrClaimNotValid", "message": "no accessMode"},
                {"type": "Running", "status": "False", "reason": "ErrClaimNotValid", "message": "no accessMode"},
                {"type": "Ready", "status": "True", "reason": "x", "message": "fine"}]},
        }))
        .unwrap();
        assert_eq!(read.progress(), "data volume phase Pending; ErrClaimNotValid: no accessMode");
        let silent = DataVolume { phase: String::new(), ..read.clone() };
        assert_eq!(silent.progress(), "data volume without a phase; ErrClaimNotValid: no accessMode");
        assert_eq!(DataVolume::default().progress(), "data volume not seen by CDI yet");
        assert_eq!(
            (read.source, read.size, read.uses_storage),
            (DataVolumeSource::Other, Some(1 << 30), false)
        );
    }
}
