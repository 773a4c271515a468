//! The HTTP client under all calls.

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio_rustls::rustls::pki_types::ServerName;
use tower::{BoxError, ServiceBuilder};

use std::time::Duration;

use crate::{proxy::Proxy, route::Route, server_certificate::tls};

/// Longest time for TCP and TLS: an address without a listener must not use up a call's whole deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is probed after this time. Together with the next two a half-open one, of a watch for example,
/// ends after 45 s; Linux's default is two hours.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes that end the connection.
const KEEPALIVE_PROBES: u32 = 3;

/// kube's own stack without its retry, because a change is repeated only after reading the object again, and without
/// Nagle's algorithm, which holds the first request of each connection back until the server's delayed acknowledgement
/// of the TLS handshake: 40 ms, more than all calls of a publish take.
pub(crate) fn client(config: Config, proxy: Option<Proxy>) -> Result<Client, kube::Error> {
    let route = Route::new(tcp(), proxy)?;
    let mut connector = TimeoutConnector::new(https(&config, route)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_read_timeout(config.read_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// As kube makes it, with our check of the server's certificate.
fn https(config: &Config, route: Route) -> Result<HttpsConnector<Route>, kube::Error> {
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls(config)?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let Ok(name) = ServerName::try_from(name.clone()) else {
            // kube has the error for it.
            return config.rustls_https_connector_with_connector(route);
        };
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(https.enable_http1().wrap_connector(route))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE_AFTER));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_half_open_connection_ends_within_45_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let stream = tcp().oneshot(uri).await.unwrap().into_inner();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let probes = socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        let end = socket.tcp_keepalive_time().unwrap() + probes;
        assert_eq!(end, Duration::from_secs(45));
        assert!(socket.tcp_nodelay().unwrap());
    }
}
