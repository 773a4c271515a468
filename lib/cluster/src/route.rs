//! How a connection is made: directly, or through a proxy.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{
        HttpConnector,
        proxy::{SocksV5, Tunnel},
    },
    rt::TokioIo,
};
use kube::{Config, client::ConfigExt};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt};

use crate::proxy::{Proxy, Scheme};

/// Connects to an API server; the next layer adds TLS.
#[derive(Clone)]
pub(crate) enum Route {
    Direct(HttpConnector),
    Http(Tunnel<HttpConnector>),
    Https(Tunnel<HttpsConnector<HttpConnector>>),
    Socks(SocksV5<HttpConnector>),
}

impl Route {
    pub(crate) fn new(tcp: HttpConnector, proxy: Option<Proxy>) -> Result<Self, kube::Error> {
        let Some(Proxy { scheme, uri, basic, user }) = proxy else { return Ok(Self::Direct(tcp)) };
        Ok(match scheme {
            Scheme::Http => Self::Http(with_auth(Tunnel::new(uri, tcp), basic)),
            Scheme::Https => {
                // The system's authorities sign the proxy's certificate, not the cluster's.
                let tls = Config::new(uri.clone()).rustls_https_connector_with_connector(tcp)?;
                Self::Https(with_auth(Tunnel::new(uri, tls), basic))
            }
            Scheme::Socks5 => {
                let socks = SocksV5::new(uri, tcp);
                Self::Socks(match user {
                    Some((user, password)) => socks.with_auth(user, password),
                    None => socks,
                })
            }
        })
    }
}

fn with_auth<C>(tunnel: Tunnel<C>, basic: Option<http::HeaderValue>) -> Tunnel<C> {
    match basic {
        Some(basic) => tunnel.with_auth(basic),
        None => tunnel,
    }
}

impl Service<Uri> for Route {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each call waits for its own connector.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let route = self.clone();
        Box::pin(async move {
            Ok(match route {
                Self::Direct(tcp) => tcp.oneshot(server).await?.into(),
                Self::Http(tunnel) => tunnel.oneshot(server).await?.into(),
                Self::Https(tunnel) => tunnel.oneshot(server).await?,
                Self::Socks(socks) => socks.oneshot(server).await?.into(),
            })
        })
    }
}
