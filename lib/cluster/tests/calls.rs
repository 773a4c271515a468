//! What an [`ApiServer`] does around a call, seen from a server on a socket: credentials, pauses, deadline, count,
//! proxy.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cluster::{ApiServer, Call, Class, Meter, Outcome, Source, WhenPaused};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A whole HTTP answer; the connection ends with it.
fn answer(code: &str, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {code}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn node() -> String {
    answer("200 OK", "", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}}))
}

fn unauthorized() -> String {
    answer("401 Unauthorized", "", &json!({"kind": "Status", "code": 401, "reason": "Unauthorized"}))
}

fn throttled(code: &str) -> String {
    answer(code, "retry-after: 1\r\n", &json!({"kind": "Status", "message": "slow down", "code": 429}))
}

/// The answers of a server.
enum Answers {
    /// These in turn; then the server accepts no more connections.
    InTurn(VecDeque<String>),
    /// [`node`] to any request with the token, 401 to all others.
    ToToken(&'static str),
}

/// Keeps the heads of the requests. One request per connection.
struct Server {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Answers>>,
}

impl Server {
    async fn answering(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, heads: Arc::default(), answers: Arc::new(Mutex::new(answers)) };
        let (heads, answers) = (server.heads.clone(), server.answers.clone());
        tokio::spawn(async move {
            while !matches!(&*answers.lock().unwrap(), Answers::InTurn(left) if left.is_empty()) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let head = read_head(&mut stream).await;
                let answer = match &mut *answers.lock().unwrap() {
                    Answers::InTurn(left) => left.pop_front().unwrap(),
                    Answers::ToToken(token) if token_of(&head) == *token => node(),
                    Answers::ToToken(_) => unauthorized(),
                };
                heads.lock().unwrap().push(head);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        server
    }

    fn accept(&self, token: &'static str) {
        *self.answers.lock().unwrap() = Answers::ToToken(token);
    }

    fn tokens(&self) -> Vec<String> {
        self.heads.lock().unwrap().iter().map(|head| token_of(head).to_owned()).collect()
    }

    fn calls(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

fn token_of(head: &str) -> &str {
    let (_, token) = head.split_once("authorization: bearer ").unwrap();
    token.lines().next().unwrap()
}

fn in_turn(answers: impl IntoIterator<Item = String>) -> Answers {
    Answers::InTurn(answers.into_iter().collect())
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the request ends early");
    }
    String::from_utf8(request).unwrap().to_lowercase()
}

/// A kubeconfig with its token in a file beside it.
struct Credentials(tempfile::TempDir);

impl Credentials {
    fn new(server: &str, cluster: &str) -> Self {
        let credentials = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: '{server}'{cluster}}}}}]\n\
             users: [{{name: u, user: {{tokenFile: token}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u, namespace: hcp}}}}]\n"
        );
        fs::write(credentials.path("kubeconfig"), text).unwrap();
        credentials.rotate("first");
        credentials
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rotate(&self, token: &str) {
        fs::write(self.path("token"), token).unwrap();
    }

    async fn open(&self, meter: impl Meter) -> ApiServer {
        let source = Source {
            cluster: "guest",
            setting: "--kubeconfig",
            kubeconfig: Some(self.path("kubeconfig")),
            address: String::new(),
        };
        ApiServer::open(source, meter).await.unwrap()
    }
}

/// Keeps what is counted.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<Vec<(Call, String, Outcome)>>>);

impl Meter for Counted {
    fn called(&self, call: &Call, host: &str, outcome: Outcome, _: Duration) {
        self.0.lock().unwrap().push((call.clone(), host.to_owned(), outcome));
    }
}

impl Counted {
    fn outcomes(&self) -> Vec<Outcome> {
        self.0.lock().unwrap().iter().map(|(.., outcome)| *outcome).collect()
    }
}

async fn opened(answers: Answers) -> (Server, Credentials, ApiServer, Counted) {
    let server = Server::answering(answers).await;
    let credentials = Credentials::new(&format!("http://{}", server.address), "");
    let counted = Counted::default();
    let api = credentials.open(counted.clone()).await;
    (server, credentials, api, counted)
}

fn nodes(api: &ApiServer) -> Api<Node> {
    Api::all(api.client())
}

fn raw(method: &str, path: &str) -> http::Request<Vec<u8>> {
    http::Request::builder().method(method).uri(path).body(Vec::new()).unwrap()
}

/// Whether the files may have been read again because they were due, which is not what the test is about.
fn is_late(began: Instant) -> bool {
    began.elapsed() >= Duration::from_secs(1)
}

#[tokio::test]
async fn a_401_is_repeated_once_with_new_credentials() {
    let began = Instant::now();
    let (server, credentials, api, counted) = opened(Answers::ToToken("second")).await;
    assert_eq!(api.namespace(), "hcp", "that of the credentials");
    credentials.rotate("second");
    // Even a change: a 401 means that nothing was carried out.
    nodes(&api).create(&PostParams::default(), &Node::default()).await.unwrap();
    assert!(server.tokens() == ["first", "second"] || is_late(began), "{:?}", server.tokens());
    assert_eq!(counted.outcomes().last(), Some(&Outcome::Answered(200)));
    let (call, host, _) = counted.0.lock().unwrap()[0].clone();
    assert_eq!((call.verb, call.resource.as_str(), host), ("create", "nodes", server.address));
}

#[tokio::test]
async fn a_401_is_repeated_only_once_and_only_if_the_credentials_changed() {
    let began = Instant::now();
    let (server, credentials, api, counted) = opened(Answers::ToToken("another")).await;
    let error = nodes(&api).get("w1").await.unwrap_err();
    assert_eq!(cluster::status_code(&error), Some(401));
    assert_eq!(server.tokens(), ["first"], "the same credentials would be refused again");
    credentials.rotate("second");
    assert!(nodes(&api).get("w1").await.is_err());
    let tokens = server.tokens();
    assert!(tokens == ["first", "first", "second"] || is_late(began), "{tokens:?}");
    assert!(counted.outcomes().iter().all(|outcome| *outcome == Outcome::Answered(401)));
}

#[tokio::test]
async fn unusable_files_leave_the_last_good_client_in_use() {
    let (server, credentials, api, _) = opened(Answers::ToToken("first")).await;
    let good = fs::read(credentials.path("kubeconfig")).unwrap();
    fs::write(credentials.path("kubeconfig"), "half a fi").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    nodes(&api).get("w1").await.expect("the old credentials are in use");
    fs::write(credentials.path("kubeconfig"), good).unwrap();
    credentials.rotate("second");
    server.accept("second");
    nodes(&api).get("w1").await.expect("the next usable ones are taken up");
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named_with_its_setting() {
    let source = Source {
        cluster: "guest",
        setting: "--tenant-cluster-kubeconfig",
        kubeconfig: Some("/nowhere/value".into()),
        address: String::new(),
    };
    let error = ApiServer::open(source, Counted::default()).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/value") && error.contains("--tenant-cluster-kubeconfig"), "{error}");
    assert!(error.contains("guest"), "{error}");
}

#[tokio::test]
async fn a_typed_read_waits_out_retry_after_and_is_repeated() {
    for code in ["429 Too Many Requests", "503 Service Unavailable"] {
        let (server, _credentials, api, counted) = opened(in_turn([throttled(code), node()])).await;
        let began = Instant::now();
        nodes(&api).get("w1").await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(1), "{code}");
        assert_eq!(server.calls(), 2);
        assert_eq!(counted.outcomes().last(), Some(&Outcome::Answered(200)));
        assert!(api.asked_to_wait().is_none(), "a call succeeded since");
    }
}

#[tokio::test]
async fn a_change_is_not_repeated_and_the_next_waits_or_fails_as_it_asked() {
    let (server, _credentials, api, _) = opened(in_turn([throttled("429 Too Many Requests"), node()])).await;
    let began = Instant::now();
    let error = nodes(&api).create(&PostParams::default(), &Node::default()).await.unwrap_err();
    assert_eq!(cluster::status_code(&error), Some(429));
    assert!(api.asked_to_wait().is_some());

    let error = api.exchange(raw("PUT", "/api/v1/nodes/w1"), WhenPaused::Fail).await.unwrap_err();
    assert_eq!(error.class(), Class::Throttled);
    assert_eq!(server.calls(), 1, "it was not sent");
    assert!(began.elapsed() < Duration::from_secs(1));

    nodes(&api).create(&PostParams::default(), &Node::default()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "it was sent after the pause");
}

#[tokio::test]
async fn calls_of_their_own_pace_do_not_wait_for_others() {
    let (_server, _credentials, api, _) = opened(in_turn([throttled("429 Too Many Requests"), node()])).await;
    assert!(nodes(&api).create(&PostParams::default(), &Node::default()).await.is_err());
    let began = Instant::now();
    nodes(&api.with_own_pace()).get("w1").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn only_the_api_server_proves_that_an_object_does_not_exist() {
    let page =
        "HTTP/1.1 404 Not Found\r\ncontent-length: 19\r\nconnection: close\r\n\r\n404 page not found\n";
    let status = |details: Value| {
        let body = json!({"kind": "Status", "code": 404, "reason": "NotFound", "details": details});
        answer("404 Not Found", "", &body)
    };
    let (_server, _credentials, api, _) = opened(in_turn([
        page.to_owned(),
        status(json!({"name": "w2", "kind": "nodes"})),
        status(json!({"name": "w1", "kind": "nodes"})),
    ]))
    .await;
    assert!(cluster::get(&nodes(&api), "w1").await.is_err(), "a proxy's page");
    assert!(cluster::get(&nodes(&api), "w1").await.is_err(), "another object");
    assert!(cluster::get(&nodes(&api), "w1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_broken_connection_is_counted_and_reported() {
    let (_server, _credentials, api, counted) = opened(in_turn([])).await;
    let error = nodes(&api).list(&ListParams::default()).await.unwrap_err();
    assert!(cluster::chain(&error).contains("refused"), "{}", cluster::chain(&error));
    assert_eq!(counted.outcomes(), [Outcome::Transport]);
    let error = api.find::<Value>(raw("GET", "/api/v1/nodes/w1")).await.unwrap_err();
    assert_eq!(error.class(), Class::Transport);
    assert!(error.to_string().starts_with("get nodes w1: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_ends() {
    let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, tower::BoxError>>()
    });
    let counted = Counted::default();
    let api = ApiServer::over(kube::Client::new(silent, "default"), counted.clone());
    let error = nodes(&api).get("w1").await.unwrap_err();
    assert!(cluster::chain(&error).contains("no answer within 10 s"), "{error}");
    assert_eq!(counted.outcomes(), [Outcome::Timeout]);
}

/// Accepts one CONNECT, tunnels it to `server` and returns the head of the CONNECT.
async fn proxy(server: String) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tunnel = tokio::spawn(async move {
        let (mut inner, _) = listener.accept().await.unwrap();
        let head = read_head(&mut inner).await;
        inner.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut outer = TcpStream::connect(server).await.unwrap();
        tokio::io::copy_bidirectional(&mut inner, &mut outer).await.unwrap();
        head
    });
    (address, tunnel)
}

#[tokio::test]
async fn the_proxy_of_a_kubeconfig_is_used() {
    let server = Server::answering(in_turn([node()])).await;
    let (proxy, tunnel) = proxy(server.address.clone()).await;
    let cluster = format!(", proxy-url: 'http://user:word@{proxy}'");
    // A name that only the proxy could resolve.
    let credentials = Credentials::new("http://api.of.the.cluster:6443", &cluster);
    let api = credentials.open(Counted::default()).await;
    nodes(&api).get("w1").await.unwrap();
    assert_eq!(server.tokens(), ["first"]);
    drop(api);
    let head = tunnel.await.unwrap();
    assert!(head.starts_with("connect api.of.the.cluster:6443 http/1.1"), "{head}");
    assert!(head.contains("proxy-authorization: basic dxnlcjp3b3jk"), "{head}");
}
