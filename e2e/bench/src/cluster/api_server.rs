//! Starts a kube-apiserver: keys, flags, readiness. How its clients use it is `access.rs`.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use kube::Client;

use super::{
    ApiServer,
    pki::{Authority, TokenKeys, write_private},
    wait::{self, BOOT_DEADLINE, Poll},
};
use crate::{
    artifact::Programs,
    paths::RUNTIME,
    supervise::{ProcessSpec, Supervisor},
};

/// The audit policy of both API servers.
const AUDIT_POLICY: &str = include_str!("audit-policy.yaml");

/// The common name by which an aggregated API knows the API server that forwards to it.
const FRONT_PROXY: &str = "front-proxy-client";

/// What differs between the API servers of the clusters.
#[derive(Clone, Copy, Debug)]
pub struct ApiServerSpec {
    /// The cluster's name: `infra` or `tenant`; also its prefix in etcd.
    pub name: &'static str,
    /// The only address that it listens on: what can't reach this address can't reach the cluster.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// Ranges of cluster addresses of Services, one of each family; a Service that does not choose has one of the first.
    pub service_ranges: &'static str,
    /// First address of `service_ranges`: the Service `kubernetes`.
    pub service_address: Ipv4Addr,
    /// `GOGC` and `GOMEMLIMIT`. A guard against growth without end, well above what is needed: the infra server takes some
    /// 1.2 GiB under load, and with a limit of 600 MiB its garbage collector took three quarters of a core.
    pub memory: [(&'static str, &'static str); 2],
    /// Where its etcd is.
    pub etcd: &'static str,
    /// Flags that the other servers do not have.
    pub more: &'static [&'static str],
}

/// Starts the server and waits until it is ready.
pub async fn start(supervisor: &Supervisor, programs: &Programs, spec: &ApiServerSpec) -> Result<ApiServer> {
    let folder = Path::new(RUNTIME).join(spec.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let authority = Authority::new(&format!("{}-ca", spec.name))?;
    write_keys(&authority, spec, &folder)?;
    let audit_log = supervisor.logs().join(format!("{}-audit.log", spec.name));
    let process = supervisor.start(&ProcessSpec {
        name: format!("{}-kube-apiserver", spec.name),
        program: programs.path("kube-apiserver")?.to_owned(),
        args: args(spec, &folder, &audit_log),
        env: spec.memory.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..ProcessSpec::default()
    })?;

    let url = format!("https://{}:{}", spec.address, spec.port);
    let api = ApiServer::new(spec.name, url, authority, folder, audit_log).await?;
    wait::alive(&process, ready(&api.client, spec.name)).await?;
    Ok(api)
}

async fn ready(client: &Client, name: &str) -> Result<()> {
    let what = format!("the {name} API server to be ready");
    wait::until(&what, BOOT_DEADLINE, || async {
        let request = http::Request::get("/readyz").body(Vec::new()).context("make a request")?;
        Ok(match client.request_text(request).await {
            Ok(_) => Poll::Ready(()),
            Err(error) => Poll::NotYet(error.to_string()),
        })
    })
    .await
}

/// Writes what the flags below name into `folder`.
fn write_keys(authority: &Authority, spec: &ApiServerSpec, folder: &Path) -> Result<()> {
    let names = [
        spec.address.to_string(),
        spec.service_address.to_string(),
        "kubernetes.default.svc".to_owned(),
        "localhost".to_owned(),
        Ipv4Addr::LOCALHOST.to_string(),
    ];
    write_private(&folder.join("ca.crt"), authority.pem())?;
    authority.server("kube-apiserver", &names)?.write(folder, "server")?;
    authority.user(FRONT_PROXY, &[])?.write(folder, "front-proxy")?;
    authority.user("kube-apiserver-kubelet-client", &["system:masters"])?.write(folder, "kubelet-client")?;
    let tokens = TokenKeys::new()?;
    write_private(&folder.join("sa.key"), &tokens.private)?;
    write_private(&folder.join("sa.pub"), &tokens.public)?;
    write_private(&folder.join("audit-policy.yaml"), AUDIT_POLICY)
}

fn args(spec: &ApiServerSpec, folder: &Path, audit_log: &Path) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let flags: [(&str, String); 29] = [
        ("etcd-servers", spec.etcd.to_owned()),
        ("etcd-prefix", format!("/{}", spec.name)),
        ("bind-address", spec.address.to_string()),
        ("secure-port", spec.port.to_string()),
        ("tls-cert-file", file("server.crt")),
        ("tls-private-key-file", file("server.key")),
        ("client-ca-file", file("ca.crt")),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("service-cluster-ip-range", spec.service_ranges.to_owned()),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("service-account-key-file", file("sa.pub")),
        ("service-account-signing-key-file", file("sa.key")),
        ("kubelet-client-certificate", file("kubelet-client.crt")),
        ("kubelet-client-key", file("kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        // Aggregated APIs and webhooks are reached at the addresses of their EndpointSlices: no kube-proxy is here to
        // make a ClusterIP work.
        ("enable-aggregator-routing", "true".to_owned()),
        ("proxy-client-cert-file", file("front-proxy.crt")),
        ("proxy-client-key-file", file("front-proxy.key")),
        ("requestheader-client-ca-file", file("ca.crt")),
        ("requestheader-allowed-names", FRONT_PROXY.to_owned()),
        ("requestheader-username-headers", "X-Remote-User".to_owned()),
        ("requestheader-group-headers", "X-Remote-Group".to_owned()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
        ("audit-policy-file", file("audit-policy.yaml")),
        ("audit-log-path", audit_log.display().to_string()),
        // A line is in the file before the next request of the same client can be: tests count by it.
        ("audit-log-mode", "blocking".to_owned()),
        ("profiling", "false".to_owned()),
    ];
    let flags = flags.into_iter().map(|(flag, value)| format!("--{flag}={value}"));
    flags.chain(spec.more.iter().map(|&flag| flag.to_owned())).collect()
}
