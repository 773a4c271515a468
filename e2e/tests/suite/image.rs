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

tests! {
    OneWorker:
        the_node_role_runs_as_it_is_shipped,
        the_probes_reach_the_pod,
        a_killed_node_process_comes_back_and_volumes_stay;
}

/// The programs that the node role starts, the option that prints the version of each, and how that text begins.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("blkid", "-V", "blkid from util-linux"),
    ("e2fsck", "-V", "e2fsck 1."),
    ("mke2fs", "-V", "mke2fs 1."),
    ("mkfs.ext2", "-V", "mke2fs 1."),
    ("mkfs.ext3", "-V", "mke2fs 1."),
    ("mkfs.ext4", "-V", "mke2fs 1."),
    ("mkfs.xfs", "-V", "mkfs.xfs version"),
    // It has no option for the version and prints it before the usage.
    ("resize2fs", "-?", "resize2fs 1."),
    ("xfs_growfs", "-V", "xfs_growfs version"),
];

/// All capabilities of Linux 6.1 (`capabilities(7)`: 41 of them): what "privileged" means.
const ALL_CAPABILITIES: &str = "000001ffffffffff";

/// The driver's process in the guest.
const PROGRAM: &str = "kubevirt-csi-driver";

/// The pod of the DaemonSet runs the image with nothing but the DaemonSet's arguments, privileged, with a root that can't be
/// written, mounts that reach the host, and every program that the node role spawns.
async fn the_node_role_runs_as_it_is_shipped(fixture: Fixture) -> Result<()> {
    let worker = fixture.worker()?;
    let plugin = NodePlugin::new(&fixture.guest, worker);
    plugin.wait_until_serving().await?;
    let pod = plugin.pod().await?.context("no pod")?;
    let container = driver_container(&pod)?;
    ensure!(
        container.image.as_deref() == Some(DRIVER.image),
        "expected the image {}, saw {:?}",
        DRIVER.image,
        container.image
    );
    ensure!(container.command.is_none(), "expected no command in the manifest, saw one");
    ensure!(
        container.image_pull_policy.as_deref() != Some("Always"),
        "expected a pull policy that needs no registry, saw Always"
    );

    let look = Inside { fixture: &fixture, worker };
    let command = look.run("tr '\\0' ' ' </proc/$pid/cmdline").await?;
    let arguments = container.args.clone().unwrap_or_default().join(" ");
    let expected = format!("/bin/{PROGRAM} {}", arguments.replace("$(KUBE_NODE_NAME)", worker));
    ensure!(command.trim() == expected, "expected the command {expected:?}, saw {command:?}");

    let capabilities = look.run("grep CapEff /proc/$pid/status").await?;
    ensure!(capabilities.ends_with(ALL_CAPABILITIES), "expected all capabilities, saw {capabilities}");
    let mounts = look.run("cat /proc/$pid/mountinfo").await?;
    let mount = |point: &str| {
        let found = mounts.lines().find(|line| line.split(' ').nth(4) == Some(point));
        found.with_context(|| format!("no mount at {point} in:\n{mounts}"))
    };
    let options = mount("/")?.split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "expected a read-only root, saw {options}");
    ensure!(
        mount("/var/lib/kubelet")?.contains(" shared:"),
        "expected mounts shared with the host, saw:\n{mounts}"
    );
    for (program, option, version) in PROGRAMS {
        // The program and its libraries come from the container's mounts. By its path, because for a plain name the worker's
        // busybox would run its own applet.
        let said =
            look.run(&format!("nsenter -t $pid -m -- /usr/sbin/{program} {option} 2>&1 || true")).await?;
        ensure!(
            said.starts_with(version),
            "expected {program} to print {version:?} in the container, saw {said:?}"
        );
    }
    Ok(())
}

/// kubelet calls both probes at the pod's address, and the driver answers only when it is healthy.
async fn the_probes_reach_the_pod(fixture: Fixture) -> Result<()> {
    let worker = fixture.worker()?;
    let pod = NodePlugin::new(&fixture.guest, worker).pod().await?.context("no pod")?;
    ensure!(driver_container(&pod)?.liveness_probe.is_some(), "expected a liveness probe, saw none");
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address")?;
    for path in ["/livez", "/readyz"] {
        let url = format!("http://{address}:10300{path}");
        let answer = fixture.control.run(worker, &["wget", "-q", "-O", "-", &url]).await?;
        ensure!(answer.code == 0, "expected an answer of {url}, saw {}", answer.stderr);
    }
    Ok(())
}

/// SIGKILL of the node process: kubelet starts it again, the pod that has a volume goes on writing to it meanwhile and
/// after, and the next pod gets the volume with what was written.
async fn a_killed_node_process_comes_back_and_volumes_stay(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let worker = fixture.worker()?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), &namespace);
    claims.create(&PostParams::default(), &claim("claim", STORAGE_CLASS, "Filesystem")).await?;
    let beat = format!(
        "n=0; while sleep 1; do n=$((n+1)); echo $n >{MOUNT_PATH}/beat; sync; cat {MOUNT_PATH}/beat; done"
    );
    create(&pods, "first", worker, &beat).await?;
    beats_after(&pods, "first", 0).await?;

    let plugin = NodePlugin::new(&fixture.guest, worker);
    let before = restarts(&plugin).await?;
    let killed = fixture.control.run(worker, &["killall", "-KILL", PROGRAM]).await?;
    ensure!(killed.code == 0, "expected a process to kill, saw {}", killed.stderr);
    until("kubelet to restart the driver", Deadline::PodStart, async || {
        let now = restarts(&plugin).await?;
        Ok(if now > before { Ok(()) } else { Err(format!("{now} restarts")) })
    })
    .await?;
    plugin.wait_until_serving().await?;
    let written = beats_after(&pods, "first", 0).await?;
    let written = beats_after(&pods, "first", written).await?;

    pods.delete("first", &DeleteParams::default()).await?;
    until_gone(&pods, "first", "pod", Deadline::PodStart).await?;
    create(&pods, "next", worker, &format!("cat {MOUNT_PATH}/beat")).await?;
    let read = beats_after(&pods, "next", written - 1).await?;
    ensure!(read >= written, "expected at least the written {written}, saw {read}");

    pods.delete("next", &DeleteParams::default()).await?;
    until_gone(&pods, "next", "pod", Deadline::PodStart).await?;
    claims.delete("claim", &DeleteParams::default()).await?;
    until_gone(&claims, "claim", "claim", Deadline::PodStart).await
}

/// The driver's process in a worker, inspected from the guest because the image has no shell.
struct Inside<'a> {
    fixture: &'a Fixture,
    worker: &'a str,
}

impl Inside<'_> {
    /// What a script printed in which `$pid` is the process.
    async fn run(&self, script: &str) -> Result<String> {
        let script = format!("set -e; pid=$(pidof {PROGRAM}); {script}");
        let output = self.fixture.control.run(self.worker, &["sh", "-c", &script]).await?;
        ensure!(
            output.code == 0,
            "expected {script} to succeed, saw exit code {}: {}",
            output.code,
            output.stderr
        );
        Ok(output.stdout.trim_end().to_owned())
    }
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
    until(&format!("{name} to print a number above {least}"), Deadline::PodStart, async || {
        let log = pods.logs(name, &LogParams::default()).await?;
        let newest = log.lines().last().and_then(|line| line.parse().ok());
        Ok(newest.filter(|beat| *beat > least).ok_or_else(|| format!("it printed {newest:?} last")))
    })
    .await
}
