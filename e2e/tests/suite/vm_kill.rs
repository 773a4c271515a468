//! A virtual machine that dies with filesystems mounted: the next worker finds them unclean, and repairs them.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::WORKER_IMAGE,
    control::Request as Ask,
    scenario::{Deadline, start_machine, until},
};
use csi_proto::v1::Volume;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    controller_process::{Controller, filesystem},
    fixture::Fixture,
    node_socket::NodeSocket,
};

tests! {
    OneWorker:
        filesystems_of_a_killed_vm_are_made_whole;
}

/// A worker's machine in which no kubelet runs: nobody misses it.
const DOOMED: &str = "worker-9";

/// Files that a writer must have made before the machine dies, so that the journal has something in it.
const FILES_BEFORE_THE_END: u32 = 50;

/// The machine dies in the middle of writes to ext4 and xfs. What was synced before is read on a worker that lives, and
/// afterwards both filesystems are sound.
async fn filesystems_of_a_killed_vm_are_made_whole(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    start_machine(&fixture.infra, DOOMED, WORKER_IMAGE).await?;
    let mut volumes = Vec::new();
    for fs_type in ["ext4", "xfs"] {
        let name = format!("pvc-{}-{fs_type}", fixture.word);
        let volume = controller.create(&name, filesystem(fs_type)).await?;
        formatted(&fixture, &controller, &node, &volume, fs_type).await?;
        controller.publish(&volume, DOOMED).await?;
        write_without_end(&fixture, &volume, fs_type).await?;
        volumes.push((fs_type, volume));
    }
    power_off(&fixture).await?;

    for (fs_type, volume) in &volumes {
        controller.discard_keeping(volume, DOOMED).await?;
        let image = fixture.image_of(&volume.volume_id).await?;
        if *fs_type == "ext4" {
            ensure!(needs_recovery(&image)?, "expected an unclean ext4 after the kill, saw a clean one");
        }
        controller.publish(volume, fixture.worker()?).await?;
        let replays = xfs_replays(&node).await?;
        let capability = filesystem(fs_type);
        node.stage(volume, &capability).await.with_context(|| format!("stage the unclean {fs_type}"))?;
        if *fs_type == "xfs" {
            ensure!(
                xfs_replays(&node).await? > replays,
                "expected the kernel to replay the log of the xfs, saw no replay"
            );
        }
        let target = node.publish(volume, &capability).await?;
        let kept = node.run(&["cat", &format!("{target}/synced")]).await?;
        ensure!(kept.trim() == "kept", "expected the synced file in the {fs_type}, saw {kept:?}");
        node.unpublish(volume).await?;
        node.unstage(volume).await?;
        controller.discard_keeping(volume, fixture.worker()?).await?;
        sound(fs_type, &image)?;
        controller.delete(volume).await?;
    }
    fixture.delete_machine(DOOMED).await
}

/// The driver formats the volume on the surviving worker.
async fn formatted(
    fixture: &Fixture,
    controller: &Controller,
    node: &NodeSocket<'_>,
    volume: &Volume,
    fs_type: &str,
) -> Result<()> {
    controller.publish(volume, fixture.worker()?).await?;
    node.stage(volume, &filesystem(fs_type)).await?;
    node.unstage(volume).await?;
    controller.discard_keeping(volume, fixture.worker()?).await
}

/// Mounts the volume in the doomed machine, syncs one file, and leaves a writer behind that never stops.
async fn write_without_end(fixture: &Fixture, volume: &Volume, fs_type: &str) -> Result<()> {
    let serial = volume.volume_context.get("serial").context("no serial")?;
    let folder = format!("/mnt/{fs_type}");
    let mount = format!(
        "udevadm settle; mkdir -p {folder}; mount -t {fs_type} /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{serial} {folder}; \
         echo kept > {folder}/synced; sync -f {folder}/synced"
    );
    until(&format!("the {fs_type} to be mounted in {DOOMED}"), Deadline::Reaction, async || {
        let output = fixture.control.run(DOOMED, &["sh", "-ec", &mount]).await?;
        Ok(if output.code == 0 { Ok(()) } else { Err(output.stderr) })
    })
    .await?;
    let writer = format!("i=0; while :; do echo $i > {folder}/$i; sync -f {folder}/$i; i=$((i + 1)); done");
    let argv = vec!["sh".to_owned(), "-c".to_owned(), writer];
    let log = format!("/var/log/writer-{fs_type}.log");
    fixture.control.ask(&Ask::Spawn { worker: DOOMED.to_owned(), argv, log }).await?;
    until(&format!("the writer on {fs_type} to have written"), Deadline::Reaction, async || {
        let enough = format!("{folder}/{FILES_BEFORE_THE_END}");
        let output = fixture.control.run(DOOMED, &["test", "-e", &enough]).await?;
        Ok(if output.code == 0 { Ok(()) } else { Err(format!("{enough} is not written")) })
    })
    .await
}

/// Kills the doomed machine's QEMU: the guest gets no warning, nothing is flushed.
async fn power_off(fixture: &Fixture) -> Result<()> {
    let parts = fixture.control.status().await?;
    let part = parts.iter().find(|part| part.name == format!("vm-{DOOMED}")).context("no such QEMU")?;
    kill(Pid::from_raw(part.pid.try_into()?), Signal::SIGKILL).context("kill QEMU")
}

/// Whether the journal of an image's ext4 has to be replayed.
fn needs_recovery(image: &Path) -> Result<bool> {
    let output = Command::new("dumpe2fs").arg("-h").arg(image).output().context("run dumpe2fs")?;
    ensure!(output.status.success(), "dumpe2fs: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).contains("needs_recovery"))
}

/// How often the survivor's kernel has replayed the log of an xfs.
async fn xfs_replays(node: &NodeSocket<'_>) -> Result<usize> {
    let log = node.run(&["dmesg"]).await?;
    Ok(log.lines().filter(|line| line.contains("XFS") && line.contains("Starting recovery")).count())
}

/// A full check that changes nothing finds nothing.
fn sound(fs_type: &str, image: &Path) -> Result<()> {
    let (program, arguments) = if fs_type == "xfs" { ("xfs_repair", "-nf") } else { ("e2fsck", "-fn") };
    let output =
        Command::new(program).arg(arguments).arg(image).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
    ensure!(
        fs_type != "ext4" || !needs_recovery(image)?,
        "expected the journal to be replayed, saw it pending"
    );
    Ok(())
}
