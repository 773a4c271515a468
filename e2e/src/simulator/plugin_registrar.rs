//! Stands for **node-driver-registrar**: tells kubelet that a CSI driver is there. It runs in the guest, beside the node
//! plugin; the program is `src/bin/plugin-registrar.rs`.
//!
//! Rules, as kubernetes-csi/node-driver-registrar keeps them: wait for the driver's socket, ask the driver's name
//! (`GetPluginInfo`; no answer in time ends the program), serve `pluginregistration` on `<driver>-reg.sock`, open to its
//! owner only; a registration that kubelet reports as failed ends the program with an error, so that it is started anew;
//! SIGTERM removes the socket, by which kubelet unregisters the driver. When the driver dies it does not notice: kubelet
//! meets the dead socket itself.
//!
//! What it does not do: the HTTP health endpoint, the registration-probe mode, metrics. Other than there, the folder of
//! the registration socket is kubelet's own by default, for it runs as a plain process and not behind a container's mount.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use csi_proto::v1::{GetPluginInfoRequest, identity_client::IdentityClient};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Endpoint};

use self::protocol::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};

/// kubelet's plugin registration protocol.
#[allow(missing_docs, clippy::pedantic, reason = "generated code")]
mod protocol {
    tonic::include_proto!("pluginregistration");
}

/// Where kubelet looks for registration sockets (`--root-dir` default).
pub const PLUGINS_REGISTRY: &str = "/var/lib/kubelet/plugins_registry";

/// kubelet's type of a CSI driver (`CSIPlugin` in `k8s.io/kubelet/pkg/apis/pluginregistration/v1`).
const CSI_PLUGIN: &str = "CSIPlugin";
/// The CSI versions that the driver speaks; kubelet accepts `1.x`.
const SUPPORTED_VERSIONS: [&str; 1] = ["1.0.0"];
/// How often the driver's socket is tried until it answers.
const CONNECT_PERIOD: Duration = Duration::from_millis(100);
/// Owner only, as the original's umask 0077 makes it.
const SOCKET_MODE: u32 = 0o700;

/// What to register.
#[derive(Clone, Debug)]
pub struct Options {
    /// The driver's socket, as this process sees it.
    pub csi_address: PathBuf,
    /// The driver's socket, as kubelet sees it.
    pub kubelet_registration_path: String,
    /// The folder of registration sockets.
    pub plugin_registration_path: PathBuf,
    /// How long the driver may take to tell its name.
    pub timeout: Duration,
}

/// Registers the driver and stays until SIGTERM, which is a success, or until kubelet reports a failure, which is not.
///
/// # Errors
/// When the driver does not answer, the socket can't be opened, or kubelet could not register the driver.
pub async fn run(options: &Options) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let name = tokio::select! {
        name = driver_name(options) => name?,
        _ = terminate.recv() => return Ok(()),
    };
    tracing::info!(driver = name, "the driver answers");
    let socket = options.plugin_registration_path.join(format!("{name}-reg.sock"));
    let (failed, mut failure) = mpsc::channel(1);
    let registrar = Registrar { name, endpoint: options.kubelet_registration_path.clone(), failed };
    let listener = listen(&socket)?;
    tracing::info!(socket = %socket.display(), "waiting for kubelet");
    let serving = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(registrar))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let outcome = tokio::select! {
        served = serving => served.context("serve kubelet's plugin registration"),
        Some(error) = failure.recv() => Err(anyhow::anyhow!("kubelet could not register the driver: {error}")),
        _ = terminate.recv() => Ok(()),
    };
    if outcome.is_ok() {
        remove(&socket)?;
    }
    outcome
}

/// Waits until the socket accepts, then asks once.
async fn driver_name(options: &Options) -> Result<String> {
    let endpoint = Endpoint::try_from(format!("unix://{}", options.csi_address.display()))?;
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) => tracing::debug!("the driver's socket does not accept yet: {error}"),
        }
        tokio::time::sleep(CONNECT_PERIOD).await;
    };
    let mut identity = IdentityClient::new(channel);
    let asked = identity.get_plugin_info(GetPluginInfoRequest {});
    let Ok(answer) = tokio::time::timeout(options.timeout, asked).await else {
        bail!("the driver did not tell its name within {:?}", options.timeout);
    };
    let name = answer.context("ask the driver's name")?.into_inner().name;
    ensure!(!name.is_empty(), "the driver's name is empty");
    Ok(name)
}

/// Opens the socket anew; what an earlier process has left is in the way.
fn listen(socket: &Path) -> Result<UnixListener> {
    remove(socket)?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("close {} to others", socket.display()))?;
    Ok(listener)
}

fn remove(socket: &Path) -> Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}

struct Registrar {
    name: String,
    endpoint: String,
    failed: mpsc::Sender<String>,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        tracing::info!("kubelet asks");
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: SUPPORTED_VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        if status.plugin_registered {
            tracing::info!("kubelet has registered the driver");
        } else if self.failed.try_send(status.error).is_err() {
            tracing::debug!("a failure has been reported already");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use csi_proto::v1::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoResponse, ProbeRequest, ProbeResponse,
        identity_server::{Identity, IdentityServer},
    };

    use super::*;

    struct Driver(&'static str);

    #[tonic::async_trait]
    impl Identity for Driver {
        async fn get_plugin_info(
            &self,
            _: Request<GetPluginInfoRequest>,
        ) -> Result<Response<GetPluginInfoResponse>, Status> {
            Ok(Response::new(GetPluginInfoResponse { name: self.0.into(), ..GetPluginInfoResponse::default() }))
        }

        async fn get_plugin_capabilities(
            &self,
            _: Request<GetPluginCapabilitiesRequest>,
        ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
            Err(Status::unimplemented("not asked"))
        }

        async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
            Err(Status::unimplemented("not asked"))
        }
    }

    async fn driver_named(name: &'static str) -> Result<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("csi.sock");
        let options = Options {
            csi_address: socket.clone(),
            kubelet_registration_path: "/plugins/csi.sock".into(),
            plugin_registration_path: dir.path().into(),
            timeout: Duration::from_secs(5),
        };
        let asking = tokio::spawn(async move { driver_name(&options).await });
        // The registrar comes first and waits: the socket is not there yet.
        tokio::time::sleep(CONNECT_PERIOD).await;
        assert!(!asking.is_finished());
        let listener = UnixListener::bind(&socket).expect("a socket");
        let driver = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(Driver(name)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::select! { served = driver => panic!("{served:?}"), name = asking => name.expect("no panic") }
    }

    #[tokio::test]
    async fn the_driver_is_waited_for_and_asked() {
        assert_eq!(driver_named("csi.kubevirt.io").await.expect("a name"), "csi.kubevirt.io");
        assert!(driver_named("").await.expect_err("no name").to_string().contains("empty"));
    }

    fn registrar() -> (Registrar, mpsc::Receiver<String>) {
        let (failed, failure) = mpsc::channel(1);
        (Registrar { name: "csi.kubevirt.io".into(), endpoint: "/plugins/csi.sock".into(), failed }, failure)
    }

    #[tokio::test]
    async fn kubelet_learns_name_and_socket() {
        let (registrar, _failure) = registrar();
        let info = registrar.get_info(Request::new(InfoRequest {})).await.expect("an answer").into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.kubevirt.io"));
        assert_eq!(info.endpoint, "/plugins/csi.sock");
    }

    #[tokio::test]
    async fn only_a_failure_ends_it() {
        let (registrar, mut failure) = registrar();
        let told = |plugin_registered, error: &str| {
            registrar.notify_registration_status(Request::new(RegistrationStatus { plugin_registered, error: error.into() }))
        };
        told(true, "").await.expect("an answer");
        assert!(failure.try_recv().is_err());
        told(false, "no node info").await.expect("an answer");
        told(false, "again").await.expect("an answer");
        assert_eq!(failure.try_recv().as_deref(), Ok("no node info"));
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_closed_to_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("d-reg.sock");
        drop(listen(&socket).expect("listening"));
        assert!(socket.exists(), "a listener leaves its socket behind");
        let _listener = listen(&socket).expect("listening again");
        let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        remove(&socket).expect("removed");
        remove(&socket).expect("removed again");
    }
}
