//! Hotplug under the conditions in which drivers answer OK wrongly: not Ready, deleted, contended, many at once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::{
    bring_up::Fault,
    scenario::{Deadline, HCP_NAMESPACE, hotplugged, until, until_gone, virtual_machines},
    simulator::{
        fault_plan::{HeldStep, Hold},
        virt_handler::{self, Selector, Step},
    },
};
use csi_proto::v1::Volume;
use futures::future::join_all;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tonic::Code;

use crate::{
    controller_process::{Controller, block},
    fixture::Fixture,
    rows,
};

tests! {
    Calls:
        publish_waits_for_ready_not_for_the_spec,
        deleting_the_vm_detaches_only_when_its_instance_ends,
        two_drivers_give_one_rwo_volume_to_one_vm_only,
        many_volumes_reach_one_vm_at_once,
        a_halted_vm_is_refused_without_a_change;
}

/// A deadline short enough that a test may wait it out several times.
const SHORT: Duration = Duration::from_secs(5);

/// The volume is in the VM's spec, but the disk never becomes Ready: publish must not say OK, not even when asked again.
/// (kubevirt/csi-driver answers OK to the second call: cozystack/cozystack#2659.)
async fn publish_waits_for_ready_not_for_the_spec(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&name(&fixture, 0), block()).await?;
    fixture.image_of(&volume.volume_id).await?;

    let stuck = StuckVolume::new(&volume).await?;
    for attempt in 1..=2 {
        match controller.publish_within(&volume, &machine, SHORT).await {
            Ok(()) => bail!("expected publish {attempt} to fail while the disk is not Ready, saw OK"),
            Err(status) => {
                let non_final =
                    matches!(status.code(), Code::Aborted | Code::DeadlineExceeded | Code::Unavailable);
                ensure!(
                    non_final,
                    "expected a code of publish {attempt} that the sidecar retries, saw {status:?}"
                );
            }
        }
        let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
        ensure!(
            disks.iter().all(|disk| disk.phase != "Ready"),
            "expected the fault to keep the disk from Ready, saw {disks:?}"
        );
    }
    let spec = volumes_in_spec(&fixture, &machine).await?;
    ensure!(spec.contains(&volume.volume_id), "expected the volume in the VM's spec, saw {spec:?}");

    drop(stuck);
    controller.publish(&volume, &machine).await.context("publish after the fault")?;
    match controller.delete(&volume).await {
        Ok(()) => bail!("expected DeleteVolume to fail while {machine} has the volume, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::FailedPrecondition && status.message().contains(&machine),
            "expected FAILED_PRECONDITION for the deletion of an attached volume, saw {status:?}"
        ),
    }
    let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
    ensure!(
        disks.iter().any(|disk| disk.phase == "Ready" && disk.vmi == machine),
        "expected the disk to be Ready after OK, saw {disks:?}"
    );
    controller.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// The VirtualMachine is deleted while its instance still runs with the disk: unpublish answers ABORTED until the instance is
/// gone, then OK (KubeVirt 1.9 refuses removevolume on an instance that had an owner).
async fn deleting_the_vm_detaches_only_when_its_instance_ends(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&name(&fixture, 0), block()).await?;
    controller.publish(&volume, &machine).await?;

    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let at_once = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    machines.delete(&machine, &at_once).await?;
    until_gone(&machines, &machine, "VM", Deadline::Reaction).await?;
    let status = match controller.unpublish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("expected unpublish to fail while the instance still has the disk, saw OK"),
        Err(status) => status,
    };
    ensure!(
        status.code() == Code::Aborted,
        "expected ABORTED from unpublish while the instance runs, saw {status:?}"
    );
    ensure!(
        !fixture.control.plugged(&machine).await?.is_empty(),
        "expected the disk to stay plugged into the running instance, saw it unplugged"
    );

    let instances = bench::scenario::virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    instances.delete(&machine, &DeleteParams::default()).await?;
    until("unpublish", Deadline::MachineStart, async || {
        Ok(controller.unpublish(&volume, &machine).await.map_err(|status| format!("{status:?}")))
    })
    .await?;
    controller.delete(&volume).await?;
    Ok(())
}

/// Two driver processes (an old leader and a new one) publish one RWO volume to two VMs at the same moment: one wins, the
/// other names it; never two OKs. (kubevirt/csi-driver: both OK, both VMs get the disk.)
async fn two_drivers_give_one_rwo_volume_to_one_vm_only(fixture: Fixture) -> Result<()> {
    let (one, two) = tokio::try_join!(Controller::start(&fixture, "a"), Controller::start(&fixture, "b"))?;
    let machines = [format!("{}-vm1", fixture.word), format!("{}-vm2", fixture.word)];
    tokio::try_join!(fixture.empty_machine(&machines[0]), fixture.empty_machine(&machines[1]))?;
    for round in 0..3 {
        let volume = one.create(&name(&fixture, round), block()).await?;
        fixture.image_of(&volume.volume_id).await?;
        let (first, second) =
            tokio::join!(one.publish(&volume, &machines[0]), two.publish(&volume, &machines[1]));
        let (winner, loser) = match (first, second) {
            (Ok(()), Err(status)) => (0, status),
            (Err(status), Ok(())) => (1, status),
            (first, second) => {
                bail!("round {round}: expected one OK and one failure, saw {first:?} and {second:?}")
            }
        };
        ensure!(
            loser.code() == Code::FailedPrecondition,
            "round {round}: expected FAILED_PRECONDITION for the loser, saw {loser:?}"
        );
        ensure!(
            loser.message().contains(&machines[winner]),
            "expected the refusal to name the holder, saw {loser:?}"
        );
        let disks = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
        ensure!(
            disks.len() == 1 && disks[0].vmi == machines[winner],
            "round {round}: expected the disk in the winner's VM only, saw {disks:?}"
        );
        ensure!(
            !volumes_in_spec(&fixture, &machines[1 - winner]).await?.contains(&volume.volume_id),
            "round {round}: expected no volume in the spec of the loser's VM, saw it there"
        );
        one.discard(&volume, &machines[winner]).await?;
    }
    for machine in &machines {
        fixture.delete_machine(machine).await?;
    }
    Ok(())
}

/// Many volumes for one VM at the same moment: their calls are made one after another. Six of them show it; the long list has
/// sixteen.
async fn many_volumes_reach_one_vm_at_once(fixture: Fixture) -> Result<()> {
    let count = if rows::all() { 16 } else { 6 };
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    volumes_at_once(&fixture, &controller, &machine, count).await?;
    fixture.delete_machine(&machine).await
}

/// `count` volumes for one machine at the same moment: all are attached, and all detached.
pub async fn volumes_at_once(
    fixture: &Fixture,
    controller: &Controller,
    machine: &str,
    count: usize,
) -> Result<()> {
    let names: Vec<String> = (0..count).map(|index| name(fixture, index)).collect();
    let created = join_all(names.iter().map(|name| controller.create(name, block()))).await;
    let volumes = created.into_iter().collect::<Result<Vec<Volume>, _>>()?;
    for result in join_all(volumes.iter().map(|volume| controller.publish(volume, machine))).await {
        result?;
    }
    let plugged = fixture.control.plugged(machine).await?;
    ensure!(
        volumes.iter().all(|volume| plugged.contains(&volume.volume_id)),
        "expected all volumes plugged, saw {plugged:?}"
    );
    for result in join_all(volumes.iter().map(|volume| controller.unpublish(volume, machine))).await {
        result?;
    }
    ensure!(fixture.control.plugged(machine).await?.is_empty(), "expected no plugged disk, saw some");
    for result in join_all(volumes.iter().map(|volume| controller.delete(volume))).await {
        result?;
    }
    Ok(())
}

/// A halted VM would get the disk at its next start, without a VolumeAttachment: publish is refused, the VM's spec untouched.
async fn a_halted_vm_is_refused_without_a_change(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let halt = json!({"spec": {"runStrategy": "Halted"}});
    machines.patch(&machine, &PatchParams::default(), &Patch::Merge(halt)).await?;
    let instances = bench::scenario::virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    until_gone(&instances, &machine, "instance", Deadline::MachineStart).await?;
    let volume = controller.create(&name(&fixture, 0), block()).await?;
    let before = volumes_in_spec(&fixture, &machine).await?;
    match controller.publish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("expected publish to a halted VM to fail, saw OK"),
        Err(status) => ensure!(status.code() != Code::Unknown, "expected a clear code, saw {status:?}"),
    }
    ensure!(
        volumes_in_spec(&fixture, &machine).await? == before,
        "expected the halted VM's spec unchanged, saw another"
    );
    controller.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// Keeps a volume's disk from becoming Ready while it exists.
pub struct StuckVolume {
    #[expect(dead_code, reason = "the fault ends with the connection")]
    connection: bench::control::Client,
}

impl StuckVolume {
    /// From now on.
    pub async fn new(volume: &Volume) -> Result<Self> {
        let connection = bench::control::Client::connect().await?;
        connection
            .fault(Fault::VirtHandler(virt_handler::Fault::Hold(HeldStep {
                step: Step::Ready,
                hold: Hold::Forever,
                at: Selector { volume: Some(volume.volume_id.clone()), ..Selector::default() },
            })))
            .await?;
        Ok(Self { connection })
    }
}

/// A volume name as external-provisioner makes them: the prefix and something unique.
fn name(fixture: &Fixture, index: usize) -> String {
    format!("pvc-{}-{index}", fixture.word)
}

async fn volumes_in_spec(fixture: &Fixture, machine: &str) -> Result<Vec<String>> {
    let object = virtual_machines(&fixture.infra, HCP_NAMESPACE).get(machine).await?;
    let volumes = object.data["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    Ok(volumes.iter().filter_map(|volume| Some(volume["name"].as_str()?.to_owned())).collect())
}
