//! What the endpoint needs of its caller.

use std::{net::SocketAddr, path::PathBuf};

use kube::Client;

use crate::{front_proxy::FrontProxyRules, reviews::ReviewTimes, shown_tokens::ShownTokens, tls::Tls};

/// The settings of the endpoint.
pub struct SecureServingSettings {
    /// The address to listen on.
    pub address: SocketAddr,
    /// Certificate, versions and cipher suites.
    pub tls: Tls,
    /// The name of the cluster that reviews, for log lines and answers: "the … cluster".
    pub cluster: &'static str,
    /// The API server that reviews tokens, and that publishes the authorities of client certificates.
    pub authentication: Client,
    /// Which tokens that API server may see.
    pub shown_tokens: ShownTokens,
    /// The API server that reviews accesses; usually the same.
    pub authorization: Client,
    /// Paths that need no review; a path that ends in `*` stands for all paths with that prefix.
    pub always_allowed: Vec<String>,
    /// How long the answers of reviews are cached.
    pub times: ReviewTimes,
    /// Authorities of clients, in PEM. `None` = those that the API server publishes.
    pub client_ca: Option<PathBuf>,
    /// Authorities of front proxies, in PEM, and what their headers are. `None` = what the API server publishes.
    pub front_proxy: Option<(PathBuf, FrontProxyRules)>,
    /// Whether to ask the API server for the authorities that no file gives. Without it they are unknown.
    pub lookup: bool,
    /// Whether a failure to read the published authorities is expected.
    pub tolerate_lookup_failure: bool,
}
