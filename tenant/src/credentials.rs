//! How we prove to the guest cluster who we are, and how a rotated proof is taken up without a restart.
//!
//! A kubeconfig file is read again before each call and a new client is made when its text changed (a Secret volume
//! swaps a symlink, so no watch on the file itself would see it). While the new text can't be used, the last good
//! client stays. A pod's own service account needs nothing of this: kube reads its rotated token itself. Our calls
//! are few (one per registration of a node), so a read per call costs nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::Mutex;

use crate::error::TenantError;

/// The credentials of a [`crate::Tenant`].
pub struct Credentials(Source);

enum Source {
    /// A kubeconfig file that may change, and what was last made of it.
    Kubeconfig { path: PathBuf, loaded: Mutex<Loaded> },
    /// A client that takes care of itself.
    Fixed(Client),
}

/// A client and the text it was made of.
struct Loaded {
    text: String,
    client: Client,
}

impl fmt::Debug for Credentials {
    /// Shows where the credentials come from, never what they are.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Kubeconfig { path, .. } => formatter.debug_tuple("Kubeconfig").field(path).finish(),
            Source::Fixed(_) => formatter.write_str("Fixed"),
        }
    }
}

impl From<Client> for Credentials {
    /// A client that takes care of itself: the pod's service account, or a test's.
    fn from(client: Client) -> Self {
        Self(Source::Fixed(client))
    }
}

impl Credentials {
    /// The kubeconfig at `path`, or the service account of the pod when no path is given. Must be usable now;
    /// no request is sent.
    pub async fn load(path: Option<&Path>) -> Result<Self, TenantError> {
        let Some(path) = path else {
            let config = Config::incluster().map_err(|source| TenantError::InCluster(Box::new(source)))?;
            return Ok(client_of(config)?.into());
        };
        let text = read(path).await?;
        let client = client_from(path, &text).await?;
        let loaded = Mutex::new(Loaded { text, client });
        Ok(Self(Source::Kubeconfig { path: path.to_owned(), loaded }))
    }

    /// A client with the newest usable credentials.
    pub(crate) async fn client(&self) -> Result<Client, TenantError> {
        let (path, loaded) = match &self.0 {
            Source::Fixed(client) => return Ok(client.clone()),
            Source::Kubeconfig { path, loaded } => (path, loaded),
        };
        let mut loaded = loaded.lock().await;
        match reload(path, &loaded.text).await {
            Ok(None) => {}
            Ok(Some(fresh)) => {
                tracing::info!(path = %path.display(), "the tenant kubeconfig changed; using the new one");
                *loaded = fresh;
            }
            Err(error) => tracing::warn!(
                path = %path.display(),
                error = &error as &dyn std::error::Error,
                "the tenant kubeconfig changed and can not be used; keeping the last good one"
            ),
        }
        Ok(loaded.client.clone())
    }
}

/// `None` when the text is the known one.
async fn reload(path: &Path, known: &str) -> Result<Option<Loaded>, TenantError> {
    let text = read(path).await?;
    if text == known {
        return Ok(None);
    }
    let client = client_from(path, &text).await?;
    Ok(Some(Loaded { text, client }))
}

async fn read(path: &Path) -> Result<String, TenantError> {
    tokio::fs::read_to_string(path).await.map_err(|source| TenantError::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(kube::config::KubeconfigError::ReadConfig(source, path.to_owned())),
    })
}

async fn client_from(path: &Path, text: &str) -> Result<Client, TenantError> {
    let unusable = |source| TenantError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(unusable)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    client_of(config.map_err(unusable)?)
}

fn client_of(config: Config) -> Result<Client, TenantError> {
    Client::try_from(config).map_err(|source| TenantError::Client(Box::new(source)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::fs;

    fn kubeconfig(token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        )
    }

    async fn text_in_use(credentials: &Credentials) -> String {
        credentials.client().await.expect("a client");
        let Source::Kubeconfig { loaded, .. } = &credentials.0 else { panic!("{credentials:?}") };
        loaded.lock().await.text.clone()
    }

    #[tokio::test]
    async fn takes_up_a_rotated_kubeconfig_and_keeps_the_last_good_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("value");
        let (first, second) = (kubeconfig("first"), kubeconfig("second"));
        fs::write(&path, &first).await.expect("writes");
        let credentials = Credentials::load(Some(&path)).await.expect("loads");
        assert_eq!(text_in_use(&credentials).await, first);

        fs::write(&path, &second).await.expect("writes");
        assert_eq!(text_in_use(&credentials).await, second);

        fs::write(&path, "half a fi").await.expect("writes");
        assert_eq!(text_in_use(&credentials).await, second, "unusable: the last good one stays");
        fs::remove_file(&path).await.expect("removes");
        assert_eq!(text_in_use(&credentials).await, second, "gone: the last good one stays");

        fs::write(&path, &first).await.expect("writes");
        assert_eq!(text_in_use(&credentials).await, first, "and the next usable one is taken up");
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_an_error_at_the_start_that_names_file_and_flag() {
        let error = Credentials::load(Some(Path::new("/nowhere/value"))).await.expect_err("refuses");
        let text = error.to_string();
        assert!(text.contains("/nowhere/value") && text.contains("--tenant-cluster-kubeconfig"), "{text}");
    }

    #[tokio::test]
    async fn debug_output_holds_no_token() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("value");
        fs::write(&path, kubeconfig("s3cr3t")).await.expect("writes");
        let credentials = Credentials::load(Some(&path)).await.expect("loads");
        assert!(!format!("{credentials:?}").contains("s3cr3t"));
    }
}
