//! The paths of the infra API's resources, and the reads that the poller makes too.

use std::time::Duration;

use cluster::{ApiServer, Error, Readable, WhenPaused};
use futures::Stream;
use http::{HeaderValue, header};
use kube::{
    api::{GetParams, ListParams, WatchParams},
    core::{Request, WatchEvent, request},
};
use kubevirt::{ObjectName, WireVm, WireVmi};
use serde::de::DeserializeOwned;

use crate::{
    list::{List, Listed},
    machine::{VirtualMachine, VirtualMachineInstance},
};

/// Objects per list page: a VM is some 10 KiB, so a page is about 1 MiB in memory at a time.
const PAGE: u32 = 100;
/// KubeVirt's subresource API answers 406 where `*/*` is missing (its handlers produce no JSON on success).
const ACCEPT: HeaderValue = HeaderValue::from_static("application/json, */*");

/// A resource of the API.
#[derive(Clone, Copy)]
pub(crate) struct Resource {
    /// `None` = the core group.
    group: Option<&'static str>,
    version: &'static str,
    pub plural: &'static str,
}

pub(crate) const DATA_VOLUMES: Resource =
    Resource { group: Some("cdi.kubevirt.io"), version: "v1beta1", plural: "datavolumes" };
pub(crate) const CLAIMS: Resource = Resource { group: None, version: "v1", plural: "persistentvolumeclaims" };
pub(crate) const EVENTS: Resource = Resource { group: None, version: "v1", plural: "events" };
pub(crate) const VOLUME_SNAPSHOTS: Resource =
    Resource { group: Some("snapshot.storage.k8s.io"), version: "v1", plural: "volumesnapshots" };
/// The subresources of VMs; a VM itself is one of [`VMS`].
pub(crate) const VM_SUBRESOURCES: Resource =
    Resource { group: Some("subresources.kubevirt.io"), version: "v1", plural: WireVm::PLURAL };
/// The subresources of VMIs.
pub(crate) const VMI_SUBRESOURCES: Resource =
    Resource { group: Some("subresources.kubevirt.io"), version: "v1", plural: WireVmi::PLURAL };
const VMS: Resource =
    Resource { group: Some(kubevirt::GROUP), version: kubevirt::VERSION, plural: WireVm::PLURAL };
pub(crate) const VMIS: Resource =
    Resource { group: Some(kubevirt::GROUP), version: kubevirt::VERSION, plural: WireVmi::PLURAL };

/// What a watch of VMIs sends.
pub(crate) type VmiEvent = Result<WatchEvent<Readable<VirtualMachineInstance>>, Error>;

/// The infra API, in the infra namespace.
pub(crate) struct Reader {
    pub server: ApiServer,
    pub namespace: String,
    /// Reports the objects that can't be read.
    pub odd: cluster::Reader,
}

impl Reader {
    pub(crate) fn new(server: ApiServer, namespace: String, odd: cluster::Reader) -> Self {
        Self { server, namespace, odd }
    }

    pub(crate) async fn vm(&self, name: &ObjectName) -> Result<Option<VirtualMachine>, Error> {
        self.find(VMS, name).await
    }

    pub(crate) async fn vmi(&self, name: &ObjectName) -> Result<Option<VirtualMachineInstance>, Error> {
        self.find(VMIS, name).await
    }

    pub(crate) async fn vms(&self) -> Result<Listed<VirtualMachine>, Error> {
        self.list(VMS).await
    }

    pub(crate) async fn vmis(&self) -> Result<Listed<VirtualMachineInstance>, Error> {
        self.list(VMIS).await
    }

    /// Watches one VMI, or all of them: first the present state, by a consistent read, then the changes. This takes one
    /// call instead of a list and a watch: the API's streaming list (`sendInitialEvents`, Kubernetes 1.32 and, by
    /// default, from 1.34 on).
    pub(crate) async fn watch_vmis(
        &self,
        only: Option<&ObjectName>,
        lasting: Duration,
    ) -> Result<impl Stream<Item = VmiEvent> + use<>, Error> {
        let seconds = u32::try_from(lasting.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().initial_events().timeout(seconds);
        let params = match only {
            Some(name) => params.fields(&format!("metadata.name={name}")),
            None => params,
        };
        // An empty version requests the newest state, by a quorum read.
        self.server.watch(accepting_all(self.requests(VMIS).watch(&params, ""))).await
    }

    /// Gets one object; `None` only when the API server reports that it does not exist.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        resource: Resource,
        name: &ObjectName,
    ) -> Result<Option<T>, Error> {
        let request = self.requests(resource).get(name.as_str(), &GetParams::default());
        self.server.find(accepting_all(request)).await
    }

    /// Reads a whole list, page by page. No `resourceVersion`: each page is a quorum read, never a stale cache. An object
    /// that can't be read hides no other; without a name nothing can be concluded from it, and the call fails.
    pub(crate) async fn list<T: DeserializeOwned>(&self, resource: Resource) -> Result<Listed<T>, Error> {
        let mut listed = Listed { items: Vec::new(), unread: Vec::new() };
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let request = accepting_all(self.requests(resource).list(&params));
            let page: List<T> = self.server.read(request, WhenPaused::Wait).await?;
            for object in page.items {
                match self.odd.read_of(resource.plural, object) {
                    Ok(object) => listed.items.push(object),
                    Err(odd) if odd.name().is_empty() => return Err(odd.to_error("list", resource.plural)),
                    Err(odd) => listed.unread.push(odd),
                }
            }
            if page.metadata.next.is_empty() {
                return Ok(listed);
            }
            params.continue_token = Some(page.metadata.next);
        }
    }

    /// Makes requests about a resource of the infra namespace.
    pub(crate) fn requests(&self, resource: Resource) -> Request {
        let Resource { group, version, plural } = resource;
        let api = group.map_or_else(|| format!("/api/{version}"), |group| format!("/apis/{group}/{version}"));
        Request::new(format!("{api}/namespaces/{}/{plural}", self.namespace))
    }
}

/// Adds [`ACCEPT`] to the request.
pub(crate) fn accepting_all(
    request: Result<http::Request<Vec<u8>>, request::Error>,
) -> http::Request<Vec<u8>> {
    let mut request = request.expect("checked names and our own parameters make legal requests");
    *request.uri_mut() = without_empty_query(request.uri());
    request.headers_mut().insert(header::ACCEPT, ACCEPT);
    request
}

/// kube ends a URL without parameters with `?` and begins parameters with `?&`. Audit logs, proxies and our own logs show the
/// form that every other client sends.
fn without_empty_query(uri: &http::Uri) -> http::Uri {
    let query = uri.query().map(|query| query.trim_start_matches('&')).filter(|query| !query.is_empty());
    let plain = query.map_or_else(|| uri.path().to_owned(), |query| format!("{}?{query}", uri.path()));
    plain.parse().expect("a part of a legal URL is one")
}
