//! The infra cluster: what belongs to this guest there, and what all calls share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cluster::{ApiServer, CredentialsError, Error, Rights, Source, WriteRate};
use kubevirt::{ObjectName, VmGuest, is_dns_label};
use prometheus_client::registry::Registry;
use serving::Tasks;
use tokio::time::Instant;

use crate::{
    GuardError,
    census::Census,
    coalesce::Coalesced,
    guest_guard::GuestGuard,
    metrics::CallMetrics,
    reader::Reader,
    rights::{DELETE_CLAIMS, LIST_EVENTS, WATCH_INSTANCES},
    shared_reads::{SharedReads, VmReads},
    wait::{Poller, VmiWait},
};

/// Where the infra cluster is, and what belongs to this guest there.
#[derive(Clone, Debug)]
pub struct InfraSettings {
    /// Kubeconfig file; `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The one namespace that holds this guest's VMs and volumes.
    pub namespace: String,
    /// Labels that each of our objects carries.
    pub labels: BTreeMap<String, String>,
    /// Volume names start with this and a dash.
    pub volume_prefix: String,
    /// Labels that a VM or its VMI must carry to get volumes; may be empty.
    pub vm_labels: BTreeMap<String, String>,
    /// How many changes may be sent.
    pub write_rate: WriteRate,
}

/// The settings can't be used; nothing was called.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The credentials can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The namespace is missing or not a legal name.
    #[error("infra namespace {0:?} is not a namespace name; set --infra-cluster-namespace")]
    Namespace(String),
    /// Labels or prefix are wrong.
    #[error(transparent)]
    Guard(#[from] GuardError),
}

/// The infra cluster as one guest may see it. Cheap to clone.
#[derive(Clone)]
pub struct Infra {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub reader: Arc<Reader>,
    pub guard: GuestGuard,
    vm_guest: VmGuest,
    poller: Arc<Poller>,
    census: Coalesced<Census>,
    reads: SharedReads,
    metrics: CallMetrics,
    may_list_events: AtomicBool,
    may_delete_claims: AtomicBool,
}

impl Infra {
    /// Makes the client, and no call. If the API can't be reached, the first call shows it. `tasks` owns the task that
    /// reads for the waits.
    pub async fn connect(settings: InfraSettings, tasks: &Tasks) -> Result<Self, ConnectError> {
        let source = Source {
            cluster: "infra",
            setting: "--infra-cluster-kubeconfig",
            kubeconfig: settings.kubeconfig.clone(),
            address: String::new(),
        };
        let metrics = CallMetrics::default();
        Self::new(&ApiServer::open(source, metrics.clone()).await?, metrics, settings, tasks)
    }

    /// As [`Self::connect`], over the given client; `settings.kubeconfig` is not read.
    pub fn from_client(
        client: kube::Client,
        settings: InfraSettings,
        tasks: &Tasks,
    ) -> Result<Self, ConnectError> {
        let metrics = CallMetrics::default();
        Self::new(&ApiServer::over(client, metrics.clone()), metrics, settings, tasks)
    }

    fn new(
        server: &ApiServer,
        metrics: CallMetrics,
        settings: InfraSettings,
        tasks: &Tasks,
    ) -> Result<Self, ConnectError> {
        if !is_dns_label(&settings.namespace) {
            return Err(ConnectError::Namespace(settings.namespace));
        }
        let guard = GuestGuard::new(settings.labels, &settings.volume_prefix)?;
        let vm_guest = VmGuest::new(guard.labels().clone(), settings.vm_labels);
        let server = server.with_write_rate(settings.write_rate);
        let odd = cluster::Reader::of("infra", metrics.clone());
        let reader = Arc::new(Reader::new(server, settings.namespace, odd));
        let reads = SharedReads::new(&reader);
        let poller = Poller::new(Arc::clone(&reader), reads.clone(), tasks);
        let census = Coalesced::default();
        let may_list_events = AtomicBool::new(false);
        // Tried until it is known: a claim that is left is worse than one refused call.
        let may_delete_claims = AtomicBool::new(true);
        let shared = Shared {
            reader,
            guard,
            vm_guest,
            poller,
            census,
            reads,
            metrics,
            may_list_events,
            may_delete_claims,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Registers the metrics of the calls.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// The infra namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.reader.namespace
    }

    /// The infra API's answer that asked for a pause, until a call has succeeded after it. Reads wait without a report,
    /// so a caller whose own time ends in the meantime finds the cause here.
    pub fn asked_to_wait(&self) -> Option<Error> {
        self.shared.reader.server.asked_to_wait()
    }

    /// The check that an object belongs to this guest.
    pub fn guard(&self) -> &GuestGuard {
        &self.shared.guard
    }

    /// The rule by which a VM is this guest's.
    pub fn vm_guest(&self) -> &VmGuest {
        &self.shared.vm_guest
    }

    /// The reads of one VM and its VMI, shared by all operations on that VM.
    pub fn machine(&self, name: &ObjectName) -> VmReads {
        self.shared.reads.of(name)
    }

    /// All VMs and VMIs, read after this call began; concurrent callers share one read.
    pub async fn census(&self) -> Result<Arc<Census>, Error> {
        let reader = &self.shared.reader;
        let read = || async {
            let instances = reader.vmis().await?;
            let machines = reader.vms().await?;
            let unread = [instances.unread, machines.unread].concat();
            Ok(Census { vms: machines.items, vmis: instances.items, unread })
        };
        self.shared.census.read_since(Instant::now(), read).await.map(|(_, census)| census)
    }

    /// Begins to wait for changes of a VMI.
    pub fn wait_for_vmi(&self, name: &ObjectName) -> VmiWait {
        self.shared.poller.wait(name)
    }

    /// Uses the rights that were granted beyond [`crate::REQUIRED_RIGHTS`]: waits watch instead of polling, the
    /// events of claims are read, and claims that are left are deleted.
    pub fn use_granted(&self, rights: &Rights) {
        self.shared.poller.may_watch(rights.allow(&WATCH_INSTANCES));
        self.shared.may_list_events.store(rights.allow(&LIST_EVENTS), Ordering::Relaxed);
        self.shared.may_delete_claims.store(rights.allow(&DELETE_CLAIMS), Ordering::Relaxed);
    }

    /// Whether the right to list events was granted.
    pub(crate) fn may_list_events(&self) -> bool {
        self.shared.may_list_events.load(Ordering::Relaxed)
    }

    /// Whether claims may be deleted; true also where the rights are not known.
    pub fn may_delete_claims(&self) -> bool {
        self.shared.may_delete_claims.load(Ordering::Relaxed)
    }

    /// Reads which rights our credentials have in the namespace.
    pub async fn rights(&self) -> Result<Rights, Error> {
        let reader = &self.shared.reader;
        reader.server.rights(&reader.namespace).await
    }
}
