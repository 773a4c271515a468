//! Why a reconcile of a Service failed.

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// A call failed.
    #[error("failed to {doing}")]
    Call {
        /// What the call was to do.
        doing: &'static str,
        /// The error that the client returned.
        #[source]
        source: Box<kube::Error>,
    },
    /// Another program changes the infra Service all the time.
    #[error("infra service {0} was changed by others again and again")]
    Unsettled(String),
}

impl ReconcileError {
    /// Whether the API server refused the request, so that nothing was done.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Call { source, .. }
            if matches!(source.as_ref(), kube::Error::Api(status) if (400..500).contains(&status.code)))
    }

    /// Whether the API server was not available.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Unsettled(_) => false,
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.code >= 500 || matches!(status.code, 401 | 429),
                _ => true,
            },
        }
    }
}

/// Says what a call was to do.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> ReconcileError {
    move |source| ReconcileError::Call { doing, source: Box::new(source) }
}
