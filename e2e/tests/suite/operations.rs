//! What an operator does with a running controller and reads from it: credentials that change, metrics and probes, a stop, and
//! the infra cluster's messages in the guest's events.

pub mod events;

use std::{net::TcpListener, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bench::{
    audit::{AuditLog, Mark},
    scenario::{Deadline, HCP_NAMESPACE, hotplugged, until},
};
use csi_proto::v1::{ProbeRequest, Volume, identity_client::IdentityClient};
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

tests! {
    Calls:
        changed_credentials_are_taken_up_without_a_restart,
        a_volumes_life_shows_in_the_metrics,
        alive_and_ready_without_an_infra_api,
        a_stop_in_the_midst_of_a_publish_loses_nothing;
}

/// An RPC that is expected to fail may be waited out.
const SHORT: Duration = Duration::from_secs(5);

/// How long kubelet lets a container stop (the default of `terminationGracePeriodSeconds`).
const GRACE: Duration = Duration::from_secs(30);

/// HTTP 200.
const OK: u16 = 200;

/// A token dies with its Secret, and the process goes on with the next one: after a refusal, and without one.
async fn changed_credentials_are_taken_up_without_a_restart(fixture: Fixture) -> Result<()> {
    let first = Revocable::new(&fixture, "first").await?;
    let controller = Controller::start_with(&fixture, "a", &first.kubeconfig).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;

    first.revoke().await?;
    let absent = format!("pvc-{}-absent", fixture.word);
    match controller.delete_id(&absent).await {
        Ok(()) => bail!("expected a call with a revoked token to fail, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("Unauthorized"),
            "expected UNAVAILABLE with Unauthorized for a revoked token, saw {status:?}"
        ),
    }
    let second = Revocable::new(&fixture, "second").await?;
    controller.swap_kubeconfig(&second.kubeconfig)?;
    controller.delete_id(&absent).await.context("the first call after the swap")?;

    let third = Revocable::new(&fixture, "third").await?;
    controller.swap_kubeconfig(&third.kubeconfig)?;
    second.revoke().await?;
    controller.delete(&volume).await.context("the first call after the old token's end")?;
    ensure!(controller.process().ended().is_none(), "expected the process to live on, saw it ended");
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
async fn a_volumes_life_shows_in_the_metrics(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    controller.publish(&volume, &machine).await?;
    controller.discard(&volume, &machine).await?;

    let (code, metrics) = controller.get("/metrics").await?;
    ensure!(code == OK, "expected 200 from /metrics, saw {code}");
    let sum = |name: &str, labels: &[&str]| -> f64 {
        let has = |line: &&str| labels.iter().all(|label| line.contains(label));
        let lines = metrics.lines().filter(|line| line.starts_with(name)).filter(has);
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    for method in ["CreateVolume", "ControllerPublishVolume", "DeleteVolume"] {
        let answered = sum("kubevirt_csi_rpcs_total{", &[&format!("method=\"{method}\""), "code=\"OK\""]);
        ensure!(
            (answered - 1.0).abs() < f64::EPSILON,
            "expected one answer of {method}, saw {answered} in\n{metrics}"
        );
    }
    for (verb, resource) in [
        ("create", "datavolumes"),
        ("update", "virtualmachines/addvolume"),
        ("get", "virtualmachineinstances"),
        ("delete", "datavolumes"),
    ] {
        let labels = [&*format!("verb=\"{verb}\""), &*format!("resource=\"{resource}\""), "code=\"20"];
        ensure!(
            sum("kubevirt_csi_infra_requests_total{", &labels) >= 1.0,
            "expected infra calls with {labels:?}, saw none in\n{metrics}"
        );
    }
    ensure!(
        sum("kubevirt_csi_controller_waited_seconds_total{", &[]) > 0.0,
        "expected waited seconds, saw none in\n{metrics}"
    );
    let serial = volume.volume_context.get("serial").context("no serial")?;
    for name in [&volume.volume_id, &machine, serial, HCP_NAMESPACE] {
        ensure!(
            !metrics.contains(name),
            "expected no object's name in the metrics, saw {name} in\n{metrics}"
        );
    }
    fixture.delete_machine(&machine).await
}

/// Without an infra API the process is alive and ready, and each call answers what is wrong.
async fn alive_and_ready_without_an_infra_api(fixture: Fixture) -> Result<()> {
    let mut unreachable = kubeconfig("none")?;
    // Nothing listens on a port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    for cluster in unreachable.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        cluster.server = Some(format!("https://{closed}"));
    }
    let controller = Controller::start_with(&fixture, "a", &unreachable).await?;
    match controller.delete_id(&format!("pvc-{}", fixture.word)).await {
        Ok(()) => bail!("expected DeleteVolume to fail without an infra cluster, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("the infra API request failed"),
            "expected UNAVAILABLE without an infra cluster, saw {status:?}"
        ),
    }
    for path in ["/livez", "/readyz"] {
        let (code, said) = controller.get(path).await?;
        ensure!(code == OK, "expected 200 from {path}, saw {code}: {said}");
    }
    let probe = IdentityClient::new(controller.channel()).probe(ProbeRequest {}).await?;
    ensure!(probe.into_inner().ready == Some(true), "expected Probe to report ready, saw not ready");
    Ok(())
}

/// A controller is stopped while a publish waits for the disk: the caller gets a code that it retries, the process exits with
/// success and in time; the next one finishes the same publish, and the disk was requested once.
async fn a_stop_in_the_midst_of_a_publish_loses_nothing(fixture: Fixture) -> Result<()> {
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
        Ok(()) => bail!("expected publish to fail while the disk is not Ready, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::Unavailable && status.message().contains("is being stopped"),
            "expected UNAVAILABLE from a controller that is being stopped, saw {status:?}"
        ),
    }

    let second = Controller::start(&fixture, "b").await?;
    match second.publish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("expected the next controller to fail while the disk is not Ready, saw OK"),
        Err(status) => ensure!(
            is_retryable(&status),
            "expected a code of the next controller that is retried, saw {status:?}"
        ),
    }
    drop(stuck);
    second.publish(&volume, &machine).await.context("the same publish after the fault")?;
    let plugged = fixture.control.plugged(&machine).await?;
    ensure!(plugged == [volume.volume_id.clone()], "expected the one volume plugged, saw {plugged:?}");
    let calls = added(&log, mark, &machine).await?;
    ensure!(calls == 1, "expected one addvolume call, saw {calls}");
    second.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// Sends SIGTERM once the disk is being plugged and held, and waits for an exit with success.
async fn stop_once_held(fixture: &Fixture, controller: &Controller, volume: &Volume) -> Result<()> {
    until("the disk in the instance", Deadline::PodStart, async || {
        let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
        Ok(if disks.is_empty() { Err("not in the instance".to_owned()) } else { Ok(()) })
    })
    .await?;
    controller.process().signal(Signal::SIGTERM);
    let ended = tokio::time::timeout(GRACE, controller.process().exited()).await;
    let ended = ended.with_context(|| {
        format!("expected the controller to exit, saw it run: {}", controller.process().log_tail(5))
    })?;
    ensure!(
        ended.success(),
        "expected an exit with success, saw {ended}: {}",
        controller.process().log_tail(5)
    );
    Ok(())
}

fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::DeadlineExceeded | Code::Unavailable)
}

/// How often our ServiceAccount requested a disk for this machine.
async fn added(log: &AuditLog, since: Mark, machine: &str) -> Result<usize> {
    let calls = log.since(since).await?.of_user(CONTROLLER_USER);
    Ok(calls.filter(|call| call.resource == "virtualmachines/addvolume" && call.name == machine).len())
}
