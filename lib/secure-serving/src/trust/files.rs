//! A file with certificate authorities, which is read again at an interval.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serving::Tasks;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::pem::Error as PemError;

use super::{TrustError, Trusted};
use crate::certificate::{Authority, BundleError};
use crate::reread::reread;

pub(super) struct CaFile {
    path: PathBuf,
    /// The content at the last read.
    content: Option<Vec<u8>>,
}

impl CaFile {
    /// Reads the file now, and again at an interval as long as `trusted` has a receiver.
    pub(super) fn follow(
        path: PathBuf,
        interval: Duration,
        trusted: &Arc<watch::Sender<Trusted>>,
        tasks: &Tasks,
        take: impl Fn(&mut Trusted, Authority) + Send + Sync + 'static,
    ) -> Result<(), TrustError> {
        let mut file = Self { path, content: None };
        if let Some(authority) = file.read()? {
            trusted.send_modify(|trusted| take(trusted, authority));
        }
        let trusted = Arc::clone(trusted);
        let what = format!("certificate authorities of {}", file.path.display());
        tasks.spawn_until_done(format!("the renewal of the {what}"), async move {
            let take = |authority| trusted.send_modify(|trusted| take(trusted, authority));
            reread(&trusted, interval, &what, || file.read(), take).await;
        });
        Ok(())
    }

    /// The authorities, if they have changed since the last read.
    fn read(&mut self) -> Result<Option<Authority>, TrustError> {
        let wrong = |source| TrustError { path: self.path.clone(), source };
        let content =
            std::fs::read(&self.path).map_err(|error| wrong(BundleError::Pem(PemError::Io(error))))?;
        if self.content.as_ref() == Some(&content) {
            return Ok(None);
        }
        let authority = Authority::of_bundle(&content).map_err(wrong)?;
        self.content = Some(content);
        Ok(Some(authority))
    }
}
