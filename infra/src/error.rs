//! What can go wrong with a call, in the infra's own words, and what kind of failure it is for a caller.

use std::{sync::Arc, time::Duration};

/// The infra cluster cannot be reached with these settings; nothing was called.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is unreadable or wrong.
    #[error("infra kubeconfig {path} is not usable")]
    Kubeconfig {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The kubeconfig file can't be read.
    #[error("infra kubeconfig {path} can't be read")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No in-cluster service account.
    #[error("no in-cluster configuration; run in a pod or pass --infra-cluster-kubeconfig")]
    InCluster(#[source] kube::config::InClusterError),
    /// The HTTP client can't be made.
    #[error("the infra client can't be made")]
    Client(#[source] Box<kube::Error>),
    /// The namespace is missing or no legal name.
    #[error("infra namespace {0:?} is not a namespace name; set --infra-cluster-namespace")]
    Namespace(String),
    /// Labels or prefix are wrong.
    #[error(transparent)]
    Guard(#[from] crate::GuardError),
}

/// A call that failed: which one, and how.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{verb} {resource}{}: {failure}", name.as_deref().map(|n| format!(" {n}")).unwrap_or_default())]
pub struct Error {
    /// `get`, `list`, `create`, `delete`, `patch` or `update`.
    pub verb: &'static str,
    /// Resource, with its subresource.
    pub resource: &'static str,
    /// Object, where the call names one.
    pub name: Option<String>,
    /// How it failed.
    pub failure: Box<Failure>,
}

/// How a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The infra API answered with an error; message and code are its own.
    #[error("{message} ({code})")]
    Answer {
        /// HTTP status code.
        code: u16,
        /// Kubernetes reason, may be empty.
        reason: String,
        /// Message as sent.
        message: String,
        /// Whether the answer lists field errors.
        has_causes: bool,
        /// Name of the object that the answer is about; `None` where it is about none, as a proxy's or a missing API's.
        object: Option<String>,
        /// Pause that the API asked for.
        retry_after: Option<Duration>,
    },
    /// Not sent: the API asked for a pause that is not over.
    #[error("the infra API asked to wait {} ms more", .0.as_millis())]
    Paused(Duration),
    /// No answer within the deadline; the call may have been carried out.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The connection failed; the call may have been carried out.
    #[error("{0}")]
    Transport(Arc<kube::Error>),
    /// The answer is not what the API promises.
    #[error("the answer can't be read: {0}")]
    Unreadable(Arc<serde_json::Error>),
}

/// What a failure means for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 404 about this very object: it does not exist.
    NotFound,
    /// 409.
    Conflict,
    /// 422.
    Invalid,
    /// Other 4xx: the request itself is wrong.
    BadRequest,
    /// 403.
    Forbidden,
    /// 401.
    Unauthorized,
    /// 429, or a pause that is not over.
    Throttled,
    /// 5xx, or a 404 that proves nothing about the object: the API itself is not served.
    Server,
    /// No answer in time.
    Timeout,
    /// No connection, or an answer that can't be read.
    Transport,
}

/// The text that an admission webhook's refusal has.
const ADMISSION_MARKS: [&str; 2] = ["admission webhook", "denied the request"];
/// The texts of a schema or validation refusal (Kubernetes `field.Error`).
const VALIDATION_MARKS: [&str; 4] = [" is invalid: ", "Invalid value", "Unsupported value", "Required value"];
/// The text of a quota refusal (Kubernetes resource quota admission).
const QUOTA_MARK: &str = "exceeded quota";

impl Error {
    /// The kind of failure.
    pub fn class(&self) -> Class {
        match &*self.failure {
            Failure::Answer { code, object, .. } => match code {
                401 => Class::Unauthorized,
                403 => Class::Forbidden,
                404 if object.is_some() && *object == self.name => Class::NotFound,
                409 => Class::Conflict,
                422 => Class::Invalid,
                429 => Class::Throttled,
                404 | 500.. => Class::Server,
                _ => Class::BadRequest,
            },
            Failure::Paused(_) => Class::Throttled,
            Failure::Timeout(_) => Class::Timeout,
            Failure::Transport(_) | Failure::Unreadable(_) => Class::Transport,
        }
    }

    /// The pause that the API asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match &*self.failure {
            Failure::Answer { retry_after, .. } => *retry_after,
            Failure::Paused(pause) => Some(*pause),
            Failure::Timeout(_) | Failure::Transport(_) | Failure::Unreadable(_) => None,
        }
    }

    /// Whether an admission webhook or validation refused the content, as opposed to a lost race. KubeVirt answers 422
    /// for both: the race is a failed JSON patch test without any field in its text.
    pub fn is_content_refusal(&self) -> bool {
        let Failure::Answer { message, has_causes, .. } = &*self.failure else { return false };
        let marked = ADMISSION_MARKS.iter().chain(&VALIDATION_MARKS).any(|mark| message.contains(mark));
        matches!(self.class(), Class::Invalid | Class::BadRequest | Class::Forbidden)
            && (marked || *has_causes)
    }

    /// Whether a resource quota refused it.
    pub fn is_quota(&self) -> bool {
        matches!(&*self.failure, Failure::Answer { code: 403, message, .. } if message.contains(QUOTA_MARK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn answer(code: u16, message: &str) -> Error {
        Error {
            verb: "update",
            resource: "virtualmachines/addvolume",
            name: Some("vm1".into()),
            failure: Box::new(Failure::Answer {
                code,
                reason: String::new(),
                message: message.into(),
                has_causes: false,
                object: Some("vm1".into()),
                retry_after: None,
            }),
        }
    }

    #[rstest]
    #[case(400, Class::BadRequest)]
    #[case(401, Class::Unauthorized)]
    #[case(403, Class::Forbidden)]
    #[case(404, Class::NotFound)]
    #[case(406, Class::BadRequest)]
    #[case(409, Class::Conflict)]
    #[case(422, Class::Invalid)]
    #[case(429, Class::Throttled)]
    #[case(500, Class::Server)]
    #[case(503, Class::Server)]
    fn codes_have_classes(#[case] code: u16, #[case] class: Class) {
        assert_eq!(answer(code, "x").class(), class);
    }

    #[rstest]
    #[case(None)]
    #[case(Some("other"))]
    fn a_404_that_is_not_about_the_object_proves_no_absence(#[case] about: Option<&str>) {
        let mut error = answer(404, "404 page not found");
        let Failure::Answer { object, .. } = &mut *error.failure else { unreachable!() };
        *object = about.map(str::to_owned);
        assert_eq!(error.class(), Class::Server);
    }

    // The texts are those of virt-api 1.9.0 and CDI 1.65.0.
    #[rstest]
    #[case(422, "the server rejected our request due to an error in our request", false)]
    #[case(
        422,
        "admission webhook \"virtualmachine-validator.kubevirt.io\" denied the request: IDE bus is not supported",
        true
    )]
    #[case(422, "DataVolume.cdi.kubevirt.io \"x\" is invalid: spec.storage: Required value", true)]
    #[case(409, "Unable to add volume [v1] because volume with that name already exists", false)]
    fn the_race_is_told_from_a_refusal(#[case] code: u16, #[case] text: &str, #[case] refusal: bool) {
        assert_eq!(answer(code, text).is_content_refusal(), refusal);
    }

    #[test]
    fn the_words_of_the_infra_are_kept() {
        assert_eq!(answer(500, "boom").to_string(), "update virtualmachines/addvolume vm1: boom (500)");
        assert!(answer(403, "pods \"x\" is forbidden: exceeded quota: q").is_quota());
        assert!(!answer(403, "user can't").is_quota());
    }
}
