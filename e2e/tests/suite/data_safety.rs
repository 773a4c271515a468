//! A disk that holds data is not formatted: the real node plugin in a real VM refuses disks that contain something other than
//! what is asked for, and not one byte of them changes.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use bench::{
    bring_up::Fault,
    simulator::virt_handler::{self, Selector},
};
use csi_proto::v1::Volume;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use crate::{
    controller_process::{Controller, VOLUME_BYTES, filesystem},
    fixture::Fixture,
    node_socket::NodeSocket,
};

tests! {
    OneWorker:
        a_disk_with_ext4_is_not_formatted,
        a_disk_with_a_read_error_is_not_formatted,
        a_blank_disk_is_formatted_and_keeps_its_data;
}

/// A 512-byte sector in the first mebibyte, which a careful probe reads.
const BAD_SECTOR: u64 = 100;

/// A chunk of a disk image.
const CHUNK: usize = 1 << 20;

/// A disk with ext4 is asked to be xfs.
async fn a_disk_with_ext4_is_not_formatted(fixture: Fixture) -> Result<()> {
    refused(&fixture, "xfs", |image| command("mkfs.ext4", &["-q", "-F"], image), Code::FailedPrecondition)
        .await
}

/// A blank disk with one sector that can't be read: `blkid` calls it blank (kubernetes/kubernetes#142243), but the sector may hold data.
async fn a_disk_with_a_read_error_is_not_formatted(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), filesystem("ext4")).await?;
    let at = Selector { volume: Some(volume.volume_id.clone()), ..Selector::default() };
    let fault = virt_handler::Fault::ReadErrors { sectors: vec![BAD_SECTOR], at };
    fixture.control.fault(Fault::VirtHandler(fault)).await?;
    expect_refusal(&fixture, &controller, &volume, "ext4", Code::Unavailable).await
}

/// A blank disk is formatted, once: what was written is there after unstage and another stage.
async fn a_blank_disk_is_formatted_and_keeps_its_data(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), filesystem("ext4")).await?;
    controller.publish(&volume, fixture.worker()?).await?;
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let capability = filesystem("ext4");
    for round in 1..=2 {
        // Twice each: kubelet repeats calls whose answer it lost.
        for _ in 0..2 {
            node.stage(&volume, &capability).await?;
        }
        let mut target = String::new();
        for _ in 0..2 {
            target = node.publish(&volume, &capability).await?;
        }
        let total = node.total_bytes(&volume, &target).await?;
        ensure!(
            (VOLUME_BYTES / 2..=VOLUME_BYTES).contains(&total),
            "expected a filesystem that fills the disk of {VOLUME_BYTES} bytes, saw {total} bytes"
        );
        let file = format!("{target}/file");
        if round == 1 {
            node.run(&["sh", "-c", &format!("echo kept > {file} && sync")]).await?;
        }
        let content = node.run(&["cat", &file]).await?;
        ensure!(
            content.trim() == "kept",
            "round {round}: expected the file to hold \"kept\", saw {content:?}"
        );
        for _ in 0..2 {
            node.unpublish(&volume).await?;
        }
        for _ in 0..2 {
            node.unstage(&volume).await?;
        }
    }
    controller.discard(&volume, fixture.worker()?).await
}

/// Writes `content` to a new volume's image, attaches it, asks the node to stage it as `fs_type`, expects `code`, and
/// compares the image before and after.
async fn refused(
    fixture: &Fixture,
    fs_type: &str,
    content: impl Fn(&Path) -> Result<()>,
    code: Code,
) -> Result<()> {
    let controller = Controller::start(fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), filesystem(fs_type)).await?;
    let image = fixture.image_of(&volume.volume_id).await?;
    content(&image).with_context(|| format!("prepare {}", image.display()))?;
    expect_refusal(fixture, &controller, &volume, fs_type, code).await
}

async fn expect_refusal(
    fixture: &Fixture,
    controller: &Controller,
    volume: &Volume,
    fs_type: &str,
    code: Code,
) -> Result<()> {
    let image = fixture.image_of(&volume.volume_id).await?;
    let before = checksum(&image)?;
    controller.publish(volume, fixture.worker()?).await?;
    let node = NodeSocket::connect(fixture, fixture.worker()?).await?;
    let refusal: Status = match node.stage(volume, &filesystem(fs_type)).await {
        Ok(()) => bail!("expected the node to refuse a disk that holds something else, saw it staged"),
        Err(status) => status,
    };
    // kubelet repeats the call.
    node.stage(volume, &filesystem(fs_type)).await.err().context("the second stage succeeded")?;
    node.unstage(volume).await.context("unstage a volume that was never staged")?;
    controller.discard_keeping(volume, fixture.worker()?).await?;
    ensure!(
        checksum(&image)? == before,
        "expected the disk unchanged, saw other content; the node answered {refusal:?}"
    );
    ensure!(refusal.code() == code, "expected {code:?}, saw {refusal:?}; the disk is unchanged");
    controller.delete(volume).await?;
    Ok(())
}

fn command(program: &str, arguments: &[&str], image: &Path) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .arg(image)
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// SHA-256 of a whole image.
fn checksum(image: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    file.seek(SeekFrom::Start(0))?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(digest.finalize().to_vec());
        }
        digest.update(&chunk[..read]);
    }
}
