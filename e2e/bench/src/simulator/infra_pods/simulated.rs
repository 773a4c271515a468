//! The status that a kubelet reports of a pod of which nothing runs. Pure, except that it reads the clock for times.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::image::{Image, Images, image_name};

/// KubeVirt's label of its pods; the value is the kind of pod.
const KUBEVIRT_LABEL: &str = "kubevirt.io";
/// CDI's label of its pods; the value is the kind of pod.
const CDI_LABEL: &str = "cdi.kubevirt.io";
/// CDI's pods that do one piece of work and end.
const CDI_WORKERS: [&str; 3] = ["importer", "cdi-clone-source", "cdi-populator-prep"];
/// What CDI's importer leaves as termination message; cdi-controller parses it.
const IMPORT_COMPLETE: &str =
    r#"{"scratchSpaceRequired":false,"preallocationApplied":false,"message":"Import Complete"}"#;
/// The conditions that a kubelet owns; others (`PodScheduled`, readiness gates) stay as they are.
const OWNED_CONDITIONS: [&str; 4] = ["Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"];

/// What sort of pod it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// KubeVirt's virt-launcher: a machine lives in it.
    Launcher,
    /// KubeVirt's attachment pod `hp-volume-…`.
    Attachment,
    /// CDI's importer, clone source, or the pod that binds or expands a claim: it ends when its work is done.
    Worker,
    /// Another pod of CDI, which stays.
    Server,
    /// A pod of which at least one image is a program of the bench.
    Program,
    /// A pod of images that the bench does not have.
    Unknown,
}

/// How a pod's containers fare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// They run.
    Running,
    /// They ended well.
    Succeeded,
    /// They end badly and are started again.
    Failing {
        /// The exit code.
        code: i32,
        /// The termination message.
        message: String,
    },
}

/// The sort of a pod.
pub(super) fn kind(pod: &Pod, images: &Images) -> Kind {
    let labels = pod.labels();
    match (labels.get(KUBEVIRT_LABEL).map(String::as_str), labels.get(CDI_LABEL).map(String::as_str)) {
        (Some("virt-launcher"), _) => Kind::Launcher,
        (Some("hotplug-disk"), _) => Kind::Attachment,
        (_, Some(what)) if CDI_WORKERS.contains(&what) => Kind::Worker,
        (_, Some(_)) => Kind::Server,
        _ if containers(pod).iter().any(|c| image(c, images).is_some()) => Kind::Program,
        _ => Kind::Unknown,
    }
}

/// The image of a container, if the bench has it.
pub(super) fn image<'a>(container: &Container, images: &'a Images) -> Option<&'a Image> {
    images.get(image_name(container.image.as_deref().unwrap_or_default()))
}

/// The pod's phase, `Pending` before it has one.
pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The PVCs that the pod mounts.
pub(super) fn claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Whether the pod's status already says why it waits.
pub(super) fn is_waiting(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses
        .is_some_and(|all| all.iter().all(|c| c.state.as_ref().is_some_and(|state| state.waiting.is_some())))
}

/// How long a deleted pod still has. Its deletionTimestamp is the end of the grace period, not the time of the request.
pub(super) fn grace_left(pod: &Pod) -> Duration {
    let end = pod.metadata.deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Whether the pod's status contains everything in `wanted`.
pub(super) fn has(pod: &Pod, wanted: &Value) -> bool {
    let present = serde_json::to_value(pod.status.as_ref()).unwrap_or_default();
    wanted.as_object().is_some_and(|wanted| wanted.iter().all(|(key, value)| present.get(key) == Some(value)))
}

/// The addresses in a pod's status.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses<'a> {
    /// Its node's.
    pub node: IpAddr,
    /// Its own, the first first, if the pod network has some for it.
    pub own: &'a [IpAddr],
}

/// The status to write, as a merge patch.
pub(super) fn status(pod: &Pod, kind: Kind, outcome: &Outcome, addresses: Addresses<'_>) -> Value {
    let now = now();
    let unknown = kind == Kind::Unknown;
    let running = *outcome == Outcome::Running && !unknown;
    let state = |container: &Container| {
        if unknown {
            return unpullable(container);
        }
        container_status(container, outcome, &now)
    };
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let phase = match outcome {
        _ if unknown => "Pending",
        Outcome::Succeeded => "Succeeded",
        Outcome::Running | Outcome::Failing { .. } => "Running",
    };
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let mut status = json!({
        "phase": phase,
        "startTime": started.map_or_else(|| json!(now), |time| json!(time)),
        "hostIP": addresses.node, "hostIPs": [{"ip": addresses.node}],
        "conditions": conditions(pod, !unknown, running, &now),
        "containerStatuses": containers(pod).iter().map(state).collect::<Vec<_>>(),
        "initContainerStatuses": inits.iter().map(|c| init_status(c, unknown, &now)).collect::<Vec<_>>(),
    });
    if !unknown {
        let known = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        let mut ips: Vec<String> = known.map(|known| known.ip.clone()).collect();
        if ips.is_empty() {
            ips = addresses.own.iter().map(ToString::to_string).collect();
        }
        if ips.is_empty() {
            ips.push(pod_ip(pod));
        }
        status["podIP"] = ips[0].clone().into();
        status["podIPs"] = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
    }
    status
}

/// The container of a pod whose image the bench does not have, as the container runtime words it.
pub(super) fn unpullable(container: &Container) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    json!({
        "name": container.name, "image": image, "imageID": "", "ready": false, "started": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ErrImagePull",
            "message": format!("the bench has no image {image}; map it to a program")}},
    })
}

/// The pod's conditions with a kubelet's own replaced; a time stays while its condition does.
pub(super) fn conditions(pod: &Pod, initialized: bool, ready: bool, now: &str) -> Value {
    let present: &[PodCondition] =
        pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<Value> =
        present.iter().filter(|c| !OWNED_CONDITIONS.contains(&c.type_.as_str())).map(|c| json!(c)).collect();
    for kind in OWNED_CONDITIONS {
        let holds =
            if kind == "Initialized" || kind == "PodReadyToStartContainers" { initialized } else { ready };
        let status = if holds { "True" } else { "False" };
        let same = present.iter().find(|c| c.type_ == kind && c.status == status);
        conditions.push(same.map_or_else(
            || json!({"type": kind, "status": status, "lastTransitionTime": now}),
            |condition| json!(condition),
        ));
    }
    Value::Array(conditions)
}

/// Now, to the second, as Kubernetes writes times.
pub(super) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A container's image by digest: virt-controller refuses to migrate a containerDisk that has none. No image was pulled,
/// so no digest is true.
pub(super) fn image_id(image: &str) -> String {
    format!("{}@sha256:{}", image_name(image), "0".repeat(64))
}

pub(super) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

fn container_status(container: &Container, outcome: &Outcome, now: &str) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    let ended = |code: i32, reason: &str, message: &str| json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": now, "finishedAt": now}});
    let (state, last, restarts) = match outcome {
        Outcome::Running => (json!({"running": {"startedAt": now}}), json!({}), 0),
        Outcome::Succeeded => (ended(0, "Completed", IMPORT_COMPLETE), json!({}), 0),
        Outcome::Failing { code, message } => (
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}),
            ended(*code, "Error", message),
            1,
        ),
    };
    let up = *outcome == Outcome::Running;
    json!({
        "name": container.name, "image": image, "imageID": image_id(image), "ready": up, "started": up,
        "restartCount": restarts, "state": state, "lastState": last,
    })
}

/// An init container with a restart policy is a sidecar and runs on; any other has ended.
fn init_status(container: &Container, unknown: bool, now: &str) -> Value {
    if unknown {
        return unpullable(container);
    }
    let sidecar = container.restart_policy.is_some();
    let outcome = if sidecar { Outcome::Running } else { Outcome::Succeeded };
    let mut status = container_status(container, &outcome, now);
    status["ready"] = true.into();
    if !sidecar {
        status["state"]["terminated"]["message"] = "".into();
    }
    status
}

/// An address of the pod network that only depends on the pod. Nobody listens there.
fn pod_ip(pod: &Pod) -> String {
    let uid = pod.uid().unwrap_or_default();
    let hash = uid.bytes().fold(0_u16, |hash, byte| hash.wrapping_mul(31).wrapping_add(u16::from(byte)));
    let [high, low] = hash.to_be_bytes();
    // Neither a network's own address nor its broadcast address.
    format!("10.244.{high}.{}", low.clamp(1, 254))
}

/// The name of the node that the pod is bound to.
pub(super) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(labels: &Value, image: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": labels},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": image}],
                "initContainers": [{"name": "disk", "image": "d:v", "restartPolicy": "Always"}, {"name": "once", "image": "o:v"}],
                "volumes": [{"name": "a"}, {"name": "b", "persistentVolumeClaim": {"claimName": "pvc"}}]},
            "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
        }))
        .expect("a pod")
    }

    fn address() -> Addresses<'static> {
        Addresses { node: "10.76.0.1".parse().expect("an address"), own: &[] }
    }

    #[test]
    fn kinds() {
        let images = Images::from([("r/x".to_owned(), Image::Program("/bin/x".into()))]);
        let of = |labels: Value, image: &str| kind(&pod(&labels, image), &images);
        assert_eq!(of(json!({"kubevirt.io": "virt-launcher"}), "r/x:1"), Kind::Launcher);
        assert_eq!(of(json!({"kubevirt.io": "hotplug-disk"}), ""), Kind::Attachment);
        assert_eq!(of(json!({"cdi.kubevirt.io": "importer"}), ""), Kind::Worker);
        assert_eq!(of(json!({"cdi.kubevirt.io": "cdi-upload-server"}), ""), Kind::Server);
        assert_eq!(of(json!({}), "r/x:1"), Kind::Program);
        assert_eq!(of(json!({}), "r/y:1"), Kind::Unknown);
    }

    #[test]
    fn a_running_pod_keeps_foreign_conditions_and_has_digests() {
        let pod = pod(&json!({}), "r/x:1");
        let status = status(&pod, Kind::Launcher, &Outcome::Running, address());
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["conditions"][0]["type"], "PodScheduled");
        assert!(status["conditions"].as_array().expect("a list").iter().all(|c| c["status"] == "True"));
        assert!(
            status["containerStatuses"][0]["imageID"].as_str().expect("text").starts_with("r/x@sha256:00")
        );
        assert!(status["initContainerStatuses"][0]["state"]["running"].is_object());
        assert_eq!(status["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 0);
        assert_eq!(claims(&pod).collect::<Vec<_>>(), ["pvc"]);
    }

    #[test]
    fn a_worker_ends_with_cdis_message_and_a_failing_one_is_restarted() {
        let pod = pod(&json!({}), "");
        let done = status(&pod, Kind::Worker, &Outcome::Succeeded, address());
        assert_eq!(
            (&done["phase"], &done["containerStatuses"][0]["ready"]),
            (&json!("Succeeded"), &json!(false))
        );
        assert_eq!(done["containerStatuses"][0]["state"]["terminated"]["message"], IMPORT_COMPLETE);
        let failing =
            status(&pod, Kind::Worker, &Outcome::Failing { code: 1, message: "no route".into() }, address());
        assert_eq!(failing["phase"], "Running");
        assert_eq!(failing["containerStatuses"][0]["lastState"]["terminated"]["message"], "no route");
    }

    #[test]
    fn a_launcher_has_the_address_of_its_vm() {
        let own = ["10.77.0.11", "fd00:10:77::11"].map(|address| address.parse().expect("an address"));
        let addresses = Addresses { own: &own, ..address() };
        let status = status(&pod(&json!({}), "r/x:1"), Kind::Launcher, &Outcome::Running, addresses);
        assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.77.0.11"), &json!("10.76.0.1")));
        assert_eq!(status["podIPs"], json!([{"ip": "10.77.0.11"}, {"ip": "fd00:10:77::11"}]));
    }

    #[test]
    fn an_unknown_image_is_not_pretended_to_run() {
        let status = status(&pod(&json!({}), "r/y:1"), Kind::Unknown, &Outcome::Running, address());
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ErrImagePull");
        assert!(
            status["conditions"]
                .as_array()
                .expect("a list")
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "False")
        );
    }

    #[test]
    fn what_has_been_written_is_not_written_again() {
        let mut pod = pod(&json!({}), "r/x:1");
        let first = status(&pod, Kind::Attachment, &Outcome::Running, address());
        assert!(!has(&pod, &first));
        let mut whole = serde_json::to_value(&pod).expect("JSON");
        whole["status"] = first.clone();
        pod = serde_json::from_value(whole).expect("a pod");
        assert_eq!(
            status(&pod, Kind::Attachment, &Outcome::Running, address())["conditions"],
            first["conditions"]
        );
    }
}
