//! Whether an API server's certificate is trusted. As rustls has it, and besides, as Go and so kubectl has it: a server's
//! certificate that is itself in the kubeconfig's `certificate-authority-data` is trusted, although it is no authority
//! (kube-rs/kube#1767). Its name, dates and purpose are checked all the same.

use std::sync::Arc;

use kube::{Config, client::ConfigExt};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Trusts what authorities have signed, and the certificates of servers that are listed beside them.
#[derive(Debug)]
struct ListedServers {
    by_authority: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

/// kube's TLS settings for this API server, with [`ListedServers`] where the credentials have certificates.
pub(crate) fn tls(config: &Config) -> Result<ClientConfig, kube::Error> {
    let mut tls = config.rustls_client_config()?;
    // Without certificates the system's are used. The pod's file of them has authorities only, and kube reads it again by
    // itself.
    let is_listed = !config.accept_invalid_certs && config.root_cert_file.is_none();
    let listed = config.root_cert.as_ref().filter(|_| is_listed);
    if let Some(verifier) = listed.and_then(|listed| ListedServers::of(listed)) {
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }
    Ok(tls)
}

impl ListedServers {
    /// `None` = the certificates make no verifier; then kube has refused them already.
    fn of(certificates: &[Vec<u8>]) -> Option<Self> {
        let listed: Vec<_> = certificates.iter().cloned().map(CertificateDer::from).collect();
        let mut roots = RootCertStore::empty();
        for certificate in &listed {
            roots.add(certificate.clone()).ok()?;
        }
        let provider = Arc::new(ring::default_provider());
        let by_authority =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
        Some(Self { by_authority, listed })
    }
}

/// What Go checks of a certificate that needs no signature: `x509.Certificate.Verify` begins with a chain of it alone.
fn check(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    let malformed = || Error::from(CertificateError::BadEncoding);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed())?;
    let (validity, now) = (parsed.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let purposes = parsed.extended_key_usage().map_err(|_| malformed())?;
    if purposes.is_some_and(|purposes| !(purposes.value.server_auth || purposes.value.any)) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}

impl ServerCertVerifier for ListedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_authority =
            self.by_authority.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        if by_authority.is_ok() || !self.listed.iter().any(|listed| listed == end_entity) {
            return by_authority;
        }
        check(end_entity, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
    use rstest::rstest;

    fn server(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
        let mut params =
            CertificateParams::new(vec!["api.example".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        params
    }

    fn self_signed(params: &CertificateParams) -> CertificateDer<'static> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    /// Signed by an authority that nobody lists.
    fn signed(params: &CertificateParams) -> CertificateDer<'static> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = Issuer::new(authority, KeyPair::generate().unwrap());
        params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap().der().clone()
    }

    fn verify(listed: &CertificateDer<'_>, shown: &CertificateDer<'_>, name: &str) -> Result<(), Error> {
        let verifier = ListedServers::of(&[listed.to_vec()]).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now()).map(drop)
    }

    /// What kubectl accepts.
    #[rstest]
    #[case::signed_by_another(signed(&server(|_| ())))]
    #[case::self_signed(self_signed(&server(|_| ())))]
    #[case::self_signed_authority(self_signed(&server(|it| it.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained))))]
    #[case::explicitly_none(self_signed(&server(|it| it.is_ca = IsCa::ExplicitNoCa)))]
    #[case::without_a_purpose(signed(&server(|it| it.extended_key_usages = Vec::new())))]
    fn a_servers_own_certificate_may_be_the_authority(#[case] certificate: CertificateDer<'static>) {
        for name in ["api.example", "192.0.2.1"] {
            assert_eq!(verify(&certificate, &certificate, name), Ok(()), "{name}");
        }
    }

    #[rstest]
    #[case::expired(server(|it| it.not_after = date_time_ymd(2020, 1, 1)))]
    #[case::early(server(|it| it.not_before = date_time_ymd(4000, 1, 1)))]
    #[case::for_clients(server(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]))]
    fn its_dates_and_purpose_count(#[case] params: CertificateParams) {
        for certificate in [signed(&params), self_signed(&params)] {
            assert!(verify(&certificate, &certificate, "api.example").is_err());
        }
    }

    #[test]
    fn its_name_counts_and_another_certificate_is_refused() {
        for make in [signed, self_signed] {
            let (listed, other) = (make(&server(|_| ())), make(&server(|_| ())));
            assert!(verify(&listed, &listed, "other.example").is_err());
            assert!(verify(&listed, &listed, "192.0.2.2").is_err());
            assert!(verify(&listed, &other, "api.example").is_err());
        }
    }

    #[test]
    fn what_an_authority_signed_is_trusted_as_before() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let listed = params.self_signed(&key).unwrap().der().clone();
        let authority = Issuer::new(params, key);
        let shown = server(|_| ()).signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        assert_eq!(verify(&listed, shown.der(), "api.example"), Ok(()));
        assert!(verify(&listed, shown.der(), "other.example").is_err());
    }
}
