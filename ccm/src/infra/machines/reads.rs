//! Live reads of the infra cluster. The API server answers each from its quorum; no cache is used, neither ours nor its
//! own.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use crate::{
    call::{CallError, call, call_within},
    infra::{
        machines::{
            Vm, Vmi,
            index::{Kept, Snapshot},
            wire::{WireVm, WireVmi},
        },
        topology::Topology,
    },
};

/// Objects per page of a list. A VM takes some 10 KiB, so a page takes about 1 MiB of memory.
pub const PAGE: u32 = 100;
/// Timeout for an infra Node: it only adds labels to a Node of the guest, which must not wait for it.
const PLACE_DEADLINE: Duration = Duration::from_secs(2);

/// Reads the infra cluster.
#[derive(Clone)]
pub struct InfraReads {
    client: Client,
    namespace: String,
}

/// A kind of the API, and the type to which it is reduced.
pub trait Wire:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static
{
    /// The reduced type.
    type Kept: Kept + Clone + From<Self> + Send;
}

impl Wire for WireVm {
    type Kept = Vm;
}

impl Wire for WireVmi {
    type Kept = Vmi;
}

impl InfraReads {
    /// Reads in one namespace.
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self { client, namespace: namespace.into() }
    }

    /// The objects of a kind.
    pub fn api<K: Wire>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One object. `None` = the API server reports that it does not exist.
    pub async fn get<K: Wire>(&self, name: &str) -> Result<Option<K::Kept>, CallError> {
        let what = || format!("get {} {name}", K::Kept::RESOURCE);
        match call(what, self.api::<K>().get(name)).await {
            Ok(object) => Ok(Some(object.into())),
            Err(error) if error.proves_absence_of::<K>(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, page by page. There is no `resourceVersion`, so that each page is a quorum read.
    pub async fn list<K: Wire>(&self) -> Result<Vec<K::Kept>, CallError> {
        let api = self.api::<K>();
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let params = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
            let page = call(|| format!("list {}", K::Kept::RESOURCE), api.list(&params)).await?;
            all.extend(page.items.into_iter().map(K::Kept::from));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// All VMs and VMIs. VMs are listed last, so that a VMI is seen even if its VM is deleted between the two lists.
    pub async fn everything(&self) -> Result<Snapshot, CallError> {
        let vmis = self.list::<WireVmi>().await?;
        Ok(Snapshot::of(self.list::<WireVm>().await?, vmis))
    }

    /// Zone and region of an infra Node. Only its metadata is requested.
    pub async fn topology(&self, node: &str) -> Result<Topology, CallError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let what = || format!("get infra node {node}");
        let meta = call_within(PLACE_DEADLINE, what, nodes.get_metadata(node)).await?.metadata;
        Ok(Topology::of_labels(&meta.labels.unwrap_or_default()))
    }
}
