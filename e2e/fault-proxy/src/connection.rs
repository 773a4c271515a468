//! One connection of a client, and the one to the real server that belongs to it.

use std::{convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    call::Call,
    exchange::{End, exchange},
    faults::Faults,
    upstream::{Stream, Upstream},
};

/// A body that is passed on as it comes.
type Body = BoxBody<Bytes, hyper::Error>;

/// Headers that are about one connection only (RFC 9110, section 7.6.1); those of an upgrade are passed on.
const HOP_BY_HOP: [HeaderName; 3] = [header::CONNECTION, header::TRANSFER_ENCODING, header::TE];

/// Scheme and authority of a gRPC request that names none: an HTTP/2 client wants both.
const NO_AUTHORITY: &str = "http://localhost";

/// What is spoken on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// An API server's: HTTP/1.1.
    Kubernetes,
    /// gRPC: HTTP/2 with prior knowledge.
    Grpc,
}

/// A client's connection.
pub(super) struct Connection {
    faults: Faults,
    upstream: Upstream,
    protocol: Protocol,
    /// Ends it from within a call.
    severed: CancellationToken,
    link: Mutex<Option<Link>>,
}

/// The connection to the real server.
enum Link {
    Http1(conn::http1::SendRequest<Body>),
    Http2(conn::http2::SendRequest<Body>),
}

impl Connection {
    pub(super) fn new(faults: Faults, upstream: Upstream, protocol: Protocol) -> Arc<Self> {
        let severed = CancellationToken::new();
        Arc::new(Self { faults, upstream, protocol, severed, link: Mutex::new(None) })
    }

    /// Serves it until the client leaves, a fault cuts it, or the server goes away.
    pub(super) async fn serve(self: Arc<Self>, stream: Stream) {
        let connection = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&connection).answer(request));
        let io = TokioIo::new(stream);
        let serving = async {
            match self.protocol {
                Protocol::Kubernetes => {
                    http1::Builder::new().serve_connection(io, service).with_upgrades().await
                }
                Protocol::Grpc => {
                    http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
                }
            }
        };
        tokio::select! {
            ended = serving => if let Err(error) = ended {
                tracing::debug!("a client's connection ended: {error}");
            },
            () = self.severed.cancelled() => {}
            () = self.faults.goes_away() => {}
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, http::Error> {
        let call = match self.protocol {
            Protocol::Kubernetes => Call::of_kubernetes(request.method(), request.uri()),
            Protocol::Grpc => Call::of_grpc(request.uri()),
        };
        match exchange(&self.faults, call, self.forward(request)).await {
            End::Server(response) => Ok(response),
            End::Made(reply) => Ok(reply.response()?.map(|body| body.map_err(never).boxed())),
            End::Cut => {
                self.severed.cancel();
                std::future::pending().await
            }
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>> {
        if self.protocol == Protocol::Grpc {
            if request.uri().authority().is_none() {
                *request.uri_mut() = format!("{NO_AUTHORITY}{}", request.uri()).parse::<Uri>()?;
            }
            return self.send(request).await;
        }
        let client = request.headers().contains_key(header::UPGRADE).then(|| upgrade::on(&mut request));
        if client.is_none() {
            remove_hop_by_hop(request.headers_mut());
        }
        let mut response = self.send(request).await?;
        match client {
            Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let server = upgrade::on(&mut response);
                tokio::spawn(join(client, server, self.faults.clone()));
            }
            _ => remove_hop_by_hop(response.headers_mut()),
        }
        Ok(response)
    }

    async fn send(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let request = request.map(BodyExt::boxed);
        let mut link = self.link.lock().await;
        if link.as_ref().is_none_or(Link::is_closed) {
            *link = Some(Link::open(&self.upstream, self.protocol).await?);
        }
        let response = match link.as_mut().context("a link was just opened")? {
            Link::Http1(sender) => {
                sender.ready().await?;
                // Requests of one HTTP/1.1 connection come one after another, so holding the lock delays none.
                sender.send_request(request).await?
            }
            Link::Http2(sender) => {
                let mut sender = sender.clone();
                drop(link);
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        Ok(response.map(BodyExt::boxed))
    }
}

impl Link {
    async fn open(upstream: &Upstream, protocol: Protocol) -> Result<Self> {
        let io = TokioIo::new(upstream.connect().await?);
        Ok(match protocol {
            Protocol::Kubernetes => {
                let (sender, connection) = conn::http1::handshake(io).await?;
                tokio::spawn(connection.with_upgrades());
                Self::Http1(sender)
            }
            Protocol::Grpc => {
                let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        })
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

/// Copies both ways between the two ends of an upgraded connection, until one ends or the server goes away.
async fn join(client: OnUpgrade, server: OnUpgrade, faults: Faults) {
    let Ok((client, server)) = tokio::try_join!(client, server) else { return };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    tokio::select! {
        // However it ends, both ends are closed with it.
        ended = tokio::io::copy_bidirectional(&mut client, &mut server) => drop(ended),
        () = faults.goes_away() => {}
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn never(never: Infallible) -> hyper::Error {
    match never {}
}
