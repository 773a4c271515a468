//! `--cleanup`: deletes all infra Services of a guest that is being removed, and waits until they are gone. It does not
//! need the guest's API. If that answers, it identifies the guest, and the cleanup removes our finalizer from its
//! Services.
//!
//! While a cloud controller manager of the guest runs it would create each mirror again, so the cleanup checks its
//! lease first. The guest's users can write that lease and change the guest's UID, so both are believed only as far as
//! they can't hold up or falsify the cleanup: it ends in a bounded time, and never with success while something that
//! carries this guest's marks is left.

mod choice;

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{Stream, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    access::{GuestCluster, InfraCluster, chain},
    guest::services::GuestService,
    guest_names::{GuestLabels, infra_name},
    lease::{WireLease, respected},
    load_balancer::{
        calls::{Services, delete},
        cleanup::choice::{Choice, Guest, Labelled, Left, Why, choose, described, key},
        conditions::patch,
    },
    unreadable::Readable,
};

/// Pause between two reads of infra, or of the lease.
const LOOK: Duration = Duration::from_secs(1);
/// Objects per page of a list.
const PAGE: u32 = 100;

/// What the cleanup needs.
pub struct Cleanup {
    /// The cluster with the infra Services.
    pub infra: InfraCluster,
    /// The guest cluster, if there are credentials for it.
    pub guest: Option<GuestCluster>,
    /// What identifies the guest whose infra Services are deleted.
    pub identity: GuestLabels,
    /// Namespace and name of the lease in the guest.
    pub lease: (String, String),
    /// Our own duration of a lease: another's is respected up to a multiple of it.
    pub lease_duration: Duration,
    /// Whether to ignore the guest's lease and UID. The operator vouches that no replica of this guest runs and that no
    /// other guest has its name in this namespace.
    pub force: bool,
    /// How long to wait until all are gone.
    pub timeout: Duration,
}

/// A guest whose API answers.
struct Answering {
    guest: GuestCluster,
    services: Services,
    /// The UID of the guest cluster, if the guest told it.
    uid: Option<String>,
}

impl Cleanup {
    /// Runs to the end, and reports on standard output what it does.
    ///
    /// # Errors
    /// A cloud controller manager is running, infra refuses a call, the Services are not gone in time, or something that
    /// carries this guest's marks is left.
    pub async fn run(self) -> Result<()> {
        let answering = self.answering().await;
        let guest = match &answering {
            Some(_) if self.force => {
                println!("--cleanup-force: the lease and the UID of the guest are not asked for");
                None
            }
            Some(answering) => {
                self.no_manager_acts(&answering.guest).await?;
                answering.identified().await?
            }
            None => None,
        };
        let Choice { own, .. } = choose(self.labelled().await?, &self.identity, guest.as_ref());
        for infra in &own {
            println!("deleting infra service {}", described(infra));
            let (name, uid) = key(infra);
            delete(&self.mirrors(), name, uid).await.with_context(|| format!("deleting {name}"))?;
        }
        let after = self.until_gone(&own).await?;
        println!("infra services deleted: {}", own.len());
        let Choice { own, mut left } = choose(after, &self.identity, guest.as_ref());
        left.extend(own.iter().map(|infra| Left { name: described(infra), why: Why::MadeAgain }));
        if !left.is_empty() {
            let all: Vec<_> = left.iter().map(ToString::to_string).collect();
            bail!("infra services with the marks of this guest are left: {}", all.join("; "));
        }
        match &answering {
            Some(guest) => guest.free().await,
            None => Ok(()),
        }
    }

    fn mirrors(&self) -> Api<Labelled> {
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

    /// Fails if the lease is renewed while we observe it: then a manager is running. Only our own clock counts, and the
    /// lease's own duration only up to a bound.
    async fn no_manager_acts(&self, guest: &GuestCluster) -> Result<()> {
        let (namespace, name) = &self.lease;
        let api: Api<WireLease> = Api::namespaced(guest.client.clone(), namespace);
        let read = async || {
            let lease = cluster::get(&api, name).await;
            lease.with_context(|| {
                format!(
                    "reading lease {namespace}/{name}; if no cloud controller manager of this guest runs, run this again \
                     with --cleanup-force"
                )
            })
        };
        let Some(first) = read().await? else { return Ok(()) };
        let spec = first.spec.unwrap_or_default();
        let respected = respected(Some(&spec), self.lease_duration);
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() {
            return Ok(());
        }
        println!("checking for {} s whether {holder} renews lease {namespace}/{name}", respected.as_secs());
        let began = Instant::now();
        while began.elapsed() < respected {
            sleep(LOOK).await;
            let now = read().await?;
            if now.is_some_and(|now| now.metadata.resource_version != first.metadata.resource_version) {
                bail!(
                    "a cloud controller manager of this guest runs ({holder} renews lease {namespace}/{name}) and would make \
                     the infra services again; stop it first. If none runs, somebody else changes the lease: run this again \
                     with --cleanup-force"
                );
            }
        }
        Ok(())
    }

    /// The infra Services with the cluster's name, or a former one.
    async fn labelled(&self) -> Result<Vec<Readable<Labelled>>> {
        let listed: Api<Readable<Labelled>> =
            Api::namespaced(self.infra.client.clone(), &self.infra.namespace);
        let mut found = Vec::new();
        for selector in self.identity.selectors() {
            let which = ListParams::default().labels(&selector);
            let mut pages = pin!(pages(&listed, which, "listing the infra services"));
            while let Some(some) = pages.try_next().await? {
                found.extend(some);
            }
        }
        Ok(found)
    }

    /// Waits until none of `own` is left. Returns what is there then.
    async fn until_gone(&self, own: &[Labelled]) -> Result<Vec<Readable<Labelled>>> {
        let began = Instant::now();
        loop {
            let found = self.labelled().await?;
            let present = found.iter().filter_map(|infra| infra.0.as_ref().ok());
            let left: Vec<_> =
                present.filter(|infra| own.iter().any(|own| key(own) == key(infra))).map(described).collect();
            if left.is_empty() {
                return Ok(found);
            }
            if began.elapsed() >= self.timeout {
                bail!("not gone after {} s: {}", self.timeout.as_secs(), left.join(", "));
            }
            sleep(LOOK).await;
        }
    }
}

impl Answering {
    /// The guest's UID and Services. `None` if it does not tell its UID, so that it proves nothing.
    async fn identified(&self) -> Result<Option<Guest>> {
        let Some(uid) = self.uid.clone() else { return Ok(None) };
        let all: Api<Readable<GuestService>> = Api::all(self.guest.client.clone());
        let mut pages = pin!(pages(&all, ListParams::default(), "listing the guest's services"));
        let mut mirror_names = HashSet::new();
        while let Some(some) = pages.try_next().await? {
            mirror_names.extend(some.iter().filter_map(|guest| guest.meta().uid.as_deref()).map(infra_name));
        }
        Ok(Some(Guest { uid, mirror_names }))
    }

    /// Removes our finalizer, so that the Services can be deleted, and the addresses and conditions, which are no
    /// longer true.
    async fn free(&self) -> Result<()> {
        let all: Api<Readable<GuestService>> = Api::all(self.guest.client.clone());
        let mut pages = pin!(pages(&all, ListParams::default(), "listing the guest's services"));
        let mut freed = 0_usize;
        while let Some(some) = pages.try_next().await? {
            for guest in self.guest.reader.readable(some) {
                if !guest.has_finalizer() || guest.spec.load_balancer_class.is_some() {
                    continue;
                }
                let conditions = patch(&guest.status.conditions, &[], &Time(Timestamp::now()));
                self.services.set_status(&guest, &[], &conditions).await.context("emptying a status")?;
                self.services.remove_finalizer(&guest).await.context("removing a finalizer")?;
                freed += 1;
            }
        }
        println!("services of the guest freed of their finalizer: {freed}");
        Ok(())
    }
}

/// The objects that `which` selects, page by page; `what` names the list in an error.
fn pages<K>(
    api: &Api<Readable<K>>,
    which: ListParams,
    what: &'static str,
) -> impl Stream<Item = Result<Vec<Readable<K>>>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    stream::try_unfold(Some(which.limit(PAGE)), move |page| async move {
        let Some(page) = page else { return Ok(None) };
        let some = api.list(&page).await.context(what)?;
        let token = some.metadata.continue_.filter(|token| !token.is_empty());
        Ok(Some((some.items, token.map(|token| page.continue_token(&token)))))
    })
}

#[cfg(test)]
mod tests;
