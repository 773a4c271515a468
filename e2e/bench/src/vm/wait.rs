//! Waiting for what QEMU does not announce.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};

/// How often a condition that nobody announces is checked.
const POLL: Duration = Duration::from_millis(20);

/// Calls `probe` until it returns a value. `what` completes the sentence "expected …" of the error after `limit`.
pub(super) async fn wait_for<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let asked = tokio::time::timeout(limit, async {
        loop {
            if let Some(value) = probe().await? {
                return Ok(value);
            }
            tokio::time::sleep(POLL).await;
        }
    });
    match asked.await {
        Ok(answer) => answer,
        Err(_) => bail!("expected {what} within {} s", limit.as_secs()),
    }
}
