//! The service on the model machine: codes, locks, deadlines, and work that outlives its caller.

use std::{
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use csi_proto::v1::{
    node_server::Node as _,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use tokio::time::Instant;
use tonic::Code;

use super::*;
use crate::{
    device::{Disk, DiskIdentity, Serial},
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    filesystem::FilesystemType,
    host::HeldDisk,
    model::{DISK_BYTES, Held, Model, SERIAL, disk},
    mount_table::MountTable,
    node_id::NodeObject,
    path_state::PathState,
    probe::Evidence,
    step::{MkfsRecord, Step},
    usage::{Capacity, Usage},
};

/// The model, whose steps and measurements can be held up.
#[derive(Default)]
struct Gate {
    model: Model,
    closed: Mutex<bool>,
    opened: Condvar,
    entered: Mutex<Option<mpsc::Sender<()>>>,
}

impl Gate {
    fn with_disk(held: Held) -> Arc<Self> {
        let gate = Self { model: Model::with_disk(held), ..Self::default() };
        gate.model.state().paths.insert("/stage".into(), None);
        Arc::new(gate)
    }

    fn close(&self) -> mpsc::Receiver<()> {
        *self.closed.lock().unwrap() = true;
        let (sender, receiver) = mpsc::channel();
        *self.entered.lock().unwrap() = Some(sender);
        receiver
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        if let Some(entered) = &*self.entered.lock().unwrap() {
            entered.send(()).ok();
        }
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

impl Host for Gate {
    fn disks(&self) -> Result<Vec<Disk>> {
        self.model.disks()
    }
    fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>> {
        self.model.disk(number)
    }
    fn rescan(&self) -> Result<()> {
        self.model.rescan()
    }
    fn rescan_disk(&self, disk: &Disk) -> Result<()> {
        self.model.rescan_disk(disk)
    }
    fn node_path(&self, disk: &Disk) -> PathBuf {
        self.model.node_path(disk)
    }
    fn hold(&self, disk: &Disk) -> Result<HeldDisk> {
        self.model.hold(disk)
    }
    fn open(&self, disk: &Disk) -> Result<HeldDisk> {
        self.model.open(disk)
    }
    fn examine(&self, disk: &HeldDisk) -> Result<Evidence> {
        self.model.examine(disk)
    }
    fn in_use(&self, disk: &Disk) -> Result<Option<String>> {
        self.model.in_use(disk)
    }
    fn write_refusal(&self, mount_point: &Path) -> Result<Option<String>> {
        self.model.write_refusal(mount_point)
    }
    fn mounts(&self) -> Result<MountTable> {
        self.model.mounts()
    }
    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        self.model.canonical(path)
    }
    fn path(&self, path: &Path) -> Result<PathState> {
        self.model.path(path)
    }
    fn mkfs_record(&self, staging: &Path) -> Result<Option<MkfsRecord>> {
        self.model.mkfs_record(staging)
    }
    fn disk_record(&self, volume: &str) -> Result<DiskRecordFile> {
        self.model.disk_record(volume)
    }
    fn boot_id(&self) -> Result<String> {
        self.model.boot_id()
    }
    fn mounted_elsewhere(&self, staging: &Path) -> Result<Vec<DeviceNumber>> {
        self.model.mounted_elsewhere(staging)
    }
    fn filesystem_bytes(&self, disk: &Disk, filesystem: FilesystemType, point: &Path) -> Result<Option<u64>> {
        self.model.filesystem_bytes(disk, filesystem, point)
    }
    fn has_errors(&self, disk: &Disk, filesystem: FilesystemType) -> Result<bool> {
        self.model.has_errors(disk, filesystem)
    }
    fn usage(&self, point: &Path) -> Result<Usage> {
        self.pass();
        self.model.usage(point)
    }
    fn capacity(&self, number: DeviceNumber) -> Result<Option<Capacity>> {
        self.model.capacity(number)
    }
    fn apply(&self, step: &Step) -> Result<()> {
        self.pass();
        self.model.apply(step)
    }
}

/// A Node object that is annotated from the second read on.
#[derive(Default)]
struct Annotated(AtomicUsize);

impl NodeIdentitySource for Annotated {
    async fn node(&self) -> Result<NodeObject, Box<dyn std::error::Error + Send + Sync>> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err("connection refused".into()),
            1 => Ok(NodeObject::default()),
            _ => Ok(NodeObject {
                provider_id: Some("kubevirt://worker-0".into()),
                annotations: [("cluster.x-k8s.io/cluster-namespace".into(), "tenant-1".into())].into(),
            }),
        }
    }
}

fn node(host: &Arc<Gate>) -> Node<Annotated> {
    let settings = NodeSettings { device_wait: Duration::from_millis(300), ..NodeSettings::default() };
    Node::with_host(Arc::clone(host) as Arc<dyn Host>, settings, Annotated::default())
}

fn capability(block: bool) -> v1::VolumeCapability {
    let access =
        if block { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(MountVolume::default()) };
    let access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    v1::VolumeCapability { access_mode, access_type: Some(access) }
}

fn stage(serial: &str) -> Request<v1::NodeStageVolumeRequest> {
    Request::new(v1::NodeStageVolumeRequest {
        volume_id: "pvc-1".into(),
        staging_target_path: "/stage".into(),
        volume_capability: Some(capability(false)),
        volume_context: [("serial".into(), serial.into())].into(),
        ..Default::default()
    })
}

fn unstage() -> Request<v1::NodeUnstageVolumeRequest> {
    Request::new(v1::NodeUnstageVolumeRequest {
        volume_id: "pvc-1".into(),
        staging_target_path: "/stage".into(),
    })
}

fn publish(target: &str, block: bool) -> Request<v1::NodePublishVolumeRequest> {
    Request::new(v1::NodePublishVolumeRequest {
        volume_id: "pvc-1".into(),
        staging_target_path: "/stage".into(),
        target_path: target.into(),
        volume_capability: Some(capability(block)),
        volume_context: [("serial".into(), SERIAL.into())].into(),
        ..Default::default()
    })
}

fn unpublish(target: &str) -> Request<v1::NodeUnpublishVolumeRequest> {
    Request::new(v1::NodeUnpublishVolumeRequest { volume_id: "pvc-1".into(), target_path: target.into() })
}

fn stats(path: &str) -> Request<v1::NodeGetVolumeStatsRequest> {
    Request::new(v1::NodeGetVolumeStatsRequest {
        volume_id: "pvc-1".into(),
        volume_path: path.into(),
        ..Default::default()
    })
}

fn expand(path: &str, required_bytes: u64, block: bool) -> Request<v1::NodeExpandVolumeRequest> {
    let required_bytes = i64::try_from(required_bytes).unwrap();
    Request::new(v1::NodeExpandVolumeRequest {
        volume_id: "pvc-1".into(),
        volume_path: path.into(),
        staging_target_path: "/stage".into(),
        capacity_range: Some(v1::CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capability: Some(capability(block)),
        ..Default::default()
    })
}

fn within<T>(mut request: Request<T>, timeout: &'static str) -> Request<T> {
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test]
async fn a_volume_lives_through_all_its_calls() {
    let node = node(&Gate::with_disk(Held::Blank));
    for _ in 0..2 {
        node.node_stage_volume(stage(SERIAL)).await.unwrap();
        node.node_publish_volume(publish("/pods/a", false)).await.unwrap();
        node.node_publish_volume(publish("/pods/b", false)).await.unwrap();
    }
    let usage = node.node_get_volume_stats(stats("/pods/a")).await.unwrap().into_inner().usage;
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0].unit(), Unit::Bytes);
    for _ in 0..2 {
        node.node_unpublish_volume(unpublish("/pods/a")).await.unwrap();
        node.node_unpublish_volume(unpublish("/pods/b")).await.unwrap();
        node.node_unstage_volume(unstage()).await.unwrap();
    }
    for nonsense in ["/pods/a", "some/path", "/", "/pods/../a"] {
        let status = node.node_get_volume_stats(stats(nonsense)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{nonsense}");
    }
}

#[tokio::test]
async fn a_volume_that_is_published_without_being_staged_is_staged_by_the_same_rules() {
    let blank = node(&Gate::with_disk(Held::Blank));
    blank.node_publish_volume(publish("/pods/a", false)).await.unwrap();
    let foreign = Gate::with_disk(Held::Luks);
    let status = node(&foreign).node_publish_volume(publish("/pods/a", false)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(foreign.model.take_applied(), []);

    let mut without_staging = publish("/pods/a", false);
    without_staging.get_mut().staging_target_path.clear();
    let status = blank.node_publish_volume(without_staging).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_block_volume_reports_its_size() {
    let node = node(&Gate::with_disk(Held::Blank));
    node.node_publish_volume(publish("/pods/block", true)).await.unwrap();
    let usage = node.node_get_volume_stats(stats("/pods/block")).await.unwrap().into_inner().usage;
    assert_eq!((usage.len(), usage[0].total, usage[0].used), (1, 1 << 30, 0));
}

#[tokio::test]
async fn an_absent_disk_is_unavailable_with_what_was_seen_and_within_the_callers_time() {
    let node = node(&Gate::with_disk(Held::Blank));
    let begin = Instant::now();
    let status = node.node_stage_volume(within(stage("other"), "30S")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&format!("serials seen: sdb={SERIAL}")), "{status}");
    assert!(begin.elapsed() >= Duration::from_millis(300), "the whole wait was used");

    let status = node.node_stage_volume(within(stage("other"), "600m")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test]
async fn a_disk_that_comes_late_is_found() {
    let gate = Gate::with_disk(Held::Blank);
    gate.model.state().disks.clear();
    let settings = NodeSettings { device_wait: Duration::from_secs(20), ..NodeSettings::default() };
    let node = Node::with_host(Arc::clone(&gate) as Arc<dyn Host>, settings, Annotated::default());
    let (late, staged) = (Arc::clone(&gate), node.clone());
    let call = tokio::spawn(async move { staged.node_stage_volume(stage(SERIAL)).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!call.is_finished());
    late.model.state().disks.push((disk(16), Held::Blank));
    call.await.unwrap().unwrap();
}

/// A node whose processors are busy answers all the same what is missing, and not only that the time is up.
#[tokio::test]
async fn a_scan_that_takes_too_long_does_not_hide_what_the_one_before_saw() {
    for (deadline, device_wait) in [("800m", 20_000), ("5S", 300)] {
        let gate = Gate::with_disk(Held::Blank);
        gate.model.state().later_scans_take = Duration::from_secs(2);
        let settings =
            NodeSettings { device_wait: Duration::from_millis(device_wait), ..NodeSettings::default() };
        let node = Node::with_host(Arc::clone(&gate) as Arc<dyn Host>, settings, Annotated::default());
        let status = node.node_stage_volume(within(stage("other"), deadline)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("no disk with serial other"), "{status}");
        assert!(status.message().contains(SERIAL), "it names what is there: {status}");
    }
}

/// The kernel asks each address of a SCSI host in turn, which takes seconds where nothing answers: neither the answer nor a disk that
/// has shown meanwhile waits for that, and a second call begins no second scan.
#[tokio::test]
async fn nobody_waits_for_the_scsi_hosts() {
    let gate = Gate::with_disk(Held::Blank);
    gate.model.state().rescan_takes = Duration::from_hours(1);
    let settings = NodeSettings { device_wait: Duration::from_millis(6500), ..NodeSettings::default() };
    let node = Node::with_host(Arc::clone(&gate) as Arc<dyn Host>, settings, Annotated::default());
    let mut second = stage("late");
    second.get_mut().volume_id = "pvc-2".into();
    second.get_mut().staging_target_path = "/stage-2".into();
    let late = {
        let (gate, node) = (Arc::clone(&gate), node.clone());
        tokio::spawn(async move {
            let call = tokio::spawn(async move { node.node_stage_volume(second).await });
            while gate.model.state().rescans == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let identity = DiskIdentity::Scsi { unit_serial: Serial::new("late"), designators: Vec::new() };
            gate.model.state().disks.push((Disk { identity, ..disk(32) }, Held::Blank));
            call.await.unwrap()
        })
    };
    let begin = Instant::now();
    let status = node.node_stage_volume(within(stage("other"), "30S")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(begin.elapsed() < Duration::from_secs(20), "it waited for the scan");
    late.await.unwrap().unwrap();
    assert_eq!(gate.model.state().rescans, 1);
}

/// A plugged disk grows some time after the infra claim has.
#[tokio::test]
async fn an_expansion_waits_for_the_disk_and_answers_its_size() {
    let gate = Gate::with_disk(Held::Blank);
    let settings = NodeSettings { device_wait: Duration::from_secs(20), ..NodeSettings::default() };
    let node = Node::with_host(Arc::clone(&gate) as Arc<dyn Host>, settings, Annotated::default());
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    node.node_publish_volume(publish("/pods/a", false)).await.unwrap();
    let (late, expanding) = (Arc::clone(&gate), node.clone());
    let looked = gate.model.state().scans;
    let call =
        tokio::spawn(
            async move { expanding.node_expand_volume(expand("/pods/a", 2 * DISK_BYTES, false)).await },
        );
    while gate.model.state().scans < looked + 2 {
        tokio::task::yield_now().await;
    }
    // It waits with the volume's lock.
    let status = node.node_unpublish_volume(unpublish("/pods/a")).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("wait for KubeVirt to grow it"), "{status}");
    late.model.state().disks[0].0.bytes = 3 * DISK_BYTES;
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.capacity_bytes, i64::try_from(3 * DISK_BYTES).unwrap());
    let whole = Held::Filesystem { kind: "ext4".into(), bytes: 3 * DISK_BYTES };
    assert_eq!(gate.model.state().disks[0].1, whole);
    assert_eq!(gate.model.state().disk_rescans, 0, "the kernel was told by the disk");
}

#[tokio::test]
async fn a_disk_that_does_not_grow_is_asked_once_and_then_unavailable_with_both_sizes() {
    for block in [false, true] {
        let gate = Gate::with_disk(Held::Blank);
        let node = node(&gate);
        if !block {
            node.node_stage_volume(stage(SERIAL)).await.unwrap();
        }
        node.node_publish_volume(publish("/pods/a", block)).await.unwrap();
        gate.model.take_applied();
        for call in 1..=2 {
            let begin = Instant::now();
            let wanted = within(expand("/pods/a", 2 * DISK_BYTES, block), "30S");
            let status = node.node_expand_volume(wanted).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            let sizes = format!("has {DISK_BYTES} bytes and not {} yet", 2 * DISK_BYTES);
            assert!(status.message().contains(&sizes), "{status}");
            assert!(begin.elapsed() >= Duration::from_millis(300), "the whole wait was used");
            assert_eq!(gate.model.state().disk_rescans, call);
        }
        assert_eq!(gate.model.take_applied(), []);
    }
}

#[tokio::test]
async fn a_growth_that_was_not_announced_is_found() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    gate.model.state().bytes_after_rescan = Some(2 * DISK_BYTES);
    node.node_expand_volume(expand("/stage", 2 * DISK_BYTES, false)).await.unwrap();
    let whole = Held::Filesystem { kind: "ext4".into(), bytes: 2 * DISK_BYTES };
    assert_eq!(gate.model.state().disks[0].1, whole);
}

#[tokio::test]
async fn a_disk_that_goes_or_changes_while_it_is_waited_for_is_not_grown() {
    for gone in [true, false] {
        let gate = Gate::with_disk(Held::Blank);
        let node = node(&gate);
        node.node_stage_volume(stage(SERIAL)).await.unwrap();
        gate.model.take_applied();
        let looked = gate.model.state().scans;
        let late = Arc::clone(&gate);
        let change = tokio::spawn(async move {
            while late.model.state().scans < looked + 2 {
                tokio::task::yield_now().await;
            }
            let mut state = late.model.state();
            if gone {
                state.disks.clear();
            } else {
                state.disks[0].0.identity = DiskIdentity::None;
                state.disks[0].0.bytes = 2 * DISK_BYTES;
            }
        });
        let status = node.node_expand_volume(expand("/stage", 2 * DISK_BYTES, false)).await.unwrap_err();
        change.await.unwrap();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("is not the disk that was found"), "{status}");
        assert_eq!(gate.model.take_applied(), []);
    }
}

#[tokio::test]
async fn what_is_not_on_this_node_is_not_expanded() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    for path in ["some/path", "/", "/pods/../a", "/pods/a", "/stage"] {
        for block in [false, true] {
            let status = node.node_expand_volume(expand(path, 1, block)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{path}: {status}");
        }
    }
    let unnamed = Request::new(v1::NodeExpandVolumeRequest::default());
    assert_eq!(node.node_expand_volume(unnamed).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_growth_goes_on_after_its_callers_time_is_up() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    gate.model.state().disks[0].0.bytes = 2 * DISK_BYTES;
    let entered = gate.close();
    let status =
        node.node_expand_volume(within(expand("/stage", 2 * DISK_BYTES, false), "1S")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("growing the ext4 on sdb"), "{status}");
    entered.recv().unwrap();
    let again = node.node_expand_volume(expand("/stage", 2 * DISK_BYTES, false)).await.unwrap_err();
    assert_eq!(again.code(), Code::Aborted, "{again}");
    gate.open();
    assert!(node.shutdown(Duration::from_secs(10)).await);
    let whole = Held::Filesystem { kind: "ext4".into(), bytes: 2 * DISK_BYTES };
    assert_eq!(gate.model.state().disks[0].1, whole);
}

#[tokio::test]
async fn two_disks_with_one_serial_are_both_refused() {
    let gate = Gate::with_disk(Held::Blank);
    gate.model.state().disks.push((disk(32), Held::Blank));
    let status = node(&gate).node_stage_volume(stage(SERIAL)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("sdb, sdc"), "{status}");
    assert_eq!(gate.model.take_applied(), []);
}

#[tokio::test]
async fn work_goes_on_after_its_callers_time_is_up_and_holds_the_volume_until_it_ends() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    let entered = gate.close();
    let status = node.node_stage_volume(within(stage(SERIAL), "300m")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("recording that mkfs starts"), "{status}");
    entered.recv().unwrap();
    let status = node.node_unstage_volume(unstage()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("NodeStageVolume of volume pvc-1"), "{status}");
    assert!(!node.shutdown(Duration::from_millis(20)).await, "it is still at work");

    gate.open();
    assert!(node.shutdown(Duration::from_secs(10)).await);
    gate.model.take_applied();
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    assert_eq!(gate.model.take_applied(), [], "the next call sees what came of it");
}

#[tokio::test]
async fn a_caller_that_hangs_up_cancels_nothing() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    let entered = gate.close();
    let caller = node.clone();
    let call = tokio::spawn(async move { caller.node_stage_volume(stage(SERIAL)).await });
    tokio::task::spawn_blocking(move || entered.recv()).await.unwrap().unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    gate.open();
    assert!(node.shutdown(Duration::from_secs(10)).await);
    assert_eq!(gate.model.state().mounts.len(), 1);
}

#[tokio::test]
async fn a_measurement_that_hangs_takes_one_thread_and_no_lock() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    let _entered = gate.close();
    for _ in 0..40 {
        let status = node.node_get_volume_stats(within(stats("/stage"), "50m")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("hang"), "{status}");
    }
    gate.open();
    node.node_unstage_volume(unstage()).await.unwrap();
}

#[tokio::test]
async fn an_unstage_is_not_done_while_the_disk_is_in_use_not_even_the_second_time() {
    let gate = Gate::with_disk(Held::Blank);
    let node = node(&gate);
    node.node_stage_volume(stage(SERIAL)).await.unwrap();
    node.node_publish_volume(publish("/pods/a", false)).await.unwrap();
    for _ in 0..2 {
        let status = node.node_unstage_volume(unstage()).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("mounted at /pods/a"), "{status}");
    }
    node.node_unpublish_volume(unpublish("/pods/a")).await.unwrap();
    node.node_unstage_volume(unstage()).await.unwrap();
}

#[tokio::test]
async fn the_node_is_unavailable_until_it_is_annotated_and_then_asked_no_more() {
    let node = node(&Gate::with_disk(Held::Blank));
    let info = || node.node_get_info(Request::new(v1::NodeGetInfoRequest {}));
    let status = info().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("connection refused"), "{status}");
    let status = info().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("csi.kubevirt.io/infra-vm-name"), "{status}");
    for _ in 0..3 {
        let info = info().await.unwrap().into_inner();
        assert_eq!(info.node_id, "tenant-1/worker-0");
        assert_eq!((info.max_volumes_per_node, info.accessible_topology), (0, None));
    }
    assert_eq!(node.identity.0.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_is_implemented_is_advertised() {
    let node = node(&Gate::with_disk(Held::Blank));
    let capabilities =
        node.node_get_capabilities(Request::new(v1::NodeGetCapabilitiesRequest {})).await.unwrap();
    let kinds: Vec<_> = capabilities
        .into_inner()
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type)
        .map(|node_service_capability::Type::Rpc(rpc)| rpc.r#type())
        .collect();
    assert_eq!(kinds, [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume]);
}
