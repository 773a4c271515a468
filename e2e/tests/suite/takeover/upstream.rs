//! kubevirt/csi-driver as far as its code is known (@27b52aa2): the calls that its controller makes, as its account and with its rights,
//! and the commands that its node plugin runs.

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::PLUGIN_FOLDER,
    scenario::{Deadline, HCP_NAMESPACE, data_volumes, hotplugged, until, virtual_machines},
};
use kube::{Client, api::DynamicObject};
use serde_json::{Value, json};

use crate::{
    controller_process::INFRA_LABELS,
    fixture::Fixture,
    provider::{administrator, kubectl_with},
    rights::CONTROLLER_USER,
    snapshots::volume_snapshots,
};

const DATA_VOLUME: &str = include_str!("data-volume.yaml");
const VOLUME_SNAPSHOT: &str = include_str!("volume-snapshot.yaml");

/// Waits until udev knows the disk, finds it by its serial as `lsblk` shows it, and formats it if that shows no filesystem; prints its
/// path.
const STAGE: &str = r#"
link=/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_$1
tries=0
until [ -e "$link" ]; do tries=$((tries + 1)); [ $tries -lt 300 ]; usleep 100000; done
udevadm settle
name=$(lsblk -nro NAME,SERIAL | awk -v serial="$1" '$2 == serial { print $1 }')
test -n "$name"
if [ -z "$(lsblk -nro FSTYPE "/dev/$name")" ]; then
    case $2 in xfs) mkfs.xfs -q -f "/dev/$name" ;; *) "mkfs.$2" -q -m 0 -F "/dev/$name" ;; esac
    udevadm settle
    echo formatted >&2
fi
echo "/dev/$name"
"#;

/// Gives a running pod's volume the layout of kubevirt/csi-driver: the disk is mounted at the pod's path, and nothing at the staging
/// path. The pod itself keeps the mount that its container has. Prints the pod's path.
const OLD_LAYOUT: &str = r#"
device=$1 content=$2 record=$3
for point in $(findmnt -rno TARGET -S "$device"); do
    case $point in
    */globalmount) umount "$point" ;;
    */volumes/kubernetes.io~csi/*/mount) target=$point ;;
    esac
done
umount "$target"
case $content in xfs) mount -t xfs -o nouuid "$device" "$target" ;; *) mount -t "$content" "$device" "$target" ;; esac
rm "$record"
echo "$target"
"#;

/// Upstream's two roles.
pub struct Upstream<'a> {
    fixture: &'a Fixture,
    infra: Client,
}

impl<'a> Upstream<'a> {
    /// With the controller's account.
    pub async fn new(fixture: &'a Fixture) -> Result<Self> {
        Ok(Self { fixture, infra: fixture.infra_as(CONTROLLER_USER).await? })
    }

    /// CreateVolume, and the wait until CDI has made the disk; the volume's serial.
    pub async fn create(&self, volume: &str, class: &str) -> Result<String> {
        let object = DATA_VOLUME.replace("VOLUME", volume).replace("INFRA_CLASS", class);
        kubectl_with(self.fixture, &administrator("infra"), &["create"], &object).await?;
        self.fixture.image_of(volume).await?;
        self.serial(volume).await
    }

    /// What each of its RPCs reads of a volume: the name, the infra labels, the size that a repeated CreateVolume compares; the serial,
    /// which is the UID.
    pub async fn finds(&self, volume: &str, bytes: u64) -> Result<String> {
        let object = self.data_volume(volume).await?;
        has_labels(&object)?;
        let size = &object.data["spec"]["storage"]["resources"]["requests"]["storage"];
        ensure!(*size == json!(bytes.to_string()), "expected {volume} to request {bytes}, saw {size}");
        ensure!(
            object.data["spec"]["source"]["blank"].is_object(),
            "expected a blank source, saw {}",
            object.data["spec"]
        );
        self.serial(volume).await
    }

    async fn serial(&self, volume: &str) -> Result<String> {
        self.data_volume(volume).await?.metadata.uid.context("a DataVolume without a UID")
    }

    async fn data_volume(&self, volume: &str) -> Result<DynamicObject> {
        Ok(data_volumes(&self.infra, HCP_NAMESPACE).get(volume).await?)
    }

    /// ControllerPublishVolume.
    pub async fn publish(&self, volume: &str, machine: &str) -> Result<()> {
        let others = hotplugged(&self.infra, HCP_NAMESPACE, volume).await?;
        ensure!(others.is_empty(), "expected {volume} to be attached to no VM, saw {others:?}");
        let serial = self.serial(volume).await?;
        let body = json!({
            "name": volume,
            "disk": {"name": "", "serial": serial, "disk": {"bus": "scsi"}},
            "volumeSource": {"dataVolume": {"name": volume}},
        });
        self.put(machine, "addvolume", &body).await?;
        until(&format!("{volume} to be attached to {machine}"), Deadline::PodStart, async || {
            let shown = hotplugged(&self.infra, HCP_NAMESPACE, volume).await?;
            let is_ready = shown.iter().any(|disk| disk.vmi == machine && disk.phase == "Ready");
            let in_spec = self.in_spec(volume, machine).await?.is_some();
            Ok(if is_ready && in_spec { Ok(()) } else { Err(format!("{shown:?}, in the VM: {in_spec}")) })
        })
        .await
    }

    /// ControllerUnpublishVolume: it unplugs what the VM's spec has as a DataVolume.
    pub async fn unpublish(&self, volume: &str, machine: &str) -> Result<()> {
        let entry = self.in_spec(volume, machine).await?.context("the VM does not have the volume")?;
        ensure!(
            entry["dataVolume"]["name"] == volume && entry["dataVolume"]["hotpluggable"] == true,
            "expected a hotpluggable DataVolume, saw {entry}"
        );
        self.put(machine, "removevolume", &json!({"name": volume})).await?;
        until(&format!("{volume} to be detached from {machine}"), Deadline::PodStart, async || {
            let shown = hotplugged(&self.infra, HCP_NAMESPACE, volume).await?;
            let in_spec = self.in_spec(volume, machine).await?.is_some();
            Ok(if shown.is_empty() && !in_spec { Ok(()) } else { Err(format!("{shown:?}")) })
        })
        .await
    }

    /// The entry of a volume in a VM's spec.
    async fn in_spec(&self, volume: &str, machine: &str) -> Result<Option<Value>> {
        let vm = virtual_machines(&self.infra, HCP_NAMESPACE).get(machine).await?;
        let all = vm.data["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|entry| entry["name"] == volume))
    }

    async fn put(&self, machine: &str, subresource: &str, body: &Value) -> Result<()> {
        let path = format!(
            "/apis/subresources.kubevirt.io/v1/namespaces/{HCP_NAMESPACE}/virtualmachines/{machine}/{subresource}"
        );
        let request = http::Request::put(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "*/*")
            .body(serde_json::to_vec(body)?)?;
        self.infra.request_text(request).await.with_context(|| format!("{subresource} of {machine}"))?;
        Ok(())
    }

    /// `CreateSnapshot`, and the wait until it is ready; what csi-snapshotter writes to the guest's content.
    pub async fn snapshot(&self, snapshot: &str, volume: &str) -> Result<Value> {
        let object = VOLUME_SNAPSHOT.replace("SNAPSHOT", snapshot).replace("VOLUME", volume);
        kubectl_with(self.fixture, &administrator("infra"), &["create"], &object).await?;
        let snapshots = volume_snapshots(&self.infra, HCP_NAMESPACE);
        let status = until(&format!("{snapshot} to be ready"), Deadline::PodStart, async || {
            let status = snapshots.get(snapshot).await?.data["status"].clone();
            Ok(if status["readyToUse"] == true { Ok(status) } else { Err(status.to_string()) })
        })
        .await?;
        let size = status["restoreSize"].as_str().context("a snapshot without a size")?;
        let size = bench::simulator::quantity::bytes(&serde_json::from_value(json!(size))?)?;
        let taken: jiff::Timestamp =
            status["creationTime"].as_str().context("a snapshot without a time")?.parse()?;
        let nanoseconds = i64::try_from(taken.as_nanosecond())?;
        Ok(json!({
            "snapshotHandle": snapshot, "readyToUse": true, "restoreSize": size, "creationTime": nanoseconds,
        }))
    }

    /// What `DeleteSnapshot` and a restore read of a snapshot.
    pub async fn finds_snapshot(&self, snapshot: &str, volume: &str) -> Result<()> {
        let object = volume_snapshots(&self.infra, HCP_NAMESPACE).get(snapshot).await?;
        has_labels(&object)?;
        let of = &object.data["spec"]["source"]["persistentVolumeClaimName"];
        ensure!(of == volume, "expected a snapshot of {volume}, saw {of}");
        ensure!(object.data["status"]["readyToUse"] == true, "expected it to be ready, saw {}", object.data);
        Ok(())
    }

    /// NodeStageVolume: the path of the disk in the worker, and whether it was formatted.
    pub async fn stage(&self, worker: &str, serial: &str, content: &str) -> Result<(String, bool)> {
        let (device, told) = self.run(worker, STAGE, &[serial, content]).await?;
        Ok((device, told.contains("formatted")))
    }

    /// NodePublishVolume and NodeUnpublishVolume around a script that finds the mounted disk at `$1`; what the script prints.
    pub async fn with_mounted(
        &self,
        worker: &str,
        device: &str,
        content: &str,
        body: &str,
    ) -> Result<String> {
        let script = format!(
            "target=$(mktemp -d); mount -t \"$2\" \"$1\" \"$target\"; set -- \"$target\"; {body}; umount \"$1\"; rm -r \"$1\""
        );
        Ok(self.run(worker, &script, &[device, content]).await?.0)
    }

    /// Gives the running pod's volume upstream's layout, and takes away what this driver recorded of it; the pod's path.
    pub async fn lay_out(&self, worker: &str, volume: &str, device: &str, content: &str) -> Result<String> {
        let record = format!("{PLUGIN_FOLDER}/disk-records/{volume}.json");
        Ok(self.run(worker, OLD_LAYOUT, &[device, content, &record]).await?.0)
    }

    /// Runs a shell script in a worker: what it printed, and on standard error.
    async fn run(&self, worker: &str, script: &str, arguments: &[&str]) -> Result<(String, String)> {
        let argv: Vec<&str> = ["sh", "-ec", script, "sh"].iter().chain(arguments).copied().collect();
        let output = self.fixture.control.run(worker, &argv).await?;
        ensure!(output.code == 0, "expected {script} to succeed in {worker}, saw {output:?}");
        Ok((output.stdout.trim().to_owned(), output.stderr))
    }
}

/// Its guard: an object must have all the infra labels.
fn has_labels(object: &DynamicObject) -> Result<()> {
    let (key, value) = INFRA_LABELS.split_once('=').context("no label")?;
    let has = object.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    ensure!(has.map(String::as_str) == Some(value), "expected the label {INFRA_LABELS}, saw {has:?}");
    Ok(())
}
