//! Makes a booted worker a node of the guest cluster: what kubelet and kube-proxy need, then both themselves, and beside
//! them the driver's image. The caller waits until the cluster reports the node as Ready.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::{guest::Guest, machine_spec::DRIVER_DISK};
use crate::sandbox::network::{both, second};

/// From the agent's first answer to containerd with its images: 7 s when quiet.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// kubelet's files; `guest/kubelet.yaml` names the CA's path too.
const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.yaml";
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const CLUSTER_CA: &str = "/etc/kubernetes/ca.crt";

/// kube-proxy's files; its configuration names the kubeconfig.
const PROXY_CONFIG: &str = "/etc/kubernetes/kube-proxy.yaml";
const PROXY_KUBECONFIG: &str = "/etc/kubernetes/kube-proxy.conf";

/// kubelet's log in the guest.
pub const KUBELET_LOG: &str = "/var/log/kubelet.log";

/// kube-proxy's log in the guest.
const PROXY_LOG: &str = "/var/log/kube-proxy.log";

/// What makes a worker this node.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// Its name, also the guest's host name.
    pub node_name: &'a str,
    /// The address kubelet reports as `InternalIP`, with that of the second family; the API server reaches kubelet there (logs,
    /// exec).
    pub address: Ipv4Addr,
    /// The CA of the guest cluster, which kubelet trusts; kubelet accepts client certificates that it signed.
    pub ca_pem: &'a str,
    /// The node's credential: server, CA and client certificate inline.
    pub kubeconfig_yaml: &'a str,
    /// kube-proxy's credential, in the same form.
    pub proxy_kubeconfig_yaml: &'a str,
    /// The cloud's name for this machine, `kubevirt://<vm name>`.
    pub provider_id: &'a str,
    /// The networks of its pods, one of each family.
    pub pods: &'a [String; 2],
    /// The pods' networks of other workers, and the worker through which each is reached.
    pub other_pods: &'a [(String, IpAddr)],
    /// The infra node on which it runs: its way to whatever is not in its own network.
    pub gateway: Ipv4Addr,
}

/// Waits until containerd runs and knows the images.
pub async fn wait_until_ready(guest: &Guest) -> Result<()> {
    let script = "until [ -s /run/worker/state ]; do usleep 50000; done; cat /run/worker/state";
    let state = match tokio::time::timeout(READY_LIMIT, guest.run(&["/bin/sh", "-c", script], None)).await {
        Ok(output) => output?.text(),
        Err(_) => "still booting".into(),
    };
    if state != "ready" {
        let files = ["containerd", "images", "pods"].map(|name| format!("/var/log/{name}.log"));
        let logs = guest.run(&["tail", "-n", "10", &files[0], &files[1], &files[2]], None).await?;
        bail!("the worker is {state} after its boot:\n{}", logs.text());
    }
    Ok(())
}

/// Joins: clock, host name, credentials, kubelet and kube-proxy started, the driver's image imported. Returns kubelet's process
/// id in the guest.
pub async fn join(guest: &Guest, join: &Join<'_>) -> Result<i64> {
    wait_until_ready(guest).await?;
    guest.set_time(SystemTime::now()).await?;
    guest.check(&["hostname", join.node_name], None).await?;
    guest.write_file(CLUSTER_CA, join.ca_pem.as_bytes(), 0o644).await?;
    guest.write_file(KUBECONFIG, join.kubeconfig_yaml.as_bytes(), 0o600).await?;
    guest.write_file(PROXY_KUBECONFIG, join.proxy_kubeconfig_yaml.as_bytes(), 0o600).await?;
    connect_pods(guest, join).await?;
    // kubelet is not ready for pods before the import is over, as a rule; if it is, it tries to find the image again later.
    let (kubelet, ()) = tokio::try_join!(start_kubelet(guest, join), import_driver(guest))?;
    start_proxy(guest, join).await?;
    Ok(kubelet)
}

/// Gives the worker's pods their network, and the ways out of it: what a network plugin and DHCP do in a real cluster.
async fn connect_pods(guest: &Guest, join: &Join<'_>) -> Result<()> {
    let script = r#"
        set -e
        sed "s#@PODS@#$1#; s#@SECOND_PODS@#$2#" /usr/share/worker/pods.conflist >/etc/cni/net.d/10-pods.conflist
        ip route replace default via "$3"
        ip -6 route replace default via "$4"
        shift 4
        while [ $# -gt 0 ]; do ip route replace "$1" via "$2"; shift 2; done"#;
    let gateways = both(join.gateway).map(|gateway| gateway.to_string());
    let others: Vec<(&str, String)> =
        join.other_pods.iter().map(|(pods, worker)| (pods.as_str(), worker.to_string())).collect();
    let others = others.iter().flat_map(|(pods, worker)| [*pods, worker.as_str()]);
    let own = join.pods.iter().chain(&gateways).map(String::as_str);
    let argv: Vec<&str> = ["/bin/sh", "-c", script, "sh"].into_iter().chain(own).chain(others).collect();
    guest.check(&argv, None).await.context("connect the worker's pods")?;
    Ok(())
}

/// Gives containerd the driver's image: the layer that it has from the boot on is not read again.
async fn import_driver(guest: &Guest) -> Result<()> {
    let script = r#"
        tries=0
        until [ -b "$1" ]; do [ $((tries += 1)) -le 1500 ] || exit 4; usleep 20000; done
        exec ctr -n k8s.io images import --local --snapshotter overlayfs "$1""#;
    guest
        .check(&["/bin/sh", "-c", script, "sh", DRIVER_DISK], None)
        .await
        .context("import the driver's image")?;
    Ok(())
}

/// Starts kube-proxy, without which no `ClusterIP` works, not even the API server's in pods.
async fn start_proxy(guest: &Guest, join: &Join<'_>) -> Result<()> {
    let flags = [format!("--config={PROXY_CONFIG}"), format!("--hostname-override={}", join.node_name)];
    let argv = ["kube-proxy", &flags[0], &flags[1]];
    guest.spawn(&argv, PROXY_LOG).await.context("start kube-proxy")?;
    Ok(())
}

/// Starts kubelet on a worker that has joined before; the one that ran must have ended.
pub async fn start_kubelet(guest: &Guest, join: &Join<'_>) -> Result<i64> {
    let flags = [
        format!("--config={KUBELET_CONFIG}"),
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--hostname-override={}", join.node_name),
        format!("--node-ip={},{}", join.address, second(join.address)),
        format!("--provider-id={}", join.provider_id),
        // cAdvisor reads every control group each 10 seconds otherwise; nothing here reads its figures.
        "--housekeeping-interval=1m".to_string(),
        "--v=2".to_string(),
    ];
    // Collecting garbage less often is worth more than the memory.
    let argv: Vec<&str> =
        ["env", "GOGC=200", "kubelet"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    guest.spawn(&argv, KUBELET_LOG).await.context("start kubelet")
}
