//! What one guest takes of the infra cluster, counted all the time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, ensure};
use k8s_openapi::api::{
    core::v1::{Event, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio_util::task::AbortOnDropHandle;

/// Pause between two counts.
const PAUSE: Duration = Duration::from_millis(200);
/// The label with a mirror's guest.
const CLUSTER_LABEL: &str = "cluster.x-k8s.io/cluster-name";

/// How much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mirrors.
    pub services: usize,
    /// Ports of all mirrors.
    pub ports: usize,
    /// Node ports of all mirrors, those of health checks too.
    pub node_ports: usize,
    /// Source ranges of all mirrors.
    pub source_ranges: usize,
    /// Bytes of annotations of all mirrors.
    pub annotation_bytes: usize,
    /// EndpointSlices of all mirrors.
    pub slices: usize,
    /// Endpoints in all of these.
    pub endpoints: usize,
    /// Events in the namespace.
    pub events: usize,
}

impl Counts {
    fn all(&self) -> [(&'static str, usize); 8] {
        [
            ("Services", self.services),
            ("ports", self.ports),
            ("node ports", self.node_ports),
            ("source ranges", self.source_ranges),
            ("bytes of annotations", self.annotation_bytes),
            ("EndpointSlices", self.slices),
            ("endpoints", self.endpoints),
            ("events", self.events),
        ]
    }

    fn most(self, other: Self) -> Self {
        Self {
            services: self.services.max(other.services),
            ports: self.ports.max(other.ports),
            node_ports: self.node_ports.max(other.node_ports),
            source_ranges: self.source_ranges.max(other.source_ranges),
            annotation_bytes: self.annotation_bytes.max(other.annotation_bytes),
            slices: self.slices.max(other.slices),
            endpoints: self.endpoints.max(other.endpoints),
            events: self.events.max(other.events),
        }
    }
}

/// The most that a guest had at a time. It counts until it is dropped.
pub struct Usage {
    most: Arc<Mutex<(Counts, usize)>>,
    _counting: AbortOnDropHandle<()>,
}

impl Usage {
    /// Counts what the guest `cluster` has in an infra namespace.
    pub fn of(infra: &Client, namespace: &str, cluster: &'static str) -> Self {
        let most = Arc::new(Mutex::new((Counts::default(), 0)));
        let (kept, infra, namespace) = (Arc::clone(&most), infra.clone(), namespace.to_owned());
        let counting = tokio::spawn(async move {
            loop {
                match count(&infra, &namespace, cluster).await {
                    Ok(now) => {
                        let mut most = kept.lock().unwrap_or_else(PoisonError::into_inner);
                        *most = (most.0.most(now), most.1 + 1);
                    }
                    Err(error) => eprintln!("count what the guest has: {error:#}"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { most, _counting: AbortOnDropHandle::new(counting) }
    }

    /// Checks that it never had more than this; the most that it had.
    pub fn ensure_within(self, bounds: &Counts) -> Result<Counts> {
        let (most, times) = *self.most.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(times > 1, "expected to have counted, saw {times} counts");
        for ((what, had), (_, bound)) in most.all().into_iter().zip(bounds.all()) {
            ensure!(had <= bound, "expected at most {bound} {what} of the guest, saw {had}: {most:?}");
        }
        Ok(most)
    }
}

async fn count(infra: &Client, namespace: &str, cluster: &str) -> Result<Counts> {
    let all = ListParams::default();
    let own = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
    let services: Api<Service> = Api::namespaced(infra.clone(), namespace);
    let (mut counts, mut names) = (Counts::default(), BTreeSet::new());
    for service in services.list(&own).await? {
        counts.services += 1;
        names.insert(service.name_any());
        let bytes = service.annotations().iter().map(|(key, value)| key.len() + value.len());
        counts.annotation_bytes += bytes.sum::<usize>();
        let spec = service.spec.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default();
        counts.ports += ports.len();
        counts.node_ports += ports.iter().filter(|port| port.node_port.is_some()).count();
        counts.node_ports += usize::from(spec.health_check_node_port.is_some());
        counts.source_ranges += spec.load_balancer_source_ranges.map_or(0, |ranges| ranges.len());
    }
    let slices: Api<EndpointSlice> = Api::namespaced(infra.clone(), namespace);
    for slice in slices.list(&all).await? {
        if slice.labels().get("kubernetes.io/service-name").is_some_and(|name| names.contains(name)) {
            counts.slices += 1;
            counts.endpoints += slice.endpoints.iter().flatten().count();
        }
    }
    let events: Api<Event> = Api::namespaced(infra.clone(), namespace);
    counts.events = events.list_metadata(&all).await?.items.len();
    Ok(counts)
}
