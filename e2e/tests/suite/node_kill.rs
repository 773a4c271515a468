//! `kill -9` of the node plugin at each call that changes something: before it begins, while it works, after it is done
//! but before the reply is read, and at random places of mkfs. The same call again does it once.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use bench::{
    scenario::{Deadline, until},
    vm::DiskFaults,
};
use csi_proto::v1::VolumeCapability;
use futures::future::{join_all, try_join_all};
use tonic::Status;

use crate::{
    bare_disk::{BareDisk, DISK_BYTES, MIB},
    controller_process::{block, filesystem},
    disk_content::check,
    fixture::Fixture,
    node_socket::{KUBELET_DEADLINE, NodeSocket, target},
    rows::{
        self,
        Row::{self, Kind, Like},
        chosen,
    },
};

tests! {
    OneWorker:
        each_call_killed_is_done_by_its_repetition,
        mkfs_killed_anywhere_ends_in_one_filesystem;
}

/// Longest time between the sending of a call and the kill that comes while it works: what staging takes on an emulated
/// processor.
const WORKING: Duration = Duration::from_millis(700);

/// kubelet's first pause after a failed call (`initialDurationBeforeRetry`).
const KUBELET_BACKOFF: Duration = Duration::from_millis(500);

/// Sizes of the disks on which mkfs is killed. Each disk is read as a whole before mkfs starts, and all share the worker's one
/// emulated processor, so they are small: mkfs writes as much on a small disk.
const EXT4_BYTES: u64 = 64 * MIB;
/// See [`EXT4_BYTES`]; mkfs.xfs requires more than 300 MiB.
const XFS_BYTES: u64 = 320 * MIB;

/// Where mkfs is killed: up to so much of what it writes (measured on such a disk: ext4 0.4 MiB, xfs 64 MiB).
const EXT4_WRITES: u64 = MIB / 4;
const XFS_WRITES: u64 = 16 * MIB;

/// Which call is killed when, in rounds: in each the volumes are staged, published, unpublished and unstaged, and a call without a
/// row is only made.
const KILLS: [[(Row, Call, Moment); 4]; 3] = [
    [
        (Kind, Call::Stage, Moment::Working(WORKING)),
        (Kind, Call::Publish, Moment::Working(WORKING)),
        (Kind, Call::Unpublish, Moment::Working(WORKING)),
        (Kind, Call::Unstage, Moment::Working(WORKING)),
    ],
    [
        (Kind, Call::Stage, Moment::Before),
        (Like(NOT_BEGUN), Call::Publish, Moment::Before),
        (Like(NOT_BEGUN), Call::Unpublish, Moment::Before),
        (Like(NOT_BEGUN), Call::Unstage, Moment::Before),
    ],
    [
        (Kind, Call::Stage, Moment::After),
        (Like("stage: the next process finds the mount"), Call::Publish, Moment::After),
        (Like("unstage: the next process finds no mount"), Call::Unpublish, Moment::After),
        (Kind, Call::Unstage, Moment::After),
    ],
];
/// Why it does not matter which call had not begun.
const NOT_BEGUN: &str =
    "stage: nothing of the call has begun, and the next process is asked as if it were the first";

/// A volume and how it is used.
struct Used<'a> {
    disk: BareDisk<'a>,
    capability: VolumeCapability,
}

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Stage,
    Publish,
    Unpublish,
    Unstage,
}

/// When the driver is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The call is sent, and not begun.
    Before,
    /// So long after it was sent; in a table, at most so long.
    Working(Duration),
    /// It is done; to the next driver process this is a lost reply.
    After,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Call {
    async fn send(self, node: &NodeSocket<'_>, used: &Used<'_>) -> Result<(), Status> {
        let volume = &used.disk.volume;
        match self {
            Self::Stage => node.stage_within(volume, &used.capability, KUBELET_DEADLINE).await,
            Self::Publish => node.publish(volume, &used.capability).await.map(drop),
            Self::Unpublish => node.unpublish(volume).await,
            Self::Unstage => node.unstage(volume).await,
        }
    }
}

/// Each call, killed at each moment, on an ext4, an xfs and a block volume at once.
async fn each_call_killed_is_done_by_its_repetition(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let mut random = Random::new();
    let mut volumes = Vec::new();
    for (name, capability) in [("ext4", filesystem("ext4")), ("xfs", filesystem("xfs")), ("block", block())] {
        let disk = BareDisk::blank(&fixture, fixture.worker()?, name, DISK_BYTES)?;
        disk.plug().await?;
        volumes.push(Used { disk, capability });
    }
    for (round, kills) in KILLS.into_iter().enumerate() {
        let kills = chosen(kills.map(|(row, call, moment)| (row, (call, moment))));
        for call in [Call::Stage, Call::Publish, Call::Unpublish, Call::Unstage] {
            if let Some((_, moment)) = kills.iter().find(|(of, _)| *of == call) {
                let moment = match *moment {
                    Moment::Working(most) => Moment::Working(Duration::from_millis(random.below(most))),
                    moment => moment,
                };
                killed(&node, &volumes, call, moment)
                    .await
                    .with_context(|| format!("{call:?} killed {moment}"))?;
            } else {
                repeat(&node, &volumes, call).await?;
            }
            if matches!(call, Call::Publish) {
                keeps_data(&node, &volumes, round).await?;
            }
        }
    }
    for Used { disk, .. } in &volumes {
        disk.unplug().await?;
    }
    check(volumes[0].disk.image(), "ext4")?;
    check(volumes[1].disk.image(), "xfs")
}

/// Sends a call for all volumes, kills the driver, and sends it again.
async fn killed(node: &NodeSocket<'_>, volumes: &[Used<'_>], call: Call, moment: Moment) -> Result<()> {
    if matches!(moment, Moment::Before) {
        node.freeze_driver().await?;
    }
    let send = join_all(volumes.iter().map(|used| call.send(node, used)));
    if matches!(moment, Moment::After) {
        send.await.into_iter().collect::<Result<Vec<()>, Status>>()?;
        node.kill_driver().await?;
    } else {
        let kill = async {
            if let Moment::Working(time) = moment {
                // The moment itself is what is tested: any is right.
                tokio::time::sleep(time).await;
            }
            node.kill_driver().await
        };
        // Its answers do not matter: it was killed, or was faster.
        let (_, killed) = tokio::join!(send, kill);
        killed?;
    }
    repeat(node, volumes, call).await?;
    // And once more, after it is done.
    join_all(volumes.iter().map(|used| call.send(node, used)))
        .await
        .into_iter()
        .collect::<Result<Vec<()>, _>>()?;
    Ok(())
}

/// As kubelet does: again until it succeeds, which it does soon or never.
async fn repeat(node: &NodeSocket<'_>, volumes: &[Used<'_>], call: Call) -> Result<()> {
    repeat_within(node, volumes, call, reading(volumes)).await
}

/// The same, where the worker has more to do than this.
async fn repeat_within(
    node: &NodeSocket<'_>,
    volumes: &[Used<'_>],
    call: Call,
    deadline: Deadline,
) -> Result<()> {
    let each = volumes.iter().map(|used| {
        until("the repeated call to succeed", deadline, async || {
            Ok(call.send(node, used).await.map_err(|status| format!("{status:?}")))
        })
    });
    try_join_all(each).await.map(drop)
}

/// For a call that reads all of these disks.
fn reading<'a>(volumes: impl IntoIterator<Item = &'a Used<'a>>) -> Deadline {
    Deadline::Reading(volumes.into_iter().map(|used| used.disk.bytes()).sum())
}

/// The file of the last round is there, and can be written again.
async fn keeps_data(node: &NodeSocket<'_>, volumes: &[Used<'_>], round: usize) -> Result<()> {
    for Used { disk, .. } in &volumes[..2] {
        let file = format!("{}/file", target(&disk.volume));
        if round > 0 {
            let text = node.run(&["cat", &file]).await?;
            ensure!(
                text.trim() == (round - 1).to_string(),
                "round {round}: expected {} in the file, saw {text:?}",
                round - 1
            );
        }
        node.run(&["sh", "-c", &format!("echo {round} > {file}")]).await?;
    }
    Ok(())
}

/// mkfs stands still after so many bytes; the driver is killed there. Then the disk goes on (what the kernel holds of the
/// killed mkfs is written), or it is unplugged (what the kernel holds is lost) and comes back.
async fn mkfs_killed_anywhere_ends_in_one_filesystem(fixture: Fixture) -> Result<()> {
    let node = NodeSocket::connect(&fixture, fixture.worker()?).await?;
    let mut random = Random::new();
    let mut volumes = Vec::new();
    // Each filesystem on a disk that goes on and on one that comes back; in the long list twice.
    let disks = if rows::all() { 8 } else { 4 };
    let kinds = [("ext4", EXT4_WRITES, EXT4_BYTES), ("xfs", XFS_WRITES, XFS_BYTES)];
    for (index, (kind, most, size)) in kinds.into_iter().cycle().take(disks).enumerate() {
        let bytes = random.below_bytes(most);
        let name = format!("{kind}-{index}-cut-at-{bytes}");
        let faults = DiskFaults { frozen_after: Some(bytes), ..DiskFaults::default() };
        let disk = BareDisk::blank(&fixture, fixture.worker()?, &name, size)?.faulty(faults);
        disk.plug().await?;
        volumes.push((kind, Used { disk, capability: filesystem(kind) }));
    }
    let (killing, earlier) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let send = join_all(volumes.iter().map(|(_, used)| stage_until_killed(&node, used, &killing, &earlier)));
    let kill = async {
        let blank: Vec<&BareDisk<'_>> = volumes.iter().map(|(_, used)| &used.disk).collect();
        let formatting = node.until_formatting(&blank).await;
        killing.store(true, Ordering::SeqCst);
        let earlier = || earlier.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
        formatting.with_context(|| format!("calls that failed before: [{}]", earlier()))?;
        node.send_kill().await
    };
    let (answers, killed) = tokio::join!(send, kill);
    let killed = killed?;
    ensure!(
        answers.iter().all(Result::is_err),
        "expected every call to fail on a frozen disk, saw {answers:?}"
    );

    for (index, (_, used)) in volumes.iter_mut().enumerate() {
        if index < disks / 2 {
            used.disk.heal().await?;
        } else {
            used.disk.unplug().await?;
            used.disk.set_whole();
            used.disk.plug().await?;
        }
    }
    node.until_replaced(&killed).await?;
    let deadline = reading(volumes.iter().map(|(_, used)| used));
    let outcomes = join_all(volumes.iter().map(async |(kind, used)| {
        is_made_once(&node, kind, used, deadline).await.with_context(|| used.disk.volume.volume_id.clone())
    }));
    let wrong: Vec<String> =
        outcomes.await.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(
        wrong.is_empty(),
        "expected every killed mkfs to be repaired by the next call, saw: {}",
        wrong.join("; ")
    );
    Ok(())
}

/// Stages as kubelet does: again after an error, until the driver is about to be killed. Returns the answer to the last
/// call.
async fn stage_until_killed(
    node: &NodeSocket<'_>,
    used: &Used<'_>,
    killing: &AtomicBool,
    earlier: &Mutex<Vec<String>>,
) -> Result<(), Status> {
    loop {
        let answer = node.stage(&used.disk.volume, &used.capability).await;
        match &answer {
            Err(status) if !killing.load(Ordering::SeqCst) => {
                let text = format!("{}: {status}", used.disk.volume.volume_id);
                earlier.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                tokio::time::sleep(KUBELET_BACKOFF).await;
            }
            _ => return answer,
        }
    }
}

/// The same call again makes one sound filesystem, which keeps what is written to it. The worker does so much beside it that it
/// may take until `deadline`.
async fn is_made_once(node: &NodeSocket<'_>, kind: &str, used: &Used<'_>, deadline: Deadline) -> Result<()> {
    let volume = &used.disk.volume;
    repeat_within(node, std::slice::from_ref(used), Call::Stage, deadline).await?;
    node.publish(volume, &used.capability).await?;
    let file = format!("{}/file", target(volume));
    node.run(&["sh", "-c", &format!("echo kept > {file}")]).await?;
    node.unpublish(volume).await?;
    node.unstage(volume).await?;
    node.stage(volume, &used.capability).await?;
    node.publish(volume, &used.capability).await?;
    let text = node.run(&["cat", &file]).await?;
    ensure!(text.trim() == "kept", "expected the file to hold \"kept\", saw {text:?}");
    node.unpublish(volume).await?;
    node.unstage(volume).await?;
    used.disk.unplug().await?;
    check(used.disk.image(), kind)
}

/// Numbers that differ from run to run; what they were is in the names and in the errors.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::from(now.subsec_nanos()) | 1)
    }

    /// A number below `limit` (xorshift64).
    fn below_bytes(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Milliseconds below `limit`.
    fn below(&mut self, limit: Duration) -> u64 {
        self.below_bytes(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
    }
}
