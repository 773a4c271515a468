//! Which method a path has, and which ids stand in the log line of each RPC of both roles.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use csi_proto::v1 as csi;
use prometheus_client::registry::Registry;
use prost::Message;
use serving::RpcLayer;
use tonic::{body::Body, codegen::Bytes};
use tower::{Layer, ServiceExt};

use super::*;
use crate::docs::both_roles;

/// gRPC over HTTP/2, "Length-Prefixed-Message": one byte compressed flag, four bytes length.
const FRAME_PREFIX: usize = 5;

/// The log, in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8(bytes).expect("the log is text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends `message` to the RPC at `/csi.v1.<path>` of a driver of both roles; returns the log line of its answer.
async fn line(path: &str, message: &[u8]) -> String {
    let mut registry = Registry::default();
    let layer = RpcLayer::new(&mut registry, method);
    let (roles, _directory) = both_roles(&mut registry).await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    let frame: Vec<u8> = [&[0], length.as_slice(), message].concat();
    assert_eq!(frame.len(), message.len() + FRAME_PREFIX);
    let body = Body::new(http_body_util::Full::new(Bytes::from(frame)));
    let request = http::Request::post(format!("/csi.v1.{path}"))
        .header("content-type", "application/grpc")
        // The infra cluster of this test does not answer.
        .header("grpc-timeout", "100m")
        .body(body)
        .expect("a request");
    drop(layer.layer(roles.routes).oneshot(request).await.expect("is answered"));
    let log = log.take();
    let line = log.lines().find(|line| line.contains("answered"));
    line.unwrap_or_else(|| panic!("no line of an answer in\n{log}")).to_owned()
}

#[tokio::test]
async fn the_line_has_the_ids_and_nothing_else_of_the_request() {
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".to_owned(),
        node_id: "hcp/worker-1".to_owned(),
        secrets: [("password".to_owned(), "s3cr3t".to_owned())].into(),
        volume_context: [("serial".to_owned(), "abc".to_owned())].into(),
        ..Default::default()
    };
    let line = line("Controller/ControllerPublishVolume", &request.encode_to_vec()).await;
    let ids = r#"rpc{method="ControllerPublishVolume" volume_id="pvc-1" node_id="hcp/worker-1"}"#;
    assert!(line.contains(ids), "{line}");
    assert!(!line.contains("s3cr3t") && !line.contains("abc"), "{line}");
}

#[tokio::test]
async fn the_line_names_the_volume_of_each_request_that_has_one() {
    // `volume_id`, `name`, `source_volume_id` and `snapshot_id` are field 1 of these messages.
    let message = csi::DeleteVolumeRequest { volume_id: "pvc-1".to_owned(), ..Default::default() };
    for path in [
        "Controller/CreateVolume",
        "Controller/DeleteVolume",
        "Controller/ControllerPublishVolume",
        "Controller/ControllerUnpublishVolume",
        "Controller/ValidateVolumeCapabilities",
        "Controller/ControllerExpandVolume",
        "Controller/ControllerGetVolume",
        "Controller/ControllerModifyVolume",
        "Controller/CreateSnapshot",
        "Controller/DeleteSnapshot",
        "Controller/GetSnapshot",
        "Node/NodeStageVolume",
        "Node/NodeUnstageVolume",
        "Node/NodePublishVolume",
        "Node/NodeUnpublishVolume",
        "Node/NodeGetVolumeStats",
        "Node/NodeExpandVolume",
    ] {
        let line = line(path, &message.encode_to_vec()).await;
        let (_, name) = path.split_once('/').expect("service and method");
        assert!(line.contains(&format!("rpc{{method=\"{name}\" volume_id=\"pvc-1\"}}")), "{path}: {line}");
    }
}

#[tokio::test]
async fn a_broken_message_has_no_ids() {
    let line = line("Controller/DeleteVolume", &[0xff; 7]).await;
    assert!(line.contains("rpc{method=\"DeleteVolume\"}"), "{line}");
}

#[test]
fn a_name_that_is_not_csi_becomes_unknown() {
    for path in ["/csi.v1.Controller/Invented", "/other.v1.Service/CreateVolume", "", "/"] {
        assert_eq!(method(path).name, "unknown", "{path}");
    }
    assert_eq!(method("/csi.v1.Identity/Probe").name, "Probe");
}
