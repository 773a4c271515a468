//! Live reads of the infra cluster: each is answered by the API server's quorum, never by a cache of ours or its own.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use crate::{
    call::{CallError, call, call_within},
    infra::{
        hosts::Place,
        machines::{
            Vm, Vmi,
            index::{Kept, Snapshot},
            wire::{WireVm, WireVmi},
        },
    },
};

/// Objects per list page: a VM is some 10 KiB, so a page is about 1 MiB in memory at a time.
pub const PAGE: u32 = 100;
/// Longest time for an infra node: it only adds to a Node's labels, so a Node must not wait for it.
const PLACE_DEADLINE: Duration = Duration::from_secs(2);

/// The infra cluster, read.
#[derive(Clone)]
pub struct InfraReads {
    client: Client,
    namespace: String,
}

/// A kind of the wire, and what it is projected to.
pub trait Wire:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static
{
    /// The projection.
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

    /// One object; `None` = the API says that it does not exist.
    pub async fn get<K: Wire>(&self, name: &str) -> Result<Option<K::Kept>, CallError> {
        let what = || format!("get {} {name}", K::Kept::RESOURCE);
        match call(what, self.api::<K>().get(name)).await {
            Ok(object) => Ok(Some(object.into())),
            Err(error) if error.proves_absence_of::<K>(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, page by page. No `resourceVersion`: each page is a quorum read.
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

    /// All VMs and instances. VMs are listed last: an instance whose VM is deleted between the two lists is seen.
    pub async fn everything(&self) -> Result<Snapshot, CallError> {
        let vmis = self.list::<WireVmi>().await?;
        Ok(Snapshot::of(self.list::<WireVm>().await?, vmis))
    }

    /// Zone and region of an infra node, of which only the metadata is asked for.
    pub async fn place(&self, node: &str) -> Result<Place, CallError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let what = || format!("get infra node {node}");
        let meta = call_within(PLACE_DEADLINE, what, nodes.get_metadata(node)).await?.metadata;
        Ok(Place::of_labels(&meta.labels.unwrap_or_default()))
    }
}
