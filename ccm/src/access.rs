//! How the two clusters are reached: a client that takes up rotated credentials, ends each call in time and counts it.
//!
//! Secrets and projected tokens change under a running process, by a swapped symlink that a watch on the file would not
//! see. So the files are read again before a call, at most once a second, and before the next call after an answer that
//! other credentials may cure. What they hold and can't be used leaves the last good client in place.

mod call;
mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::client::Body;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower::BoxError;

use call::Call;
pub use call::CallMetrics;
pub use cluster::chain;
pub use source::{AccessError, Source};
use source::{Files, Named};

/// Longest time until a call is answered; of a watch, until it is opened. Longer than a healthy API server needs for any
/// call that is made here, by far.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// The files are read again before a call when they were read longer ago than this: a few KiB.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The guest cluster.
#[derive(Clone)]
pub struct GuestCluster {
    /// Its client.
    pub client: Client,
}

/// The namespace of this guest in the infra cluster.
#[derive(Clone)]
pub struct InfraCluster {
    /// The infra cluster's client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl GuestCluster {
    /// The guest cluster that `kubeconfig` names, or the pod's own. `master` is its address where the kubeconfig's is not
    /// to be used. No call is made.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn open(
        kubeconfig: Option<PathBuf>,
        master: &str,
        metrics: CallMetrics,
    ) -> Result<Self, AccessError> {
        let source = Source { cluster: "guest", kubeconfig, address: master.to_owned() };
        Ok(Self { client: renewing(source, metrics).await?.0 })
    }
}

impl InfraCluster {
    /// The infra cluster that `kubeconfig` names, or the pod's own. An empty `namespace` is that of the credentials.
    ///
    /// # Errors
    /// The credentials can't be used, or no namespace is known.
    pub async fn open(
        kubeconfig: Option<PathBuf>,
        namespace: &str,
        metrics: CallMetrics,
    ) -> Result<Self, AccessError> {
        let source = Source { cluster: "infra", kubeconfig, address: String::new() };
        let (client, own) = renewing(source, metrics).await?;
        let namespace = if namespace.is_empty() { own } else { namespace.to_owned() };
        Ok(Self { client, namespace })
    }
}

/// A client over `source`, and the namespace that its credentials name.
async fn renewing(source: Source, metrics: CallMetrics) -> Result<(Client, String), AccessError> {
    let (files, client, Named { namespace, host }) = source.load().await?;
    let seen = Seen { files, client, host: host.into(), at: Instant::now(), complaint: None };
    let renewing = Arc::new(Renewing { source, seen: Mutex::new(seen), metrics });
    let service = tower::service_fn(move |request| renewing.clone().call(request));
    Ok((Client::new(service, namespace.clone()), namespace))
}

struct Renewing {
    source: Source,
    seen: Mutex<Seen>,
    metrics: CallMetrics,
}

/// What was last made of the files.
struct Seen {
    files: Files,
    client: Client,
    /// Host and port of the API server.
    host: Arc<str>,
    at: Instant,
    /// Why the newest files are not in use, said once.
    complaint: Option<String>,
}

impl Renewing {
    async fn call(self: Arc<Self>, request: http::Request<Body>) -> Result<http::Response<Body>, BoxError> {
        let call = Call::of(&request);
        let (client, host) = self.current().await;
        let began = Instant::now();
        let answer = call.send(&client, request).await;
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.count(self.source.cluster, (&call, &host), seconds, &answer);
        let curable = match &answer {
            Ok(response) => response.status() == http::StatusCode::UNAUTHORIZED,
            Err(_) => true,
        };
        if curable {
            self.seen.lock().await.due();
        }
        answer
    }

    async fn current(&self) -> (Client, Arc<str>) {
        let mut seen = self.seen.lock().await;
        if seen.at.elapsed() >= LOOK_INTERVAL {
            seen.at = Instant::now();
            if seen.files.changed().await {
                self.renew(&mut seen).await;
            }
        }
        (seen.client.clone(), Arc::clone(&seen.host))
    }

    async fn renew(&self, seen: &mut Seen) {
        let cluster = self.source.cluster;
        match self.source.load().await {
            Ok((files, client, named)) => {
                (seen.files, seen.client, seen.complaint) = (files, client, None);
                seen.host = named.host.into();
                tracing::info!("the {cluster} cluster's credentials changed, connected anew");
            }
            Err(error) => {
                let complaint = chain(&error);
                if seen.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(error = complaint, "the {cluster} cluster's credentials can't be used");
                    seen.complaint = Some(complaint);
                }
            }
        }
    }
}

impl Seen {
    /// Has the files looked at before the next call.
    fn due(&mut self) {
        if let Some(long_ago) = self.at.checked_sub(LOOK_INTERVAL) {
            self.at = long_ago;
        }
    }
}

#[cfg(test)]
mod tests;
