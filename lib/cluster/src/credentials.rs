//! Where the credentials of a cluster come from: a kubeconfig with the files that it names, or the pod's service
//! account.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kube::{
    Client, Config,
    config::{AuthInfo, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use secrecy::ExposeSecret;

use crate::{
    client::client,
    files::{Contents, FromFiles},
    proxy::{ProxyError, Variables},
    token_issuer::TokenIssuer,
};

/// Where kubelet mounts the files of the pod's service account that credentials are made of (Kubernetes, "Accessing the
/// API from within a Pod").
const SERVICE_ACCOUNT_FILES: [&str; 2] = [
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
];

/// Where the credentials of a cluster are.
#[derive(Clone, Debug)]
pub struct Source {
    /// `infra` or `guest`: for error texts and metrics.
    pub cluster: &'static str,
    /// The setting by which an installer names the kubeconfig: for error texts.
    pub setting: &'static str,
    /// The kubeconfig; `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address, if it is not that of the credentials; else empty.
    pub address: String,
}

/// Why a cluster can't be reached with what was given. Nothing was called.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The kubeconfig is wrong.
    #[error("the {cluster} cluster's kubeconfig {} can't be used; check {setting}", .path.display())]
    Kubeconfig {
        /// Which cluster.
        cluster: &'static str,
        /// What names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The kubeconfig is no YAML, or not the YAML of a kubeconfig. The parser's own text quotes the file, which holds
    /// tokens and keys.
    #[error(
        "the {cluster} cluster's kubeconfig {} is not one: an error {place}; check {setting}", .path.display()
    )]
    Parse {
        /// Which cluster.
        cluster: &'static str,
        /// What names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Line and column, if they are known.
        place: String,
    },
    /// A file can't be read.
    #[error("{} of the {cluster} cluster's credentials can't be read; check {setting}", .path.display())]
    Read {
        /// Which cluster.
        cluster: &'static str,
        /// What names the file, or the kubeconfig that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No kubeconfig was given and there is no service account.
    #[error(
        "no kubeconfig for the {cluster} cluster and no service account in this pod; set {setting} or run in a pod of that cluster"
    )]
    InCluster {
        /// Which cluster.
        cluster: &'static str,
        /// What would name a kubeconfig.
        setting: &'static str,
        /// Why.
        #[source]
        source: Box<InClusterError>,
    },
    /// The address is not a URL.
    #[error("{address:?} is not the address of an API server")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// The proxy can't be used.
    #[error("the {cluster} cluster can't be reached through a proxy")]
    Proxy {
        /// Which cluster.
        cluster: &'static str,
        /// Why.
        #[source]
        source: ProxyError,
    },
    /// No client can be made.
    #[error("the {cluster} cluster's credentials don't make a client; check {setting}")]
    Client {
        /// Which cluster.
        cluster: &'static str,
        /// What names them.
        setting: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The files of a source.
pub(crate) struct CredentialFiles(pub Source);

/// What was read from the credentials.
pub(crate) struct Loaded {
    pub client: Client,
    /// The namespace that they name.
    pub namespace: String,
    /// Host and port of the API server.
    pub host: Arc<str>,
    /// The issuer of their token, if they have one.
    pub token_issuer: Option<TokenIssuer>,
}

impl FromFiles for CredentialFiles {
    type Value = Loaded;
    type Error = CredentialsError;

    async fn make(&self, contents: &mut Contents) -> Result<Loaded, CredentialsError> {
        self.0.load(contents).await
    }
}

impl Source {
    /// Reads the files, then makes a client. kube reads them once more: the next check finds a change in between.
    async fn load(&self, contents: &mut Contents) -> Result<Loaded, CredentialsError> {
        let (cluster, setting) = (self.cluster, self.setting);
        let (mut config, proxy_url) = match &self.kubeconfig {
            Some(path) => self.read_kubeconfig(path, contents).await?,
            None => self.read_service_account(contents).await?,
        };
        if !self.address.is_empty() {
            let address = self.address.clone();
            config.cluster_url =
                self.address.parse().map_err(|source| CredentialsError::Address { address, source })?;
        }
        let variables = Variables::of_the_environment();
        let proxy = variables
            .proxy_for(&config.cluster_url, proxy_url.as_deref())
            .map_err(|source| CredentialsError::Proxy { cluster, source })?;
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default().into();
        let namespace = config.default_namespace.clone();
        let token_issuer = token_issuer(&config.auth_info).await;
        let client = client(config, proxy).map_err(|source| CredentialsError::Client {
            cluster,
            setting,
            source: Box::new(source),
        })?;
        Ok(Loaded { client, namespace, host, token_issuer })
    }

    async fn read_service_account(
        &self,
        contents: &mut Contents,
    ) -> Result<(Config, Option<String>), CredentialsError> {
        for path in SERVICE_ACCOUNT_FILES {
            // Outside a pod these files do not exist; the next step reports that better.
            drop(contents.read(path).await);
        }
        let config = Config::incluster().map_err(|source| CredentialsError::InCluster {
            cluster: self.cluster,
            setting: self.setting,
            source: Box::new(source),
        })?;
        Ok((config, None))
    }

    async fn read_kubeconfig(
        &self,
        path: &Path,
        contents: &mut Contents,
    ) -> Result<(Config, Option<String>), CredentialsError> {
        let (cluster, setting) = (self.cluster, self.setting);
        let wrong = |error| {
            let path = path.to_owned();
            match error {
                KubeconfigError::Parse(error) => {
                    let place = error.location().map_or_else(
                        || "somewhere in it".to_owned(),
                        |at| format!("at line {}, column {}", at.line(), at.column()),
                    );
                    CredentialsError::Parse { cluster, setting, path, place }
                }
                source => CredentialsError::Kubeconfig { cluster, setting, path, source: Box::new(source) },
            }
        };
        // Read here too, because the parser's error does not distinguish a missing file from a wrong one.
        self.read(path.to_owned(), contents).await?;
        let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
        for path in referenced_files(&kubeconfig) {
            self.read(path, contents).await?;
        }
        let proxy_url = proxy_url(&kubeconfig);
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Ok((config.map_err(wrong)?, proxy_url))
    }

    async fn read(&self, path: PathBuf, contents: &mut Contents) -> Result<(), CredentialsError> {
        let (cluster, setting) = (self.cluster, self.setting);
        let read = contents.read(&path).await;
        read.map(drop).map_err(|source| CredentialsError::Read { cluster, setting, path, source })
    }
}

/// The issuer of the token that is sent with each call. What a program returns at each call is not asked for.
async fn token_issuer(user: &AuthInfo) -> Option<TokenIssuer> {
    match (&user.token, &user.token_file) {
        (Some(token), _) => TokenIssuer::of(token.expose_secret()),
        (None, Some(file)) => TokenIssuer::of(&tokio::fs::read_to_string(file).await.ok()?),
        (None, None) => None,
    }
}

/// The files that a kubeconfig names, in any context.
fn referenced_files(kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let of_users = users.flat_map(|user| [&user.client_certificate, &user.client_key, &user.token_file]);
    let named = clusters.map(|cluster| &cluster.certificate_authority).chain(of_users).flatten();
    named.map(PathBuf::from).collect()
}

/// The `proxy-url` of the current context's cluster.
fn proxy_url(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|named| named.name == *current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain;
    use rstest::rstest;

    /// Stands for a token, a password or a key.
    const SECRET: &str = "s3cr3t";

    #[rstest]
    #[case::wrong_type("users: [{name: u, user: {token: {x: s3cr3t}}}]")]
    #[case::no_yaml("users:\n- name: u\n  user: {token: s3cr3t\ncontexts: ]")]
    #[case::text_for_a_list("users: s3cr3t")]
    #[case::twice("users: [{name: u, user: {token: s3cr3t, token: s3cr3t}}]")]
    #[case::tag("users: [{name: u, user: {token: !!binary s3cr3t}}]")]
    #[case::no_data("users: [{name: u, user: {client-key-data: s3cr3t}}]")]
    #[tokio::test]
    async fn an_error_of_a_kubeconfig_does_not_quote_it(#[case] users: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'https://a'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n{users}\n"
        );
        std::fs::write(&path, text).unwrap();
        let (setting, kubeconfig) = ("--kubeconfig", Some(path));
        let source = Source { cluster: "guest", setting, kubeconfig, address: String::new() };
        let error = source.load(&mut Contents::default()).await.err().expect("it is no kubeconfig");
        let texts = [chain(&error), error.to_string(), format!("{error:?}")];
        assert!(texts.iter().all(|text| !text.contains(SECRET)), "{texts:?}");
        assert!(texts[0].contains("--kubeconfig"), "{texts:?}");
    }
}
