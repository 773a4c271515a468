//! Live reads of the infra cluster. The API server answers each from its quorum; no cache is used, neither ours nor its
//! own.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};

use crate::{
    access::InfraCluster,
    call::{CallError, call, call_within},
    infra::{
        machines::{
            Vm, Vmi,
            index::{Kept, Snapshot},
            wire::{Machine, Reduced},
        },
        topology::Topology,
    },
    unreadable::{Readable, Reader},
};

/// Objects per page of a list. A VM takes some 10 KiB, so a page takes about 1 MiB of memory.
pub const PAGE: u32 = 100;
/// Timeout for an infra Node: it only adds labels to a Node of the guest, which must not wait for it.
const PLACE_DEADLINE: Duration = Duration::from_secs(2);

/// Reads the infra cluster.
#[derive(Clone)]
pub struct InfraReads {
    infra: InfraCluster,
}

impl InfraReads {
    /// Reads in the infra namespace.
    pub fn new(infra: &InfraCluster) -> Self {
        Self { infra: infra.clone() }
    }

    /// Reports the objects that can't be read.
    pub fn reader(&self) -> &Reader {
        &self.infra.reader
    }

    /// The objects of a kind.
    pub fn api<T: Machine>(&self) -> Api<Readable<Reduced<T>>> {
        Api::namespaced(self.infra.client.clone(), &self.infra.namespace)
    }

    /// One object. `None` = the API server reports that it does not exist.
    pub async fn get<T: Machine>(&self, name: &str) -> Result<Option<T>, CallError> {
        let what = || format!("get {} {name}", T::RESOURCE);
        let api: Api<Reduced<T>> = Api::namespaced(self.infra.client.clone(), &self.infra.namespace);
        match call(what, api.get(name)).await {
            Ok(object) => Ok(Some(object.kept)),
            Err(error) if error.proves_absence_of::<Reduced<T>>(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, page by page. There is no `resourceVersion`, so that each page is a quorum read. `unread`
    /// gives what stands for an object that can't be read, by its name.
    pub async fn list<T: Machine>(&self, unread: impl Fn(&str) -> T) -> Result<Vec<T>, CallError> {
        let api = self.api::<T>();
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let params = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
            let page = call(|| format!("list {}", T::RESOURCE), api.list(&params)).await?;
            all.extend(page.items.into_iter().map(|object| match self.reader().read(object) {
                Ok(object) => object.kept,
                Err(odd) => unread(odd.name()),
            }));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// All VMs and VMIs. VMs are listed last, so that a VMI is seen even if its VM is deleted between the two lists.
    pub async fn everything(&self) -> Result<Snapshot, CallError> {
        let vmis = self.list(Vmi::unread).await?;
        Ok(Snapshot::of(self.list(Vm::unread).await?, vmis))
    }

    /// Zone and region of an infra Node. Only its metadata is requested.
    pub async fn topology(&self, node: &str) -> Result<Topology, CallError> {
        let nodes: Api<Node> = Api::all(self.infra.client.clone());
        let what = || format!("get infra node {node}");
        let meta = call_within(PLACE_DEADLINE, what, nodes.get_metadata(node)).await?.metadata;
        Ok(Topology::of_labels(&meta.labels.unwrap_or_default()))
    }
}
