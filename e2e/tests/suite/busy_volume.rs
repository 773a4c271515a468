//! A volume that a process still uses is not released: the answer names the process, as far as the plugin can see it, and the
//! call succeeds once the process has ended.

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::PLUGIN_FOLDER,
    scenario::{Deadline, until},
};
use tonic::Code;

use crate::{
    bare_disk::{BareDisk, DISK_BYTES},
    controller_process::filesystem,
    fixture::Fixture,
    foreign_content::refused_with,
    node_socket::{NodeSocket, staging, target},
};

tests! {
    OneWorker:
        what_is_in_use_stays_and_says_by_whom,
        what_is_in_use_stays_when_the_node_role_is_killed;
}

/// How a shell in the worker becomes the holder: its process id goes to a file. With its path, because busybox's shell
/// runs a mere `sleep` in its own process.
const BECOME_HOLDER: &str = "echo $$ > /tmp/holder && exec /usr/bin/sleep 86400";

/// An open file keeps target and staging mount; a mount namespace that has a copy of the mount keeps the disk.
async fn what_is_in_use_stays_and_says_by_whom(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let disk = BareDisk::blank(&fixture, fixture.worker()?, "disk", DISK_BYTES)?;
    let (volume, ext4) = (&disk.volume, filesystem("ext4"));
    disk.plug().await?;
    node.stage(volume, &ext4).await?;
    node.publish(volume, &ext4).await?;

    open(&node, &format!("{}/file", target(volume))).await?;
    let said = refused_with(node.unpublish(volume).await, Code::FailedPrecondition)?;
    names_holder(&node, &said).await?;
    release(&node).await?;
    node.unpublish(volume).await.context("unpublish after the file was closed")?;

    open(&node, &format!("{}/file", staging(volume))).await?;
    for _ in 0..2 {
        let said = refused_with(node.unstage(volume).await, Code::FailedPrecondition)?;
        names_holder(&node, &said).await?;
    }
    release(&node).await?;
    node.unstage(volume).await.context("unstage after the file was closed")?;

    node.stage(volume, &ext4).await?;
    node.spawn(&["unshare", "--mount", "--propagation", "private", "sh", "-c", BECOME_HOLDER]).await?;
    until_running(&node).await?;
    for _ in 0..2 {
        let said = refused_with(node.unstage(volume).await, Code::FailedPrecondition)?;
        ensure!(
            said.contains("must not be detached"),
            "expected a refusal that names the holder, saw {said}"
        );
        names_holder(&node, &said).await?;
    }
    release(&node).await?;
    node.unstage(volume).await.context("unstage after the mount namespace ended")?;
    disk.unplug().await
}

/// The node role is killed after it has unmounted a volume and before it has proved that the disk is free, and so are the
/// next two. A process has its directory in the volume: what the pod wrote last would be lost with the disk.
async fn what_is_in_use_stays_when_the_node_role_is_killed(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let disk = BareDisk::blank(&fixture, fixture.worker()?, "killed", DISK_BYTES)?;
    let (volume, ext4) = (&disk.volume, filesystem("ext4"));
    let (staged, published) = (staging(volume), target(volume));
    disk.plug().await?;
    node.stage(volume, &ext4).await?;
    node.publish(volume, &ext4).await?;
    let script = format!("cd {staged} && {BECOME_HOLDER}");
    node.spawn(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script]).await?;
    until_running(&node).await?;
    node.run(&["sh", "-c", &format!("echo last-words > {published}/last")]).await?;
    node.unpublish(volume).await?;

    let kill = async {
        until("the unmount", Deadline::Reaction, async || {
            let script = format!("grep -c ' {staged} ' /proc/self/mountinfo || true");
            let mounts = node.run(&["sh", "-c", &script]).await?.trim().to_owned();
            Ok(if mounts == "0" { Ok(()) } else { Err(format!("{mounts} mounts")) })
        })
        .await?;
        node.send_kill().await
    };
    // It does not matter whether the call was answered before the kill: the answers of the next node roles count.
    let (answer, killed) = tokio::join!(node.unstage(volume), kill);
    ensure!(answer.is_err(), "expected no answer or a refusal, saw OK while the disk was in use");
    node.until_replaced(&killed?).await?;
    for _ in 0..2 {
        let said = refused_with(node.unstage(volume).await, Code::FailedPrecondition)?;
        ensure!(
            said.contains("must not be detached"),
            "expected a refusal that names the holder, saw {said}"
        );
        names_holder(&node, &said).await?;
        node.kill_driver().await?;
    }
    release(&node).await?;
    node.unstage(volume).await.context("unstage after the mount namespace ended")?;
    let records = node.run(&["ls", &format!("{PLUGIN_FOLDER}/disk-records")]).await?;
    ensure!(!records.contains(&volume.volume_id), "expected no record of the volume, saw {records}");
    disk.unplug().await?;

    disk.plug().await?;
    node.stage(volume, &ext4).await?;
    let last = node.run(&["cat", &format!("{staged}/last")]).await?;
    ensure!(last.trim() == "last-words", "expected the last write, saw {last:?}");
    node.unstage(volume).await?;
    disk.unplug().await
}

/// Opens a file in a process of the worker's own.
async fn open(node: &NodeSocket<'_>, file: &str) -> Result<()> {
    node.spawn(&["sh", "-c", &format!("exec 3> {file} && {BECOME_HOLDER}")]).await?;
    until_running(node).await
}

async fn until_running(node: &NodeSocket<'_>) -> Result<()> {
    until("the holder to run", Deadline::Reaction, async || {
        let seen = node.run(&["sh", "-c", "cat /proc/$(cat /tmp/holder)/comm 2>&1 || true"]).await?;
        Ok(if seen.trim() == "sleep" { Ok(()) } else { Err(seen) })
    })
    .await
}

/// Ends the holder.
async fn release(node: &NodeSocket<'_>) -> Result<()> {
    node.run(&["sh", "-c", "kill -KILL $(cat /tmp/holder) && rm /tmp/holder"]).await.map(drop)
}

/// The text names the holder's process and command if the driver can see it; if not, it says how to find the holder.
async fn names_holder(node: &NodeSocket<'_>, said: &str) -> Result<()> {
    if !node.sees_all_processes().await? {
        ensure!(
            said.contains("outside the node role's container") && said.contains("fuser"),
            "expected a refusal that names the holder, saw {said}"
        );
        return Ok(());
    }
    let process = node.run(&["cat", "/tmp/holder"]).await?;
    ensure!(
        said.contains(&format!("process {} (sleep)", process.trim())),
        "expected the refusal to name process {process:?}, saw {said}"
    );
    Ok(())
}
