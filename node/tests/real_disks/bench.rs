//! What the tests stand on: a namespace, loop devices, a made-up sysfs, and a Node service over them.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use csi_proto::v1::{
    self,
    node_server::Node as _,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use node::{DISK_RECORDS, HostPaths, Node, NodeIdentitySource, NodeObject, NodeSettings};
use tonic::{Request, Status};

pub const SERIAL: &str = "298d9cd3-9791-4830-8f00-0123456789ab";
const VOLUME: &str = "pvc-1";

/// Names the folder in which the child works; its parent removes the folder and detaches what lies there.
const WORK_DIR: &str = "NODE_TEST_WORK_DIR";

/// Left in the work directory by a test that ran to its end: a name that fits no test would run none, successfully.
const DONE: &str = "done";

/// Loop devices are few: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test in a process and a mount namespace of its own.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os(WORK_DIR).is_some() {
        body();
        return fs::write(work_dir().join(DONE), "").unwrap();
    }
    assert_eq!(
        nix::unistd::geteuid().as_raw(),
        0,
        "needs root; leave it out with: cargo test -p node -- --skip needs_root"
    );
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(WORK_DIR, fs::canonicalize(directory.path()).unwrap())
        .status()
        .unwrap();
    detach_all_below(directory.path());
    let ran = directory.path().join(DONE).exists();
    assert!(status.success() && ran, "{name} failed in its namespace, see above");
}

/// The mounts went with the namespace; the loop devices are the machine's.
fn detach_all_below(directory: &Path) {
    let output = Command::new("losetup")
        .args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])
        .output()
        .unwrap();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some((device, file)) = line.split_once(' ')
            && Path::new(file.trim()).starts_with(directory)
        {
            run("losetup", &["--detach", device]);
        }
    }
}

/// Where a test works.
pub fn work_dir() -> PathBuf {
    PathBuf::from(std::env::var_os(WORK_DIR).unwrap())
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Number of the capability (linux/capability.h).
pub const CAP_SYS_RESOURCE: u32 = 24;

/// This process has the capability.
pub fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << number) != 0
}

/// A process that is killed when dropped.
pub struct Held(Child);

impl Held {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end; what it printed.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Waits for a first line of its output.
    pub fn spawn_ready(command: &mut Command) -> Self {
        let mut held = Self::spawn(command.stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(held.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A loop device over a sparse file.
pub struct Loop {
    image: PathBuf,
    device: PathBuf,
}

impl Loop {
    pub fn blank(bytes: u64) -> Self {
        let image = tempfile::Builder::new().prefix("image-").tempfile_in(work_dir()).unwrap();
        Self::blank_at(&image.into_temp_path().keep().unwrap(), bytes)
    }

    pub fn blank_at(image: &Path, bytes: u64) -> Self {
        File::create(image).unwrap().set_len(bytes).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let device = String::from_utf8(output.stdout).unwrap().trim().into();
        Self { image: image.to_owned(), device }
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    pub fn grow(&mut self, bytes: u64) {
        File::options().write(true).open(&self.image).unwrap().set_len(bytes).unwrap();
        run("losetup", &["--set-capacity", self.device.to_str().unwrap()]);
    }

    /// Of all its bytes, as they are in the file.
    pub fn checksum(&self) -> String {
        run("blockdev", &["--flushbufs", self.device.to_str().unwrap()]);
        let output = Command::new("sha256sum").arg(&self.image).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    fn name(&self) -> &str {
        self.device.file_name().unwrap().to_str().unwrap()
    }

    pub fn number(&self) -> (u64, u64) {
        let device = fs::metadata(&self.device).unwrap().rdev();
        (nix::sys::stat::major(device), nix::sys::stat::minor(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that is still mounted is detached when its namespace ends.
        let detached = Command::new("losetup").arg("--detach").arg(&self.device).status();
        assert!(std::thread::panicking() || detached.unwrap().success());
        fs::remove_file(&self.image).ok();
    }
}

/// All its bytes are zero.
pub fn is_zero(path: &Path) -> bool {
    let mut file = File::open(path).unwrap();
    let (mut buffer, zeros) = (vec![0_u8; 1 << 20], vec![0_u8; 1 << 20]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return true,
            length if buffer[..length] != zeros[..length] => return false,
            _ => {}
        }
    }
}

struct Nobody;

impl NodeIdentitySource for Nobody {
    async fn node(&self) -> Result<NodeObject, Box<dyn std::error::Error + Send + Sync>> {
        Err("no guest API in this test".into())
    }
}

/// A Node service that sees one disk with a serial, and the folders of one volume.
pub struct Bench {
    node: Node<Nobody>,
    settings: NodeSettings,
    context: HashMap<String, String>,
    root: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    pub fn new(disk: &Loop, name: &str) -> Self {
        let root = work_dir().join(name);
        let sys = root.join("sys");
        sysfs(&sys, disk, SERIAL);
        fs::create_dir_all(root.join("staging")).unwrap();
        Self::existing(name)
    }

    /// Another process's view of the same folders.
    pub fn existing(name: &str) -> Self {
        let root = work_dir().join(name);
        let sys = root.join("sys");
        let settings = NodeSettings {
            paths: HostPaths { sys, disk_records: root.join(DISK_RECORDS), ..HostPaths::default() },
            device_wait: Duration::from_millis(200),
            release_wait: Duration::from_millis(500),
            ..NodeSettings::default()
        };
        Self::with(settings, root)
    }

    fn with(settings: NodeSettings, root: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let context = [("serial".to_owned(), SERIAL.to_owned())].into();
        Self { node: Node::new(settings.clone(), Nobody), settings, context, root, runtime }
    }

    pub fn allowing_nonzero(&self) -> Self {
        let settings = NodeSettings { allow_format_nonzero: true, ..self.settings.clone() };
        Self { context: self.context.clone(), ..Self::with(settings, self.root.clone()) }
    }

    /// The same volume, of which the controller role says that it was made blank at this time.
    pub fn made_blank(&self, since: u64) -> Self {
        self.saying("blankSince", &since.to_string())
    }

    /// The same volume, of a class that allows to format data of an unknown kind.
    pub fn of_a_class_that_allows_nonzero(&self) -> Self {
        self.saying("allowFormatNonzero", "true")
    }

    fn saying(&self, key: &str, value: &str) -> Self {
        let mut context = self.context.clone();
        context.insert(key.to_owned(), value.to_owned());
        Self { context, ..Self::with(self.settings.clone(), self.root.clone()) }
    }

    /// On a kernel that says to be of this release.
    pub fn on_kernel(&self, release: &str) -> Self {
        let paths = HostPaths { kernel_release: self.root.join("osrelease"), ..self.settings.paths.clone() };
        fs::write(&paths.kernel_release, format!("{release}\n")).unwrap();
        Self::with(NodeSettings { paths, ..self.settings.clone() }, self.root.clone())
    }

    /// Puts another disk's device node where this one's should be.
    pub fn mislead(&mut self, disk: &Loop, other: &Loop) {
        let dev = self.root.join("dev");
        fs::create_dir_all(&dev).unwrap();
        symlink(other.device(), dev.join(disk.name())).unwrap();
        self.settings.paths.dev = dev;
        self.node = Node::new(self.settings.clone(), Nobody);
    }

    pub fn paths(&self) -> &HostPaths {
        &self.settings.paths
    }

    pub fn staging(&self) -> &Path {
        // Leaked: the tests are short, and read better with a plain path.
        Box::leak(self.root.join("staging").into_boxed_path())
    }

    /// Where the record of the volume's disk is, while there is one.
    pub fn disk_record(&self) -> PathBuf {
        self.root.join(DISK_RECORDS).join(format!("{VOLUME}.json"))
    }

    /// Lets sysfs show what size the disk has now.
    pub fn show_size_of(&self, disk: &Loop) {
        sysfs(&self.paths().sys, disk, SERIAL);
    }

    /// Lets sysfs show one more disk.
    pub fn show_another(&self, disk: &Loop, serial: &str) {
        sysfs(&self.paths().sys, disk, serial);
    }

    /// Takes the disk out of sysfs, as the kernel does when it is unplugged.
    pub fn lose(&self) {
        for folder in ["block", "dev/block"] {
            fs::remove_dir_all(self.paths().sys.join(folder)).unwrap();
            fs::create_dir_all(self.paths().sys.join(folder)).unwrap();
        }
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        self.root.join("pods").join(pod)
    }

    pub fn stage(&self, kind: &str, flags: &[&str]) -> Result<(), Status> {
        self.stage_as(filesystem(kind, flags))
    }

    pub fn stage_block(&self) -> Result<(), Status> {
        self.stage_as(capability(AccessType::Block(BlockVolume {})))
    }

    fn stage_as(&self, capability: v1::VolumeCapability) -> Result<(), Status> {
        let request = v1::NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: string(self.staging()),
            volume_capability: Some(capability),
            volume_context: self.context.clone(),
            ..Default::default()
        };
        self.runtime.block_on(self.node.node_stage_volume(Request::new(request))).map(drop)
    }

    pub fn unstage(&self) -> Result<(), Status> {
        let request = v1::NodeUnstageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: string(self.staging()),
        };
        self.runtime.block_on(self.node.node_unstage_volume(Request::new(request))).map(drop)
    }

    pub fn publish(&self, pod: &str, kind: &str, readonly: bool) -> Result<(), Status> {
        self.publish_as(pod, filesystem(kind, &[]), readonly)
    }

    pub fn publish_with(&self, pod: &str, kind: &str, flags: &[&str], readonly: bool) -> Result<(), Status> {
        self.publish_as(pod, filesystem(kind, flags), readonly)
    }

    pub fn publish_block(&self, pod: &str) -> Result<(), Status> {
        self.publish_as(pod, capability(AccessType::Block(BlockVolume {})), false)
    }

    fn publish_as(&self, pod: &str, to: v1::VolumeCapability, readonly: bool) -> Result<(), Status> {
        let request = v1::NodePublishVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: string(self.staging()),
            target_path: string(&self.target(pod)),
            volume_capability: Some(to),
            readonly,
            volume_context: self.context.clone(),
            ..Default::default()
        };
        self.runtime.block_on(self.node.node_publish_volume(Request::new(request))).map(drop)
    }

    pub fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let request = v1::NodeUnpublishVolumeRequest {
            volume_id: VOLUME.into(),
            target_path: string(&self.target(pod)),
        };
        self.runtime.block_on(self.node.node_unpublish_volume(Request::new(request))).map(drop)
    }

    /// As csi-sanity does it: no staging path, no capability.
    pub fn expand(&self, path: &Path, required: u64) -> Result<u64, Status> {
        self.expand_as(path, required, None)
    }

    pub fn expand_with(&self, path: &Path, required: u64, kind: &str, flags: &[&str]) -> Result<u64, Status> {
        self.expand_as(path, required, Some(filesystem(kind, flags)))
    }

    pub fn expand_block(&self, path: &Path, required: u64) -> Result<u64, Status> {
        self.expand_as(path, required, Some(capability(AccessType::Block(BlockVolume {}))))
    }

    fn expand_as(
        &self,
        path: &Path,
        required: u64,
        volume_capability: Option<v1::VolumeCapability>,
    ) -> Result<u64, Status> {
        let required_bytes = i64::try_from(required).unwrap();
        // The kubelet gives the staging path together with the capability.
        let staging = volume_capability.as_ref().map(|_| string(self.staging()));
        let request = v1::NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: string(path),
            staging_target_path: staging.unwrap_or_default(),
            capacity_range: Some(v1::CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capability,
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.node.node_expand_volume(Request::new(request)))?;
        Ok(answer.into_inner().capacity_bytes.try_into().unwrap())
    }

    pub fn stats(&self, path: &Path) -> Result<Vec<v1::VolumeUsage>, Status> {
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: VOLUME.into(),
            volume_path: string(path),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.node.node_get_volume_stats(Request::new(request)))?;
        Ok(answer.into_inner().usage)
    }
}

fn capability(access: AccessType) -> v1::VolumeCapability {
    let access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    v1::VolumeCapability { access_mode, access_type: Some(access) }
}

fn filesystem(kind: &str, flags: &[&str]) -> v1::VolumeCapability {
    capability(AccessType::Mount(MountVolume {
        fs_type: kind.into(),
        mount_flags: flags.iter().map(|&flag| flag.into()).collect(),
        volume_mount_group: String::new(),
    }))
}

fn string(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A sysfs with one SCSI disk, which has the loop device's name, number and size.
fn sysfs(sys: &Path, disk: &Loop, serial: &str) {
    let (major, minor) = disk.number();
    let directory = sys.join("block").join(disk.name());
    fs::create_dir_all(directory.join("device")).unwrap();
    fs::create_dir_all(directory.join("holders")).unwrap();
    fs::write(directory.join("dev"), format!("{major}:{minor}\n")).unwrap();
    for file in ["size", "ro"] {
        let real = Path::new("/sys/block").join(disk.name()).join(file);
        fs::copy(real, directory.join(file)).unwrap();
    }
    let length = u8::try_from(serial.len()).unwrap();
    fs::write(directory.join("device/vpd_pg80"), [&[0, 0x80, 0, length], serial.as_bytes()].concat())
        .unwrap();
    fs::create_dir_all(sys.join("dev/block")).unwrap();
    let link = sys.join("dev/block").join(format!("{major}:{minor}"));
    if !link.exists() {
        symlink(&directory, link).unwrap();
    }
}
