//! Client certificates: accepted from every client that holds the key, trusted only if an authority verifies them.

use std::{fmt::Write, sync::Arc};

use sha2::{Digest, Sha256};
use tokio_rustls::rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, UnixTime,
        pem::{Error as PemError, PemObject},
    },
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use crate::user::User;

/// The attribute of a subject that has the user's uid (apimachinery, `asn1.X509UID`).
const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";
/// The key under which an access review names the certificate (apiserver library, `user.CredentialIDKey`).
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The certificates that a client presented, its own first. None of them is verified yet.
#[derive(Clone, Debug)]
pub(crate) struct Presented(pub Arc<[CertificateDer<'static>]>);

/// A bundle of certificate authorities for clients.
#[derive(Clone, Debug)]
pub(crate) struct Authority(Arc<dyn ClientCertVerifier>);

/// The content of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Empty if the certificate has none.
    pub common_name: String,
    organizations: Vec<String>,
    uid: String,
    fingerprint: String,
}

/// Why a certificate bundle is rejected.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is not PEM, or the file can't be read.
    #[error("it is no PEM")]
    Pem(#[from] PemError),
    /// One of its certificates is not a certificate authority.
    #[error("it has a certificate that can't be read")]
    Certificate(#[from] Error),
    /// It has no certificate.
    #[error("it has no certificate")]
    None(#[from] VerifierBuilderError),
}

/// Why the certificates of a client prove no user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproved {
    #[error("the client certificate is not verified")]
    Certificate(#[from] Error),
    #[error("the subject of the client certificate can't be read")]
    Subject,
    #[error("{0:?} is not among the names that may speak for others")]
    NotAllowed(String),
    #[error("a header of the front proxy is no text")]
    Header,
}

impl Presented {
    /// What the client of this connection presented.
    pub(crate) fn of<S>(stream: &TlsStream<S>) -> Self {
        Self(stream.get_ref().1.peer_certificates().unwrap_or_default().into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Authority {
    /// Reads the authorities of a bundle in PEM.
    pub(crate) fn of_bundle(bundle: &[u8]) -> Result<Self, BundleError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(ring::default_provider());
        Ok(Self(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?))
    }

    /// Verifies the chain, the period of validity, and that the certificate is for clients.
    pub(crate) fn verify(&self, presented: &Presented, now: UnixTime) -> Result<Subject, Unproved> {
        let (own, others) = presented.0.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.0.verify_client_cert(own, others, now)?;
        Subject::of(own)
    }
}

impl Subject {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, Unproved> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unproved::Subject)?;
        let text = |attribute: &AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|_| Unproved::Subject)
        };
        let subject = parsed.subject();
        // Of several common names the last one counts, as in Go.
        let common_name = subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default();
        let organizations = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
        let mut uids =
            subject.iter_attributes().filter(|found| found.attr_type().to_id_string() == UID_ATTRIBUTE);
        let uid = uids.next().map(text).transpose()?;
        if uids.next().is_some() || uid.as_ref().is_some_and(String::is_empty) {
            return Err(Unproved::Subject);
        }
        let fingerprint = Sha256::digest(certificate).iter().fold(String::new(), |mut text, byte| {
            // Writing to a String can't fail.
            write!(text, "{byte:02x}").unwrap_or_default();
            text
        });
        Ok(Self { common_name, organizations, uid: uid.unwrap_or_default(), fingerprint })
    }

    /// The user of this subject; `None` without a common name.
    pub(crate) fn user(self) -> Option<User> {
        let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={}", self.fingerprint)])];
        let user =
            User { name: self.common_name, uid: self.uid, groups: self.organizations, extra: extra.into() };
        (!user.name.is_empty()).then_some(user)
    }
}

/// Asks each client for a certificate and accepts any whose key the client holds, as Go's `RequestClientCert` does.
/// Which user it proves is decided at each request, by the authorities at that time.
#[derive(Debug)]
pub(crate) struct AnyKeyHolder(pub WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyKeyHolder {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// Give no hint, so that a client presents the certificate that it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
