//! Rotated files, the deadline, and what is counted.

use super::*;
use http::Request;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rstest::rstest;
use std::net::SocketAddr;
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

/// The bearer token that one call sends, which is answered with `status`.
async fn token_in_use(client: &Client, server: &TcpListener, status: &str) -> String {
    let call = async {
        client.request_text(Request::get("/api/v1/nodes/x").body(Vec::new()).unwrap()).await.is_ok()
    };
    let answer = async {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
        stream.write_all(head.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap().to_lowercase()
    };
    let (called, request) = tokio::join!(call, answer);
    assert_eq!(called, status == "200 OK");
    let (_, token) = request.split_once("authorization: bearer ").unwrap();
    token.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn takes_up_rotated_files_after_a_refusal_and_keeps_the_last_good_ones() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (path, token) = (directory.path().join("value"), directory.path().join("token"));
    std::fs::write(&path, kubeconfig(server.local_addr().unwrap())).unwrap();
    std::fs::write(&token, "first").unwrap();
    let metrics = CallMetrics::default();
    let infra = InfraCluster::open(Some(path.clone()), "", metrics.clone()).await.unwrap();
    assert_eq!(infra.namespace, "hcp", "that of the credentials");
    assert_eq!(token_in_use(&infra.client, &server, "401 Unauthorized").await, "first");
    std::fs::write(&token, "second").unwrap();
    assert_eq!(token_in_use(&infra.client, &server, "401 Unauthorized").await, "second");
    std::fs::write(&path, "half a fi").unwrap();
    assert_eq!(token_in_use(&infra.client, &server, "200 OK").await, "second");

    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let line = "requests_total{cluster=\"infra\",verb=\"get\",resource=\"nodes\",code=\"401\"} 2";
    assert!(text.contains(line), "{text}");
    let host = server.local_addr().unwrap();
    for line in [
        format!("rest_client_requests_total{{code=\"401\",method=\"GET\",host=\"{host}\"}} 2\n"),
        format!("rest_client_request_duration_seconds_count{{verb=\"GET\",host=\"{host}\"}} 3\n"),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named() {
    let opened = GuestCluster::open(Some(PathBuf::from("/nowhere/value")), "", CallMetrics::default()).await;
    let error = opened.err().expect("is refused").to_string();
    assert!(error.contains("/nowhere/value") && error.contains("guest"), "{error}");
}

#[rstest]
#[case("GET", "/api/v1/nodes/n", "get", "nodes")]
#[case("GET", "/api/v1/namespaces/hcp/services?limit=5", "list", "services")]
#[case("GET", "/api/v1/services?&watch=true&resourceVersion=4", "watch", "services")]
#[case("POST", "/api/v1/namespaces/hcp/services", "create", "services")]
#[case("PATCH", "/api/v1/namespaces/a/services/b/status", "patch", "services/status")]
#[case("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/l", "update", "leases")]
#[case("DELETE", "/apis/kubevirt.io/v1/namespaces/a/virtualmachines/b", "delete", "virtualmachines")]
#[case("GET", "/api/v1/namespaces/hcp", "get", "namespaces")]
#[case("GET", "/version", "list", "none")]
fn a_call_is_what_kubernetes_authorizes(
    #[case] method: &str,
    #[case] uri: &str,
    #[case] verb: &str,
    #[case] resource: &str,
) {
    let call = Call::of(&Request::builder().method(method).uri(uri).body(()).unwrap());
    assert_eq!((call.verb, call.resource.as_str()), (verb, resource));
}
