//! Rotated credential files, and the metrics of calls.

use super::*;
use http::Request;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn kubeconfig(server: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u, namespace: hcp}}}}]\n"
    )
}

/// A server that answers a client with the token in `accepted`, and answers 401 to others. One request per connection.
async fn serve(server: TcpListener, accepted: Arc<Mutex<&'static str>>) {
    loop {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        let request = String::from_utf8(request).unwrap().to_lowercase();
        let wanted = format!("authorization: bearer {}\r\n", accepted.lock().unwrap());
        let status = if request.contains(&wanted) { "200 OK" } else { "401 Unauthorized" };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
        stream.write_all(head.as_bytes()).await.unwrap();
    }
}

async fn is_answered(client: &Client) -> bool {
    client.request_text(Request::get("/api/v1/nodes/x").body(Vec::new()).unwrap()).await.is_ok()
}

#[tokio::test]
async fn takes_up_rotated_files_and_counts_calls_in_our_names_and_client_go_s() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = server.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (path, token) = (directory.path().join("value"), directory.path().join("token"));
    std::fs::write(&path, kubeconfig(host)).unwrap();
    std::fs::write(&token, "first").unwrap();
    let accepted = Arc::new(Mutex::new("another"));
    tokio::spawn(serve(server, accepted.clone()));
    let metrics = CallMetrics::default();
    let infra =
        InfraCluster::open(Some(path.clone()), "", WriteRate::default(), metrics.clone()).await.unwrap();
    assert_eq!(infra.namespace, "hcp", "that of the credentials");
    assert!(!is_answered(&infra.client).await);
    *accepted.lock().unwrap() = "first";
    assert!(is_answered(&infra.client).await);

    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let line = "requests_total{cluster=\"infra\",verb=\"get\",resource=\"nodes\",code=\"401\"} 1";
    assert!(text.contains(line), "{text}");
    for line in [
        format!("rest_client_requests_total{{code=\"401\",method=\"GET\",host=\"{host}\"}} 1\n"),
        format!("rest_client_request_duration_seconds_count{{verb=\"GET\",host=\"{host}\"}} 2\n"),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }

    std::fs::write(&token, "second").unwrap();
    *accepted.lock().unwrap() = "second";
    assert!(is_answered(&infra.client).await, "the 401 is cured within the call");
    std::fs::write(&path, "half a fi").unwrap();
    assert!(is_answered(&infra.client).await, "the last good credentials stay in use");
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named() {
    let opened =
        GuestCluster::open("--kubeconfig", Some("/nowhere/value".into()), "", CallMetrics::default());
    let error = opened.await.err().expect("is refused").to_string();
    assert!(error.contains("/nowhere/value") && error.contains("--kubeconfig"), "{error}");
}
