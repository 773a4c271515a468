//! Files that are read again at an interval: kubelet renews a mounted Secret in place.

use std::error::Error;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// Reads after each `interval`, as long as `shown` has a receiver. `read` returns what is newer, and `take` stores it.
/// If a file can't be read, nothing changes, because it may be half written, and the error is logged once. `what` names
/// the content of the files in log lines.
pub(crate) async fn reread<S, N, E>(
    shown: &watch::Sender<S>,
    interval: Duration,
    what: &str,
    mut read: impl FnMut() -> Result<Option<N>, E>,
    take: impl Fn(N),
) where
    E: Error + 'static,
{
    let mut failing = false;
    loop {
        tokio::select! {
            () = sleep(interval) => {}
            () = shown.closed() => return,
        }
        match read() {
            Ok(newer) => {
                failing = false;
                if let Some(newer) = newer {
                    tracing::info!("took up the changed {what}");
                    take(newer);
                }
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                let error = cluster::chain(&error);
                tracing::warn!(error, "the {what} can not be read again; what is in use stays");
            }
            Err(_) => {}
        }
    }
}
