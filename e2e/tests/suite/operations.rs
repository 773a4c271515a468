//! What an operator does to a running controller and reads of it: credentials that change, metrics and probes, a stop, and
//! the infra cluster's own words in the guest's events.

mod events;

use std::{net::TcpListener, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bench::{
    audit::{AuditLog, Mark},
    scenario::{Deadline, HCP_NAMESPACE, hotplugged, until},
};
use csi_proto::v1::{ProbeRequest, Volume, identity_client::IdentityClient};
pub use events::{missing_class_is_told, quota_is_told};
use k8s_openapi::api::{authentication::v1::TokenRequestSpec, core::v1::Secret};
use kube::{Api, config::Kubeconfig};
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::{
    attach::StuckVolume,
    bound_token,
    controller_process::{Controller, block, kubeconfig, service_account_token},
    fixture::Fixture,
    rights::CONTROLLER_USER,
};

/// An RPC that is expected to fail may be waited out.
const SHORT: Duration = Duration::from_secs(5);

/// How long kubelet lets a container stop (`terminationGracePeriodSeconds` that a pod has without saying so).
const GRACE: Duration = Duration::from_secs(30);

/// HTTP 200.
const OK: u16 = 200;

/// A token dies with its Secret, and the process goes on with the next one: after a refusal, and without one.
pub async fn credentials_change(fixture: Fixture) -> Result<()> {
    let first = Revocable::new(&fixture, "first").await?;
    let controller = Controller::start_with(&fixture, "a", &first.kubeconfig).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;

    first.revoke().await?;
    let absent = format!("pvc-{}-absent", fixture.word);
    match controller.delete_id(&absent).await {
        Ok(()) => bail!("a call with a revoked token answered OK"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("Unauthorized"),
            "a call with a revoked token answered {status:?}"
        ),
    }
    let second = Revocable::new(&fixture, "second").await?;
    controller.swap_kubeconfig(&second.kubeconfig)?;
    controller.delete_id(&absent).await.context("the first call after the swap")?;

    let third = Revocable::new(&fixture, "third").await?;
    controller.swap_kubeconfig(&third.kubeconfig)?;
    second.revoke().await?;
    controller.delete(&volume).await.context("the first call after the old token's end")?;
    ensure!(controller.process().ended().is_none(), "the process was started anew");
    third.revoke().await
}

/// A kubeconfig whose token is valid as long as a Secret exists.
struct Revocable {
    secrets: Api<Secret>,
    name: String,
    kubeconfig: Kubeconfig,
}

impl Revocable {
    async fn new(fixture: &Fixture, suffix: &str) -> Result<Self> {
        let name = format!("{}-{suffix}", fixture.word);
        let secrets: Api<Secret> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
        let bound = bound_token::anchor(&secrets, &name).await?;
        let spec = TokenRequestSpec { bound_object_ref: Some(bound), ..TokenRequestSpec::default() };
        let kubeconfig = kubeconfig(&service_account_token(fixture, spec).await?)?;
        Ok(Self { secrets, name, kubeconfig })
    }

    /// Ends the token.
    async fn revoke(self) -> Result<()> {
        bound_token::end(&self.secrets, &self.name, self.kubeconfig).await
    }
}

/// A volume's life shows in the metrics: its RPCs, its infra calls, its waits; and no object's name.
pub async fn metrics_of_a_life(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    controller.publish(&volume, &machine).await?;
    controller.discard(&volume, &machine).await?;

    let (code, metrics) = controller.get("/metrics").await?;
    ensure!(code == OK, "/metrics answered {code}");
    let sum = |name: &str, labels: &[&str]| -> f64 {
        let has = |line: &&str| labels.iter().all(|label| line.contains(label));
        let lines = metrics.lines().filter(|line| line.starts_with(name)).filter(has);
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    for method in ["CreateVolume", "ControllerPublishVolume", "DeleteVolume"] {
        let answered = sum("kubevirt_csi_rpcs_total{", &[&format!("method=\"{method}\""), "code=\"OK\""]);
        ensure!((answered - 1.0).abs() < f64::EPSILON, "{answered} answers of {method} in\n{metrics}");
    }
    for (verb, resource) in [
        ("create", "datavolumes"),
        ("update", "virtualmachines/addvolume"),
        ("get", "virtualmachineinstances"),
        ("delete", "datavolumes"),
    ] {
        let labels = [&*format!("verb=\"{verb}\""), &*format!("resource=\"{resource}\""), "code=\"20"];
        ensure!(sum("kubevirt_csi_infra_requests_total{", &labels) >= 1.0, "no {labels:?} in\n{metrics}");
    }
    ensure!(sum("kubevirt_csi_controller_waited_seconds_total{", &[]) > 0.0, "no wait in\n{metrics}");
    let serial = volume.volume_context.get("serial").context("no serial")?;
    for name in [&volume.volume_id, &machine, serial, HCP_NAMESPACE] {
        ensure!(!metrics.contains(name), "the metrics name {name}:\n{metrics}");
    }
    fixture.delete_machine(&machine).await
}

/// Without an infra API the process is alive and ready, and each call says what is wrong.
pub async fn alive_without_infra(fixture: Fixture) -> Result<()> {
    let mut unreachable = kubeconfig("none")?;
    // Nobody listens on a port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    for cluster in unreachable.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        cluster.server = Some(format!("https://{closed}"));
    }
    let controller = Controller::start_with(&fixture, "a", &unreachable).await?;
    match controller.delete_id(&format!("pvc-{}", fixture.word)).await {
        Ok(()) => bail!("a volume was deleted without an infra cluster"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("can't be asked"),
            "without an infra cluster: {status:?}"
        ),
    }
    for path in ["/livez", "/readyz"] {
        let (code, said) = controller.get(path).await?;
        ensure!(code == OK, "{path} answered {code}: {said}");
    }
    let probe = IdentityClient::new(controller.channel()).probe(ProbeRequest {}).await?;
    ensure!(probe.into_inner().ready == Some(true), "Probe is not ready");
    Ok(())
}

/// A controller is stopped while a publish waits for the disk: the caller is told to come again, the process ends well and
/// in time; the next one finishes the same publish, and the disk was asked for once.
pub async fn stopped_while_it_waits(fixture: Fixture) -> Result<()> {
    let first = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let log = AuditLog::at(fixture.run.join("logs").join("infra-audit.log"), fixture.infra.clone());
    let mark = log.mark().await?;
    let volume = first.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;

    let stuck = StuckVolume::new(&volume).await?;
    let (answer, stopped) =
        tokio::join!(first.publish(&volume, &machine), stop_once_held(&fixture, &first, &volume));
    stopped?;
    match answer {
        Ok(()) => bail!("publish answered OK although the disk is not Ready"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("is being stopped"),
            "the caller of a stopped controller was told {status:?}"
        ),
    }

    let second = Controller::start(&fixture, "b").await?;
    match second.publish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("the next controller answered OK although the disk is not Ready"),
        Err(status) => ensure!(is_retryable(&status), "the next controller answered {status:?}"),
    }
    drop(stuck);
    second.publish(&volume, &machine).await.context("the same publish after the fault")?;
    let plugged = fixture.control.plugged(&machine).await?;
    ensure!(plugged == [volume.volume_id.clone()], "plugged: {plugged:?}");
    let calls = added(&log, mark, &machine).await?;
    ensure!(calls == 1, "addvolume was called {calls} times");
    second.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// Sends SIGTERM once the disk is on its way and held, and waits for a good end.
async fn stop_once_held(fixture: &Fixture, controller: &Controller, volume: &Volume) -> Result<()> {
    until("the disk on its way", Deadline::PodStart, async || {
        let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
        Ok(if disks.is_empty() { Err("not in the instance".to_owned()) } else { Ok(()) })
    })
    .await?;
    controller.process().signal(Signal::SIGTERM);
    let ended = tokio::time::timeout(GRACE, controller.process().exited()).await;
    let ended = ended.with_context(|| format!("it did not end: {}", controller.process().log_tail(5)))?;
    ensure!(ended.success(), "it ended with {ended}: {}", controller.process().log_tail(5));
    Ok(())
}

fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::DeadlineExceeded | Code::Unavailable)
}

/// How often our ServiceAccount asked for a disk of this machine.
async fn added(log: &AuditLog, since: Mark, machine: &str) -> Result<usize> {
    let calls = log.since(since).await?.of_user(CONTROLLER_USER);
    Ok(calls.filter(|call| call.resource == "virtualmachines/addvolume" && call.name == machine).len())
}
