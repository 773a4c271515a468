//! What CDI's importer does to the volume of a blank DataVolume, as `cmd/cdi-importer` of CDI 1.65.0 does it: a block
//! volume is left as it is; in a filesystem a raw, sparse `disk.img` is made, smaller than the volume by the overhead that
//! cdi-controller had added to the claim.
//!
//! What it does not do: every other source (HTTP, registry, clone, …), for which nothing is made, and preallocation.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::core::v1::{Container, PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Api, Client, ResourceExt};

use super::simulated;
use crate::simulator::{infra_storage, quantity::bytes};

/// The environment that cdi-controller gives an importer (`pkg/common`).
const SOURCE: &str = "IMPORTER_SOURCE";
const IMAGE_SIZE: &str = "IMPORTER_IMAGE_SIZE";
const OVERHEAD: &str = "FILESYSTEM_OVERHEAD";
/// The source of a blank DataVolume (`SourceNone`).
const BLANK: &str = "none";
/// Where an importer has a filesystem volume (`ImporterVolumePath`); a block volume is a device elsewhere.
const VOLUME_PATH: &str = "/data";
/// Images are made in whole mebibytes (`DefaultAlignBlockSize`).
const ALIGNMENT: u64 = 1 << 20;

/// A blank disk to be made in a filesystem.
#[derive(Debug, PartialEq, Eq)]
struct BlankDisk<'a> {
    claim: &'a str,
    /// The claim's request in bytes.
    requested: u64,
    overhead: Overhead,
}

/// A share of a volume that its filesystem needs for itself, as an exact decimal fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Overhead {
    digits: u64,
    scale: u64,
}

/// Does the work of a worker pod that is about to succeed.
pub(super) async fn work(client: &Client, volumes: &Path, pod: &Pod) -> Result<()> {
    let Some(disk) = blank_disk(pod)? else { return Ok(()) };
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let spec = claims.get(disk.claim).await?.spec.unwrap_or_default();
    let name = spec.volume_name.with_context(|| format!("PVC {} is not bound", disk.claim))?;
    let pvs: Api<PersistentVolume> = Api::all(client.clone());
    let capacity = pvs.get(&name).await?.spec.and_then(|spec| spec.capacity?.remove("storage"));
    let capacity = bytes(&capacity.with_context(|| format!("PV {name} has no capacity"))?)?;
    let image = infra_storage::image(volumes, &name, spec.volume_mode.as_deref());
    infra_storage::create_image(&image, disk.bytes(capacity)).await
}

/// The disk that this importer has to make; `None` when there is nothing to make.
fn blank_disk(pod: &Pod) -> Result<Option<BlankDisk<'_>>> {
    let importer =
        simulated::containers(pod).iter().find(|container| value(container, SOURCE) == Some(BLANK));
    let Some(importer) = importer else { return Ok(None) };
    let mounts = importer.volume_mounts.as_deref().unwrap_or_default();
    let Some(mount) = mounts.iter().find(|mount| mount.mount_path == VOLUME_PATH) else { return Ok(None) };
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let claim = volumes
        .iter()
        .find(|volume| volume.name == mount.name)
        .and_then(|volume| volume.persistent_volume_claim.as_ref())
        .context("an importer's volume is no PVC")?;
    let size = value(importer, IMAGE_SIZE).with_context(|| format!("an importer without {IMAGE_SIZE}"))?;
    let overhead = value(importer, OVERHEAD).with_context(|| format!("an importer without {OVERHEAD}"))?;
    Ok(Some(BlankDisk {
        claim: &claim.claim_name,
        requested: bytes(&Quantity(size.to_owned()))?,
        overhead: Overhead::parse(overhead)?,
    }))
}

fn value<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container.env.as_deref()?.iter().find(|variable| variable.name == name)?.value.as_deref()
}

impl BlankDisk<'_> {
    /// The image's size in a volume of `capacity` bytes (`createBlankImage`, `GetUsableSpace`).
    fn bytes(&self, capacity: u64) -> u64 {
        let available = u128::from(self.requested.min(capacity));
        let Overhead { digits, scale } = self.overhead;
        let whole = u128::from(scale) + u128::from(digits);
        let usable = (available * u128::from(scale)).div_ceil(whole);
        // Not more than the available space, which fits.
        u64::try_from(usable).unwrap_or(u64::MAX) / ALIGNMENT * ALIGNMENT
    }
}

impl Overhead {
    /// Reads CDI's `Percent`: a decimal fraction below one, `0.06`.
    fn parse(text: &str) -> Result<Self> {
        let wrong = || format!("{text:?} is no filesystem overhead");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let places = u32::try_from(fraction.len()).with_context(wrong)?;
        let scale = 10_u64.checked_pow(places).with_context(wrong)?;
        let digits: u64 = format!("{whole}{fraction}").parse().with_context(wrong)?;
        ensure!(digits < scale, wrong());
        Ok(Self { digits, scale })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn importer(source: &str, place: &Value) -> Pod {
        let mut container = json!({"name": "importer", "env": [
            {"name": "IMPORTER_SOURCE", "value": source},
            {"name": "IMPORTER_IMAGE_SIZE", "value": "1138166334"},
            {"name": "FILESYSTEM_OVERHEAD", "value": "0.06"},
        ]});
        if let (Some(container), Some(place)) = (container.as_object_mut(), place.as_object()) {
            container.extend(place.clone());
        }
        serde_json::from_value(json!({
            "metadata": {"name": "importer-prime"},
            "spec": {"containers": [container], "volumes": [
                {"name": "cdi-data-vol", "persistentVolumeClaim": {"claimName": "prime"}}]},
        }))
        .expect("a pod")
    }

    #[test]
    fn a_blank_disk_is_as_large_as_what_was_asked_of_cdi() {
        let pod =
            importer("none", &json!({"volumeMounts": [{"name": "cdi-data-vol", "mountPath": "/data"}]}));
        let disk = blank_disk(&pod).expect("legible").expect("a disk");
        assert_eq!((disk.claim, disk.requested), ("prime", 1_138_166_334));
        assert_eq!(disk.bytes(1_138_166_334), 1 << 30, "1 GiB plus 6 %, less 6 %");
        assert_eq!(disk.bytes(2 << 30), 1 << 30, "a larger volume does not make it larger");
        assert_eq!(disk.bytes(1 << 30), 966 << 20, "less 6 %, in whole mebibytes");
        assert_eq!(disk.bytes(1000), 0);
    }

    #[test]
    fn nothing_is_made_on_a_device_or_for_another_source() {
        let device =
            json!({"volumeDevices": [{"name": "cdi-data-vol", "devicePath": "/dev/cdi-block-volume"}]});
        assert_eq!(blank_disk(&importer("none", &device)).expect("legible"), None);
        let folder = json!({"volumeMounts": [{"name": "cdi-data-vol", "mountPath": "/data"}]});
        assert_eq!(blank_disk(&importer("http", &folder)).expect("legible"), None);
    }

    #[test]
    fn overheads() {
        assert_eq!(Overhead::parse("0.055").expect("a share"), Overhead { digits: 55, scale: 1000 });
        assert_eq!(Overhead::parse("0").expect("a share"), Overhead { digits: 0, scale: 1 });
        for wrong in ["", "1", "1.5", "-0.1", "six", "0.00000000000000000000001"] {
            assert!(Overhead::parse(wrong).is_err(), "{wrong}");
        }
    }
}
