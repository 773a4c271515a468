//! Credentials that change under a running process: a kubeconfig behind a symlink, a token file, the CA. A local TLS
//! server stands for the API server.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use infra::{Class, Infra, InfraSettings, ObjectName, WriteRate};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serving::Tasks;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// What the server presents and accepts.
struct Accepted {
    tls: TlsAcceptor,
    token: String,
    /// Requests and handshakes that the server refused.
    refused: u32,
}

/// A server that answers every GET of a VM to whoever has the token.
#[derive(Clone)]
struct Server {
    accepted: Arc<Mutex<Accepted>>,
    address: std::net::SocketAddr,
}

/// A CA and a server certificate of it; gives the CA as PEM.
fn authority() -> (String, TlsAcceptor) {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (ca.pem(), TlsAcceptor::from(Arc::new(config)))
}

impl Server {
    async fn start(tls: TlsAcceptor, token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let accepted = Accepted { tls, token: token.to_owned(), refused: 0 };
        let server =
            Self { accepted: Arc::new(Mutex::new(accepted)), address: listener.local_addr().unwrap() };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        server
    }

    /// Serves one request per connection, so that each meets what is accepted now.
    async fn serve(self, stream: TcpStream) {
        let acceptor = self.accepted.lock().unwrap().tls.clone();
        // A client that does not trust us ends the handshake.
        let Ok(mut stream) = acceptor.accept(stream).await else { return self.count_refusal() };
        let mut request = Vec::new();
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8_lossy(&request).to_lowercase();
        let wanted = format!("authorization: bearer {}\r\n", self.accepted.lock().unwrap().token);
        let (code, body) = if head.contains(&wanted) {
            ("200 OK", r#"{"metadata": {"name": "vm1"}}"#)
        } else {
            self.count_refusal();
            ("401 Unauthorized", "{}")
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {code}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        // The client may have closed first.
        drop(stream.shutdown().await);
    }

    fn count_refusal(&self) {
        self.accepted.lock().unwrap().refused += 1;
    }

    fn accept(&self, tls: Option<TlsAcceptor>, token: &str) {
        let mut accepted = self.accepted.lock().unwrap();
        accepted.tls = tls.unwrap_or_else(|| accepted.tls.clone());
        token.clone_into(&mut accepted.token);
    }

    fn refused(&self) -> u32 {
        self.accepted.lock().unwrap().refused
    }
}

/// A directory as kubelet makes one of a Secret: `..data` points to the present version, the files go through it.
struct Secret {
    directory: tempfile::TempDir,
    version: u32,
}

impl Secret {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut secret = Self { directory: tempfile::tempdir().unwrap(), version: 0 };
        secret.replace(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), secret.path(name)).unwrap();
        }
        secret
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces all files at once, by the rename of one symlink.
    fn replace(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = format!("..version-{}", self.version);
        fs::create_dir(self.path(&version)).unwrap();
        for (name, content) in files {
            fs::write(self.path(&version).join(name), content).unwrap();
        }
        symlink(&version, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }
}

/// A kubeconfig with its CA and its token in files beside it.
fn kubeconfig(server: &Server) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        server.address
    )
}

async fn connect(secret: &Secret) -> Infra {
    let settings = InfraSettings {
        kubeconfig: Some(secret.path("kubeconfig")),
        namespace: "infra".into(),
        labels: [("a".to_owned(), "1".to_owned())].into(),
        volume_prefix: "pvc".into(),
        vm_labels: std::collections::BTreeMap::new(),
        write_rate: WriteRate::default(),
    };
    Infra::connect(settings, &Tasks::default()).await.unwrap()
}

async fn reads_a_vm(infra: &Infra) -> Result<(), infra::Error> {
    let (_, vm) = infra.machine(&ObjectName::parse("vm1").unwrap()).vm(tokio::time::Instant::now()).await?;
    assert_eq!((*vm).as_ref().unwrap().name, "vm1");
    Ok(())
}

/// Waits longer than the files may go unread.
async fn until_the_files_are_due() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test]
async fn a_new_token_and_a_new_ca_are_taken_up_without_a_failed_call() {
    let (ca, tls) = authority();
    let server = Server::start(tls, "first").await;
    let config = kubeconfig(&server);
    let mut secret = Secret::new(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "first")]);
    let infra = connect(&secret).await;
    reads_a_vm(&infra).await.unwrap();

    // Only a file that the kubeconfig names changes, and the server accepts nothing else at once.
    secret.replace(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "second")]);
    server.accept(None, "second");
    reads_a_vm(&infra).await.expect("a 401 makes the token be read again");

    let (ca, tls) = authority();
    secret.replace(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "second")]);
    server.accept(Some(tls), "second");
    reads_a_vm(&infra).await.expect("a server that is not trusted makes the CA be read again");
}

#[tokio::test]
async fn what_changed_before_the_call_is_used_by_the_call() {
    let (ca, tls) = authority();
    let server = Server::start(tls, "first").await;
    let config = kubeconfig(&server);
    let mut secret = Secret::new(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "first")]);
    let infra = connect(&secret).await;
    reads_a_vm(&infra).await.unwrap();
    until_the_files_are_due().await;
    secret.replace(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "second")]);
    server.accept(None, "second");
    // A change is never repeated after a broken connection, so it must not go out with what is old.
    infra
        .remove_volume(&ObjectName::parse("vm1").unwrap(), &ObjectName::parse("pvc-1").unwrap())
        .await
        .unwrap();
    assert_eq!(server.refused(), 0, "no call went out with the old token");
}

#[tokio::test]
async fn all_calls_under_way_profit_from_one_new_client() {
    let (ca, tls) = authority();
    let server = Server::start(tls, "first").await;
    let config = kubeconfig(&server);
    let mut secret = Secret::new(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "first")]);
    let infra = connect(&secret).await;
    secret.replace(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "second")]);
    server.accept(None, "second");
    let volumes = ["pvc-1", "pvc-2", "pvc-3"].map(|name| ObjectName::parse(name).unwrap());
    let [one, two, three] = volumes.each_ref().map(|name| infra.data_volume(name));
    let (one, two, three) = tokio::join!(one, two, three);
    for answer in [one, two, three] {
        answer.unwrap();
    }
}

#[tokio::test]
async fn while_the_new_files_can_not_be_used_the_last_good_client_stays() {
    let (ca, tls) = authority();
    let server = Server::start(tls, "first").await;
    let config = kubeconfig(&server);
    let mut secret = Secret::new(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "first")]);
    let infra = connect(&secret).await;
    secret.replace(&[("kubeconfig", "half a fi"), ("ca.crt", &ca), ("token", "first")]);
    until_the_files_are_due().await;
    reads_a_vm(&infra).await.expect("the old credentials are still accepted");
    server.accept(None, "second");
    assert_eq!(reads_a_vm(&infra).await.unwrap_err().class(), Class::Unauthorized);
    secret.replace(&[("kubeconfig", &config), ("ca.crt", &ca), ("token", "second")]);
    reads_a_vm(&infra).await.expect("and the next usable files are taken up");
}
