//! The endpoint controller: writes the slices of those infra Services whose endpoints are ours to write, as soon as the
//! guest's slices or Nodes, a VM, or the Service change.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ListParams};
use kube::runtime::reflector::ObjectRef;
use tokio::time;

use crate::{
    access::{GuestCluster, InfraCluster, chain},
    call::{CallError, call},
    endpoints::{metrics::EndpointMetrics, rights, session::Session},
    guest::{nodes::watch::NodeWatch, services::GuestService},
    guest_names::{CLUSTER_NAME_LABEL, Identity},
    handover::{EndpointChoice, Gate, Work},
    infra::{
        machines::{feed::Feed, index::MachineIndex},
        slices::{MANAGER_LABEL, OUR_MANAGER, WireSlice},
    },
    load_balancer::watches::Watches as ServiceWatches,
    nodes::address::AddressPolicy,
    queue_metrics::Queue,
};

/// Pause before the CCM asks again for a missing right.
const ASK_AGAIN: Duration = Duration::from_mins(1);
/// Pause before the CCM asks again for its rights after it got no answer.
const RETRY: Duration = Duration::from_secs(5);
/// After this many refusals in a row the CCM stops, although it has the rights: an API server that starts refuses for a
/// moment.
const BELIEVED_REFUSALS: u32 = 2;

/// What the endpoint controller needs.
#[derive(Clone)]
pub struct EndpointController {
    /// The cluster with the endpoints.
    pub guest: GuestCluster,
    /// The cluster with the load balancers.
    pub infra: InfraCluster,
    /// What identifies the guest in infra.
    pub identity: Identity,
    /// Which Services' endpoints are ours to write.
    pub choice: EndpointChoice,
    /// Which of a VM's addresses its Node gets.
    pub addresses: AddressPolicy,
    /// The Services of both clusters.
    pub services: ServiceWatches,
    /// The guest's Nodes.
    pub nodes: NodeWatch,
    /// Where it reports its progress.
    pub gate: Arc<Gate>,
    /// The VMs.
    pub index: Arc<MachineIndex>,
    /// Keeps `index` up to date.
    pub feed: Feed,
    /// The metrics of endpoints.
    pub metrics: EndpointMetrics,
    /// The metrics of its queue.
    pub queue: Queue,
}

/// Why writing ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// A cluster refused a call.
    Forbidden(String),
}

impl EndpointController {
    /// Runs until it is dropped.
    pub async fn run(self) {
        if !self.choice.is_ours() && !self.has_left_overs().await {
            return std::future::pending().await;
        }
        let feed = self.feed.clone();
        tokio::join!(feed.run(), self.write_while_allowed());
    }

    /// Reports that the controller is switched off: it writes no slices, so Services have selectors.
    pub fn stay_off(&self) {
        if self.choice.is_ours() {
            tracing::warn!(
                "kubevirt_eps_controller is switched off by --controllers; infra Services have selectors instead"
            );
            self.metrics.off(true);
        }
        self.gate.set(Work::Off);
    }

    async fn write_while_allowed(&self) {
        let (mut said, mut refused) = (None, 0);
        loop {
            let pause = match rights::ask(&self.guest, &self.infra).await {
                Ok(rights) if rights.missing.is_empty() => {
                    let began = time::Instant::now();
                    let Ended::Forbidden(why) =
                        Box::pin(self.write(rights.may_convert, said.is_some())).await;
                    refused = if began.elapsed() < ASK_AGAIN { refused + 1 } else { 1 };
                    if refused < BELIEVED_REFUSALS {
                        tracing::info!("{why}, although the right is given; trying again");
                        RETRY
                    } else {
                        self.switch_off(why, &mut said).await;
                        ASK_AGAIN
                    }
                }
                Ok(rights) => {
                    self.switch_off(format!("no right to {}", rights.missing.join(", ")), &mut said).await;
                    ASK_AGAIN
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "whether endpoints may be written is not known yet"
                    );
                    RETRY
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Writes until a right turns out to be missing.
    async fn write(&self, may_convert: bool, was_off: bool) -> Ended {
        if was_off {
            tracing::info!("kubevirt_eps_controller: the rights are there now");
        }
        if !may_convert {
            tracing::info!(
                "kubevirt_eps_controller: no right to delete endpoints in the infra namespace: infra Services that have a selector keep it"
            );
        }
        self.services.wait_until_complete().await;
        self.metrics.off(false);
        Session::new(self.clone(), may_convert).run().await
    }

    /// Logs the reason once; from now on Services have their selectors.
    async fn switch_off(&self, why: String, said: &mut Option<String>) {
        self.metrics.off(true);
        if said.as_ref() != Some(&why) {
            tracing::warn!(
                "kubevirt_eps_controller is switched off: {why}; infra Services have selectors instead, which is asked for again every {ASK_AGAIN:?}"
            );
            *said = Some(why);
        }
        self.set(Work::Off).await;
    }

    /// Reports to the service controller whether slices can be written.
    pub(crate) async fn set(&self, work: Work) {
        if self.gate.set(work) {
            self.services.look_at_all().await;
        }
    }

    /// Reports to the service controller whether a Service can do without its selector.
    pub(crate) async fn wrote(&self, guest: &GuestService, is_written: bool) {
        if self.gate.wrote(guest.uid(), is_written) {
            self.services.look_at(ObjectRef::from_obj(guest)).await;
        }
    }

    /// Whether slices of ours exist although none should, because the configuration was changed. Without the right to
    /// list them, the CCM can't have written any.
    async fn has_left_overs(&self) -> bool {
        let ours = format!("{MANAGER_LABEL}={OUR_MANAGER},{}", of_guest(&self.identity));
        let slices: Api<WireSlice> = Api::namespaced(self.infra.client.clone(), &self.infra.namespace);
        if self.choice.selectorless {
            return false;
        }
        loop {
            let first = ListParams::default().labels(&ours).limit(1);
            let found = async {
                if !rights::may_look(&self.infra).await? {
                    return Ok(false);
                }
                let found = call(|| "list endpointslices".to_owned(), slices.list(&first)).await?;
                Ok::<_, CallError>(!found.items.is_empty())
            };
            match found.await {
                Ok(found) => return found,
                Err(error) => tracing::debug!(error = chain(&error), "are there slices of ours?"),
            }
            time::sleep(RETRY).await;
        }
    }
}

/// Selects slices with this guest's labels: infra's controllers give slices the labels of their Service.
pub(crate) fn of_guest(identity: &Identity) -> String {
    format!("{CLUSTER_NAME_LABEL}={}", identity.cluster_label())
}
