//! The infra cluster: every call that may be made, and no other.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf, sync::Arc, time::Duration};

use futures::Stream;
use http::Method;
use kube::core::WatchEvent;
use prometheus_client::registry::Registry;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    call::{Caller, Repeat, Request},
    census::Census,
    claim::{Claim, PatchOp},
    coalesce::Coalesced,
    connection::Connection,
    data_volume::{DataVolume, NewDataVolume},
    error::{Class, ConnectError, Error},
    machine::{VirtualMachine, VirtualMachineInstance},
    machine_looks::{Looks, MachineLooks},
    object::{List, ObjectName, is_dns_label},
    rights::{Rights, WATCH_INSTANCES},
    tenant_guard::{Owned, TenantGuard},
    wait::{Poller, VmiWait},
};

/// Objects per list page: a VM is some 10 KiB, so a page is about 1 MiB in memory at a time.
const PAGE: usize = 100;
const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";

/// Where the infra cluster is and what is ours in it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Kubeconfig file; `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The one namespace that holds this tenant's VMs and volumes.
    pub namespace: String,
    /// Labels that each of our objects carries.
    pub labels: BTreeMap<String, String>,
    /// Volume names start with this and a dash.
    pub volume_prefix: String,
}

/// The infra cluster as one tenant may see it. Cheap to clone.
#[derive(Clone)]
pub struct Infra {
    shared: Arc<Shared>,
}

struct Shared {
    reader: Arc<Reader>,
    poller: Arc<Poller>,
    guard: TenantGuard,
    census: Coalesced<Census>,
    looks: Looks,
}

/// A disk to plug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotplugDisk {
    /// Serial that the guest sees.
    pub serial: String,
    /// `scsi` or `virtio`.
    pub bus: &'static str,
}

impl Infra {
    /// Makes the client; makes no call. An unreachable API is a matter of the first call.
    pub async fn connect(settings: Settings) -> Result<Self, ConnectError> {
        let connection = Connection::open(settings.kubeconfig.clone()).await?;
        Self::new(connection, settings)
    }

    /// The same over a given client; `settings.kubeconfig` is not read.
    pub fn from_client(client: kube::Client, settings: Settings) -> Result<Self, ConnectError> {
        Self::new(Connection::fixed(client), settings)
    }

    fn new(connection: Connection, settings: Settings) -> Result<Self, ConnectError> {
        if !is_dns_label(&settings.namespace) {
            return Err(ConnectError::Namespace(settings.namespace));
        }
        let guard = TenantGuard::new(settings.labels, &settings.volume_prefix)?;
        let reader = Arc::new(Reader { caller: Caller::new(connection), namespace: settings.namespace });
        let looks = Looks::new(&reader);
        let poller = Poller::new(Arc::clone(&reader), looks.clone());
        let shared = Shared { reader, poller, guard, census: Coalesced::default(), looks };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Registers the counter of calls.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.reader.caller.register(registry);
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.reader.namespace
    }

    /// What the infra API said when it asked for a pause that no successful call has ended yet: reads wait it out without a
    /// word, and a caller whose own time ends meanwhile has heard nothing else.
    pub fn asked_to_wait(&self) -> Option<Error> {
        self.shared.reader.caller.asked_to_wait()
    }

    /// What is ours.
    pub fn guard(&self) -> &TenantGuard {
        &self.shared.guard
    }

    /// A `DataVolume`, whoever it belongs to: the guard judges it.
    pub async fn data_volume(&self, name: &ObjectName) -> Result<Option<DataVolume>, Error> {
        let reader = &self.shared.reader;
        absent_as_none(reader.caller.read(&reader.get(DATA_VOLUMES, name)).await)
    }

    /// Creates a `DataVolume` with our labels; 409 where the name is taken.
    pub async fn create_data_volume(&self, new: &NewDataVolume) -> Result<DataVolume, Error> {
        let reader = &self.shared.reader;
        let body = new.body(&reader.namespace, self.shared.guard.labels());
        let uri = reader.uri(DATA_VOLUMES, None);
        let request =
            Request { name: Some(new.name.to_string()), ..write(Method::POST, DATA_VOLUMES, uri, &body) };
        reader.caller.read(&request).await
    }

    /// Deletes exactly this `DataVolume`, which was read by `name`: 409 when another took the name meanwhile.
    pub async fn delete_data_volume(
        &self,
        name: &ObjectName,
        volume: &Owned<DataVolume>,
    ) -> Result<(), Error> {
        let reader = &self.shared.reader;
        let options = serde_json::json!({"preconditions": {"uid": volume.metadata.uid}});
        let request = write(Method::DELETE, DATA_VOLUMES, reader.uri(DATA_VOLUMES, Some(name)), &options);
        reader.caller.send(&Request { name: Some(name.to_string()), ..request }).await.map(drop)
    }

    /// A claim, whoever it belongs to.
    pub async fn claim(&self, name: &ObjectName) -> Result<Option<Claim>, Error> {
        let reader = &self.shared.reader;
        absent_as_none(reader.caller.read(&reader.get(CLAIMS, name)).await)
    }

    /// Patches a claim of ours. The guard's labels are tested by the API itself, in the same patch: on a foreign claim, as
    /// where a test of `ops` fails, the answer is 422 and nothing changed.
    pub async fn patch_claim(&self, name: &ObjectName, ops: Vec<PatchOp>) -> Result<Claim, Error> {
        let reader = &self.shared.reader;
        let patch: Vec<_> = self.shared.guard.label_tests().into_iter().chain(ops).collect();
        let request = write(Method::PATCH, CLAIMS, reader.uri(CLAIMS, Some(name)), &patch);
        reader.caller.read(&Request { name: Some(name.to_string()), ..request }).await
    }

    /// Looks at one VM and its VMI, shared by all who work on it.
    pub fn machine(&self, name: &ObjectName) -> MachineLooks {
        self.shared.looks.of(name)
    }

    /// All VMs and VMIs, read after this call began; callers at the same time share one read.
    pub async fn census(&self) -> Result<Arc<Census>, Error> {
        let reader = &self.shared.reader;
        let read = || async {
            let vmis = reader.vmis().await?;
            Ok(Census { vmis, vms: reader.vms().await? })
        };
        self.shared.census.read_since(Instant::now(), read).await.map(|(_, census)| census)
    }

    /// Waits for looks at a VMI.
    pub fn wait_for_vmi(&self, name: &ObjectName) -> VmiWait {
        self.shared.poller.wait(name)
    }

    /// Asks KubeVirt to plug our volume into a VM. An accepted call is not an attached disk. Never repeated by itself.
    pub async fn add_volume(
        &self,
        vm: &ObjectName,
        volume: &Owned<DataVolume>,
        disk: &HotplugDisk,
    ) -> Result<(), Error> {
        let name = &volume.metadata.name;
        let body = serde_json::json!({
            "name": name,
            "disk": {"name": name, "serial": disk.serial, "disk": {"bus": disk.bus}},
            "volumeSource": {"dataVolume": {"name": name}},
        });
        self.hotplug(ADD_VOLUME, vm, &body).await
    }

    /// Asks KubeVirt to unplug a volume. `volume` is its name inside the VM: by the name of its `DataVolume` KubeVirt 1.9
    /// accepts the call and does nothing. Never repeated by itself.
    pub async fn remove_volume(&self, vm: &ObjectName, volume: &ObjectName) -> Result<(), Error> {
        self.hotplug(REMOVE_VOLUME, vm, &serde_json::json!({"name": volume.as_str()})).await
    }

    async fn hotplug(&self, kind: Kind, vm: &ObjectName, body: &serde_json::Value) -> Result<(), Error> {
        let reader = &self.shared.reader;
        let request = write(Method::PUT, kind, reader.uri(kind, Some(vm)), body);
        let request = Request { name: Some(vm.to_string()), ..request };
        reader.caller.send(&request).await.map(drop)
    }

    /// Uses what was granted beyond [`crate::REQUIRED_RIGHTS`]: waits watch instead of looking again and again.
    pub fn use_granted(&self, rights: &Rights) {
        self.shared.poller.may_watch(rights.allow(&WATCH_INSTANCES));
    }

    /// Which rights this identity has in the namespace.
    pub async fn rights(&self) -> Result<Rights, Error> {
        let reader = &self.shared.reader;
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": reader.namespace},
        });
        let uri = format!("{}/{}", RULES_REVIEWS.prefix, RULES_REVIEWS.plural);
        reader.caller.read(&write(Method::POST, RULES_REVIEWS, uri, &review)).await
    }
}

/// The reads that the poller makes too.
pub(crate) struct Reader {
    caller: Caller,
    namespace: String,
}

impl Reader {
    pub(crate) async fn vm(&self, name: &ObjectName) -> Result<Option<VirtualMachine>, Error> {
        absent_as_none(self.caller.read(&self.get(VMS, name)).await)
    }

    pub(crate) async fn vmi(&self, name: &ObjectName) -> Result<Option<VirtualMachineInstance>, Error> {
        absent_as_none(self.caller.read(&self.get(VMIS, name)).await)
    }

    async fn vms(&self) -> Result<Vec<VirtualMachine>, Error> {
        self.list(VMS).await
    }

    pub(crate) async fn vmis(&self) -> Result<Vec<VirtualMachineInstance>, Error> {
        self.list(VMIS).await
    }

    /// Watches one VMI, or all of them: first what there is, by a consistent read, then what changes. One call instead of
    /// a look and a watch: the API's streaming list (`sendInitialEvents`, Kubernetes 1.32 and, by default, from 1.34 on).
    pub(crate) async fn watch_vmis(
        &self,
        only: Option<&ObjectName>,
        lasting: Duration,
    ) -> Result<impl Stream<Item = Result<WatchEvent<VirtualMachineInstance>, Error>> + use<>, Error> {
        let select = only.map(|name| format!("&fieldSelector=metadata.name%3D{name}")).unwrap_or_default();
        let uri = format!(
            "{}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
             &timeoutSeconds={}{select}",
            self.uri(VMIS, None),
            lasting.as_secs(),
        );
        self.caller.watch(&self.request("watch", VMIS, uri)).await
    }

    /// A whole list, page by page. No `resourceVersion`: each page is a quorum read, never a stale cache (design §3a).
    async fn list<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let token =
                if next.is_empty() { String::new() } else { format!("&continue={}", percent_encoded(&next)) };
            let uri = format!("{}?limit={PAGE}{token}", self.uri(kind, None));
            let page: List<T> = self.caller.read(&self.request("list", kind, uri)).await?;
            items.extend(page.items);
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(items);
            }
        }
    }

    fn get(&self, kind: Kind, name: &ObjectName) -> Request {
        Request { name: Some(name.to_string()), ..self.request("get", kind, self.uri(kind, Some(name))) }
    }

    #[expect(clippy::unused_self, reason = "read requests are this type's business")]
    fn request(&self, verb: &'static str, kind: Kind, uri: String) -> Request {
        Request {
            verb,
            resource: kind.resource,
            name: None,
            method: Method::GET,
            uri,
            content_type: JSON,
            body: Vec::new(),
            repeat: Repeat::AfterPause,
        }
    }

    fn uri(&self, kind: Kind, name: Option<&ObjectName>) -> String {
        let collection = format!("{}/namespaces/{}/{}", kind.prefix, self.namespace, kind.plural);
        let object = name.map_or(collection.clone(), |name| format!("{collection}/{name}"));
        if kind.subresource.is_empty() { object } else { format!("{object}/{}", kind.subresource) }
    }
}

/// Where a resource lives.
#[derive(Clone, Copy)]
struct Kind {
    prefix: &'static str,
    plural: &'static str,
    subresource: &'static str,
    /// Name in metrics and errors.
    resource: &'static str,
}

const fn kind(prefix: &'static str, plural: &'static str) -> Kind {
    Kind { prefix, plural, subresource: "", resource: plural }
}

const DATA_VOLUMES: Kind = kind("/apis/cdi.kubevirt.io/v1beta1", "datavolumes");
const CLAIMS: Kind = kind("/api/v1", "persistentvolumeclaims");
const VMS: Kind = kind("/apis/kubevirt.io/v1", "virtualmachines");
const VMIS: Kind = kind("/apis/kubevirt.io/v1", "virtualmachineinstances");
const RULES_REVIEWS: Kind = kind("/apis/authorization.k8s.io/v1", "selfsubjectrulesreviews");
const SUBRESOURCES: &str = "/apis/subresources.kubevirt.io/v1";
const ADD_VOLUME: Kind = Kind {
    subresource: "addvolume",
    resource: "virtualmachines/addvolume",
    ..kind(SUBRESOURCES, "virtualmachines")
};
const REMOVE_VOLUME: Kind = Kind {
    subresource: "removevolume",
    resource: "virtualmachines/removevolume",
    ..kind(SUBRESOURCES, "virtualmachines")
};

/// A request that changes something. It is never repeated by itself: the caller's time may be over after a pause.
fn write(method: Method, kind: Kind, uri: String, body: &impl Serialize) -> Request {
    let (verb, content_type) = match method {
        Method::POST => ("create", JSON),
        Method::DELETE => ("delete", JSON),
        Method::PATCH => ("patch", JSON_PATCH),
        _ => ("update", JSON),
    };
    let body = serde_json::to_vec(body).expect("values of strings and numbers serialize");
    Request {
        verb,
        resource: kind.resource,
        name: None,
        method,
        uri,
        content_type,
        body,
        repeat: Repeat::Never,
    }
}

fn absent_as_none<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A continue token is base64url today, but its alphabet is the server's business.
fn percent_encoded(token: &str) -> String {
    token.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes everything");
        }
        text
    })
}
