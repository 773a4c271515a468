//! Which users may read the metrics of a provider: the real guest API server decides, and publishes the trusted authorities.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bench::cluster::pki::Authority;
use bench::paths::RUNTIME;
use bench::scenario::{Deadline, until};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, Provider},
};

tests! {
    Services:
        the_guest_says_who_reads_the_metrics;
}

/// The paths that are free.
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];
const METRICS: &str = "/metrics";
/// Parts of samples: the queues of the service controller, of its part for changes of Nodes, and of the Node controllers; and what
/// follows from one Service with an address and a refused wish, whose endpoints are ours and none of which is there.
const SAMPLES: [&[&str]; 9] = [
    &["workqueue_adds_total{name=\"service\"}"],
    &["workqueue_adds_total{name=\"node\"}"],
    &["workqueue_adds_total{name=\"Nodes\"}"],
    &["kubevirt_ccm_time_to_address_seconds_count 1"],
    &["kubevirt_ccm_services_without_address 0"],
    &["kubevirt_ccm_endpoint_services{state=\"unready\"} 1"],
    &["kubevirt_ccm_endpoints{state=\"ready\"} 0"],
    &["kubevirt_ccm_refused_total{reason=", "} 1"],
    &[
        "kubevirt_ccm_requests_total{",
        "cluster=\"infra\"",
        "verb=\"create\"",
        "resource=\"services\"",
        "code=\"201\"",
        "} 1",
    ],
];
/// Where the guest's API server has its keys, and the ConfigMap in which it publishes the authorities.
const GUEST: &str = "tenant";
const PUBLISHED: &str = "extension-apiserver-authentication";
const PUBLISHED_IN: &str = "kube-system";
/// The binding of `deploy/cloud-controller-manager/tenant/base` with which a provider may read that ConfigMap.
const BINDING: &str = "kubevirt-cloud-controller-manager:extension-apiserver-authentication-reader";
/// The provider's user in the guest.
const ACCOUNT: &str = "system:serviceaccount:kube-system:cloud-controller-manager";

const OK: u16 = 200;
const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;

/// A provider's endpoint.
struct Endpoint {
    port: u16,
    provider: Provider,
}

impl Endpoint {
    async fn start(place: &Place, suffix: &str) -> Result<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let port = format!("--secure-port={free}");
        let more = [ALONE, "--authentication-skip-lookup=false", "--bind-address=127.0.0.1", &port];
        let endpoint = Self {
            port: free,
            provider: place
                .configured(suffix, CLUSTER, &json!({"loadBalancer": {"endpoints": "Managed"}}), &more)
                .await?,
        };
        until("the endpoint to answer", Deadline::Reaction, async || {
            Ok(match endpoint.get(&HEALTH[0].into(), &json!({})).await {
                Ok(OK) => Ok(()),
                answer => Err(format!("{answer:?}")),
            })
        })
        .await?;
        Ok(endpoint)
    }

    /// The status code for this user of a kubeconfig.
    async fn get(&self, asked: &Question<'_>, user: &Value) -> Result<u16> {
        Ok(self.answer(asked, user).await?.status().as_u16())
    }

    async fn answer(&self, asked: &Question<'_>, user: &Value) -> Result<http::Response<Body>> {
        let kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "clusters": [{"name": "ccm", "cluster":
                {"server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "ccm", "context": {"cluster": "ccm", "user": "user"}}],
            "current-context": "ccm",
        }))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let mut request = http::Request::get(asked.path);
        for (name, value) in asked.headers {
            request = request.header(*name, *value);
        }
        Ok(Client::try_from(config)?.send(request.body(Body::empty())?).await?)
    }

    async fn answers(&self, who: &str, user: &Value, headers: &[(&str, &str)], wanted: u16) -> Result<()> {
        let found = self.get(&Question { path: METRICS, headers }, user).await?;
        ensure!(found == wanted, "expected {wanted} for {who}, saw {found}");
        Ok(())
    }

    /// Waits for an answer: the provider follows the published authorities independently of requests.
    async fn comes_to_answer(&self, who: &str, user: &Value, wanted: u16) -> Result<()> {
        until(&format!("{who} to be answered {wanted}"), Deadline::Reaction, async || {
            let found = self.get(&METRICS.into(), user).await?;
            Ok(if found == wanted { Ok(()) } else { Err(found.to_string()) })
        })
        .await
    }
}

/// What is asked for.
struct Question<'a> {
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl<'a> From<&'a str> for Question<'a> {
    fn from(path: &'a str) -> Self {
        Self { path, headers: &[] }
    }
}

/// Tokens, certificates of the cluster's authority and of another, a front proxy; and an authority that is published later.
async fn the_guest_says_who_reads_the_metrics(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    place.grant(&fixture, "endpoints").await?;
    place.create("web", json!({"externalIPs": ["198.51.100.9"]})).await?;
    let reader = account(&fixture, &place.namespace, "reader", true).await?;
    let other = account(&fixture, &place.namespace, "other", false).await?;
    let endpoint = Endpoint::start(&place, "a").await?;
    endpoint.answers("nobody", &json!({}), &[], FORBIDDEN).await?;
    endpoint.comes_to_answer("an account with the right", &reader, OK).await?;
    counted(&endpoint, &reader).await?;
    endpoint.answers("an account without it", &other, &[], FORBIDDEN).await?;
    endpoint.answers("a token of nobody", &json!({"token": "x"}), &[], UNAUTHORIZED).await?;
    // The bench's clusters have one issuer, as kubeadm's have, and different keys.
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.infra.clone(), "default");
    let token = token(&accounts, "default").await?;
    endpoint.answers("a token of the infra cluster", &token, &[], UNAUTHORIZED).await?;
    let log = endpoint.provider.process.log_tail(usize::MAX);
    ensure!(
        log.contains("its token not shown to the guest cluster"),
        "expected a line about the token, saw {log}"
    );

    // In the group system:masters.
    let master = of_guest("kubelet-client");
    endpoint.comes_to_answer("a certificate of the cluster", &master, OK).await?;
    let stranger = Authority::new("tenant-ca")?;
    let forged = written(&stranger, &fixture, "admin", &["system:masters"])?;
    endpoint.answers("a self-made certificate", &forged, &[], UNAUTHORIZED).await?;
    let mut both = forged.clone();
    both["token"] = reader["token"].clone();
    endpoint.answers("a self-made certificate beside a token", &both, &[], OK).await?;

    let proxy = of_guest("front-proxy");
    let name = format!("system:serviceaccount:{}:reader", place.namespace);
    let (names_reader, names_other) = ([("X-Remote-User", name.as_str())], [("X-Remote-User", "other")]);
    let names_master = [("X-Remote-User", "other"), ("X-Remote-Group", "system:masters")];
    endpoint.answers("a front proxy for itself", &proxy, &[], FORBIDDEN).await?;
    endpoint.answers("a front proxy for a reader", &proxy, &names_reader, OK).await?;
    endpoint.answers("a front proxy for another", &proxy, &names_other, FORBIDDEN).await?;
    endpoint.answers("a front proxy for a group", &proxy, &names_master, OK).await?;
    endpoint.answers("who is no front proxy", &master, &names_other, OK).await?;
    endpoint.answers("nobody with headers", &json!({}), &names_master, FORBIDDEN).await?;
    endpoint.answers("a token with headers", &other, &names_master, FORBIDDEN).await?;
    endpoint.answers("a self-made one with headers", &forged, &names_master, UNAUTHORIZED).await?;
    for path in HEALTH {
        for user in [&json!({}), &forged, &json!({"token": "x"})] {
            let found = endpoint.get(&path.into(), user).await?;
            ensure!(found == OK, "expected 200 from {path}, saw {found}");
        }
    }

    let maps: Api<ConfigMap> = Api::namespaced(fixture.guest.clone(), PUBLISHED_IN);
    let before = maps.get(PUBLISHED).await?.data.context("expected published authorities, saw none")?;
    publish(&maps, &(before["client-ca-file"].clone() + stranger.pem())).await?;
    endpoint.comes_to_answer("a certificate of an authority published by now", &forged, OK).await?;
    publish(&maps, &before["client-ca-file"]).await?;
    endpoint
        .comes_to_answer("a certificate of an authority published no more", &forged, UNAUTHORIZED)
        .await?;
    without_the_right(&fixture, &place, &master, &reader).await
}

/// The queues that dashboards for kubevirt/cloud-provider-kubevirt show are counted, and the result of the one Service.
async fn counted(endpoint: &Endpoint, reader: &Value) -> Result<()> {
    until("all expected samples in the metrics", Deadline::Reaction, async || {
        let body = endpoint.answer(&METRICS.into(), reader).await?.into_body().collect_bytes().await?;
        let text = String::from_utf8(body.to_vec())?;
        let is_missing =
            |sample: &&[&str]| !text.lines().any(|line| sample.iter().all(|part| line.contains(part)));
        let missing: Vec<_> = SAMPLES.iter().copied().filter(is_missing).collect();
        Ok(if missing.is_empty() { Ok(()) } else { Err(format!("without {missing:?}")) })
    })
    .await
}

/// A provider that may not read the published authorities trusts no certificate, logs so once, and does all the rest.
async fn without_the_right(
    fixture: &Fixture,
    place: &Place,
    certificate: &Value,
    token: &Value,
) -> Result<()> {
    let bindings: Api<RoleBinding> = Api::namespaced(fixture.guest.clone(), PUBLISHED_IN);
    bindings.delete(BINDING, &DeleteParams::default()).await?;
    let reviews: Api<SubjectAccessReview> = Api::all(fixture.guest.clone());
    let review = serde_json::from_value(json!({"spec": {"user": ACCOUNT, "resourceAttributes":
        {"namespace": PUBLISHED_IN, "resource": "configmaps", "name": PUBLISHED, "verb": "list"}}}))?;
    until("the right to be gone", Deadline::Reaction, async || {
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let allowed = status.is_some_and(|status| status.allowed);
        Ok(if allowed { Err("still allowed".to_owned()) } else { Ok(()) })
    })
    .await?;
    let endpoint = Endpoint::start(place, "b").await?;
    let said = || {
        let log = endpoint.provider.process.log_tail(usize::MAX);
        log.lines().filter(|line| line.contains("can't use the guest cluster's ConfigMap")).count()
    };
    until("the missing right to be logged", Deadline::Reaction, async || {
        Ok(if said() == 0 { Err("no line in the log".to_owned()) } else { Ok(()) })
    })
    .await?;
    endpoint.answers("a certificate without the right", certificate, &[], FORBIDDEN).await?;
    endpoint.answers("a token without the right", token, &[], OK).await?;
    place.create("late", json!({})).await?;
    place.served("late").await?;
    ensure!(said() == 1, "expected the missing right to be logged once, saw {} times", said());
    place.grant(fixture, "base").await
}

/// A certificate of the guest's API server.
fn of_guest(name: &str) -> Value {
    let file = |kind: &str| Path::new(RUNTIME).join(GUEST).join(format!("{name}.{kind}"));
    json!({"client-certificate": file("crt"), "client-key": file("key")})
}

/// A certificate of another authority.
fn written(authority: &Authority, fixture: &Fixture, user: &str, groups: &[&str]) -> Result<Value> {
    let name = format!("{}-{user}", fixture.word);
    authority.user(user, groups)?.write(Path::new(RUNTIME), &name)?;
    let file = |kind: &str| PathBuf::from(RUNTIME).join(format!("{name}.{kind}"));
    Ok(json!({"client-certificate": file("crt"), "client-key": file("key")}))
}

async fn publish(maps: &Api<ConfigMap>, authorities: &str) -> Result<()> {
    let change = Patch::Merge(json!({"data": {"client-ca-file": authorities}}));
    maps.patch(PUBLISHED, &PatchParams::default(), &change).await?;
    Ok(())
}

/// A token of a new account, which may read the metrics or not.
async fn account(fixture: &Fixture, namespace: &str, name: &str, may: bool) -> Result<Value> {
    let params = PostParams::default();
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.guest.clone(), namespace);
    accounts.create(&params, &serde_json::from_value(json!({"metadata": {"name": name}}))?).await?;
    if may {
        let role = json!({"metadata": {"name": namespace},
            "rules": [{"nonResourceURLs": [METRICS], "verbs": ["get"]}]});
        let roles: Api<ClusterRole> = Api::all(fixture.guest.clone());
        roles.create(&params, &serde_json::from_value(role)?).await?;
        let binding = json!({"metadata": {"name": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]});
        let bindings: Api<ClusterRoleBinding> = Api::all(fixture.guest.clone());
        bindings.create(&params, &serde_json::from_value(binding)?).await?;
    }
    token(&accounts, name).await
}

async fn token(accounts: &Api<ServiceAccount>, name: &str) -> Result<Value> {
    let answer =
        accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await?;
    let token = answer.status.map(|status| status.token).context("no token in the answer")?;
    Ok(json!({ "token": token }))
}
