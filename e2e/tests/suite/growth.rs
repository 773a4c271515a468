//! A disk that is larger than the filesystem on it: staging it grows the filesystem.

use std::fs::File;

use anyhow::{Context, Result, ensure};

use crate::{
    controller_process::{Controller, VOLUME_BYTES, filesystem},
    fixture::Fixture,
    node_socket::NodeSocket,
};

tests! {
    Shared:
        a_filesystem_smaller_than_its_disk_grows_at_stage;
}

/// The disk after infra has grown it, in bytes.
const GROWN: i64 = 2 * VOLUME_BYTES;

/// ext4 and xfs are made, the disk becomes twice as large while it is detached, and the next stage on the other worker gives
/// the pod all of it, with what was written before.
async fn a_filesystem_smaller_than_its_disk_grows_at_stage(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let workers = fixture.control.workers().await?;
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    for fs_type in ["ext4", "xfs"] {
        let capability = filesystem(fs_type);
        let volume =
            controller.create(&format!("pvc-{}-{fs_type}", fixture.word), capability.clone()).await?;
        let mut before = 0;
        for (worker, script) in [(first, "echo kept > $1/file"), (last, "true")] {
            controller.publish(&volume, worker).await?;
            let node = NodeSocket::connect(&fixture, worker).await?;
            node.stage(&volume, &capability).await?;
            let target = node.publish(&volume, &capability).await?;
            node.run(&["sh", "-ec", script, "sh", &target]).await?;
            let total = node.total_bytes(&volume, &target).await?;
            let kept = node.run(&["cat", &format!("{target}/file")]).await?;
            ensure!(
                kept.trim() == "kept",
                "expected the {fs_type} on {worker} to hold \"kept\", saw {kept:?}"
            );
            node.unpublish(&volume).await?;
            node.unstage(&volume).await?;
            controller.discard_keeping(&volume, worker).await?;
            if worker == first {
                ensure!(
                    (VOLUME_BYTES / 2..=VOLUME_BYTES).contains(&total),
                    "expected {fs_type} to fill the disk of {VOLUME_BYTES} bytes, saw {total} bytes"
                );
                let image = fixture.image_of(&volume.volume_id).await?;
                File::options().write(true).open(&image)?.set_len(GROWN.try_into()?)?;
            } else {
                ensure!(
                    total >= before + VOLUME_BYTES * 9 / 10,
                    "expected {fs_type} to grow by {VOLUME_BYTES} bytes, saw {before} bytes become {total}"
                );
            }
            before = total;
        }
        controller.delete(&volume).await?;
    }
    Ok(())
}
