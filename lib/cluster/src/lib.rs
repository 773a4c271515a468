//! The files that credentials are made of, and the HTTP client over them. It knows no cluster: whose credentials they are, when
//! they are read again and what is called with them is each client's own.

use std::{path::PathBuf, time::Duration};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::Kubeconfig,
};
use tower::{BoxError, ServiceBuilder};

pub use serving::chain;

/// Longest time for TCP and TLS; a dead address must not eat a whole call's deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where kubelet mounts the files of the pod's service account that credentials are made of (Kubernetes, "Accessing the API
/// from within a Pod").
pub const SERVICE_ACCOUNT_FILES: [&str; 2] = [
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
];

/// The files that a kubeconfig names, of whichever context.
pub fn referenced_files(kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let of_users = users.flat_map(|user| [&user.client_certificate, &user.client_key, &user.token_file]);
    let named = clusters.map(|cluster| &cluster.certificate_authority).chain(of_users).flatten();
    named.map(PathBuf::from).collect()
}

/// kube's own stack without its retry, because a change is repeated only after looking again (design law 2), and without
/// Nagle's algorithm, which holds the first request of each connection back until the server's delayed acknowledgement of the
/// TLS handshake: 40 ms, more than all calls of a publish take.
///
/// # Errors
/// No client can be made of `config`.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Not compiled in, and kube says so.
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // Of a watch whose peer is gone without a word.
    connector.set_read_timeout(config.read_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}
