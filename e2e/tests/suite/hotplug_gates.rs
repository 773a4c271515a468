//! Both ways in which KubeVirt plugs volumes: its default (gate `DeclarativeHotplugVolumes`: a call changes the VM's spec) and
//! the older one (gate `HotplugVolumes`: a call leaves a request in the VM's status, and virt-controller carries it out).
//! virt-api and virt-controller read the gates again while they run.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{Deadline, HCP_NAMESPACE, hotplugged, until, virtual_machines};
use csi_proto::v1::Volume;
use futures::{StreamExt, TryStreamExt};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, WatchEvent, WatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use crate::{
    attach::volumes_at_once,
    controller_process::{Controller, block},
    fixture::Fixture,
    held_requests::hold_requests,
};

tests! {
    Workers:
        both_ways_of_kubevirt_attach_and_detach;
}

/// The older gate.
const HOTPLUG_VOLUMES: &str = "HotplugVolumes";

/// KubeVirt's namespace, and the name of its configuration.
const KUBEVIRT_NAMESPACE: &str = "kubevirt";
const KUBEVIRT: &str = "kubevirt";

/// A deadline that ends while KubeVirt is kept from acting.
const SHORT: Duration = Duration::from_secs(4);

/// HTTP status of KubeVirt's refusal to remove what is not in the spec yet.
const CONFLICT: u16 = 409;

/// Volumes plugged at the same moment.
const AT_ONCE: usize = 8;

/// With the older gate: attach, detach, a removal before the addition was carried out, eight volumes at once; then the same
/// with the default, which is restored at the end.
async fn both_ways_of_kubevirt_attach_and_detach(fixture: Fixture) -> Result<()> {
    let gates = Gates::of(&fixture).await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let controller = Controller::start(&fixture, "a").await?;
    gates.set(&[HOTPLUG_VOLUMES], &machine).await?;
    let requested = older_way(&fixture, &controller, &machine).await;
    // Whatever happened, the next test finds the gates that it expects.
    gates.set(&[], &machine).await?;
    requested.context("with the gate HotplugVolumes")?;
    default_way(&fixture, &controller, &machine).await.context("with the default gates")?;
    fixture.delete_machine(&machine).await
}

async fn older_way(fixture: &Fixture, controller: &Controller, machine: &str) -> Result<()> {
    let requests = Requests::watch(fixture, machine).await?;
    let volume = controller.create(&format!("pvc-{}-a", fixture.word), block()).await?;
    controller.publish(&volume, machine).await?;
    ensure!(
        ready(fixture, &volume, machine).await?,
        "expected the attached disk to be Ready, saw another phase"
    );
    requests.expect(&volume, "addVolumeOptions").await?;
    controller.unpublish(&volume, machine).await?;
    requests.expect(&volume, "removeVolumeOptions").await?;
    gone(fixture, &volume, machine).await?;
    removed_before_it_was_added(fixture, controller, &volume, machine).await?;
    controller.delete(&volume).await?;
    volumes_at_once(fixture, controller, machine, AT_ONCE).await
}

async fn default_way(fixture: &Fixture, controller: &Controller, machine: &str) -> Result<()> {
    let requests = Requests::watch(fixture, machine).await?;
    let volume = controller.create(&format!("pvc-{}-b", fixture.word), block()).await?;
    controller.publish(&volume, machine).await?;
    ensure!(
        ready(fixture, &volume, machine).await?,
        "expected the attached disk to be Ready, saw another phase"
    );
    controller.unpublish(&volume, machine).await?;
    gone(fixture, &volume, machine).await?;
    controller.delete(&volume).await?;
    volumes_at_once(fixture, controller, machine, AT_ONCE).await?;
    ensure!(
        requests.seen().is_empty(),
        "expected no volume requests with the default gates, saw {:?}",
        requests.seen()
    );
    Ok(())
}

/// virt-controller cannot carry out an addition: removing it answers 409, and the addition completes later. A driver that
/// believed the 409 would leave the disk in the VM for good.
async fn removed_before_it_was_added(
    fixture: &Fixture,
    controller: &Controller,
    volume: &Volume,
    machine: &str,
) -> Result<()> {
    let held = hold_requests(fixture, machine).await?;
    let pending = pending_addition(fixture, controller, volume, machine).await;
    let requests = Requests::watch(fixture, machine).await;
    held.release().await?;
    pending?;
    controller.discard_keeping(volume, machine).await?;
    requests?.expect(volume, "removeVolumeOptions").await.context("the addition did not complete")?;
    gone(fixture, volume, machine).await
}

/// While virt-controller is kept from writing: attach, KubeVirt's own answer to a removal, and detach.
async fn pending_addition(
    fixture: &Fixture,
    controller: &Controller,
    volume: &Volume,
    machine: &str,
) -> Result<()> {
    expect_not_done(controller.publish_within(volume, machine, SHORT).await, "publish")?;
    let vm = virtual_machines(&fixture.infra, HCP_NAMESPACE).get(machine).await?;
    let pending = vm.data["status"]["volumeRequests"].to_string();
    ensure!(pending.contains(&volume.volume_id), "expected the addition to be pending, saw {pending}");
    let removal = json!({"name": volume.volume_id});
    let answer = subresource(fixture, "virtualmachines", machine, "removevolume", &removal).await?;
    ensure!(answer == CONFLICT, "expected 409 from KubeVirt for the removal, saw {answer}");
    expect_not_done(controller.unpublish_within(volume, machine, SHORT).await, "unpublish")
}

/// The driver could not finish and answers with a code that the sidecar retries.
fn expect_not_done(answer: Result<(), tonic::Status>, call: &str) -> Result<()> {
    match answer {
        Ok(()) => bail!("expected {call} to fail while KubeVirt can't act, saw OK"),
        Err(status) => {
            let again = matches!(status.code(), Code::Aborted | Code::DeadlineExceeded | Code::Unavailable);
            ensure!(again, "expected a code of {call} that the sidecar retries, saw {status:?}");
            Ok(())
        }
    }
}

/// Whether the machine's status shows the disk.
async fn ready(fixture: &Fixture, volume: &Volume, machine: &str) -> Result<bool> {
    let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
    Ok(disks.iter().any(|disk| disk.phase == "Ready" && disk.vmi == machine))
}

/// Nothing names the volume: no instance's status, not the VM's spec, no request, no disk in QEMU.
async fn gone(fixture: &Fixture, volume: &Volume, machine: &str) -> Result<()> {
    let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
    ensure!(disks.is_empty(), "expected no disk after the detach, saw {disks:?}");
    let vm = virtual_machines(&fixture.infra, HCP_NAMESPACE).get(machine).await?;
    for part in [&vm.data["spec"]["template"]["spec"]["volumes"], &vm.data["status"]["volumeRequests"]] {
        ensure!(
            !part.to_string().contains(&volume.volume_id),
            "expected no trace in the VM after the detach, saw {part}"
        );
    }
    ensure!(
        fixture.control.plugged(machine).await?.is_empty(),
        "expected no plugged disk after the detach, saw it plugged"
    );
    Ok(())
}

/// KubeVirt's feature gates.
struct Gates<'a> {
    fixture: &'a Fixture,
    configuration: Api<DynamicObject>,
}

impl<'a> Gates<'a> {
    async fn of(fixture: &'a Fixture) -> Result<Self> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("kubevirt.io", "v1", "KubeVirt"),
            "kubevirts",
        );
        let configuration = Api::namespaced_with(fixture.infra.clone(), KUBEVIRT_NAMESPACE, &kind);
        let object: DynamicObject = configuration.get(KUBEVIRT).await?;
        let gates = &object.data["spec"]["configuration"]["developerConfiguration"]["featureGates"];
        let before: Vec<String> = serde_json::from_value(gates.clone()).unwrap_or_default();
        ensure!(before.is_empty(), "expected a bench with KubeVirt's default gates, saw {before:?}");
        Ok(Self { fixture, configuration })
    }

    /// Sets the gates and waits until virt-api applies them: only with the older gate it accepts a change of an instance that a
    /// VM owns. The request is a dry run.
    async fn set(&self, gates: &[&str], machine: &str) -> Result<()> {
        let patch = json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}}});
        self.configuration.patch(KUBEVIRT, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let older = gates.contains(&HOTPLUG_VOLUMES);
        let probe = json!({
            "name": "probe", "disk": {"disk": {"bus": "scsi"}}, "volumeSource": {"dataVolume": {"name": "probe"}},
            "dryRun": ["All"],
        });
        until(&format!("virt-api to apply the gates {gates:?}"), Deadline::Reaction, async || {
            let status =
                subresource(self.fixture, "virtualmachineinstances", machine, "addvolume", &probe).await?;
            let accepted = status < 300;
            Ok(if accepted == older { Ok(()) } else { Err(format!("it answers {status}")) })
        })
        .await
    }
}

/// Calls a hotplug subresource as administrator; the HTTP status.
async fn subresource(fixture: &Fixture, kind: &str, name: &str, call: &str, body: &Value) -> Result<u16> {
    let path = format!("/apis/subresources.kubevirt.io/v1/namespaces/{HCP_NAMESPACE}/{kind}/{name}/{call}");
    let request = http::Request::put(path)
        .header(http::header::ACCEPT, "*/*")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())?;
    match fixture.infra.request_text(request).await {
        Ok(_) => Ok(http::StatusCode::ACCEPTED.as_u16()),
        Err(kube::Error::Api(status)) => Ok(status.code),
        Err(error) => Err(error.into()),
    }
}

/// Every request that a VM's status has shown since the watch began.
struct Requests {
    seen: Arc<Mutex<Vec<Value>>>,
    _watch: AbortOnDropHandle<()>,
}

impl Requests {
    async fn watch(fixture: &Fixture, machine: &str) -> Result<Self> {
        let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
        let version = machines.get(machine).await?.metadata.resource_version.context("no resourceVersion")?;
        let only = WatchParams::default().fields(&format!("metadata.name={machine}"));
        let mut events = machines.watch(&only, &version).await?.boxed();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let watch = tokio::spawn(async move {
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Modified(machine) = event {
                    let requests = machine.data["status"]["volumeRequests"].as_array().cloned();
                    noted.lock().unwrap_or_else(PoisonError::into_inner).extend(requests.unwrap_or_default());
                }
            }
        });
        Ok(Self { seen, _watch: AbortOnDropHandle::new(watch) })
    }

    fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a request of this kind for the volume has been seen.
    async fn expect(&self, volume: &Volume, options: &str) -> Result<()> {
        until(&format!("{options} in status.volumeRequests"), Deadline::Reaction, async || {
            let seen = self.seen();
            let found = seen.iter().any(|request| request[options]["name"] == volume.volume_id.as_str());
            Ok(if found { Ok(()) } else { Err(format!("only {seen:?}")) })
        })
        .await
    }
}
