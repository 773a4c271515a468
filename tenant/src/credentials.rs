//! How we prove to the guest cluster who we are, and how a rotated proof is taken up without a restart.
//!
//! A client is made anew for each call, of a kubeconfig or of the pod's service account and of every file that either names
//! (token, CA, client certificate): our calls are few, one per registration of a node, so that costs nothing, and
//! kube by itself reads a token file again within a minute and a CA never. While what is there can't be used, the
//! last good client stays.

use std::fmt;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::Mutex;

use crate::error::TenantError;

/// The credentials of a [`crate::Tenant`].
pub struct Credentials {
    /// `None` = the client was given and takes care of itself.
    source: Option<Source>,
    last_good: Mutex<Client>,
}

enum Source {
    /// A kubeconfig file, which may change.
    Kubeconfig(PathBuf),
    /// The files that kubelet mounts into the pod, which change.
    ServiceAccount,
}

impl fmt::Debug for Credentials {
    /// Shows where the credentials come from, never what they are.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(Source::Kubeconfig(path)) => formatter.debug_tuple("Kubeconfig").field(path).finish(),
            Some(Source::ServiceAccount) => formatter.write_str("ServiceAccount"),
            None => formatter.write_str("Fixed"),
        }
    }
}

impl From<Client> for Credentials {
    /// A client that takes care of itself, a test's for example.
    fn from(client: Client) -> Self {
        Self { source: None, last_good: Mutex::new(client) }
    }
}

impl Credentials {
    /// The kubeconfig at `path`, or the service account of the pod when no path is given. Must be usable now;
    /// no request is sent.
    pub async fn load(path: Option<&Path>) -> Result<Self, TenantError> {
        let source = path.map_or(Source::ServiceAccount, |path| Source::Kubeconfig(path.to_owned()));
        let client = source.client().await?;
        Ok(Self { source: Some(source), last_good: Mutex::new(client) })
    }

    /// A client with the newest usable credentials.
    pub(crate) async fn client(&self) -> Client {
        let mut last_good = self.last_good.lock().await;
        let Some(source) = &self.source else { return last_good.clone() };
        match source.client().await {
            Ok(fresh) => *last_good = fresh,
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the guest cluster's credentials can not be used; keeping the last good ones"
            ),
        }
        last_good.clone()
    }
}

impl Source {
    async fn client(&self) -> Result<Client, TenantError> {
        let config = match self {
            Self::Kubeconfig(path) => {
                let unusable =
                    |source| TenantError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
                let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)?
            }
            Self::ServiceAccount => {
                Config::incluster().map_err(|source| TenantError::InCluster(Box::new(source)))?
            }
        };
        Client::try_from(config).map_err(|source| TenantError::Client(Box::new(source)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use std::net::SocketAddr;
    use tokio::fs;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A kubeconfig whose token is in a file beside it.
    fn kubeconfig(server: SocketAddr) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\n\
             users: [{{name: u, user: {{tokenFile: token}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        )
    }

    /// The bearer token that one call sends.
    async fn token_in_use(credentials: &Credentials, server: &TcpListener) -> String {
        let client = credentials.client().await;
        let call = async {
            client.request_text(Request::get("/version").body(Vec::new()).expect("a request")).await
        };
        let answer = async {
            let (mut stream, _) = server.accept().await.expect("is called");
            let mut request = Vec::new();
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                stream.read_buf(&mut request).await.expect("reads");
            }
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            stream.write_all(head).await.expect("answers");
            String::from_utf8(request).expect("is text").to_lowercase()
        };
        let (called, request) = tokio::join!(call, answer);
        called.expect("is answered");
        let (_, token) = request.split_once("authorization: bearer ").expect("carries a token");
        token.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn takes_up_rotated_files_and_keeps_the_last_good_ones() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let directory = tempfile::tempdir().expect("a directory");
        let (path, token) = (directory.path().join("value"), directory.path().join("token"));
        let good = kubeconfig(server.local_addr().expect("has an address"));
        fs::write(&path, &good).await.expect("writes");
        fs::write(&token, "first").await.expect("writes");
        let credentials = Credentials::load(Some(&path)).await.expect("loads");
        assert_eq!(token_in_use(&credentials, &server).await, "first");

        fs::write(&token, "second").await.expect("writes");
        assert_eq!(token_in_use(&credentials, &server).await, "second");

        fs::write(&path, "half a fi").await.expect("writes");
        assert_eq!(token_in_use(&credentials, &server).await, "second", "unusable: the last good one stays");
        fs::remove_file(&path).await.expect("removes");
        assert_eq!(token_in_use(&credentials, &server).await, "second", "gone: the last good one stays");

        fs::write(&token, "third").await.expect("writes");
        fs::write(&path, &good).await.expect("writes");
        assert_eq!(token_in_use(&credentials, &server).await, "third", "and the next usable one is taken up");
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
        let server = SocketAddr::from(([127, 0, 0, 1], 1));
        let text = kubeconfig(server).replace("tokenFile: token", "token: s3cr3t");
        fs::write(&path, text).await.expect("writes");
        let credentials = Credentials::load(Some(&path)).await.expect("loads");
        assert!(!format!("{credentials:?}").contains("s3cr3t"));
    }
}
