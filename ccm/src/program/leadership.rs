//! Runs the controllers while this process holds the lease. A lost lease ends the controllers, not the process: the
//! guest's users can write the Lease, and must not be able to make the process restart again and again.

use std::future::Future;

use anyhow::{Context, Result};
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use crate::{
    access::GuestCluster,
    flags::LeaderFlags,
    lease::{Lease, Timing},
};

/// Returns another UUID at each read (Linux, random(4)).
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// The lease that the flags name.
pub(super) fn lease(flags: &LeaderFlags, guest: &GuestCluster) -> Result<Lease> {
    let timing = Timing {
        lease: flags.leader_elect_lease_duration,
        renew: flags.leader_elect_renew_deadline,
        retry: flags.leader_elect_retry_period,
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let unique = std::fs::read_to_string(RANDOM_UUID).context("reading a unique id")?;
    // In the form of the framework: host name, underscore, UUID.
    let me = format!("{}_{}", host.trim(), unique.trim());
    let (namespace, name) = (&flags.leader_elect_resource_namespace, &flags.leader_elect_resource_name);
    Lease::new(guest, namespace, name, me, timing).context("--leader-elect-*")
}

/// Waits for the lease, runs `work` while it is held, and begins again when it is lost; each time with a new `work`.
/// Ends when `stop` is cancelled, and releases the lease then; a standby ends at once.
///
/// `leads` is 1 while the lease is held. `work` is dropped as soon as the lease is lost: without it nothing is changed.
pub(super) async fn lead<W: Future<Output = ()>>(
    mut lease: Lease,
    leads: &Gauge,
    stop: &CancellationToken,
    work: impl Fn() -> W,
) {
    loop {
        tracing::info!("waiting for the lease");
        let Some(mut held) = stop.run_until_cancelled(lease.acquire()).await else { return };
        tracing::info!("holding the lease");
        leads.set(1);
        let lost = tokio::select! {
            lost = held.keep() => Some(lost),
            () = work() => None,
            () = stop.cancelled() => None,
        };
        leads.set(0);
        let Some(error) = lost else { return held.release().await };
        tracing::warn!(%error, "leader election lost: the controllers are stopped, and the lease is waited for again");
        lease = held.lost();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use serde_json::json;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/ccm";
    const TIMING: Timing = Timing {
        lease: Duration::from_secs(15),
        renew: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };

    /// Counts the works that began and those that were dropped.
    #[derive(Default)]
    struct Works {
        begun: AtomicU32,
        dropped: AtomicU32,
    }

    struct Work(Arc<Works>);

    impl Drop for Work {
        fn drop(&mut self) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Works {
        fn seen(&self) -> (u32, u32) {
            (self.begun.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
        }
    }

    fn shows(api: &FakeApi, holder: &str, version: &str) {
        let lease = |holder: &str, version: &str| {
            json!({"metadata": {"name": "ccm", "resourceVersion": version},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}})
        };
        api.answer(&format!("GET {PATH}"), 200, lease(holder, version));
        api.answer(&format!("PUT {PATH}"), 200, lease("me", &format!("{version}-ours")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_ends_the_controllers_and_not_the_process() {
        let (api, leads, stop) = (FakeApi::default(), Gauge::default(), CancellationToken::new());
        let works = Arc::new(Works::default());
        let guest = GuestCluster::over(api.client());
        let lease = Lease::new(&guest, "kube-system", "ccm", "me".into(), TIMING).unwrap();
        shows(&api, "", "1");
        let work = || {
            works.begun.fetch_add(1, Ordering::Relaxed);
            let work = Work(Arc::clone(&works));
            async move {
                let _work = work;
                std::future::pending::<()>().await;
            }
        };
        let events = async {
            for round in 1..=3 {
                sleep(Duration::from_mins(1)).await;
                assert_eq!((leads.get(), works.seen()), (1, (round, round - 1)), "one work at a time");
                shows(&api, "thief", &format!("stolen-{round}"));
                sleep(Duration::from_secs(5)).await;
                assert_eq!((leads.get(), works.seen()), (0, (round, round)), "no work without the lease");
                shows(&api, "", &format!("released-{round}"));
            }
            stop.cancel();
        };
        let run = async { tokio::join!(lead(lease, &leads, &stop, work), events) };
        timeout(Duration::from_hours(1), run).await.unwrap();
    }
}
