//! The driver as it is shipped: its image in the pod of its DaemonSet, under a real kubelet.

use anyhow::{Context, Result, ensure};
use bench::{
    artifact::DRIVER,
    bring_up::{DRIVER_CONTAINER, NodePlugin},
    scenario::{Deadline, MOUNT_PATH, PodOnVolume, STORAGE_CLASS, claim, pod, until, until_gone},
};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, PersistentVolumeClaim, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, LogParams, PostParams},
};

use crate::fixture::Fixture;

/// What the node role spawns, how each tells its version, and the first words of that.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("blkid", "-V", "blkid from util-linux"),
    ("e2fsck", "-V", "e2fsck 1."),
    ("mke2fs", "-V", "mke2fs 1."),
    ("mkfs.ext2", "-V", "mke2fs 1."),
    ("mkfs.ext3", "-V", "mke2fs 1."),
    ("mkfs.ext4", "-V", "mke2fs 1."),
    ("mkfs.xfs", "-V", "mkfs.xfs version"),
    // It has no such option and says its version before the usage.
    ("resize2fs", "-?", "resize2fs 1."),
    ("xfs_growfs", "-V", "xfs_growfs version"),
];

/// All capabilities of Linux 6.1 (`capabilities(7)`: 41 of them): what "privileged" means.
const ALL_CAPABILITIES: &str = "000001ffffffffff";

/// The driver's process in the guest.
const PROGRAM: &str = "kubevirt-csi-driver";

/// The pod of the DaemonSet runs the image with nothing but the DaemonSet's arguments, privileged, with a root that can't be
/// written, mounts that reach the host, and every program that the node role spawns.
pub async fn runs_as_shipped(fixture: Fixture) -> Result<()> {
    let worker = first_worker(&fixture).await?;
    let plugin = NodePlugin::new(&fixture.guest, &worker);
    plugin.wait_until_serving().await?;
    let pod = plugin.pod().await?.context("no pod")?;
    let container = driver_container(&pod)?;
    ensure!(container.image.as_deref() == Some(DRIVER.image), "the image is {:?}", container.image);
    ensure!(container.command.is_none(), "the manifest names a command");
    ensure!(container.image_pull_policy.as_deref() != Some("Always"), "the bench has no registry");

    let look = Inside { fixture: &fixture, worker: &worker };
    let command = look.run("tr '\\0' ' ' </proc/$pid/cmdline").await?;
    let arguments = container.args.clone().unwrap_or_default().join(" ");
    let expected = format!("/bin/{PROGRAM} {}", arguments.replace("$(KUBE_NODE_NAME)", &worker));
    ensure!(command.trim() == expected, "it runs {command:?}, the manifest says {expected:?}");

    let capabilities = look.run("grep CapEff /proc/$pid/status").await?;
    ensure!(capabilities.ends_with(ALL_CAPABILITIES), "not privileged: {capabilities}");
    let mounts = look.run("cat /proc/$pid/mountinfo").await?;
    let mount = |point: &str| {
        let found = mounts.lines().find(|line| line.split(' ').nth(4) == Some(point));
        found.with_context(|| format!("no mount at {point} in:\n{mounts}"))
    };
    let options = mount("/")?.split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "the root can be written: {options}");
    ensure!(mount("/var/lib/kubelet")?.contains(" shared:"), "its mounts stay its own:\n{mounts}");
    for (program, option, version) in PROGRAMS {
        // The program and its libraries are looked up in the container's mounts. By its path: for a mere name that it knows
        // itself, the worker's busybox runs its own program.
        let said =
            look.run(&format!("nsenter -t $pid -m -- /usr/sbin/{program} {option} 2>&1 || true")).await?;
        ensure!(said.starts_with(version), "{program} says {said:?} in the container");
    }
    Ok(())
}

/// kubelet asks both probes at the pod's address, and the driver answers only because it is well.
pub async fn probes_reach_the_pod(fixture: Fixture) -> Result<()> {
    let worker = first_worker(&fixture).await?;
    let pod = NodePlugin::new(&fixture.guest, &worker).pod().await?.context("no pod")?;
    ensure!(driver_container(&pod)?.liveness_probe.is_some(), "no liveness probe");
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address")?;
    for path in ["/livez", "/readyz"] {
        let url = format!("http://{address}:10300{path}");
        let answer = fixture.control.run(&worker, &["wget", "-q", "-O", "-", &url]).await?;
        ensure!(answer.code == 0, "{url}: {}", answer.stderr);
    }
    Ok(())
}

/// SIGKILL of the node process: kubelet starts it again, the pod that has a volume goes on writing to it meanwhile and
/// after, and the next pod gets the volume with what was written.
pub async fn killed_process_comes_back(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let worker = first_worker(&fixture).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), &namespace);
    claims.create(&PostParams::default(), &claim("claim", STORAGE_CLASS, "Filesystem")).await?;
    let beat = format!(
        "n=0; while sleep 1; do n=$((n+1)); echo $n >{MOUNT_PATH}/beat; sync; cat {MOUNT_PATH}/beat; done"
    );
    create(&pods, "first", &worker, &beat).await?;
    beats_after(&pods, "first", 0).await?;

    let plugin = NodePlugin::new(&fixture.guest, &worker);
    let before = restarts(&plugin).await?;
    let killed = fixture.control.run(&worker, &["killall", "-KILL", PROGRAM]).await?;
    ensure!(killed.code == 0, "nothing to kill: {}", killed.stderr);
    until("kubelet's restart of the driver", Deadline::PodStart, async || {
        let now = restarts(&plugin).await?;
        Ok(if now > before { Ok(()) } else { Err(format!("{now} restarts")) })
    })
    .await?;
    plugin.wait_until_serving().await?;
    let written = beats_after(&pods, "first", 0).await?;
    let written = beats_after(&pods, "first", written).await?;

    pods.delete("first", &DeleteParams::default()).await?;
    until_gone(&pods, "first", "pod", Deadline::PodStart).await?;
    create(&pods, "next", &worker, &format!("cat {MOUNT_PATH}/beat")).await?;
    let read = beats_after(&pods, "next", written - 1).await?;
    ensure!(read >= written, "{written} was written, {read} is read");

    pods.delete("next", &DeleteParams::default()).await?;
    until_gone(&pods, "next", "pod", Deadline::PodStart).await?;
    claims.delete("claim", &DeleteParams::default()).await?;
    until_gone(&claims, "claim", "claim", Deadline::PodStart).await
}

/// The driver's process in a worker, looked at from the guest: the image has no shell.
struct Inside<'a> {
    fixture: &'a Fixture,
    worker: &'a str,
}

impl Inside<'_> {
    /// What a script printed in which `$pid` is the process.
    async fn run(&self, script: &str) -> Result<String> {
        let script = format!("set -e; pid=$(pidof {PROGRAM}); {script}");
        let output = self.fixture.control.run(self.worker, &["sh", "-c", &script]).await?;
        ensure!(output.code == 0, "{script} ended with {}: {}", output.code, output.stderr);
        Ok(output.stdout.trim_end().to_owned())
    }
}

async fn first_worker(fixture: &Fixture) -> Result<String> {
    fixture.control.workers().await?.into_iter().next().context("no worker")
}

fn driver_container(pod: &Pod) -> Result<&Container> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .into_iter()
        .find(|container| container.name == DRIVER_CONTAINER)
        .with_context(|| format!("{} has no container {DRIVER_CONTAINER}", pod.name_any()))
}

async fn restarts(plugin: &NodePlugin) -> Result<i32> {
    let pod = plugin.pod().await?.context("no pod")?;
    let statuses: Vec<ContainerStatus> =
        pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
    let driver = statuses.iter().find(|status| status.name == DRIVER_CONTAINER);
    Ok(driver.context("the container has no status")?.restart_count)
}

async fn create(pods: &Api<Pod>, name: &str, worker: &str, script: &str) -> Result<()> {
    let wanted = PodOnVolume { name, claim: "claim", node: Some(worker), volume_mode: "Filesystem", script };
    pods.create(&PostParams::default(), &pod(&wanted)).await?;
    Ok(())
}

/// Waits until the pod has printed a number above `least`; the last one.
async fn beats_after(pods: &Api<Pod>, name: &str, least: u32) -> Result<u32> {
    until(&format!("a beat of {name} after {least}"), Deadline::PodStart, async || {
        let log = pods.logs(name, &LogParams::default()).await?;
        let newest = log.lines().last().and_then(|line| line.parse().ok());
        Ok(newest.filter(|beat| *beat > least).ok_or_else(|| format!("it printed {newest:?} last")))
    })
    .await
}
