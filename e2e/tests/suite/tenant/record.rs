//! What others have in the infra namespace: recorded before a tenant does harm, compared afterwards.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bench::scenario::{data_volumes, virtual_machine_instances, virtual_machines};
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use crate::snapshots::volume_snapshots;

/// How much of an object must stay.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// All of it, with its version: nobody writes it at all.
    Whole,
    /// UID, labels, annotations, finalizers, spec: infra's own controllers write the status.
    ButStatus,
}

struct Kind {
    name: &'static str,
    api: Api<DynamicObject>,
    kept: Kept,
}

/// The objects, as they were.
pub struct Record {
    kinds: Vec<Kind>,
    objects: BTreeMap<String, Value>,
}

impl Record {
    /// All Services, slices and VMs of a namespace.
    pub async fn of_load_balancers(infra: &Client, namespace: &str) -> Result<Self> {
        let api = |kind: &ApiResource| Api::namespaced_with(infra.clone(), namespace, kind);
        let mut kinds = machines(infra, namespace);
        for (name, resource) in [
            ("Service", ApiResource::erase::<Service>(&())),
            ("EndpointSlice", ApiResource::erase::<EndpointSlice>(&())),
        ] {
            kinds.push(Kind { name, api: api(&resource), kept: Kept::Whole });
        }
        Self::of(kinds, "").await
    }

    /// The VMs, DataVolumes, claims and snapshots whose names contain `part`.
    pub async fn of_volumes(infra: &Client, namespace: &str, part: &str) -> Result<Self> {
        let mut kinds = machines(infra, namespace);
        let claims = ApiResource::erase::<PersistentVolumeClaim>(&());
        for (name, api) in [
            ("DataVolume", data_volumes(infra, namespace)),
            ("PersistentVolumeClaim", Api::namespaced_with(infra.clone(), namespace, &claims)),
            ("VolumeSnapshot", volume_snapshots(infra, namespace)),
        ] {
            kinds.push(Kind { name, api, kept: Kept::ButStatus });
        }
        Self::of(kinds, part).await
    }

    async fn of(kinds: Vec<Kind>, part: &str) -> Result<Self> {
        let mut objects = read(&kinds).await?;
        objects.retain(|name, _| name.contains(part));
        for kind in &kinds {
            ensure!(
                objects.keys().any(|name| name.starts_with(&format!("{} ", kind.name))),
                "expected a {} to record, saw none",
                kind.name
            );
        }
        Ok(Self { kinds, objects })
    }

    /// Checks that each of them is as it was.
    pub async fn ensure_unchanged(&self) -> Result<()> {
        let now = read(&self.kinds).await?;
        let gone = Value::Null;
        let changed: Vec<String> = self
            .objects
            .iter()
            .filter_map(|(name, was)| difference(name, was, now.get(name).unwrap_or(&gone)))
            .collect();
        ensure!(changed.is_empty(), "expected what others have unchanged, saw {}", changed.join("; "));
        Ok(())
    }
}

fn machines(infra: &Client, namespace: &str) -> Vec<Kind> {
    let kind = |name, api| Kind { name, api, kept: Kept::ButStatus };
    vec![
        kind("VirtualMachine", virtual_machines(infra, namespace)),
        kind("VirtualMachineInstance", virtual_machine_instances(infra, namespace)),
    ]
}

async fn read(kinds: &[Kind]) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for kind in kinds {
        for object in kind.api.list(&ListParams::default()).await? {
            let name = format!("{} {}", kind.name, object.name_any());
            all.insert(name, kept(serde_json::to_value(object)?, kind.kept));
        }
    }
    Ok(all)
}

fn kept(mut object: Value, kept: Kept) -> Value {
    let mut drop = |within: &str, fields: &[&str]| {
        if let Some(map) = object.pointer_mut(within).and_then(Value::as_object_mut) {
            map.retain(|field, _| !fields.contains(&field.as_str()));
        }
    };
    drop("/metadata", &["managedFields"]);
    if kept == Kept::ButStatus {
        drop("/metadata", &["resourceVersion", "generation"]);
        drop("", &["status"]);
    }
    object
}

/// The first place in which they differ.
fn difference(place: &str, was: &Value, now: &Value) -> Option<String> {
    match (was, now) {
        _ if was == now => None,
        (Value::Object(old), Value::Object(new)) => {
            let keys = old.keys().chain(new.keys());
            keys.into_iter().find_map(|key| {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                difference(&format!("{place}/{key}"), &of(old), &of(new))
            })
        }
        _ => Some(format!("{place}: {now} after {was}")),
    }
}
