//! Makes a booted worker a node of the tenant cluster: what kubelet needs, then kubelet itself. Whether the node becomes
//! Ready is the cluster's word, and the caller's to wait for.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::Guest;

/// From the agent's first answer to containerd with its images: 7 s when quiet.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// kubelet's files; `guest/kubelet.yaml` names the CA's path too.
const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.yaml";
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const CLUSTER_CA: &str = "/etc/kubernetes/ca.crt";

/// kubelet's log in the guest.
pub const KUBELET_LOG: &str = "/var/log/kubelet.log";

/// What makes a worker this node.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// Its name, also the guest's host name.
    pub node_name: &'a str,
    /// The address kubelet reports as `InternalIP`; the API server reaches kubelet there (logs, exec).
    pub address: Ipv4Addr,
    /// The CA of the tenant cluster: whom kubelet believes, and whose client certificates it accepts.
    pub ca_pem: &'a str,
    /// The node's credential: server, CA and client certificate inline.
    pub kubeconfig_yaml: &'a str,
    /// The cloud's name for this machine, `kubevirt://<vm name>`.
    pub provider_id: &'a str,
}

/// Waits until containerd runs and knows the images.
pub async fn wait_until_ready(guest: &Guest) -> Result<()> {
    let script = "until [ -s /run/worker/state ]; do usleep 50000; done; cat /run/worker/state";
    let state = match tokio::time::timeout(READY_LIMIT, guest.run(&["/bin/sh", "-c", script], None)).await {
        Ok(output) => output?.text(),
        Err(_) => "still booting".into(),
    };
    if state != "ready" {
        let logs =
            guest.run(&["tail", "-n", "10", "/var/log/containerd.log", "/var/log/images.log"], None).await?;
        bail!("the worker is {state} after its boot:\n{}", logs.text());
    }
    Ok(())
}

/// Joins: clock, host name, credentials, and kubelet started. Returns kubelet's process id in the guest.
pub async fn join(guest: &Guest, join: &Join<'_>) -> Result<i64> {
    wait_until_ready(guest).await?;
    guest.set_time(SystemTime::now()).await?;
    guest.check(&["hostname", join.node_name], None).await?;
    guest.write_file(CLUSTER_CA, join.ca_pem.as_bytes(), 0o644).await?;
    guest.write_file(KUBECONFIG, join.kubeconfig_yaml.as_bytes(), 0o600).await?;
    start_kubelet(guest, join).await
}

/// Starts kubelet on a worker that has joined before; the one that ran must have ended.
pub async fn start_kubelet(guest: &Guest, join: &Join<'_>) -> Result<i64> {
    let flags = [
        format!("--config={KUBELET_CONFIG}"),
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--hostname-override={}", join.node_name),
        format!("--node-ip={}", join.address),
        format!("--provider-id={}", join.provider_id),
        "--v=2".to_string(),
    ];
    let argv: Vec<&str> = ["kubelet"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    guest.spawn(&argv, KUBELET_LOG).await.context("start kubelet")
}
