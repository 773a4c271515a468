//! The status that a kubelet reports of a pod that really runs. Pure, except that it reads the clock for times.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::{
    container::{Activity, ContainerState, Termination},
    program::PodState,
    simulated::{conditions, containers, image_id, now},
};

/// The status to write, as a merge patch. The pod has its node's address: its programs listen in the bench's network.
pub(super) fn status(pod: &Pod, state: &PodState, address: IpAddr) -> Value {
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let ready = state.containers.iter().all(|container| container.ready);
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let now = now();
    json!({
        "phase": phase(state),
        "startTime": started.map_or_else(|| json!(now), |time| json!(time)),
        "hostIP": address, "hostIPs": [{"ip": address}], "podIP": address, "podIPs": [{"ip": address}],
        "conditions": conditions(pod, state.initialized, ready, &now),
        "containerStatuses": statuses(containers(pod), &state.containers),
        "initContainerStatuses": statuses(inits, &state.inits),
    })
}

/// Pending until a container has run; over once all have ended for good.
fn phase(state: &PodState) -> &'static str {
    let all = || state.containers.iter();
    let failed = |c: &ContainerState| matches!(&c.now, Activity::Terminated(ended) if ended.code != 0);
    let has_run = |c: &ContainerState| !matches!(c.now, Activity::Waiting { .. }) || c.last.is_some();
    if state.inits.iter().any(failed) && state.over {
        "Failed"
    } else if state.over && all().all(|c| matches!(c.now, Activity::Terminated(_))) {
        if all().any(failed) { "Failed" } else { "Succeeded" }
    } else if all().any(has_run) {
        "Running"
    } else {
        "Pending"
    }
}

fn statuses(containers: &[Container], states: &[ContainerState]) -> Vec<Value> {
    containers.iter().zip(states).map(|(container, state)| container_status(container, state)).collect()
}

fn container_status(container: &Container, state: &ContainerState) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    let now = match &state.now {
        Activity::Waiting { reason, message } if message.is_empty() => json!({"waiting": {"reason": reason}}),
        Activity::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        Activity::Running(since) => json!({"running": {"startedAt": since}}),
        Activity::Terminated(ended) => terminated(ended),
    };
    let pulled = !matches!(state.now, Activity::Waiting { reason: "ErrImagePull", .. });
    json!({
        "name": container.name, "image": image, "imageID": if pulled { image_id(image) } else { String::new() },
        "ready": state.ready, "started": state.started, "restartCount": state.restarts,
        "state": now, "lastState": state.last.as_ref().map_or_else(|| json!({}), terminated),
    })
}

fn terminated(ended: &Termination) -> Value {
    let reason = if ended.code == 0 { "Completed" } else { "Error" };
    json!({"terminated": {
        "exitCode": ended.code, "reason": reason, "startedAt": ended.since, "finishedAt": ended.until,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "r/a:1"}, {"name": "b", "image": "r/b:1"}]},
        }))
        .expect("a pod")
    }

    fn running(ready: bool) -> ContainerState {
        ContainerState {
            now: Activity::Running("t".into()),
            ready,
            started: true,
            ..ContainerState::default()
        }
    }

    fn ended(code: i32) -> ContainerState {
        let ended = Termination { code, since: "s".into(), until: "u".into() };
        ContainerState { now: Activity::Terminated(ended), ..ContainerState::default() }
    }

    fn of(containers: Vec<ContainerState>, over: bool) -> Value {
        let state = PodState { containers, over, initialized: true, ..PodState::default() };
        status(&pod(), &state, "10.76.0.1".parse().expect("an address"))
    }

    #[test]
    fn a_pod_is_ready_when_all_its_containers_are() {
        let is_ready = |status: &Value| {
            let conditions = status["conditions"].as_array().expect("a list");
            conditions.iter().find(|c| c["type"] == "Ready").expect("Ready")["status"] == "True"
        };
        assert!(is_ready(&of(vec![running(true), running(true)], false)));
        assert!(!is_ready(&of(vec![running(true), running(false)], false)));
    }

    #[test]
    fn phases() {
        let new = ContainerState::default;
        assert_eq!(of(vec![new(), new()], false)["phase"], "Pending");
        assert_eq!(of(vec![running(true), new()], false)["phase"], "Running");
        assert_eq!(of(vec![ended(0), ended(0)], false)["phase"], "Running", "they may be started again");
        assert_eq!(of(vec![ended(0), ended(0)], true)["phase"], "Succeeded");
        assert_eq!(of(vec![ended(0), ended(3)], true)["phase"], "Failed");
        let last = Some(Termination { code: 1, since: "s".into(), until: "u".into() });
        let crashed = ContainerState { last, ..new() };
        assert_eq!(of(vec![crashed, new()], false)["phase"], "Running");
    }

    #[test]
    fn how_a_container_ended_is_told() {
        let status = of(vec![ended(3), running(true)], false);
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
        assert_eq!(status["containerStatuses"][1]["name"], "b");
        assert_eq!(status["containerStatuses"][1]["imageID"], image_id("r/b:1"));
    }
}
