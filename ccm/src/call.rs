//! One call to an API server: its deadline, and what its failure means.

use std::time::Duration;

pub use cluster::{CALL_DEADLINE, is_absent, status_code};
use kube::{
    Resource,
    runtime::watcher::{self, Event},
};

/// A call that failed. Nothing can be concluded from it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused the call, or could not be reached.
    #[error("{what} failed")]
    Failed {
        /// What the call was to do.
        what: String,
        /// The error that the client returned.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer came in time. The API server may have carried out the call.
    #[error("{what} got no answer within {} s", .after.as_secs())]
    TimedOut {
        /// What the call was to do.
        what: String,
        /// The timeout of the call.
        after: Duration,
    },
}

impl CallError {
    /// Whether RBAC refused the call.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Whether the object changed in the meantime.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the answer was a 404. This proves nothing by itself: a proxy's error page is a 404 too.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the API server itself reports that the `K` of this name does not exist.
    pub fn proves_absence_of<K: Resource<DynamicType = ()>>(&self, name: &str) -> bool {
        let Self::Failed { source, .. } = self else { return false };
        is_absent::<K>(source, name)
    }

    /// Whether the API server answered with an object that can't be read.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if matches!(source.as_ref(), kube::Error::SerdeError(_)))
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { source, .. } => cluster::status_code(source),
            Self::TimedOut { .. } => None,
        }
    }
}

/// Whether RBAC refused a watch, or the list that it begins with.
pub fn is_watch_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => {
            status_code(cause) == Some(403)
        }
        _ => false,
    }
}

/// Whether the API server has answered a watch: each try to list begins with `Init`, before any answer.
pub fn is_watch_answered<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init | Event::InitApply(_))
}

/// Makes a call within [`CALL_DEADLINE`]; `what` names it in the error.
pub async fn call<T>(
    what: impl FnOnce() -> String,
    made: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    call_within(CALL_DEADLINE, what, made).await
}

/// Makes a call within `after`; `what` names it in the error.
pub async fn call_within<T>(
    after: Duration,
    what: impl FnOnce() -> String,
    made: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(after, made).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(CallError::Failed { what: what(), source: Box::new(source) }),
        Err(_) => Err(CallError::TimedOut { what: what(), after }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    fn answer(value: serde_json::Value) -> CallError {
        let status: kube::core::Status = serde_json::from_value(value).unwrap();
        CallError::Failed { what: "get x".into(), source: Box::new(kube::Error::Api(status.boxed())) }
    }

    #[test]
    fn only_the_api_server_s_answer_about_the_object_proves_its_absence() {
        let about =
            |kind: &str| json!({"code": 404, "reason": "NotFound", "details": {"name": "w1", "kind": kind}});
        assert!(answer(about("nodes")).proves_absence_of::<Node>("w1"));
        assert!(!answer(about("nodes")).proves_absence_of::<Node>("w2"));
        assert!(!answer(about("pods")).proves_absence_of::<Node>("w1"));
        assert!(
            !answer(json!({"code": 404, "message": "404 page not found"})).proves_absence_of::<Node>("w1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let error =
            call(|| "get x".into(), std::future::pending::<Result<(), kube::Error>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "get x got no answer within 10 s");
        assert!(!error.proves_absence_of::<Node>("x") && !error.is_forbidden() && !error.is_conflict());
    }
}
