//! `--cleanup`: deletes all infra Services of a guest that is being removed, and waits until they are gone. It does not
//! need the guest's API. If that answers, it identifies the guest, and the cleanup removes our finalizer from its
//! Services.
//!
//! While a cloud controller manager of the guest runs it would create each mirror again, so the cleanup checks its
//! lease first.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, ObjectMeta};
use tokio::time::{Instant, sleep};

use crate::{
    access::{GuestCluster, InfraCluster, chain},
    guest::services::GuestService,
    guest_names::{GUEST_CLUSTER_ANNOTATION, Identity, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL},
    infra::mirrors::InfraService,
    load_balancer::{
        calls::{Services, delete},
        conditions::patch,
    },
    unreadable::Readable,
};

/// Pause between two reads of infra, or of the lease.
const LOOK: Duration = Duration::from_secs(1);
/// How long to respect a lease without a duration (the default of `--leader-elect-lease-duration`).
const DEFAULT_LEASE: Duration = Duration::from_secs(15);
/// Objects per page of a list.
const PAGE: u32 = 100;

/// What the cleanup needs.
pub struct Cleanup {
    /// The cluster with the infra Services.
    pub infra: InfraCluster,
    /// The guest cluster, if there are credentials for it.
    pub guest: Option<GuestCluster>,
    /// What identifies the guest whose infra Services are deleted.
    pub identity: Identity,
    /// Namespace and name of the lease in the guest.
    pub lease: (String, String),
    /// How long to wait until all are gone.
    pub timeout: Duration,
}

/// A guest whose API answers.
struct Answering {
    guest: GuestCluster,
    services: Services,
    /// The UID of the guest cluster.
    uid: Option<String>,
}

impl Cleanup {
    /// Runs to the end, and reports on standard output what it does.
    ///
    /// # Errors
    /// A cloud controller manager is running, it is not certain which guest the infra Services belong to, infra refuses
    /// a call, or the Services are not gone in time.
    pub async fn run(self) -> Result<()> {
        let guest = self.answering().await;
        if let Some(guest) = &guest {
            self.no_manager_acts(&guest.guest).await?;
        }
        let own = chosen(self.present().await?, guest.as_ref().and_then(|guest| guest.uid.as_deref()))?;
        for infra in &own {
            println!("deleting infra service {}", described(infra));
            let (name, uid) = key(infra);
            delete(&self.mirrors(), name, uid).await.with_context(|| format!("deleting {name}"))?;
        }
        self.until_gone(&own).await?;
        println!("infra services deleted: {}", own.len());
        match &guest {
            Some(guest) => guest.free().await,
            None => Ok(()),
        }
    }

    fn mirrors(&self) -> Api<InfraService> {
        Api::namespaced(self.infra.client.clone(), &self.infra.namespace)
    }

    async fn answering(&self) -> Option<Answering> {
        let Some(guest) = self.guest.clone() else {
            println!("no credentials of the guest cluster: its services keep their finalizers");
            return None;
        };
        let services = Services::new(&guest, &self.infra);
        match services.guest_cluster().await {
            Ok(uid) => Some(Answering { guest, services, uid }),
            Err(error) => {
                println!(
                    "the guest cluster does not answer, its services keep their finalizers: {}",
                    chain(&error)
                );
                None
            }
        }
    }

    /// Fails if the lease is renewed while we observe it: then a manager is running. Only our own clock counts.
    async fn no_manager_acts(&self, guest: &GuestCluster) -> Result<()> {
        let (namespace, name) = &self.lease;
        let api: Api<Lease> = Api::namespaced(guest.client.clone(), namespace);
        let Some(first) = cluster::get(&api, name).await.context("reading the lease")? else { return Ok(()) };
        let spec = first.spec.unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() {
            return Ok(());
        }
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let respected = seconds.map_or(DEFAULT_LEASE, Duration::from_secs);
        println!("checking for {} s whether {holder} renews lease {namespace}/{name}", respected.as_secs());
        let began = Instant::now();
        while began.elapsed() < respected {
            sleep(LOOK).await;
            let now = cluster::get(&api, name).await.context("reading the lease")?;
            if now.is_some_and(|now| now.metadata.resource_version != first.metadata.resource_version) {
                bail!(
                    "a cloud controller manager of this guest runs ({holder} renews lease {namespace}/{name}) and would make \
                     the infra services again; stop it first"
                );
            }
        }
        Ok(())
    }

    /// The infra Services on which every mark names this guest.
    async fn present(&self) -> Result<Vec<InfraService>> {
        let labels: Vec<_> =
            self.identity.common_labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut chosen = ListParams::default().labels(&labels.join(",")).limit(PAGE);
        let listed: Api<Readable<InfraService>> =
            Api::namespaced(self.infra.client.clone(), &self.infra.namespace);
        let mut present = Vec::new();
        loop {
            let page = listed.list(&chosen).await.context("listing the infra services")?;
            let readable = self.infra.reader.readable(page.items);
            present.extend(readable.into_iter().filter(|infra| self.identity.owns(infra)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => chosen = chosen.continue_token(&token),
                None => return Ok(present),
            }
        }
    }

    async fn until_gone(&self, own: &[InfraService]) -> Result<()> {
        let began = Instant::now();
        loop {
            let present = self.present().await?;
            let left: Vec<_> =
                present.iter().filter(|infra| own.iter().any(|own| key(own) == key(infra))).collect();
            if left.is_empty() {
                return Ok(());
            }
            if began.elapsed() >= self.timeout {
                let left: Vec<_> = left.into_iter().map(described).collect();
                bail!("not gone after {} s: {}", self.timeout.as_secs(), left.join(", "));
            }
            sleep(LOOK).await;
        }
    }
}

impl Answering {
    /// Removes our finalizer, so that the Services can be deleted, and the addresses and conditions, which are no
    /// longer true.
    async fn free(&self) -> Result<()> {
        let all: Api<Readable<GuestService>> = Api::all(self.guest.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        let mut freed = 0_usize;
        loop {
            let some = all.list(&page).await.context("listing the guest's services")?;
            for guest in self.guest.reader.readable(some.items) {
                if !guest.has_finalizer() || guest.spec.load_balancer_class.is_some() {
                    continue;
                }
                let conditions = patch(&guest.status.conditions, &[], &Time(Timestamp::now()));
                self.services.set_status(&guest, &[], &conditions).await.context("emptying a status")?;
                self.services.remove_finalizer(&guest).await.context("removing a finalizer")?;
                freed += 1;
            }
            match some.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        println!("services of the guest freed of their finalizer: {freed}");
        Ok(())
    }
}

/// The infra Services to delete: not those whose cluster mark names another guest of the same name. If the guest did
/// not identify itself, all marks must name one guest.
fn chosen(present: Vec<InfraService>, guest: Option<&str>) -> Result<Vec<InfraService>> {
    let Some(guest) = guest else {
        let guests: BTreeSet<_> = present.iter().filter_map(mark).collect();
        if guests.len() > 1 {
            bail!(
                "the infra services are those of {} guest clusters of one name; the guest's own API server has to answer to \
                 tell them apart",
                guests.len()
            );
        }
        return Ok(present);
    };
    let (own, others): (Vec<_>, _) =
        present.into_iter().partition(|infra| mark(infra).is_none_or(|mark| mark == guest));
    for other in &others {
        println!("infra service {} is another guest cluster's of the same name: it stays", described(other));
    }
    Ok(own)
}

fn mark(infra: &InfraService) -> Option<&str> {
    infra.metadata.annotations.as_ref()?.get(GUEST_CLUSTER_ANNOTATION).map(String::as_str)
}

fn key(infra: &InfraService) -> (&str, &str) {
    let ObjectMeta { name, uid, .. } = &infra.metadata;
    (name.as_deref().unwrap_or_default(), uid.as_deref().unwrap_or_default())
}

/// Its name, with the name of the Service that it served.
fn described(infra: &InfraService) -> String {
    let label = |key: &str| infra.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    match (label(SERVICE_NAMESPACE_LABEL), label(SERVICE_NAME_LABEL)) {
        (Some(namespace), Some(name)) => format!("{} (of {namespace}/{name})", key(infra).0),
        _ => key(infra).0.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn marked(mark: Option<&str>) -> InfraService {
        let annotations = mark.map(|mark| json!({ GUEST_CLUSTER_ANNOTATION: mark }));
        serde_json::from_value(json!({ "metadata": { "name": "a", "annotations": annotations } })).unwrap()
    }

    #[rstest]
    #[case::its_own(Some("g"), &[Some("g"), None], Some(2))]
    #[case::beside_another(Some("g"), &[Some("g"), Some("h")], Some(1))]
    #[case::silent_and_one(None, &[Some("g"), None, Some("g")], Some(3))]
    #[case::silent_and_two(None, &[Some("g"), Some("h")], None)]
    fn a_guest_of_the_same_name_loses_nothing(
        #[case] guest: Option<&str>,
        #[case] marks: &[Option<&str>],
        #[case] deleted: Option<usize>,
    ) {
        let present = marks.iter().map(|mark| marked(*mark)).collect();
        assert_eq!(chosen(present, guest).ok().map(|own| own.len()), deleted);
    }
}
