//! A disk that goes away: while it is formatted, between two calls, while it is mounted. No call hangs or is refused for
//! ever, nothing of the disk is left in the worker, and when it comes back its volume is usable again.

use anyhow::{Context, Result, ensure};
use bench::vm::DiskFaults;
use tonic::Code;

use crate::{
    bare_disk::{BareDisk, DISK_BYTES, MIB},
    controller_process::filesystem,
    disk_content::check,
    fixture::Fixture,
    foreign_content::refused_with,
    node_socket::{NodeSocket, SHORT_DEADLINE, staging, target},
};

tests! {
    OneWorker:
        a_disk_lost_while_it_is_formatted_is_formatted_again,
        a_disk_lost_before_publish_is_published_when_it_is_back,
        a_disk_lost_while_mounted_is_unmounted;
}

/// Unplugged while mkfs runs: the call fails, and the same call makes the filesystem when the disk is back.
async fn a_disk_lost_while_it_is_formatted_is_formatted_again(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    // mkfs.xfs writes some 64 MiB here, so there is a moment to stop it.
    let frozen = DiskFaults { frozen_after: Some(MIB), ..DiskFaults::default() };
    let disk = BareDisk::blank(&fixture, fixture.worker()?, "disk", DISK_BYTES)?.faulty(frozen);
    let xfs = filesystem("xfs");
    disk.plug().await?;
    let pull = async {
        node.until_formatting(&[&disk]).await?;
        disk.unplug().await
    };
    let (staged, pulled) = tokio::join!(node.stage(&disk.volume, &xfs), pull);
    pulled?;
    let code = staged.err().context("staged a disk that was unplugged")?.code();
    ensure!(
        matches!(code, Code::Internal | Code::Unavailable),
        "expected INTERNAL or UNAVAILABLE, saw {code:?}"
    );
    refused_with(node.stage_within(&disk.volume, &xfs, SHORT_DEADLINE).await, Code::Unavailable)?;

    let disk = disk.faulty(DiskFaults::default());
    disk.plug().await?;
    node.stage(&disk.volume, &xfs).await.context("stage when the disk is back")?;
    node.unstage(&disk.volume).await?;
    disk.unplug().await?;
    check(disk.image(), "xfs")
}

/// Unplugged between stage and publish: publish is refused until the disk is back, then publish stages it again by itself.
async fn a_disk_lost_before_publish_is_published_when_it_is_back(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let ext4 = filesystem("ext4");
    let disk = BareDisk::blank(&fixture, fixture.worker()?, "disk", DISK_BYTES)?;
    disk.plug().await?;
    node.stage(&disk.volume, &ext4).await?;
    disk.unplug().await?;
    for _ in 0..2 {
        let answer = node.publish_within(&disk.volume, &ext4, SHORT_DEADLINE).await;
        let said = refused_with(answer, Code::Unavailable)?;
        ensure!(
            said.contains("no disk with serial"),
            "expected a refusal because the disk is missing, saw {said}"
        );
    }
    disk.plug().await?;
    node.publish(&disk.volume, &ext4).await.context("publish when the disk is back")?;
    write_and_read(&node, &disk).await?;
    node.unpublish(&disk.volume).await?;
    node.unstage(&disk.volume).await?;
    disk.unplug().await?;
    check(disk.image(), "ext4")
}

/// Unplugged while it is mounted: unpublish and unstage succeed without it, and what was synced is there later.
async fn a_disk_lost_while_mounted_is_unmounted(fixture: Fixture) -> Result<()> {
    for kind in ["ext4", "xfs"] {
        let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
        let capability = filesystem(kind);
        let disk = BareDisk::blank(&fixture, fixture.worker()?, kind, DISK_BYTES)?;
        disk.plug().await?;
        node.stage(&disk.volume, &capability).await?;
        node.publish(&disk.volume, &capability).await?;
        write_and_read(&node, &disk).await?;
        disk.unplug().await?;
        for _ in 0..2 {
            node.unpublish(&disk.volume)
                .await
                .with_context(|| format!("unpublish {kind} without its disk"))?;
        }
        for _ in 0..2 {
            node.unstage(&disk.volume).await.with_context(|| format!("unstage {kind} without its disk"))?;
        }
        let mounts = node.run(&["cat", "/proc/self/mountinfo"]).await?;
        ensure!(!mounts.contains(&staging(&disk.volume)), "expected no mount of the volume, saw {mounts}");

        disk.plug().await?;
        node.stage(&disk.volume, &capability).await?;
        node.publish(&disk.volume, &capability).await?;
        let text = node.run(&["cat", &format!("{}/file", target(&disk.volume))]).await?;
        ensure!(text.trim() == "kept", "{kind}: expected the file to hold \"kept\", saw {text:?}");
        node.unpublish(&disk.volume).await?;
        node.unstage(&disk.volume).await?;
        disk.unplug().await?;
        check(disk.image(), kind)?;
    }
    Ok(())
}

/// Writes a file through the published volume, to the disk.
async fn write_and_read(node: &NodeSocket<'_>, disk: &BareDisk<'_>) -> Result<()> {
    let file = format!("{}/file", target(&disk.volume));
    let text = node.run(&["sh", "-c", &format!("echo kept > {file} && sync && cat {file}")]).await?;
    ensure!(text.trim() == "kept", "expected the file to hold \"kept\", saw {text:?}");
    Ok(())
}
