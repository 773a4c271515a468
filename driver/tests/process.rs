//! The program as installers run it: started with a manifest's flags, on a real socket, ended by a signal. There is no
//! cluster: the start must not need one.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use csi_proto::v1 as csi;
use csi_proto::v1::controller_client::ControllerClient;
use csi_proto::v1::identity_client::IdentityClient;
use csi_proto::v1::node_client::NodeClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Bound of every wait for the program; each ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kubeconfig of a cluster where nobody listens.
const KUBECONFIG: &str = "apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: u, user: {token: not-a-token}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
";

fn program(arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubevirt-csi-driver"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The running program; killed when dropped.
struct Running {
    child: Child,
    socket: PathBuf,
    http: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Running {
    fn start(role: &[&str]) -> Self {
        Self::start_with(role, KUBECONFIG)
    }

    fn start_with(role: &[&str], kubeconfig_text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("csi.sock");
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text).expect("writes");
        // A port that was free a moment ago, because the program takes an address, not a socket.
        let http = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has an address");
        let mut arguments: Vec<String> = role
            .iter()
            .map(|argument| argument.replace("KUBECONFIG", &kubeconfig.display().to_string()))
            .collect();
        arguments
            .extend([format!("--endpoint=unix://{}", socket.display()), format!("--http-endpoint={http}")]);
        let child = program(&arguments).spawn().expect("starts");
        let mut running = Self { child, socket, http, _directory: directory };
        running.wait("is ready", |running| running.get("/readyz").starts_with("HTTP/1.1 200"));
        running
    }

    fn wait(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(started.elapsed() < PATIENCE, "never {what}");
            if let Some(status) = self.child.try_wait().expect("is our child") {
                let mut log = String::new();
                self.child.stderr.take().expect("is piped").read_to_string(&mut log).expect("reads");
                panic!("ended with {status} before it {what}:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.http) else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let read = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        read.map(|_| answer).unwrap_or_default()
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket.display())).expect("a uri");
        endpoint.connect().await.expect("connects")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).expect("is still there");
    }

    /// Sends SIGTERM, waits for the end, returns exit code and log.
    fn terminate(self) -> (Option<i32>, String) {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Waits for the end, returns exit code and log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().expect("is piped").read_to_string(&mut log).expect("reads to the end");
        let status = self.child.wait().expect("is our child");
        assert!(!self.socket.exists(), "the socket is removed");
        (status.code(), log)
    }
}

#[tokio::test]
async fn the_controller_role_serves_drains_and_ends_well() {
    let running = Running::start(&[
        "--run-node-service=false",
        "--infra-cluster-namespace=hcp",
        "--infra-cluster-labels=csi-driver/cluster=tenant",
        "--infra-cluster-kubeconfig=KUBECONFIG",
        "--v=5",
        "-logtostderr",
    ]);
    let channel = running.channel().await;
    let info = IdentityClient::new(channel.clone()).get_plugin_info(csi::GetPluginInfoRequest {}).await;
    assert_eq!(info.expect("answers").into_inner().name, "csi.kubevirt.io");
    let probe = IdentityClient::new(channel.clone()).probe(csi::ProbeRequest {}).await;
    assert_eq!(
        probe.expect("answers").into_inner().ready,
        Some(true),
        "no infra cluster is no reason to fail"
    );
    let request = csi::DeleteVolumeRequest {
        volume_id: "other-1".to_owned(),
        secrets: [("password".to_owned(), "s3cr3t".to_owned())].into(),
    };
    let refused = ControllerClient::new(channel.clone()).delete_volume(request).await;
    assert_eq!(refused.expect_err("nobody can know").code(), Code::Unavailable);
    let unserved = NodeClient::new(channel).node_get_info(csi::NodeGetInfoRequest {}).await;
    assert_eq!(unserved.expect_err("is not our role").code(), Code::Unimplemented);
    let metrics = running.get("/metrics");
    for line in [
        r#"kubevirt_csi_rpcs_total{method="DeleteVolume",code="Unavailable"} 1"#,
        r#"kubevirt_csi_rpcs_total{method="NodeGetInfo",code="Unimplemented"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    let (code, log) = running.terminate();
    assert_eq!(code, Some(0), "{log}");
    let line = log.lines().find(|line| line.contains("answered") && line.contains("DeleteVolume"));
    let line = line.unwrap_or_else(|| panic!("no line for the RPC in\n{log}"));
    assert!(line.contains(r#"volume_id="other-1""#) && line.contains("Unavailable"), "{line}");
    assert!(line.contains(" ms="), "{line}");
    let started = log.lines().find(|line| line.contains("serving: ")).expect("a line of the start");
    for word in [env!("CARGO_PKG_VERSION"), "hcp", "csi-driver/cluster=tenant", "storage classes: all"] {
        assert!(started.contains(word), "{word} is not in {started}");
    }
    assert!(log.contains(r#"flags=["logtostderr"]"#), "klog flags are taken with one line:\n{log}");
    assert!(!log.contains("s3cr3t"), "{log}");
}

#[tokio::test]
async fn the_node_role_serves_before_the_guest_cluster_answers() {
    let running = Running::start(&[
        "--run-controller-service=false",
        "--node-name=worker-1",
        "--tenant-cluster-kubeconfig=KUBECONFIG",
        "--log-format=json",
    ]);
    let channel = running.channel().await;
    let capabilities =
        NodeClient::new(channel.clone()).node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await;
    assert!(!capabilities.expect("answers").into_inner().capabilities.is_empty());
    let unknown = NodeClient::new(channel.clone()).node_get_info(csi::NodeGetInfoRequest {}).await;
    assert_eq!(unknown.expect_err("nobody can know").code(), Code::Unavailable);
    let unserved = ControllerClient::new(channel).delete_volume(csi::DeleteVolumeRequest::default()).await;
    assert_eq!(unserved.expect_err("is not our role").code(), Code::Unimplemented);

    let (code, log) = running.terminate();
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// An API server's answer about an object that does not exist.
const ABSENT: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,
    "message":"datavolumes \"other-1\" not found","details":{"name":"other-1","kind":"datavolumes"}}"#;

/// An infra API that takes one request and answers it only when `answer` is dropped.
fn slow_infra() -> (SocketAddr, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address");
    let (asked, is_asked) = mpsc::channel();
    let (answer, may_answer) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        // The first connection reads our rights, the second is the RPC's; both wait.
        let mut held = Vec::new();
        for stream in listener.incoming().take(2) {
            let mut stream = stream.expect("connects");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).expect("reads");
            if request[..length].windows(11).any(|window| window == b"datavolumes") {
                asked.send(()).expect("the test waits");
            }
            held.push(stream);
        }
        // Ends with the sender.
        may_answer.recv().unwrap_or_default();
        for mut stream in held {
            let length = ABSENT.len();
            let answer = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{ABSENT}"
            );
            // The client may have ended.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    (address, is_asked, answer)
}

#[tokio::test]
async fn a_stop_lets_the_rpc_under_way_finish_and_takes_no_other() {
    let (address, is_asked, answer) = slow_infra();
    let mut running = Running::start_with(
        &[
            "--run-node-service=false",
            "--infra-cluster-namespace=hcp",
            "--infra-cluster-labels=csi-driver/cluster=tenant",
            "--infra-cluster-kubeconfig=KUBECONFIG",
        ],
        &KUBECONFIG.replace("https://127.0.0.1:1", &format!("http://{address}")),
    );
    let channel = running.channel().await;
    // Of a name that can't be the guest's only one question is asked.
    let request = csi::DeleteVolumeRequest { volume_id: "other-1".to_owned(), ..Default::default() };
    let mut client = ControllerClient::new(channel.clone());
    let call = tokio::spawn(async move { client.delete_volume(request).await });
    tokio::task::spawn_blocking(move || is_asked.recv_timeout(PATIENCE))
        .await
        .expect("joins")
        .expect("the infra cluster is asked");
    running.signal(Signal::SIGTERM);
    running.wait("not ready at once", |running| running.get("/readyz").contains("not stopping"));
    assert!(running.get("/livez").starts_with("HTTP/1.1 200"), "stopping is no fault");
    assert!(!call.is_finished());
    let socket = running.socket.clone();
    running.wait("closed to others", move |_| std::os::unix::net::UnixStream::connect(&socket).is_err());
    let refused = IdentityClient::new(channel).probe(csi::ProbeRequest {}).await;
    // The client library decides which code it is: it may have sent the call before it read the `GOAWAY`.
    let refused = refused.expect_err("is not taken");
    assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled | Code::Unknown), "{refused:?}");
    drop(answer);
    call.await.expect("joins").expect("what is absent is deleted");
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_the_program_at_once() {
    let (address, is_asked, _answer) = slow_infra();
    let mut running = Running::start_with(
        &[
            "--run-node-service=false",
            "--infra-cluster-namespace=hcp",
            "--infra-cluster-labels=csi-driver/cluster=tenant",
            "--infra-cluster-kubeconfig=KUBECONFIG",
        ],
        &KUBECONFIG.replace("https://127.0.0.1:1", &format!("http://{address}")),
    );
    let request = csi::DeleteVolumeRequest { volume_id: "other-1".to_owned(), ..Default::default() };
    let mut client = ControllerClient::new(running.channel().await);
    let call = tokio::spawn(async move { client.delete_volume(request).await });
    tokio::task::spawn_blocking(move || is_asked.recv_timeout(PATIENCE))
        .await
        .expect("joins")
        .expect("the infra cluster is asked");
    running.signal(Signal::SIGTERM);
    running.wait("not ready at once", |running| running.get("/readyz").contains("not stopping"));
    running.signal(Signal::SIGINT);
    let (code, log) = running.end();
    assert!(code != Some(0) && log.contains("second signal"), "{code:?} {log}");
    call.await.expect("joins").expect_err("is cut off");
}

fn refused(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let output = program(&arguments).output().expect("runs");
    assert!(!output.status.success());
    output
}

#[test]
fn a_start_that_can_not_work_says_what_to_do() {
    let missing = Path::new("/not-mounted/csi.sock");
    let endpoint = format!("--endpoint=unix://{}", missing.display());
    let controller =
        ["--run-node-service=false", "--infra-cluster-namespace=hcp", "--infra-cluster-labels=a=b"];
    for (arguments, said) in [
        (vec!["--run-node-service=false"], "--infra-cluster-namespace"),
        (vec![controller[0], controller[1], "--infra-cluster-labels=a"], "--infra-cluster-labels"),
        (controller.to_vec(), "--infra-cluster-kubeconfig"),
        (
            [&controller[..], &["--infra-storage-class-enforcement=allowList: ["]].concat(),
            "INFRA_STORAGE_CLASS_ENFORCEMENT is not YAML",
        ),
        ([&controller[..], &["--infra-cluster-kubeconfig=/nowhere"]].concat(), "/nowhere"),
        ([&controller[..], &["--infra-cluster-kubeconfig=/dev/null"]].concat(), "/dev/null"),
        (vec!["--log-format=xml"], "--log-format"),
        (vec!["--run-controller-service=false"], "--node-name"),
        (vec!["--run-controller-service=false", "--node-name=w"], "--tenant-cluster-kubeconfig"),
    ] {
        let output = refused(&[&[endpoint.as_str()], arguments.as_slice()].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

/// A command line with which the node role starts, less the endpoint.
fn node_role(directory: &Path) -> [String; 3] {
    let kubeconfig = directory.join("kubeconfig");
    fs::write(&kubeconfig, KUBECONFIG).expect("writes");
    [
        "--run-controller-service=false".to_owned(),
        "--node-name=w".to_owned(),
        format!("--tenant-cluster-kubeconfig={}", kubeconfig.display()),
    ]
}

#[test]
fn a_tcp_endpoint_is_warned_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut arguments = node_role(directory.path()).to_vec();
    arguments.push("--endpoint=tcp://127.0.0.1:0".to_owned());
    let mut child = program(&arguments).spawn().expect("starts");
    let log = BufReader::new(child.stderr.take().expect("is piped"));
    // The last line of a start.
    let mut start = log.lines().map_while(Result::ok).take_while(|line| !line.contains("serving: "));
    let warned = start.any(|line| line.contains("WARN") && line.contains("nobody is authenticated"));
    child.kill().expect("is our child");
    child.wait().expect("is our child");
    assert!(warned);
}

#[test]
fn an_admin_endpoint_that_can_not_be_served_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let [role, name, kubeconfig] = node_role(directory.path());
    let socket = format!("--endpoint=unix://{}", directory.path().join("csi.sock").display());
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let taken = taken.local_addr().expect("has an address").to_string();
    for (address, said) in [("nonsense", "nonsense"), (&*taken, "in use")] {
        let http = format!("--http-endpoint={address}");
        let output = refused(&[&role, &name, &kubeconfig, &socket, &http]);
        let error = String::from_utf8_lossy(&output.stderr);
        let line = error.lines().find(|line| line.starts_with("kubevirt-csi-driver: --http-endpoint: "));
        assert!(line.is_some_and(|line| line.contains(said)), "{http}: {error}");
    }
}

#[test]
fn log_directives_that_are_not_understood_are_quoted() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = program(&node_role(directory.path())).env("RUST_LOG", "node=loud").output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(r#"RUST_LOG="node=loud""#), "{error}");
}

#[test]
fn a_missing_socket_directory_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let [role, name, kubeconfig] = node_role(directory.path());
    let output = refused(&[&role, &name, &kubeconfig, "--endpoint=unix:///not-mounted/csi.sock"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/not-mounted for the socket does not exist"), "{error}");
}
