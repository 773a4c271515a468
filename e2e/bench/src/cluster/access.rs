//! The handle to one cluster's API server: clients and kubeconfigs for any user.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    discovery::Scope,
};
use tokio::sync::Mutex;

use super::{
    kubeconfig::{Credentials, Entry, render},
    pki::{Authority, Identity, write_private},
};

/// The bench's administrator; appears in audit logs.
pub const ADMIN: &str = "admin";

/// How long the token in a service account's kubeconfig lives: longer than any run of the bench.
const TOKEN_LIFETIME_SECONDS: i64 = 24 * 60 * 60;

/// The namespace in kubeconfigs that are given none.
const DEFAULT_NAMESPACE: &str = "default";

/// Kinds already looked up: apiVersion and kind to resource and scope.
pub(super) type Kinds = HashMap<(String, String), (ApiResource, Scope)>;

/// One running cluster's API server. Clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    /// `infra`, `tenant`, or that of a test.
    pub name: &'static str,
    /// `https://address:port`, the same for the sandbox's processes and, for the guest's, the worker VMs.
    pub url: String,
    /// The CA of every certificate in this cluster, PEM.
    pub ca_pem: String,
    /// The administrator's client.
    pub client: Client,
    /// The administrator's kubeconfig file, one context named as the cluster.
    pub admin_kubeconfig: PathBuf,
    /// The audit log; `audit` reads it.
    pub audit_log: PathBuf,
    inner: Arc<Inner>,
}

struct Inner {
    authority: Authority,
    admin: Identity,
    folder: PathBuf,
    config: Config,
    kinds: Mutex<Kinds>,
}

impl ApiServer {
    /// The handle to the server at `url` whose certificates `authority` signs; `folder` takes kubeconfig files.
    pub(super) async fn new(
        name: &'static str,
        url: String,
        authority: Authority,
        folder: PathBuf,
        audit_log: PathBuf,
    ) -> Result<Self> {
        let admin = authority.user(ADMIN, &["system:masters"])?;
        let ca_pem = authority.pem().to_owned();
        let entry = Entry {
            name,
            server: &url,
            ca_pem: &ca_pem,
            credentials: Credentials::Certificate(&admin),
            namespace: DEFAULT_NAMESPACE,
        };
        let text = render(&[entry])?;
        let admin_kubeconfig = folder.join("admin.kubeconfig");
        write_private(&admin_kubeconfig, &text)?;
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("read the {name} administrator's kubeconfig"))?;
        let client = Client::try_from(config.clone()).context("make the administrator's client")?;
        let inner = Arc::new(Inner { authority, admin, folder, config, kinds: Mutex::default() });
        Ok(Self { name, url, ca_pem, client, admin_kubeconfig, audit_log, inner })
    }

    /// A kubeconfig for `user` in `groups` (one at most), by client certificate; everything inline.
    pub fn user_kubeconfig(&self, user: &str, groups: &[&str]) -> Result<String> {
        let identity = self.inner.authority.user(user, groups)?;
        self.kubeconfig(Credentials::Certificate(&identity), DEFAULT_NAMESPACE)
    }

    /// A token of the service account by the `TokenRequest` API; no audience means the API server itself. The server
    /// refuses a `lifetime` below 10 minutes.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        audiences: &[&str],
        lifetime_seconds: i64,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences.iter().map(|audience| (*audience).to_owned()).collect()),
                expiration_seconds: Some(lifetime_seconds),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("ask the {} cluster for a token of {namespace}/{name}", self.name))?;
        answer
            .status
            .and_then(|status| status.token)
            .context("the token request was answered without a token")
    }

    /// A kubeconfig for the service account, by token; everything inline, its namespace the default one.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<String> {
        let token = self.service_account_token(namespace, name, &[], TOKEN_LIFETIME_SECONDS).await?;
        self.kubeconfig(Credentials::Token(&token), namespace)
    }

    /// A client that acts as `user` of `groups` with `extra` attributes, by impersonation; the audit log shows both.
    pub fn impersonating(&self, user: &str, groups: &[&str], extra: &[(&str, &str)]) -> Result<Client> {
        let mut config = self.inner.config.clone();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|group| (*group).to_owned()).collect());
        let mut attributes: HashMap<String, Vec<String>> = HashMap::new();
        for (name, value) in extra {
            attributes.entry((*name).to_owned()).or_default().push((*value).to_owned());
        }
        config.auth_info.impersonate_user_extra = Some(attributes);
        Client::try_from(config).with_context(|| format!("make a client that impersonates {user}"))
    }

    /// The administrator's context, for a kubeconfig of several clusters.
    pub(super) fn admin_entry<'a>(&'a self, namespace: &'a str) -> Entry<'a> {
        self.entry(Credentials::Certificate(&self.inner.admin), namespace)
    }

    /// The cluster's certificate authority.
    pub(super) fn authority(&self) -> &Authority {
        &self.inner.authority
    }

    /// The folder, on the sandbox's tmpfs, of the cluster's keys and kubeconfigs.
    pub(super) fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// The kinds that [`Self::apply`] has looked up.
    pub(super) fn kinds(&self) -> &Mutex<Kinds> {
        &self.inner.kinds
    }

    /// Writes a file that only the owner can read into the cluster's folder.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        write_private(&path, text)?;
        Ok(path)
    }

    /// Writes the service account's kubeconfig as `<name>.kubeconfig` for a process of the bench.
    pub(super) async fn write_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let text = self.service_account_kubeconfig(namespace, name).await?;
        self.write(&format!("{name}.kubeconfig"), &text)
    }

    fn kubeconfig(&self, credentials: Credentials<'_>, namespace: &str) -> Result<String> {
        render(&[self.entry(credentials, namespace)])
    }

    fn entry<'a>(&'a self, credentials: Credentials<'a>, namespace: &'a str) -> Entry<'a> {
        Entry { name: self.name, server: &self.url, ca_pem: &self.ca_pem, credentials, namespace }
    }
}

impl std::fmt::Debug for ApiServer {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}
