//! Certificates and keys: one certificate authority per cluster, which signs servers and users alike.
//!
//! A user is a client certificate: CN is the user's name, O the group (Kubernetes, "Authenticating", X509 client
//! certificates). Service accounts have tokens instead, as in a pod. Certificates are valid from 1975 to 4096 (rcgen's default), so no clock in a worker VM matters.
//! All keys are ECDSA P-256; they live in the sandbox's tmpfs and in memory, nowhere else.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// Readable by the owner alone.
const PRIVATE: u32 = 0o600;

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, without its issuer.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

/// The pair of keys with which an API server signs and checks service-account tokens (ES256).
#[derive(Debug)]
pub struct TokenKeys {
    /// PKCS #8, PEM.
    pub private: String,
    /// `SubjectPublicKeyInfo`, PEM.
    pub public: String,
}

impl Authority {
    /// A new authority named `name`.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("make the authority's key")?;
        let pem = params.self_signed(&key).context("sign the authority's certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A client certificate: `user` in `groups`, one at most: rcgen writes one O into a subject. For a user of more
    /// groups impersonate one.
    pub fn user(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        ensure!(
            groups.len() <= 1,
            "{user} has {} groups, and a certificate of the bench can name one",
            groups.len()
        );
        let group = groups.first().copied();
        self.sign(CertificateParams::default(), user, group, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A serving certificate for `names`, each a DNS name or an IP address.
    pub fn server(&self, name: &str, names: &[String]) -> Result<Identity> {
        let params = CertificateParams::new(names).with_context(|| format!("name the server {name}"))?;
        self.sign(params, name, None, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        group: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        params.distinguished_name = subject(name, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("sign {name}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Identity {
    /// Writes `<name>.crt` and `<name>.key` into `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        write_private(&folder.join(format!("{name}.crt")), &self.certificate)?;
        write_private(&folder.join(format!("{name}.key")), &self.key)
    }
}

impl TokenKeys {
    /// A new pair.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate().context("make the key of service-account tokens")?;
        Ok(Self { private: key.serialize_pem(), public: key.public_key_pem() })
    }
}

/// Writes a file that nobody else may read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(PRIVATE)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

fn subject(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject
}
