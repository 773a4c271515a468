//! What infra's API server, admission and csi-resizer 2.3 make of a changed request of a claim: the rules of
//! `ValidatePersistentVolumeClaimUpdate` and of the admission plugin `PersistentVolumeClaimResize` (Kubernetes 1.36), and
//! the status that the resizer writes.

use std::time::Duration;

use serde_json::{Value, json};

/// What becomes of a larger request.
#[derive(Clone, Debug, Default)]
pub enum Resizer {
    /// The claim has its size at once.
    #[default]
    Grows,
    /// The claim has its size after this time.
    GrowsAfter(Duration),
    /// The rest is left to the node that uses the claim next.
    LeavesToNode,
    /// Sizes above this one are infeasible.
    UpTo(u64),
    /// Every try fails, and is repeated.
    Fails,
    /// Nothing happens.
    Sleeps,
}

const FORBIDDEN: &str = "persistentvolumeclaims \"pvc-1\" is forbidden";

/// Why the API server refuses the change: code and message.
pub fn refusal(before: &Value, after: &Value) -> Option<(u16, String)> {
    let (old, new) = (request(before), request(after));
    let capacity = bytes(&before["status"]["capacity"]["storage"]);
    if old == new {
        return None;
    }
    if before["status"]["phase"] != "Bound" {
        let message =
            "PersistentVolumeClaim \"pvc-1\" is invalid: spec: Forbidden: spec is immutable after creation";
        return Some((422, message.to_owned()));
    }
    if new < old && new <= capacity {
        let message = "PersistentVolumeClaim \"pvc-1\" is invalid: spec.resources.requests.storage: Forbidden: field can \
                       not be less than status.capacity";
        return Some((422, message.to_owned()));
    }
    (new > old && before["spec"]["storageClassName"] == "fixed").then(|| {
        let message = format!(
            "{FORBIDDEN}: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
             must support resize"
        );
        (403, message)
    })
}

/// The status after the change, and how long it takes; `None` = it stays.
pub fn status(resizer: &Resizer, claim: &Value) -> Option<(Duration, Value)> {
    let request = request(claim);
    let mut status = claim["status"].clone();
    if request <= bytes(&status["capacity"]["storage"]) {
        return None;
    }
    status["allocatedResources"] = json!({"storage": request.to_string()});
    status["conditions"] = json!([]);
    let error =
        |message: &str| json!([{"type": "ControllerResizeError", "status": "True", "message": message}]);
    let mut delay = Duration::ZERO;
    let state = match resizer {
        Resizer::Sleeps => return None,
        Resizer::LeavesToNode => "NodeResizePending",
        Resizer::UpTo(most) if request > *most => {
            status["conditions"] = error("failed to expand pvc with rpc error: code = OutOfRange: too big");
            "ControllerResizeInfeasible"
        }
        Resizer::Fails => {
            status["conditions"] =
                error("failed to expand pvc with rpc error: code = Internal: pool is down");
            "ControllerResizeInProgress"
        }
        Resizer::GrowsAfter(after) => {
            delay = *after;
            ""
        }
        Resizer::Grows | Resizer::UpTo(_) => "",
    };
    if state.is_empty() {
        status["capacity"] = json!({"storage": request.to_string()});
        status["allocatedResourceStatuses"] = json!({});
    } else {
        status["allocatedResourceStatuses"] = json!({"storage": state});
    }
    Some((delay, status))
}

fn request(claim: &Value) -> u64 {
    bytes(&claim["spec"]["resources"]["requests"]["storage"])
}

fn bytes(quantity: &Value) -> u64 {
    quantity.as_str().and_then(infra::parse_quantity).unwrap_or_default()
}
