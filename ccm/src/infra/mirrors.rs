//! A Service of infra, with the fields that are read. It is never written back, because the fields that are not named
//! here would be lost. The CCM changes the whole object instead.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use kube::api::ObjectMeta;
use kubevirt::null_as_default;
use serde::Deserialize;
use serde_json::Value;

use crate::wire::{
    metadata::{FIELD_MANAGER, last_writer},
    service::{ServiceSpec, ServiceStatus},
};

/// A Service of infra.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[serde(from = "WrittenService")]
#[resource(inherit = "Service")]
pub struct InfraService {
    /// Name, labels, annotations. `managedFields` are not kept, because as JSON they take half of the object's memory.
    pub metadata: ObjectMeta,
    /// The spec that infra has.
    pub spec: ServiceSpec,
    /// The addresses that infra gave.
    pub status: ServiceStatus,
    /// What we or the upstream cloud provider wrote last.
    own: OwnFields,
    /// The other program that wrote spec or metadata last.
    other_writer: Option<String>,
}

/// What we or the upstream cloud provider wrote last, by `managedFields`: only the fields that are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OwnFields {
    /// Keys of annotations.
    annotations: BTreeSet<String>,
    /// `spec.loadBalancerIP`.
    address: bool,
}

/// A Service of infra as the API returns it.
#[derive(Deserialize)]
struct WrittenService {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "null_as_default")]
    spec: ServiceSpec,
    #[serde(default, deserialize_with = "null_as_default")]
    status: ServiceStatus,
}

impl InfraService {
    /// Whether it is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The annotations that we or the upstream cloud provider wrote last.
    pub fn own_annotations(&self) -> impl Iterator<Item = &str> {
        self.own.annotations.iter().map(String::as_str)
    }

    /// The other program that wrote spec or metadata last, by `managedFields`.
    pub fn other_writer(&self) -> Option<&str> {
        self.other_writer.as_deref()
    }

    /// Whether we or the upstream cloud provider wrote `spec.loadBalancerIP` last; some load balancers of infra write
    /// it themselves.
    pub fn owns_address(&self) -> bool {
        self.own.address
    }
}

impl From<WrittenService> for InfraService {
    fn from(written: WrittenService) -> Self {
        let WrittenService { mut metadata, spec, mut status } = written;
        status.conditions = Vec::new();
        let entries = metadata.managed_fields.take().unwrap_or_default();
        let is_other = |entry: &ManagedFieldsEntry| {
            entry.subresource.is_none() && entry.manager.as_deref() != Some(FIELD_MANAGER)
        };
        Self {
            metadata,
            spec,
            status,
            own: OwnFields::of(&entries),
            other_writer: last_writer(&entries, is_other),
        }
    }
}

impl OwnFields {
    fn of(entries: &[ManagedFieldsEntry]) -> Self {
        let ours: Vec<&Value> = entries
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none())
            .filter_map(|entry| entry.fields_v1.as_ref().map(|fields| &fields.0))
            .collect();
        let at = |path: [&str; 2]| {
            ours.iter().filter_map(move |fields| fields.get(path[0])?.get(path[1])).collect::<Vec<_>>()
        };
        let keys = at(["f:metadata", "f:annotations"]).into_iter().filter_map(Value::as_object).flatten();
        let annotations = keys.filter_map(|(key, _)| key.strip_prefix("f:")).map(str::to_owned).collect();
        Self { annotations, address: !at(["f:spec", "f:loadBalancerIP"]).is_empty() }
    }
}
