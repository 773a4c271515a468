//! A real client on a real socket: metrics, draining, and what clients may write into `:authority`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use csi_proto::v1 as csi;
use csi_proto::v1::identity_client::IdentityClient;
use csi_proto::v1::identity_server::{Identity, IdentityServer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rstest::rstest;
use serving::{Endpoint, RpcLayer, RpcMethod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// `Probe` waits until it is released, the others answer at once.
#[derive(Default)]
struct Fixture {
    entered: Notify,
    release: Notify,
}

#[tonic::async_trait]
impl Identity for Fixture {
    async fn get_plugin_info(
        &self,
        _request: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse { name: "fixture".to_owned(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        Err(Status::failed_precondition("not today"))
    }

    async fn probe(
        &self,
        _request: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        self.entered.notify_one();
        self.release.notified().await;
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

fn method(path: &str) -> RpcMethod {
    let name = match path {
        "/csi.v1.Identity/GetPluginInfo" => "GetPluginInfo",
        "/csi.v1.Identity/GetPluginCapabilities" => "GetPluginCapabilities",
        "/csi.v1.Identity/Probe" => "Probe",
        _ => "unknown",
    };
    RpcMethod { name, routine: false }
}

struct Served {
    _directory: tempfile::TempDir,
    path: PathBuf,
    fixture: Arc<Fixture>,
    registry: Registry,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Served {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("csi.sock");
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().expect("parses");
        let listener = endpoint.bind().await.expect("binds");
        let fixture = Arc::new(Fixture::default());
        let mut registry = Registry::default();
        let layer = RpcLayer::new(&mut registry, method);
        let stop = CancellationToken::new();
        let routes = Routes::new(IdentityServer::from_arc(fixture.clone()));
        let server = tokio::spawn(serving::grpc::serve(listener, routes, layer, stop.clone()));
        Self { _directory: directory, path, fixture, registry, stop, server }
    }

    async fn client(&self) -> IdentityClient<Channel> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("unix:{}", self.path.display()));
        let channel = endpoint.expect("a uri");
        IdentityClient::new(channel.connect().await.expect("connects"))
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("encodes");
        text
    }
}

#[tokio::test]
async fn counts_rpcs_by_method_and_code() {
    let served = Served::start().await;
    let mut client = served.client().await;
    client.get_plugin_info(csi::GetPluginInfoRequest {}).await.expect("answers");
    let refused = client
        .get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {})
        .await
        .expect_err("the fixture refuses");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "not today"));
    let metrics = served.metrics();
    for line in [
        r#"rpcs_total{method="GetPluginInfo",code="OK"} 1"#,
        r#"rpcs_total{method="GetPluginCapabilities",code="FailedPrecondition"} 1"#,
        r#"rpc_duration_seconds_count{method="GetPluginInfo"} 1"#,
        r#"rpcs_in_flight{method="GetPluginInfo"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn counts_a_call_that_its_caller_gave_up() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let call = tokio::spawn(async move { client.probe(csi::ProbeRequest {}).await });
    served.fixture.entered.notified().await;
    assert!(served.metrics().contains(r#"rpcs_in_flight{method="Probe"} 1"#));
    call.abort();
    let counted = async {
        while !served.metrics().contains(r#"rpcs_total{method="Probe",code="Canceled"} 1"#) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("the end is seen");
    assert!(served.metrics().contains(r#"rpcs_in_flight{method="Probe"} 0"#));
}

#[tokio::test]
async fn drains_what_is_in_flight_and_accepts_no_more() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let call = tokio::spawn(async move { client.probe(csi::ProbeRequest {}).await });
    served.fixture.entered.notified().await;
    served.stop.cancel();
    // The listener closes in the server's task; until it has, a connection may still be taken.
    let closed = async {
        while UnixStream::connect(&served.path).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed).await.expect("stops accepting");
    assert!(!call.is_finished(), "the call in flight is not cut off");
    served.fixture.release.notify_one();
    let answer = call.await.expect("joins").expect("is answered");
    assert_eq!(answer.into_inner().ready, Some(true));
    served.server.await.expect("joins").expect("ends well");
    assert!(!served.path.exists(), "the socket is removed");
}

#[tokio::test]
async fn a_frozen_client_does_not_hold_up_the_end() {
    let served = Served::start().await;
    // The client begins to speak HTTP/2 and then neither reads nor writes: no GOAWAY will reach it.
    let mut frozen = UnixStream::connect(&served.path).await.expect("connects");
    frozen.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("writes");
    frozen.readable().await.expect("the server took the connection");
    served.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), served.server).await;
    ended.expect("ends").expect("joins").expect("ends well");
}

/// Clients on a unix socket have no host to put into `:authority`. grpc-go (every sidecar, kubelet, csi-sanity)
/// sends `localhost`; others send nothing, an escaped path or a bare path. The last is no authority by RFC 3986, and
/// the HTTP/2 library refuses the stream before any of our code runs: this table keeps that fact visible.
#[rstest]
#[case::grpc_go(Some("localhost"), true)]
#[case::absent(None, true)]
#[case::dotted(Some("csi.kubevirt.io:80"), true)]
#[case::escaped_path(Some("%2Fcsi%2Fcsi.sock"), false)]
#[case::bare_path(Some("/csi/csi.sock"), false)]
#[case::empty(Some(""), false)]
#[tokio::test]
async fn which_authorities_are_served(#[case] authority: Option<&str>, #[case] is_served: bool) {
    let served = Served::start().await;
    assert_eq!(raw_get_plugin_info(&served.path, authority).await, is_served);
}

/// A client of bare HTTP/2 frames (RFC 9113), which can write what no library permits. Returns true if a response with
/// a message came, false if the stream was reset.
async fn raw_get_plugin_info(path: &Path, authority: Option<&str>) -> bool {
    const DATA: u8 = 0x0;
    const HEADERS: u8 = 0x1;
    const RST_STREAM: u8 = 0x3;
    const SETTINGS: u8 = 0x4;
    const END_STREAM: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }
    /// HPACK (RFC 7541 §6.2.2): literal without indexing, new name, no Huffman code.
    fn literal(name: &str, value: &str) -> Vec<u8> {
        let length = |text: &str| u8::try_from(text.len()).expect("a short header");
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    }

    let mut headers = [
        literal(":method", "POST"),
        literal(":scheme", "http"),
        literal(":path", "/csi.v1.Identity/GetPluginInfo"),
    ]
    .concat();
    headers.extend(authority.map(|value| literal(":authority", value)).unwrap_or_default());
    headers.extend([literal("content-type", "application/grpc"), literal("te", "trailers")].concat());
    let mut stream = UnixStream::connect(path).await.expect("connects");
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &headers),
        frame(DATA, END_STREAM, 1, &[0, 0, 0, 0, 0]),
    ]
    .concat();
    stream.write_all(&request).await.expect("writes");
    let answer = async {
        loop {
            let mut head = [0_u8; 9];
            stream.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).expect("fits")];
            stream.read_exact(&mut payload).await.expect("its payload");
            match head[3] {
                DATA if !payload.is_empty() => return true,
                RST_STREAM => return false,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answer).await.expect("an answer")
}
