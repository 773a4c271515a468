//! The HTTPS endpoint of the program, made from its flags.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use secure_serving::{
    FrontProxyRules, ReviewTimes, SecureEndpoint, SecureServingSettings, Shown, ShownTokens, Tls,
};
use serde_json::json;
use serving::{Tasks, readiness::Readiness};

use crate::{
    access::{CallMetrics, GuestCluster},
    config::CloudConfig,
    flags::{Flags, ServingFlags, names, path},
    framework_metrics::FrameworkMetrics,
    program::Clusters,
};

/// Binds the endpoint. It does not wait for what it needs of the guest cluster.
pub(crate) async fn bind(
    flags: &Flags,
    config: &CloudConfig,
    clusters: &Clusters,
    (registry, health, readiness): (Registry, &FrameworkMetrics, Readiness),
    tasks: &Tasks,
) -> Result<SecureEndpoint> {
    let ServingFlags { bind_address, secure_port, .. } = &flags.serving;
    let ip =
        bind_address.parse().with_context(|| format!("--bind-address={bind_address} is no IP address"))?;
    let serving = &flags.serving;
    let files = path(&serving.tls_cert_file).zip(path(&serving.tls_private_key_file));
    let tls = Tls {
        files,
        min_version: serving.tls_min_version.clone(),
        cipher_suites: serving.tls_cipher_suites.iter().filter(|name| !name.is_empty()).cloned().collect(),
    };
    let times = ReviewTimes {
        token: serving.authentication_token_webhook_cache_ttl,
        allowed: serving.authorization_webhook_cache_authorized_ttl,
        denied: serving.authorization_webhook_cache_unauthorized_ttl,
    };
    let (by, of) = ("--authentication-kubeconfig", &serving.authentication_kubeconfig);
    let authentication = reviewer(by, of, clusters).await?;
    // Whoever names an API server for the reviews means the clients' tokens to go there. By default they go to the guest,
    // whose users may see them, so only to the one that issued them.
    let shown_tokens = match path(of) {
        Some(_) => ShownTokens::All,
        None => ShownTokens::IssuedThere(clusters.guest.server.clone()),
    };
    let (by, of) = ("--authorization-kubeconfig", &serving.authorization_kubeconfig);
    let authorization = reviewer(by, of, clusters).await?;
    let settings = SecureServingSettings {
        address: SocketAddr::new(ip, *secure_port),
        tls,
        cluster: "guest",
        authentication,
        shown_tokens,
        authorization,
        always_allowed: serving.authorization_always_allow_paths.clone(),
        times,
        client_ca: path(&serving.client_ca_file),
        front_proxy: path(&serving.requestheader_client_ca_file).zip(Some(front_proxy_rules(serving)?)),
        lookup: !serving.authentication_skip_lookup,
        tolerate_lookup_failure: serving.authentication_tolerate_lookup_failure,
    };
    let config = json!({ "kubevirt-cloud-controller-manager": {
        "clusterName": flags.cluster_name.as_str(),
        "infraNamespace": clusters.infra.namespace,
        "infraLabels": config.infra_labels,
        "loadBalancer": {
            "enabled": config.load_balancer.enabled,
            "selectorless": config.load_balancer.selectorless,
            "enableEPSController": config.load_balancer.endpoint_slices,
            "endpoints": format!("{:?}", config.load_balancer.endpoints),
        },
    } });
    let health = health.clone();
    let health_checked = Box::new(move |kind, passed| health.answered(kind, passed));
    let shown = Shown { registry, config, readiness, health_checked };
    Ok(SecureEndpoint::bind(settings, shown, tasks).await?)
}

async fn reviewer(setting: &'static str, kubeconfig: &str, clusters: &Clusters) -> Result<kube::Client> {
    match path(kubeconfig) {
        None => Ok(clusters.guest.client.clone()),
        file => Ok(GuestCluster::open(setting, file, "", CallMetrics::default()).await?.client),
    }
}

fn front_proxy_rules(serving: &ServingFlags) -> Result<FrontProxyRules> {
    Ok(FrontProxyRules {
        allowed_names: names(&serving.requestheader_allowed_names)
            .context("--requestheader-allowed-names")?,
        username_headers: names(&serving.requestheader_username_headers)
            .context("--requestheader-username-headers")?,
        uid_headers: names(&serving.requestheader_uid_headers).context("--requestheader-uid-headers")?,
        group_headers: names(&serving.requestheader_group_headers)
            .context("--requestheader-group-headers")?,
        extra_headers_prefixes: names(&serving.requestheader_extra_headers_prefix)
            .context("--requestheader-extra-headers-prefix")?,
    })
}
