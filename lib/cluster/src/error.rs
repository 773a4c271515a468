//! How a call can fail, in the API server's own text, and what that failure means for a caller.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header, response::Parts};
use kube::core::{
    Status,
    response::{StatusCause, StatusDetails},
};

use serving::{MAX_TEXT, cut};
use tower::BoxError;

use crate::{absence::proves_absence, bounds::TooLong, call::Call, chain};

/// A proxy's page must not fill an event, so only its first characters are kept.
const MAX_PLAIN_TEXT: usize = 300;
/// Longest reason, and longest name of an object, of a field or of a group that is kept of a refusal: a name of
/// Kubernetes has at most 253 characters.
const MAX_NAME: usize = 256;
/// How many causes of a refusal are kept.
const MOST_CAUSES: usize = 16;
/// Longest text of a cause that is kept.
const MAX_CAUSE: usize = 512;
/// The pause after a 429 that names none (client-go takes one second too).
const DEFAULT_PAUSE: u64 = 1;

/// A call that failed: which one, and how.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{verb} {resource}{}: {failure}", name.as_deref().map(|n| format!(" {n}")).unwrap_or_default())]
pub struct Error {
    /// The verb, as in [`Call::verb`].
    pub verb: &'static str,
    /// Resource, with its subresource.
    pub resource: String,
    /// Object, where the call names one.
    pub name: Option<String>,
    /// How it failed.
    pub failure: Box<Failure>,
}

/// How a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The API server answered with an error; message and code are its own.
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
        /// Whether it proves that the object of the call does not exist. A proxy's page, or the answer about an API
        /// that is not served, does not.
        proves_absence: bool,
        /// Pause that the API asked for.
        retry_after: Option<Duration>,
    },
    /// Not sent: the API asked for a pause that is not over.
    #[error("the API server asked to wait {} ms more", .0.as_millis())]
    Paused(Duration),
    /// Not sent: changes wait because the rate of changes is bounded, and this one may not wait longer.
    #[error("more changes wait than may be sent (--kube-api-qps); this one waited {} ms", .0.as_millis())]
    RateLimited(Duration),
    /// No answer within the deadline; the call may have been carried out.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The connection failed; the call may have been carried out.
    #[error("{}", chain(&**.0))]
    Transport(Arc<kube::Error>),
    /// The answer is not what the API promises.
    #[error("the answer can't be read: {}", cut(&.0.to_string(), MAX_TEXT))]
    Unreadable(Arc<serde_json::Error>),
    /// The answer is longer than any that the API gives; the call may have been carried out.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// What a failure means for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The API server reports that this very object does not exist.
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
    pub(crate) fn of(call: &Call, failure: Failure) -> Self {
        let Call { verb, resource, name, .. } = call.clone();
        Self { verb, resource, name, failure: Box::new(failure) }
    }

    /// The same error about the object `name`, for a call whose URL does not name it: a create.
    #[must_use]
    pub fn about(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// The kind of failure.
    pub fn class(&self) -> Class {
        match &*self.failure {
            Failure::Answer { code, proves_absence, .. } => match code {
                401 => Class::Unauthorized,
                403 => Class::Forbidden,
                404 if *proves_absence => Class::NotFound,
                409 => Class::Conflict,
                422 => Class::Invalid,
                429 => Class::Throttled,
                404 | 500.. => Class::Server,
                _ => Class::BadRequest,
            },
            Failure::Paused(_) | Failure::RateLimited(_) => Class::Throttled,
            Failure::Timeout(_) => Class::Timeout,
            Failure::Transport(_) | Failure::Unreadable(_) | Failure::TooLong(_) => Class::Transport,
        }
    }

    /// The pause that the API asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match &*self.failure {
            Failure::Answer { retry_after, .. } => *retry_after,
            Failure::Paused(pause) => Some(*pause),
            Failure::RateLimited(_)
            | Failure::Timeout(_)
            | Failure::Transport(_)
            | Failure::Unreadable(_)
            | Failure::TooLong(_) => None,
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

impl Failure {
    /// The error of a non-2xx answer, and the body that stands for the answer's own, cut as the error is. The body is a
    /// `Status`, or a proxy's text.
    pub(crate) fn answer(call: &Call, parts: &Parts, body: &[u8]) -> (Self, Vec<u8>) {
        let read = serde_json::from_slice::<Status>(body).map(cut_status);
        let short = match &read {
            Ok(status) => serde_json::to_vec(status).unwrap_or_default(),
            Err(_) => plain_text(body, parts.status).into_bytes(),
        };
        let status = read.unwrap_or_default();
        let header = parts.headers.get(header::RETRY_AFTER);
        let asked = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // No pause at all would be a loop against a server that asked for fewer calls.
        let asked = asked.filter(|seconds| *seconds > 0);
        let message =
            if status.message.is_empty() { plain_text(body, parts.status) } else { status.message.clone() };
        (Self::refusal(call, parts.status.as_u16(), Status { message, ..status }, asked), short)
    }

    /// The error of a body that could not be read to its end.
    pub(crate) fn of_body(error: BoxError) -> Self {
        match error.downcast::<TooLong>() {
            Ok(too_long) => Self::TooLong(*too_long),
            Err(error) => match error.downcast::<kube::Error>() {
                Ok(error) => Self::Transport(Arc::new(*error)),
                Err(error) => Self::Transport(Arc::new(kube::Error::Service(error))),
            },
        }
    }

    /// The error of a typed call. Pauses and credentials were handled below it.
    pub(crate) fn of_kube(call: &Call, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::refusal(call, status.code, cut_status(*status), None),
            kube::Error::Service(error) => match error.downcast::<Self>() {
                Ok(failure) => *failure,
                Err(error) => Self::Transport(Arc::new(kube::Error::Service(error))),
            },
            error => Self::Transport(Arc::new(error)),
        }
    }

    /// `asked` is the pause of the answer's header, in seconds.
    fn refusal(call: &Call, code: u16, status: Status, asked: Option<u64>) -> Self {
        let details = status.details.as_ref();
        let in_body =
            details.map(|details| u64::from(details.retry_after_seconds)).filter(|seconds| *seconds > 0);
        let seconds = asked.or(in_body).or((code == 429).then_some(DEFAULT_PAUSE));
        Self::Answer {
            code,
            has_causes: details.is_some_and(|details| !details.causes.is_empty()),
            proves_absence: call
                .name
                .as_ref()
                .is_some_and(|name| proves_absence(code, &status, &call.resource, name)),
            retry_after: seconds.filter(|_| matches!(code, 429 | 503)).map(Duration::from_secs),
            reason: status.reason,
            message: status.message,
        }
    }
}

/// The status with texts that an error may keep.
fn cut_status(status: Status) -> Status {
    let name = |text: String| cut(&text, MAX_NAME).into_owned();
    let details = status.details.map(|details| StatusDetails {
        name: name(details.name),
        group: name(details.group),
        kind: name(details.kind),
        uid: name(details.uid),
        causes: details
            .causes
            .into_iter()
            .take(MOST_CAUSES)
            .map(|cause| StatusCause {
                reason: name(cause.reason),
                message: cut(&cause.message, MAX_CAUSE).into_owned(),
                field: name(cause.field),
            })
            .collect(),
        retry_after_seconds: details.retry_after_seconds,
    });
    let message = cut(&status.message, MAX_TEXT).into_owned();
    Status { message, reason: name(status.reason), details, metadata: None, ..status }
}

fn plain_text(body: &[u8], status: StatusCode) -> String {
    let text: String = String::from_utf8_lossy(body).trim().chars().take(MAX_PLAIN_TEXT).collect();
    if text.is_empty() { status.canonical_reason().unwrap_or("no message").to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn answer(code: u16, message: &str) -> Error {
        Error {
            verb: "update",
            resource: "virtualmachines/addvolume".into(),
            name: Some("vm1".into()),
            failure: Box::new(Failure::Answer {
                code,
                reason: String::new(),
                message: message.into(),
                has_causes: false,
                proves_absence: code == 404,
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

    #[test]
    fn a_404_that_is_not_about_the_object_proves_no_absence() {
        let mut error = answer(404, "404 page not found");
        let Failure::Answer { proves_absence, .. } = &mut *error.failure else { unreachable!() };
        *proves_absence = false;
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

    fn refused(body: &[u8]) -> (Failure, Vec<u8>) {
        let request = http::Request::get("/api/v1/namespaces/hcp/services/a").body(()).unwrap();
        let (parts, ()) = http::Response::builder().status(422).body(()).unwrap().into_parts();
        Failure::answer(&Call::of(&request), &parts, body)
    }

    #[test]
    fn a_refusal_of_megabytes_is_cut_and_stays_a_status() {
        let long = "é<".repeat(1 << 20);
        let part = &long[..3000];
        let causes = vec![serde_json::json!({"field": part, "message": part, "reason": part}); 1000];
        let status = serde_json::json!({"kind": "Status", "code": 422, "reason": "Invalid", "message": long,
            "details": {"name": "a", "kind": "services", "causes": causes, "retryAfterSeconds": 3}});
        let (failure, body) = refused(status.to_string().as_bytes());
        let Failure::Answer { message, reason, has_causes, .. } = &failure else { panic!("{failure}") };
        assert!(message.len() < MAX_TEXT + 64 && message.starts_with("é<é<"), "{}", message.len());
        assert_eq!((reason.as_str(), *has_causes), ("Invalid", true));
        assert!(body.len() < 64 * 1024, "{}", body.len());
        let kept: Status = serde_json::from_slice(&body).unwrap();
        assert_eq!((kept.code, kept.reason.as_str()), (422, "Invalid"));
        let details = kept.details.unwrap();
        assert_eq!((details.name.as_str(), details.retry_after_seconds), ("a", 3));
        assert_eq!(details.causes.len(), MOST_CAUSES);
    }

    #[test]
    fn a_page_of_megabytes_is_cut_too() {
        let (failure, body) = refused("<html>".repeat(1 << 20).as_bytes());
        assert!(failure.to_string().len() < 400 && body.len() <= MAX_PLAIN_TEXT, "{failure}");
    }

    #[test]
    fn an_answer_that_quotes_itself_is_cut() {
        let odd = serde_json::from_str::<u8>(&format!("{:?}", "x".repeat(3 << 20))).unwrap_err();
        let text = Failure::Unreadable(Arc::new(odd)).to_string();
        assert!(
            text.len() < MAX_TEXT + 100 && text.starts_with("the answer can't be read: invalid type"),
            "{}",
            text.len()
        );
    }
}
