//! Small real servers: one that speaks TLS and HTTP/1.1 as an API server does, one that speaks gRPC.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use csi_proto::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse,
    identity_server::{Identity, IdentityServer},
};
use futures::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use kube::config::Kubeconfig;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tonic::Status;

use crate::kube_proxy::acceptor;

type Body = BoxBody<Bytes, std::io::Error>;

/// What a server was asked, `METHOD path authorization`, in order.
#[derive(Clone, Default)]
pub struct RequestLog(Arc<Mutex<Vec<String>>>);

impl RequestLog {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

/// Starts an HTTPS server; the kubeconfig of a client with a token.
pub async fn https() -> (Kubeconfig, RequestLog) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, certificate) = acceptor(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
    let asked = RequestLog::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, seen) = (tls.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| answer(request, seen.clone()));
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await
                    .ok();
            });
        }
    });
    let pem = serde_json::to_value(ByteString(certificate.into_bytes())).unwrap();
    let kubeconfig = json!({
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"), "certificate-authority-data": pem}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    });
    (serde_json::from_value(kubeconfig).unwrap(), asked)
}

async fn answer(mut request: Request<Incoming>, asked: RequestLog) -> Result<Response<Body>, std::io::Error> {
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    asked.note(format!("{} {} {}", request.method(), request.uri().path(), token.unwrap_or("-")));
    if request.headers().contains_key(header::UPGRADE) {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
            tokio::io::copy(&mut read, &mut write).await.ok();
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "echo");
        return Ok(response.body(text("")).unwrap());
    }
    if request.uri().query() == Some("watch=true") {
        // One event at once; the second never comes.
        let events = stream::unfold(0, |number| async move {
            if number > 0 {
                std::future::pending::<()>().await;
            }
            Some((Ok(Frame::data(Bytes::from_static(b"event\n"))), number + 1))
        });
        return Ok(Response::new(BodyExt::boxed(StreamBody::new(Box::pin(SyncStream::new(events))))));
    }
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    Ok(Response::new(text(&format!("got {}", String::from_utf8_lossy(&body)))))
}

fn text(text: &str) -> Body {
    Full::from(text.to_owned()).map_err(|never| match never {}).boxed()
}

/// A stream behind a lock: a boxed body must be `Sync`.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(cx)
    }
}

/// A CSI Identity service that counts its calls; Probe fails with words.
#[derive(Clone, Default)]
pub struct Plugin {
    pub calls: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: tonic::Request<GetPluginInfoRequest>,
    ) -> Result<tonic::Response<GetPluginInfoResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(tonic::Response::new(GetPluginInfoResponse { name: "real".into(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: tonic::Request<GetPluginCapabilitiesRequest>,
    ) -> Result<tonic::Response<GetPluginCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn probe(&self, _: tonic::Request<ProbeRequest>) -> Result<tonic::Response<ProbeResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Err(Status::failed_precondition("words of the plugin"))
    }
}

impl Plugin {
    /// Serves on a unix socket.
    pub fn serve(&self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let incoming =
            stream::unfold(listener, |l| async move { Some((l.accept().await.map(|(s, _)| s), l)) });
        let server = tonic::transport::Server::builder().add_service(IdentityServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
    }
}
