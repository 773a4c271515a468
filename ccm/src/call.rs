//! One call to an API server: its deadline, and what its failure means.

use std::time::Duration;

/// The longest one call may take: an API server that needs longer for one object is not serving.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// A call that failed; nothing is known from it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused it, or could not be reached.
    #[error("{what} failed")]
    Failed {
        /// What was to be done.
        what: String,
        /// In the API's own words.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time; the call may have been carried out.
    #[error("{what} got no answer within {} s", .after.as_secs())]
    TimedOut {
        /// What was to be done.
        what: String,
        /// The time that it had.
        after: Duration,
    },
}

impl CallError {
    /// Whether the right is missing.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Whether the object changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the API says that there is no such thing; what a proxy says looks the same.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the API says of this very object that it does not exist. A 404 of a proxy, or of an API that is not served,
    /// says nothing about an object.
    pub fn proves_absence_of(&self, name: &str) -> bool {
        let Self::Failed { source, .. } = self else { return false };
        proves_absence(source, name)
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { source, .. } => status_code(source),
            Self::TimedOut { .. } => None,
        }
    }
}

/// Whether the API says of this very object that it does not exist, see [`CallError::proves_absence_of`].
pub fn proves_absence(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

/// The HTTP status code of an API server's refusal.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

/// Makes a call that may take [`CALL_DEADLINE`]; `what` is said when it fails.
pub async fn call<T>(
    what: impl FnOnce() -> String,
    made: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    call_within(CALL_DEADLINE, what, made).await
}

/// Makes a call that may take `after`.
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
    use rstest::rstest;
    use serde_json::json;

    fn answer(value: serde_json::Value) -> CallError {
        let status: kube::core::Status = serde_json::from_value(value).unwrap();
        CallError::Failed { what: "get x".into(), source: Box::new(kube::Error::Api(status.boxed())) }
    }

    #[rstest]
    #[case(json!({"code": 404, "details": {"name": "vm-1", "kind": "virtualmachines"}}), true)]
    #[case(json!({"code": 404, "details": {"name": "vm-2"}}), false)]
    #[case(json!({"code": 404, "message": "404 page not found"}), false)]
    #[case(json!({"code": 404, "details": {}}), false)]
    #[case(json!({"code": 403, "details": {"name": "vm-1"}}), false)]
    #[case(json!({"code": 410, "details": {"name": "vm-1"}}), false)]
    #[case(json!({"code": 500, "details": {"name": "vm-1"}}), false)]
    fn only_a_404_about_the_object_proves_its_absence(
        #[case] status: serde_json::Value,
        #[case] proved: bool,
    ) {
        assert_eq!(answer(status).proves_absence_of("vm-1"), proved);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let error =
            call(|| "get x".into(), std::future::pending::<Result<(), kube::Error>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "get x got no answer within 10 s");
        assert!(!error.proves_absence_of("x") && !error.is_forbidden() && !error.is_conflict());
    }
}
