//! Holds the lease: waits for it, renews it, releases it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::{
    plan::{Next, next, released},
    wire::WireLease,
};
use crate::access::GuestCluster;

/// Timeout of the release, which happens while the process ends.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// The durations of the election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long other replicas respect a lease that does not change.
    pub lease: Duration,
    /// How long the holder tries to renew.
    pub renew: Duration,
    /// Pause between two tries.
    pub retry: Duration,
}

/// A lease that this process may come to hold.
pub struct Lease {
    api: Api<WireLease>,
    name: String,
    me: String,
    timing: Timing,
    /// The lease as we read it last, and since when it has not changed.
    seen: Option<(WireLease, Instant)>,
}

/// A lease that is held.
pub struct Held {
    lease: Lease,
}

/// Why the lease is not held, or can't be.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The durations contradict each other (client-go: `NewLeaderElector`).
    #[error(
        "the lease duration must be longer than the renew deadline, and that longer than the retry period"
    )]
    Timing,
    /// We could not renew it in time.
    #[error("the lease was not renewed within {} s", .0.as_secs())]
    NotRenewed(Duration),
    /// Another replica holds it.
    #[error("the lease was taken by {0:?}")]
    Taken(String),
}

impl Lease {
    /// The lease `name` in `namespace` of the guest cluster. `me` must differ between processes.
    ///
    /// # Errors
    /// The durations contradict each other.
    pub fn new(
        guest: &GuestCluster,
        namespace: &str,
        name: &str,
        me: String,
        timing: Timing,
    ) -> Result<Self, LeaseError> {
        if timing.lease <= timing.renew || timing.renew <= timing.retry || timing.retry.is_zero() {
            return Err(LeaseError::Timing);
        }
        let api = Api::namespaced(guest.lease_client.clone(), namespace);
        Ok(Self { api, name: name.to_owned(), me, timing, seen: None })
    }

    /// Waits until this process holds the lease. How long the lease has not changed is counted anew from here.
    pub async fn acquire(mut self) -> Held {
        self.seen = None;
        let mut failing = false;
        loop {
            match timeout(self.timing.renew, self.attempt()).await {
                Ok(Ok(true)) => return Held { lease: self },
                Ok(Ok(false)) => failing = false,
                Ok(Err(error)) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(
                        error = crate::access::chain(&error),
                        "the lease can not be read or written"
                    );
                }
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(self.timing.retry).await;
        }
    }

    /// Reads the lease once, and writes it once if we may take it. True = we hold it.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let now = Instant::now();
        let object = cluster::get(&self.api, &self.name).await?;
        let version = |object: &WireLease| object.metadata.resource_version.clone();
        self.seen = match (object, self.seen.take()) {
            (None, _) => None,
            (Some(object), Some((before, since))) if version(&before) == version(&object) => {
                Some((object, since))
            }
            (Some(object), _) => Some((object, now)),
        };
        let spec = self.seen.as_ref().and_then(|(object, _)| object.spec.as_ref());
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        match next(spec, unchanged, &self.me, self.timing.lease, Timestamp::now()) {
            Next::Wait => Ok(false),
            Next::Take(spec) => self.write(*spec).await,
        }
    }

    /// Writes the lease. False = another replica was faster.
    async fn write(&mut self, spec: LeaseSpec) -> Result<bool, kube::Error> {
        let parameters = PostParams::default();
        let written = if let Some((mut object, _)) = self.seen.clone() {
            object.spec = Some(spec);
            self.api.replace(&self.name, &parameters, &object).await
        } else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            self.api.create(&parameters, &WireLease { metadata, spec: Some(spec) }).await
        };
        match written {
            Ok(object) => {
                self.seen = Some((object, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.0.spec.as_ref()?.holder_identity.as_deref()
    }
}

impl Held {
    /// Renews the lease until that fails. The caller must make no changes from then on, but may wait for the lease again.
    pub async fn keep(&mut self) -> LeaseError {
        let timing = self.lease.timing;
        let mut renewed = Instant::now();
        loop {
            sleep(timing.retry.min(timing.renew.saturating_sub(renewed.elapsed()))).await;
            let left = timing.renew.saturating_sub(renewed.elapsed());
            let began = Instant::now();
            match timeout(left, self.lease.attempt()).await {
                // Count from the time at which the write began: the other replicas count from when they read it.
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) => {
                    let holder = self.lease.holder().unwrap_or_default();
                    if holder != self.lease.me {
                        return LeaseError::Taken(holder.to_owned());
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = crate::access::chain(&error), "the lease could not be renewed");
                }
                Err(_) => {}
            }
            if renewed.elapsed() >= timing.renew {
                return LeaseError::NotRenewed(timing.renew);
            }
        }
    }

    /// The lease, to be waited for again after it was lost.
    pub fn lost(self) -> Lease {
        self.lease
    }

    /// Releases the lease, so that another replica takes it at once. If that fails, the others wait until it expires.
    pub async fn release(mut self) {
        let Some(spec) = self.lease.seen.as_ref().and_then(|(object, _)| object.spec.clone()) else { return };
        let given_back = self.lease.write(released(&spec, Timestamp::now()));
        if let Ok(Ok(true)) = timeout(RELEASE_WITHIN, given_back).await {
            tracing::info!("gave the lease back");
        } else {
            tracing::warn!("the lease could not be given back; it ends by itself");
        }
    }
}

#[cfg(test)]
mod tests;
