//! Certificates for tests.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The attribute O a second time, because rcgen keeps one value for each kind.
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
/// A user's uid.
const UID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

/// A certificate authority.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
    pub pem: String,
}

/// A certificate with its key, and the chain to its authority.
pub(crate) struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

impl Identity {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.serialize_der().try_into().unwrap()
    }
}

/// A certificate for clients, valid now, for `name`; without a common name if that is empty.
pub(crate) fn client(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A client in two groups, with a uid.
pub(crate) fn member(name: &str, groups: [&str; 2], uid: &str) -> CertificateParams {
    let mut params = client(name);
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationName, groups[0]);
    subject.push(DnType::CustomDnType(ORGANIZATION.to_vec()), groups[1]);
    subject.push(DnType::CustomDnType(UID.to_vec()), uid);
    params
}

/// A client certificate that has expired.
pub(crate) fn expired(name: &str) -> CertificateParams {
    let mut params = client(name);
    params.not_after = date_time_ymd(2020, 1, 1);
    params
}

/// A client certificate that is not valid yet.
pub(crate) fn early(name: &str) -> CertificateParams {
    let mut params = client(name);
    params.not_before = date_time_ymd(4000, 1, 1);
    params
}

/// A certificate for servers only.
pub(crate) fn server(name: &str) -> CertificateParams {
    let mut params = client(name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Self { params, der: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// An authority that this one has signed.
    pub(crate) fn below(&self, name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { params, der: certificate.der().clone(), pem: certificate.pem(), key }
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Identity { chain: vec![certificate.der().clone()], key }
    }

    /// Signs a certificate and adds this authority's own certificate to the chain.
    pub(crate) fn sign_with_chain(&self, params: &CertificateParams) -> Identity {
        let mut identity = self.sign(params);
        identity.chain.push(self.der.clone());
        identity
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = client(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = Vec::new();
    params
}
