//! The objects that a user of the guest cluster makes: a claim, and a pod that uses it.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

/// The image that every worker of the bench has: busybox, made by hand.
const IMAGE: &str = "bench.local/busybox:1";

/// Where a pod of the bench finds its filesystem volume.
pub const MOUNT_PATH: &str = "/data";

/// Where a pod of the bench finds its block volume.
pub const DEVICE_PATH: &str = "/dev/volume";

/// The label by which a worker is chosen (`kubernetes.io/hostname`, set by kubelet).
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A claim, ReadWriteOnce, somewhat larger than the 300 MiB that mkfs.xfs requires; `volume_mode` is `Filesystem` or `Block`.
///
/// # Panics
/// Never: the literal has the type's shape, which a unit test shows.
pub fn claim(name: &str, storage_class: &str, volume_mode: &str) -> PersistentVolumeClaim {
    from_literal(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": volume_mode,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": "320Mi"}},
        },
    }))
}

/// What a pod does with a claim.
#[derive(Clone, Debug)]
pub struct PodOnVolume<'a> {
    /// The pod's name.
    pub name: &'a str,
    /// The claim it uses.
    pub claim: &'a str,
    /// The worker it must run on; `None` lets the scheduler choose.
    pub node: Option<&'a str>,
    /// `Filesystem` at [`MOUNT_PATH`] or `Block` at [`DEVICE_PATH`].
    pub volume_mode: &'a str,
    /// A shell script; the pod stays up after it.
    pub script: &'a str,
}

/// The pod: runs its script, then stays until it is deleted, and goes at once when it is (`sleep` as process 1 ignores
/// SIGTERM, so the grace period is one second).
///
/// # Panics
/// Never: the literal has the type's shape, which a unit test shows.
pub fn pod(wanted: &PodOnVolume<'_>) -> Pod {
    let selector = wanted.node.map(|node| json!({HOSTNAME: node}));
    let block = wanted.volume_mode == "Block";
    let mounts = if block { json!([]) } else { json!([{"name": "volume", "mountPath": MOUNT_PATH}]) };
    let devices = if block { json!([{"name": "volume", "devicePath": DEVICE_PATH}]) } else { json!([]) };
    from_literal(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": wanted.name},
        "spec": {
            "nodeSelector": selector,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "user",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", format!("set -e; {}; exec sleep 86400", wanted.script)],
                "volumeMounts": mounts,
                "volumeDevices": devices,
            }],
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": wanted.claim}}],
        },
    }))
}

/// The object that a literal describes.
pub(super) fn from_literal<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the literal has the type's shape")
}

#[cfg(test)]
mod tests {
    use super::{PodOnVolume, claim, pod};

    #[test]
    fn literals_have_their_types_shape() {
        assert_eq!(claim("a", "kubevirt", "Block").metadata.name.as_deref(), Some("a"));
        for volume_mode in ["Filesystem", "Block"] {
            let wanted =
                PodOnVolume { name: "p", claim: "a", node: Some("worker-1"), volume_mode, script: "true" };
            assert_eq!(pod(&wanted).metadata.name.as_deref(), Some("p"));
        }
    }
}
