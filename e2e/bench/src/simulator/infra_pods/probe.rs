//! Probes of a container: `httpGet` and `tcpSocket` against the loopback, counted as a kubelet counts.
//!
//! `exec` and `grpc` probes are not made; a container that has one gets an event that says so and counts as not probed.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use http::{Request, Uri};
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Client, Config, client::Body};
use tokio::net::TcpStream;

/// Where the programs of the bench listen.
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Successes and failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    successes: i32,
    failures: i32,
}

/// What to probe, and how often.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    target: Target,
    /// Before the first probe.
    pub initial_delay: Duration,
    /// Between two.
    pub period: Duration,
    timeout: Duration,
    counter: Counter,
}

#[derive(Clone, Debug)]
enum Target {
    Http { server: Uri, path: String, headers: Vec<(String, String)> },
    Tcp(u16),
}

impl Prober {
    /// A prober for a probe of `container`; the defaults are the API's.
    ///
    /// # Errors
    /// When the probe is of a kind that is not made, or names no port.
    pub(super) fn new(container: &Container, probe: &Probe) -> Result<Self> {
        let target = if let Some(get) = &probe.http_get {
            http_target(container, get)?
        } else {
            let socket =
                probe.tcp_socket.as_ref().context("only httpGet and tcpSocket probes are made here")?;
            Target::Tcp(port(container, &socket.port)?)
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value.and_then(|value| u64::try_from(value).ok()).filter(|s| *s > 0).unwrap_or(default),
            )
        };
        Ok(Self {
            target,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            counter: Counter::new(probe.success_threshold.unwrap_or(1), probe.failure_threshold.unwrap_or(3)),
        })
    }

    /// Probes once; the verdict, once there are enough answers of one kind in a row.
    pub(super) async fn probe(&mut self) -> Option<bool> {
        let answer = tokio::time::timeout(self.timeout, self.target.ask()).await;
        let healthy = match answer {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!("probe failed: {error:#}");
                false
            }
            Err(_) => false,
        };
        self.counter.count(healthy)
    }
}

impl Counter {
    fn new(success_threshold: i32, failure_threshold: i32) -> Self {
        Self { success_threshold, failure_threshold, successes: 0, failures: 0 }
    }

    fn count(&mut self, healthy: bool) -> Option<bool> {
        if healthy {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (self.successes >= self.success_threshold).then_some(true)
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (self.failures >= self.failure_threshold).then_some(false)
        }
    }
}

impl Target {
    async fn ask(&self) -> Result<()> {
        match self {
            Self::Tcp(port) => TcpStream::connect((HOST, *port)).await.map(drop).context("connect"),
            Self::Http { server, path, headers } => {
                let mut config = Config::new(server.clone());
                // A kubelet does not verify the certificate of an HTTPS probe.
                config.accept_invalid_certs = true;
                config.default_retry = false;
                let client = Client::try_from(config)?;
                let mut request = Request::get(path);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let status = client.send(request.body(Body::empty())?).await?.status();
                ensure!(status.is_success() || status.is_redirection(), "HTTP status {status}");
                Ok(())
            }
        }
    }
}

fn http_target(container: &Container, get: &HTTPGetAction) -> Result<Target> {
    let scheme = if get.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let server = format!("{scheme}://{HOST}:{}", port(container, &get.port)?);
    let server = server.parse().with_context(|| format!("{server} is no address"))?;
    let headers =
        get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect();
    Ok(Target::Http { server, path: format!("{slash}{path}"), headers })
}

/// A port by number, or by its name among the container's.
fn port(container: &Container, port: &IntOrString) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().with_context(|| format!("the container has no port {name}"))?,
            }
        }
    };
    u16::try_from(number).with_context(|| format!("{number} is no port"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn prober(probe: &Value) -> Result<Prober> {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "ports": [{"name": "healthz", "containerPort": 9808}],
        }))
        .expect("a container");
        Prober::new(&container, &serde_json::from_value(probe.clone()).expect("a probe"))
    }

    #[test]
    fn answers_are_counted_in_a_row() {
        let mut counter = Counter::new(2, 3);
        let seen: Vec<_> = [true, true, true, false, false, true, false, false, false, true]
            .map(|healthy| counter.count(healthy))
            .into();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(seen, [None, yes, yes, None, None, None, None, None, no, None]);
    }

    #[test]
    fn ports_by_name_and_defaults() {
        let prober = prober(&json!({"httpGet": {"path": "healthz", "port": "healthz"}})).expect("a prober");
        assert!(matches!(&prober.target, Target::Http { server, path, .. }
            if server == "http://127.0.0.1:9808/" && path == "/healthz"));
        assert_eq!(
            (prober.period.as_secs(), prober.timeout.as_secs(), prober.counter.failure_threshold),
            (10, 1, 3)
        );
        assert!(self::prober(&json!({"httpGet": {"port": "other"}})).is_err());
        assert!(self::prober(&json!({"exec": {"command": ["true"]}})).is_err());
    }

    #[tokio::test]
    async fn the_status_decides() {
        for (status, healthy) in [("200 OK", true), ("302 Found", true), ("500 Internal Server Error", false)]
        {
            let listener = TcpListener::bind((HOST, 0)).await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a probe");
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.expect("a request");
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("answered");
                String::from_utf8_lossy(&request[..length]).into_owned()
            });
            // The answer decides, and not how soon a busy machine gives it.
            let probe = json!({
                "httpGet": {"path": "/healthz?x=1", "port": port}, "failureThreshold": 1, "timeoutSeconds": 60,
            });
            assert_eq!(prober(&probe).expect("a prober").probe().await, Some(healthy), "{status}");
            assert!(server.await.expect("served").starts_with("GET /healthz?x=1 HTTP/1.1\r\n"));
        }
    }
}
