//! A disk that holds data is not formatted, for each kind of content and each place where a read may fail: many disks on one
//! worker, each call twice, and not one byte of them changes.

use anyhow::{Context, Result, bail, ensure};
use bench::{
    scenario::{Deadline, until},
    vm::{Bus, DiskFaults},
};
use futures::{StreamExt, future::join_all, stream::iter};
use tonic::{Code, Status};

use crate::{
    bare_disk::{BareDisk, DISK_BYTES, MIB},
    controller_process::filesystem,
    disk_content::{self as content, KEPT_FILE, KEPT_TEXT},
    fixture::Fixture,
    node_socket::{NodeSocket, SHORT_DEADLINE, target},
    rows::{
        Row::{Kind, Like},
        Rows, chosen,
    },
};

tests! {
    OneWorker:
        whatever_is_no_blank_disk_is_refused_and_unchanged,
        what_was_asked_for_and_is_there_is_mounted,
        the_survey_of_a_large_disk_has_a_limit,
        two_disks_with_one_cut_serial_are_not_used,
        a_stale_link_to_another_disk_is_not_followed;
}

/// Bytes of a sector, in which bad places are counted.
const SECTOR: u64 = 512;

/// Disks of which the worker reads at the same time. Of a blank one it reads all, up to 1 GiB, and its emulated processor reads some
/// 100 MiB in a second: of so many it reads the most in 40 s, and may be three times slower before a call is out of time.
const AT_ONCE: usize = 4;

/// A disk that the survey of a blank disk reads in pieces only: more than 1 GiB.
const LARGE_BYTES: u64 = 8 << 30;

/// The longest run of bytes that the survey may miss on it (`node`'s `probe::survey_gap`).
const LARGE_GAP: u64 = LARGE_BYTES / 4096 - (256 << 10) + 4096 + 1;

/// A disk, what is asked of it, and the expected answer.
struct Case<'a> {
    name: String,
    disk: BareDisk<'a>,
    asked: &'static str,
    code: Code,
    says: &'static str,
}

/// Makes the content of a disk.
type Fill = dyn Fn(&BareDisk<'_>) -> Result<()>;

/// Every content that is neither blank nor what is asked for.
async fn whatever_is_no_blank_disk_is_refused_and_unchanged(fixture: Fixture) -> Result<()> {
    let mut cases = signatures(&fixture)?;
    cases.extend(data(&fixture)?);
    cases.extend(read_errors(&fixture)?);
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    for case in &cases {
        case.disk.plug().await?;
    }
    let before: Vec<Vec<u8>> = cases.iter().map(|case| case.disk.checksum()).collect::<Result<_>>()?;
    let answers = iter(cases.iter().map(|case| is_refused(&node, case))).buffered(AT_ONCE);
    let answers: Vec<Result<()>> = answers.collect().await;
    let mut wrong: Vec<String> =
        answers.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    for (case, before) in cases.iter().zip(before) {
        case.disk.unplug().await?;
        if case.disk.checksum()? != before {
            wrong.push(format!("{}: THE DISK WAS CHANGED", case.name));
        }
    }
    ensure!(
        wrong.is_empty(),
        "expected all disks refused and unchanged, saw {} of {} wrong: {}",
        wrong.len(),
        cases.len(),
        wrong.join("; ")
    );
    Ok(())
}

async fn is_refused(node: &NodeSocket<'_>, case: &Case<'_>) -> Result<()> {
    let Case { name, disk, asked, code, says } = case;
    // kubelet repeats the call.
    for _ in 0..2 {
        let status = match node.stage(&disk.volume, &filesystem(asked)).await {
            Ok(()) => bail!("{name}: expected a refusal, saw it staged as {asked}"),
            Err(status) => status,
        };
        ensure!(
            status.code() == *code && status.message().contains(says),
            "{name}: expected {code:?} with {says:?}, saw {status:?}"
        );
    }
    node.unstage(&disk.volume)
        .await
        .with_context(|| format!("{name}: unstage a volume that was never staged"))
}

fn signatures(fixture: &Fixture) -> Result<Vec<Case<'_>>> {
    let gpt = "label: gpt\nsize=64MiB\n";
    let mbr = "label: dos\nsize=64MiB\n";
    let family = Like("ext2: of ext4's family, whose driver would mount it, and not what is asked for");
    let another = Like("xfs: known, and not of the family of what is asked for");
    let foreign = Like("luks2: blkid has a name for it, and it is no filesystem");
    let table_of_partitions = Like("gpt: the kernel shows its partitions");
    let filesystem =
        |kind: &'static str| Box::new(move |disk: &BareDisk<'_>| content::filesystem(disk, kind));
    let luks = |version: &'static str| Box::new(move |disk: &BareDisk<'_>| content::luks(disk, version));
    let partitions =
        |script: &'static str| Box::new(move |disk: &BareDisk<'_>| content::partitions(disk, script));
    let table: Rows<(&str, Box<Fill>, &'static str, &'static str)> = vec![
        (Kind, ("ext2", filesystem("ext2"), "ext4", "holds ext2, but ext4")),
        (family, ("ext3", filesystem("ext3"), "ext4", "holds ext3, but ext4")),
        (another, ("ext4", filesystem("ext4"), "xfs", "holds ext4, but xfs")),
        (Kind, ("xfs", filesystem("xfs"), "ext4", "holds xfs, but ext4")),
        // A filesystem whose superblock we do not read.
        (Kind, ("btrfs", Box::new(content::btrfs), "ext4", "holds btrfs, but ext4")),
        (foreign, ("swap", Box::new(content::swap), "ext4", "swap")),
        (foreign, ("luks1", luks("luks1"), "ext4", "crypto_LUKS")),
        (Kind, ("luks2", luks("luks2"), "xfs", "crypto_LUKS")),
        (foreign, ("lvm", Box::new(content::lvm), "ext4", "LVM2_member")),
        // kubernetes/kubernetes#63235
        (Kind, ("gpt", partitions(gpt), "ext4", "partition")),
        // Nothing but blkid finds the table.
        (Kind, ("gpt-empty", partitions("label: gpt\n"), "xfs", "gpt partition table")),
        (table_of_partitions, ("mbr", partitions(mbr), "ext4", "partition")),
        (Kind, ("random", Box::new(content::random), "ext4", "data at byte 0")),
    ];
    let case = |(name, fill, asked, says): (&str, Box<Fill>, _, _)| {
        let disk = BareDisk::blank(fixture, fixture.worker()?, name, DISK_BYTES)?;
        fill(&disk).with_context(|| format!("prepare {name}"))?;
        Ok(Case { name: name.to_owned(), disk, asked, code: Code::FailedPrecondition, says })
    };
    chosen(table).into_iter().map(case).collect()
}

/// Zero at the beginning, and a byte or a run of bytes somewhere behind.
fn data(fixture: &Fixture) -> Result<Vec<Case<'_>>> {
    let middle = DISK_BYTES / 2;
    let surveyed = Like("the byte behind the first sample: only the survey reads it");
    let at_the_end = Like("the run at 5 GiB: as long as what the survey always meets");
    let table: Rows<(u64, u64, usize, &'static str)> = vec![
        (surveyed, (DISK_BYTES, 16 * MIB, 1, "data at byte 16777216")),
        // Where a sample begins.
        (Kind, (DISK_BYTES, middle, 1, "data at byte")),
        (Kind, (DISK_BYTES, DISK_BYTES - 1, 1, "data at byte")),
        // The first byte behind the first sample.
        (Kind, (DISK_BYTES, MIB + (64 << 10) + 1, 1, "data at byte 1114113")),
        (surveyed, (DISK_BYTES, 233 * MIB + 7, 1, "data at byte")),
        // ext4's first copy of its superblock, where the beginning was lost.
        (Kind, (LARGE_BYTES, 128 * MIB, 512, "data at byte 134217728")),
        (Kind, (LARGE_BYTES, 5 * (1 << 30) + 12_345, usize::try_from(LARGE_GAP)?, "data at byte")),
        (at_the_end, (LARGE_BYTES, LARGE_BYTES - LARGE_GAP, usize::try_from(LARGE_GAP)?, "data at byte")),
    ];
    let case = |(bytes, at, length, says): (u64, u64, usize, &'static str)| {
        let name = format!("data-at-{at}-of-{bytes}");
        let disk = BareDisk::blank(fixture, fixture.worker()?, &name, bytes)?;
        disk.write(&vec![b'x'; length], at)?;
        Ok(Case { name, disk, asked: "ext4", code: Code::FailedPrecondition, says })
    };
    chosen(table).into_iter().map(case).collect()
}

/// Blank disks and filesystems with one sector that answers EIO (kubernetes/kubernetes#142243): their content is unknown.
fn read_errors(fixture: &Fixture) -> Result<Vec<Case<'_>>> {
    // Superblocks: ext at 1 KiB, btrfs at 64 KiB and 64 MiB, xfs at 0.
    let edge = Like("sector 2: the first MiB is read whole, by blkid and by us");
    let surveyed = Like("the sector at 233 MiB: only the survey reads it");
    let superblock = Like("ext4: its superblock can't be read");
    let blank = [
        (edge, 0),
        (Kind, 2),
        (edge, 100),
        (edge, 128),
        (edge, MIB / SECTOR - 1),
        (surveyed, 64 * MIB / SECTOR + 128),
        (Kind, 233 * MIB / SECTOR),
        // Where a sample begins.
        (Kind, DISK_BYTES / 2 / SECTOR),
        (Kind, DISK_BYTES / SECTOR - 1),
    ];
    let mut table: Rows<(String, Option<Box<Fill>>, u64, &'static str)> =
        blank.map(|(row, sector)| (row, (format!("blank-bad-{sector}"), None, sector, "ext4"))).into();
    for (row, kind, sector) in [(Kind, "ext4", 2), (superblock, "xfs", 0)] {
        let fill: Box<Fill> = Box::new(move |disk| content::filesystem(disk, kind));
        table.push((row, (format!("{kind}-bad-{sector}"), Some(fill), sector, kind)));
    }
    let btrfs: Box<Fill> = Box::new(content::btrfs);
    table.push((superblock, ("btrfs-bad-128".to_owned(), Some(btrfs), 128, "ext4")));
    let case = |(name, fill, sector, asked): (String, Option<Box<Fill>>, u64, &'static str)| {
        ensure!(
            sector < DISK_BYTES / SECTOR,
            "{name}: expected a sector of the disk, saw one behind its end"
        );
        let disk = BareDisk::blank(fixture, fixture.worker()?, &name, DISK_BYTES)?;
        fill.map(|fill| fill(&disk)).transpose().with_context(|| format!("prepare {name}"))?;
        let disk = disk.faulty(DiskFaults::read_errors(vec![sector]));
        Ok(Case { name, disk, asked, code: Code::Unavailable, says: "not known to be blank" })
    };
    chosen(table).into_iter().map(case).collect()
}

/// What was asked for is there already: it is mounted, and its file is there.
async fn what_was_asked_for_and_is_there_is_mounted(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let is_kept = async |kind: &str| -> Result<()> {
        let disk = BareDisk::blank(&fixture, fixture.worker()?, kind, DISK_BYTES)?;
        content::filesystem(&disk, kind)?;
        disk.plug().await?;
        let (volume, capability) = (&disk.volume, filesystem(kind));
        for _ in 0..2 {
            node.stage(volume, &capability).await?;
        }
        for _ in 0..2 {
            node.publish(volume, &capability).await?;
        }
        let text = node.run(&["cat", &format!("{}/{KEPT_FILE}", target(volume))]).await?;
        ensure!(text == KEPT_TEXT, "expected {KEPT_TEXT:?} in the file, saw {text:?}");
        for _ in 0..2 {
            node.unpublish(volume).await?;
        }
        for _ in 0..2 {
            node.unstage(volume).await?;
        }
        disk.unplug().await?;
        content::check(disk.image(), kind)
    };
    let of_ext = Like("ext4: the same tools and the same superblock");
    let kinds = chosen([(of_ext, "ext2"), (of_ext, "ext3"), (Kind, "ext4"), (Kind, "xfs")]);
    let results = join_all(kinds.into_iter().map(async |kind| is_kept(kind).await.context(kind))).await;
    results.into_iter().collect()
}

/// The limit of the survey, as documented: on a disk of more than 1 GiB a few bytes without any signature, far from
/// both ends and from all places where filesystems keep copies, may lie between two pieces that are read.
async fn the_survey_of_a_large_disk_has_a_limit(fixture: Fixture) -> Result<()> {
    const GIB: u64 = 1 << 30;
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let disk = BareDisk::blank(&fixture, fixture.worker()?, "limit", LARGE_BYTES)?;
    disk.write(b"between two pieces", 3 * GIB + MIB)?;
    disk.plug().await?;
    node.stage(&disk.volume, &filesystem("ext4"))
        .await
        .context("expected the survey to miss these bytes, as its documentation says")?;
    node.unstage(&disk.volume).await?;
    disk.unplug().await
}

/// Disk A is gone, disk B has its kernel name, and A's link in `/dev/disk/by-id` points to it (hetznercloud/csi-driver#1455,
/// kubernetes-sigs/aws-ebs-csi-driver#1224): a stage of A does not touch B.
async fn a_stale_link_to_another_disk_is_not_followed(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let gone = BareDisk::blank(&fixture, fixture.worker()?, "gone", DISK_BYTES)?;
    let other = BareDisk::blank(&fixture, fixture.worker()?, "other", DISK_BYTES)?;
    let ext4 = filesystem("ext4");
    // When the worker's kernel releases a disk that an earlier test took out, a lower name becomes free.
    let reused = until("the kernel to use a disk's name again", Deadline::Reaction, async || {
        let name = plugged_name(&node, &gone).await?;
        taken_out(&node, &gone).await?;
        let next = plugged_name(&node, &other).await?;
        if name == next {
            return Ok(Ok(name));
        }
        taken_out(&node, &other).await?;
        Ok(Err(format!("{name}, then {next}")))
    })
    .await?;

    let serial = gone.serial();
    let links = [format!("scsi-0QEMU_QEMU_HARDDISK_{serial}"), format!("virtio-{}", &serial[..20])];
    for link in &links {
        node.run(&["ln", "-sf", &format!("../../{reused}"), &format!("/dev/disk/by-id/{link}")]).await?;
    }
    let before = other.checksum()?;
    for _ in 0..2 {
        let refusal = node.stage_within(&gone.volume, &ext4, SHORT_DEADLINE).await;
        let said = refused_with(refusal, Code::Unavailable)?;
        ensure!(
            said.contains(serial) && said.contains(other.serial()),
            "expected a refusal for the right disk, saw {said}"
        );
    }
    node.unstage(&gone.volume).await?;
    for link in &links {
        node.run(&["rm", &format!("/dev/disk/by-id/{link}")]).await?;
    }
    ensure!(other.checksum()? == before, "expected the other disk unchanged, saw other content");
    other.unplug().await
}

/// Plugs a disk; the name that the worker's kernel gives to it.
async fn plugged_name(node: &NodeSocket<'_>, disk: &BareDisk<'_>) -> Result<String> {
    disk.plug().await?;
    node.kernel_name(disk).await
}

/// Takes a disk out, and waits until the worker's kernel has released it.
async fn taken_out(node: &NodeSocket<'_>, disk: &BareDisk<'_>) -> Result<()> {
    disk.unplug().await?;
    node.until_unseen(disk).await
}

/// Two virtio disks whose serials share the 20 bytes that the guest sees: none is used.
async fn two_disks_with_one_cut_serial_are_not_used(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let common = &BareDisk::blank(&fixture, fixture.worker()?, "common", MIB)?.serial()[..20].to_owned();
    let disk = |name: &str| {
        let serial = format!("{common}-{name}");
        BareDisk::blank(&fixture, fixture.worker()?, name, DISK_BYTES)
            .map(|disk| disk.named(Bus::Virtio, &serial))
    };
    let disks = [disk("one")?, disk("two")?];
    for disk in &disks {
        disk.plug().await?;
    }
    node.until_seen(common, disks.len()).await?;
    for disk in disks.iter().chain(&disks) {
        let said = refused_with(node.stage(&disk.volume, &filesystem("ext4")).await, Code::Unavailable)?;
        ensure!(said.contains("matches several disks"), "expected a refusal for the right disk, saw {said}");
    }
    for disk in &disks {
        disk.unplug().await?;
        node.unstage(&disk.volume).await?;
        ensure!(
            disk.checksum()?
                == BareDisk::blank(&fixture, fixture.worker()?, "blank", DISK_BYTES)?.checksum()?
        );
    }
    Ok(())
}

/// The message of a refusal with that code.
pub fn refused_with<T>(answer: Result<T, Status>, code: Code) -> Result<String> {
    match answer {
        Ok(_) => bail!("expected {code:?}, saw OK"),
        Err(status) if status.code() == code => Ok(status.message().to_owned()),
        Err(status) => bail!("expected {code:?}, saw {status:?}"),
    }
}
