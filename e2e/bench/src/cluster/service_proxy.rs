//! kube-proxy of the infra cluster, for the one node whose network is the sandbox's own: it forwards
//! traffic for a load balancer's address or a node port there to the VMs behind it.

use anyhow::{Context, Result};
use kube::{Client, Config};
use serde_json::json;

use super::{
    ApiServer,
    wait::{self, BOOT_DEADLINE, Poll},
};
use crate::{
    artifact::Programs,
    sandbox::network,
    supervise::{Process, ProcessSpec, Supervisor},
};

/// The program, and the user to which the default RBAC roles give its rights.
const PROGRAM: &str = "kube-proxy";
const USER: &str = "system:kube-proxy";

/// On loopback: health, and metrics.
const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

/// Starts it as the infra node `node`. It serves once that Node has an `InternalIP`, for which it waits silently.
pub fn start(supervisor: &Supervisor, programs: &Programs, infra: &ApiServer, node: &str) -> Result<Process> {
    let kubeconfig = infra.write("kube-proxy.kubeconfig", &infra.user_kubeconfig(USER, &[])?)?;
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": kubeconfig},
        // To infra a VM is a pod: the workers' network is a part of the pods'.
        "clusterCIDR": format!("{}/{},{}/{}", network::TENANT_API, network::PREFIX_LENGTH,
            network::second(network::TENANT_API), network::SECOND_PREFIX_LENGTH),
        "nodePortAddresses": [format!("{}/32", network::INFRA_API)],
        "healthzBindAddress": HEALTH,
        "metricsBindAddress": METRICS,
        // Zero leaves the kernel's own limits as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    let configuration = infra.write("kube-proxy.yaml", &configuration.to_string())?;
    let spec = ProcessSpec {
        name: format!("{}-{PROGRAM}", infra.name),
        program: programs.path(PROGRAM)?.to_owned(),
        args: vec![format!("--config={}", configuration.display())],
        ..ProcessSpec::default()
    };
    supervisor.start(&spec).context("start the infra cluster's kube-proxy")
}

/// Waits until it has written its first rules.
pub async fn serving(proxy: &Process) -> Result<()> {
    let server = format!("http://{HEALTH}").parse().context("the address of kube-proxy's health")?;
    let client = Client::try_from(Config::new(server))?;
    let healthy = wait::until("the infra cluster's kube-proxy to be healthy", BOOT_DEADLINE, || async {
        let request = http::Request::get("/healthz").body(Vec::new()).context("make a request")?;
        Ok(match client.request_text(request).await {
            Ok(_) => Poll::Ready(()),
            Err(error) => Poll::NotYet(error.to_string()),
        })
    });
    wait::alive(proxy, healthy).await
}
