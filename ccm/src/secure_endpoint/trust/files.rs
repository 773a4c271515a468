//! A file with certificate authorities, read again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::pki_types::pem::Error as PemError;

use super::{TrustError, Trusted};
use crate::secure_endpoint::certificate::{Authority, BundleError};

pub(super) struct CaFile {
    path: PathBuf,
    /// What was read last.
    content: Option<Vec<u8>>,
}

impl CaFile {
    /// Reads it, and has it read again while anybody looks at `trusted`.
    pub(super) fn follow(
        path: PathBuf,
        interval: Duration,
        trusted: &Arc<watch::Sender<Trusted>>,
        take: impl Fn(&mut Trusted, Authority) + Send + 'static,
    ) -> Result<(), TrustError> {
        let mut file = Self { path, content: None };
        if let Some(authority) = file.read()? {
            trusted.send_modify(|trusted| take(trusted, authority));
        }
        let trusted = Arc::clone(trusted);
        tokio::spawn(async move {
            let mut failing = false;
            loop {
                tokio::select! {
                    () = sleep(interval) => {}
                    () = trusted.closed() => return,
                }
                match file.read() {
                    Ok(Some(authority)) => {
                        tracing::info!(path = %file.path.display(), "took up the changed certificate authorities");
                        trusted.send_modify(|trusted| take(trusted, authority));
                        failing = false;
                    }
                    Ok(None) => failing = false,
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        let error = crate::access::chain(&error);
                        tracing::warn!(error, "the certificate authorities in use stay");
                    }
                    Err(_) => {}
                }
            }
        });
        Ok(())
    }

    /// The authorities, if they are others than before.
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
