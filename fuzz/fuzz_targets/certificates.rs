//! Certificates that clients of the secure endpoint present, and bundles of authorities that the guest publishes. Nothing but the one
//! certificate that the authority signed is the user in it. The files of the crate are compiled here, because nobody else needs what
//! they have.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use fuzz::chosen;
use libfuzzer_sys::fuzz_target;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

#[path = "../../lib/secure-serving/src/certificate.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of another crate")]
mod certificate;
#[path = "../../lib/secure-serving/src/user.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of another crate")]
mod user;

use certificate::{Authority, Presented};

/// An authority whose key was thrown away after it signed one certificate, `fuzz/seeds/certificates/03`.
const BUNDLE: &[u8] = include_bytes!("certificates.pem");
/// The common name of that certificate.
const SIGNED: &str = "client";

static AUTHORITY: LazyLock<Authority> =
    LazyLock::new(|| Authority::of_bundle(BUNDLE).expect("a bundle of one authority"));

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = chosen(input) else { return };
    // A moment of the year 2030, in which the certificates are valid.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
    match kind % 3 {
        0 => {
            let Ok(authority) = Authority::of_bundle(bytes) else { return };
            let nothing = Presented(Vec::new().into());
            assert!(authority.verify(&nothing, now).is_err(), "no certificate proves a user");
        }
        1 => {
            let presented = Presented(vec![CertificateDer::from(bytes.to_vec())].into());
            if let Ok(subject) = AUTHORITY.verify(&presented, now) {
                assert_eq!(subject.user().map(|user| user.name).as_deref(), Some(SIGNED));
            }
        }
        // The client's own certificate, and what it sends with it as the chain.
        _ => {
            let (own, others) = bytes.split_at(bytes.len() / 2);
            let chain = [own, others].map(|part| CertificateDer::from(part.to_vec()));
            if let Ok(subject) = AUTHORITY.verify(&Presented(chain.into()), now) {
                assert_eq!(subject.user().map(|user| user.name).as_deref(), Some(SIGNED));
            }
        }
    }
});
