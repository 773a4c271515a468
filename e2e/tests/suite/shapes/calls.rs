//! A shape by direct RPCs: a controller process of the test's own and the node plugins of both workers.

use anyhow::{Context, Result, ensure};
use bench::scenario::{HCP_NAMESPACE, hotplugged};
use csi_proto::v1::VolumeCapability;

use super::{Shape, WRITTEN};
use crate::{
    controller_process::{Controller, block, filesystem},
    fixture::Fixture,
    node_socket::NodeSocket,
};

/// Creates the volume, writes on one worker, detaches it, reads on the other.
pub async fn run(fixture: Fixture, shape: Shape) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let capability = if shape.content == "block" { block() } else { filesystem(shape.content) };
    let parameters = [("infraStorageClassName", shape.class), ("bus", shape.bus)];
    let name = format!("pvc-{}", fixture.word);
    let volume = controller.create_of(&parameters, &name, capability.clone()).await?;
    let serial = volume.volume_context.get("serial").context("no serial")?;

    let workers = fixture.control.workers().await?;
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    for (worker, script) in [(first, write(&shape)), (last, read(&shape))] {
        controller.publish(&volume, worker).await.with_context(|| format!("attach to {worker}"))?;
        shape.check_infra(&fixture, &volume.volume_id).await?;
        shape.check_disk(&fixture, worker, serial).await?;
        let node = NodeSocket::connect(&fixture, worker).await?;
        let said =
            used(&node, &volume, &capability, &script).await.with_context(|| format!("use on {worker}"))?;
        ensure!(said.trim() == WRITTEN, "expected {WRITTEN:?} on {worker}, saw {said:?}");
        controller.discard_keeping(&volume, worker).await?;
        let left = hotplugged(&fixture.infra, HCP_NAMESPACE, &volume.volume_id).await?;
        ensure!(left.is_empty(), "expected no disk after the detach from {worker}, saw {left:?}");
    }
    controller.delete(&volume).await.context("delete the volume")
}

/// Stages and publishes, runs `script` with the target as its argument, and undoes both; what the script printed.
async fn used(
    node: &NodeSocket<'_>,
    volume: &csi_proto::v1::Volume,
    capability: &VolumeCapability,
    script: &str,
) -> Result<String> {
    node.stage(volume, capability).await?;
    let target = node.publish(volume, capability).await?;
    let said = node.run(&["sh", "-ec", script, "sh", &target]).await;
    node.unpublish(volume).await?;
    node.unstage(volume).await?;
    said
}

fn write(shape: &Shape) -> String {
    match shape.content {
        "block" => format!("printf {WRITTEN} | dd of=$1 conv=fsync 2>/dev/null; echo {WRITTEN}"),
        // The filesystem is the one that was asked for.
        content => format!("[ $(findmnt -no FSTYPE $1) = {content} ]; echo {WRITTEN} > $1/file; cat $1/file"),
    }
}

fn read(shape: &Shape) -> String {
    match shape.content {
        "block" => format!("dd if=$1 bs={} count=1 2>/dev/null", WRITTEN.len()),
        content => format!("[ $(findmnt -no FSTYPE $1) = {content} ]; cat $1/file"),
    }
}
