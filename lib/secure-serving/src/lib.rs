//! An HTTPS endpoint with delegated authentication and authorization, as the apiserver library gives it to every
//! Kubernetes control program: an API server decides who a client is and what it may read.
//!
//! Every client may read the paths that the settings free, usually `/healthz`, `/livez` and `/readyz`. `/metrics` and
//! `/configz` are for clients that the API server authorizes. The crate knows no domain: what it shows, and all
//! settings, are its caller's.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod certificate;
mod connections;
mod endpoint;
mod front_proxy;
#[cfg(test)]
mod pki;
mod reviews;
mod settings;
mod shown_tokens;
mod tls;
mod trust;
mod user;

pub use certificate::BundleError;
pub use endpoint::{BindError, SecureEndpoint, Shown};
pub use front_proxy::FrontProxyRules;
pub use reviews::ReviewTimes;
pub use settings::SecureServingSettings;
pub use shown_tokens::ShownTokens;
pub use tls::{Tls, TlsError};
pub use trust::TrustError;
