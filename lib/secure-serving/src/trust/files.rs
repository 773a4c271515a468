//! A file with certificate authorities.

use std::path::PathBuf;

use cluster::{Contents, FromFiles};
use tokio_rustls::rustls::pki_types::pem::Error as PemError;

use super::TrustError;
use crate::certificate::{Authority, BundleError};

/// The path of the file.
pub(super) struct CaFile(pub PathBuf);

impl FromFiles for CaFile {
    type Value = Authority;
    type Error = TrustError;

    async fn make(&self, contents: &mut Contents) -> Result<Authority, TrustError> {
        let wrong = |source| TrustError { path: self.0.clone(), source };
        let bundle =
            contents.read(&self.0).await.map_err(|error| wrong(BundleError::Pem(PemError::Io(error))))?;
        Authority::of_bundle(&bundle).map_err(wrong)
    }
}
