//! CSI Controller on the wire: reads requests, runs each in a task of its own, writes answers. No policy.

use std::{collections::HashMap, future::Future, sync::Arc};

use csi_proto::v1::{
    self as csi, controller_server, controller_service_capability,
    controller_service_capability::rpc::Type as Capability,
};
use infra::Infra;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use crate::{
    Identity, StorageClassPolicy,
    create::{self, Created},
    delete,
    error::Error,
    metrics::Metrics,
    operation::{self, Locks, Operation, Scope},
    publish,
    request::{self, BUS, Bus, SERIAL, Sharing},
    unpublish,
    vm_queue::VmQueues,
    volume,
};

/// What this controller does. More follows with snapshots, clones and expansion.
const CAPABILITIES: [Capability; 2] = [Capability::CreateDeleteVolume, Capability::PublishUnpublishVolume];

/// How the controller is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// CSI driver name, e.g. `csi.kubevirt.io`.
    pub driver_name: String,
    /// Version of this program.
    pub vendor_version: String,
    /// Which infra storage classes the guest may use.
    pub storage_classes: StorageClassPolicy,
}

/// The CSI Controller service. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    shared: Arc<Shared>,
}

struct Shared {
    infra: Infra,
    queues: VmQueues,
    locks: Locks,
    metrics: Metrics,
    settings: Settings,
}

impl Controller {
    /// A controller over one infra cluster. Makes no call.
    pub fn new(infra: Infra, settings: Settings) -> Self {
        let queues = VmQueues::new(&infra);
        let shared = Shared { infra, queues, locks: Locks::default(), metrics: Metrics::default(), settings };
        Self { shared: Arc::new(shared) }
    }

    /// The Identity service of a program that has this role.
    pub fn identity(&self) -> Identity {
        let Settings { driver_name, vendor_version, .. } = &self.shared.settings;
        Identity::new(driver_name, vendor_version, vec![Identity::controller_service()])
    }

    /// Registers the metrics of RPCs and infra calls.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
        self.shared.infra.register(registry);
    }

    /// Runs one RPC. The work is a task of its own that holds the volume's lock: a caller that hangs up ends its waits, never a
    /// change that is being made. The answer comes in time even where the work does not.
    async fn run<T, F>(
        &self,
        rpc: Rpc,
        deadline: Instant,
        work: impl FnOnce(Arc<Shared>, Arc<Operation>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let began = Instant::now();
        let span = tracing::info_span!("rpc", method = rpc.method, volume = rpc.volume, node = rpc.node);
        let answer = self.run_locked(&rpc, deadline, work).instrument(span.clone()).await;
        let code = answer.as_ref().map_or_else(Error::code, |_| Code::Ok);
        self.shared.metrics.count(rpc.method, code, began.elapsed());
        span.in_scope(|| match &answer {
            Ok(_) => tracing::info!(took_ms = began.elapsed().as_millis(), "done"),
            Err(error) => tracing::warn!(?code, %error, took_ms = began.elapsed().as_millis(), "failed"),
        });
        Ok(Response::new(answer?))
    }

    async fn run_locked<T, F>(
        &self,
        rpc: &Rpc,
        deadline: Instant,
        work: impl FnOnce(Arc<Shared>, Arc<Operation>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let lock = match &rpc.lock {
            Some(scope) => Some(self.shared.locks.lock(&rpc.volume, scope.clone())?),
            None => None,
        };
        let operation = Arc::new(Operation::new(deadline));
        let _hang_up = operation.cancelled().clone().drop_guard();
        let work = work(Arc::clone(&self.shared), Arc::clone(&operation));
        let task = tokio::spawn(
            async move {
                let _lock = lock;
                work.await
            }
            .in_current_span(),
        );
        tokio::select! {
            // An answer that is there counts, also at the last moment.
            biased;
            done = task => done.unwrap_or(Err(Error::Panicked)),
            () = tokio::time::sleep_until(operation.deadline()) => Err(operation.expired()),
        }
    }
}

/// What an RPC is about.
struct Rpc {
    method: &'static str,
    volume: String,
    node: String,
    lock: Option<Scope>,
}

/// Reads a request, and counts one that is malformed.
fn read<T>(
    controller: &Controller,
    method: &'static str,
    read: Result<T, request::Invalid>,
) -> Result<T, Status> {
    read.map_err(|invalid| {
        let error = Error::from(invalid);
        controller.shared.metrics.count(method, error.code(), std::time::Duration::ZERO);
        tracing::warn!(method, %error, "malformed request");
        error.into()
    })
}

#[tonic::async_trait]
impl controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        const METHOD: &str = "CreateVolume";
        let deadline = operation::deadline(request.metadata());
        let wanted = read(self, METHOD, request::Create::read(request.get_ref()))?;
        let volume = wanted.name.clone();
        let rpc = Rpc { method: METHOD, volume, node: String::new(), lock: Some(Scope::Volume) };
        self.run(rpc, deadline, |shared, operation| async move {
            let policy = &shared.settings.storage_classes;
            let created = create::create(&shared.infra, policy, &operation, &wanted).await?;
            Ok(csi::CreateVolumeResponse { volume: Some(volume_on_wire(&created, wanted.bus)) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        const METHOD: &str = "DeleteVolume";
        let deadline = operation::deadline(request.metadata());
        let volume = read(self, METHOD, request::read_delete(request.get_ref()))?;
        let rpc =
            Rpc { method: METHOD, volume: volume.clone(), node: String::new(), lock: Some(Scope::Volume) };
        self.run(rpc, deadline, |shared, operation| async move {
            delete::delete(&shared.infra, &operation, &volume).await?;
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        const METHOD: &str = "ControllerPublishVolume";
        let deadline = operation::deadline(request.metadata());
        let wanted = read(self, METHOD, request::Publish::read(request.get_ref()))?;
        let node = request.into_inner().node_id;
        let lock = Some(Scope::Node(node.clone()));
        let rpc = Rpc { method: METHOD, volume: wanted.volume.clone(), node, lock };
        self.run(rpc, deadline, |shared, operation| async move {
            publish::publish(&shared.infra, &shared.queues, &operation, &wanted).await?;
            Ok(csi::ControllerPublishVolumeResponse { publish_context: HashMap::new() })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        const METHOD: &str = "ControllerUnpublishVolume";
        let deadline = operation::deadline(request.metadata());
        let wanted = read(self, METHOD, request::Unpublish::read(request.get_ref()))?;
        let node = request.into_inner().node_id;
        let lock = if node.is_empty() { Scope::Volume } else { Scope::Node(node.clone()) };
        let rpc = Rpc { method: METHOD, volume: wanted.volume.clone(), node, lock: Some(lock) };
        self.run(rpc, deadline, |shared, operation| async move {
            unpublish::unpublish(&shared.infra, &shared.queues, &operation, &wanted).await?;
            Ok(csi::ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        const METHOD: &str = "ValidateVolumeCapabilities";
        let deadline = operation::deadline(request.metadata());
        let wanted = read(self, METHOD, request::Validate::read(request.get_ref()))?;
        let rpc = Rpc { method: METHOD, volume: wanted.volume.clone(), node: String::new(), lock: None };
        let asked = request.into_inner();
        self.run(rpc, deadline, |shared, operation| async move {
            let refusal = validate(&shared.infra, &operation, &wanted).await?;
            let confirmed =
                refusal.is_none().then_some(csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: asked.volume_context,
                    volume_capabilities: asked.volume_capabilities,
                    parameters: asked.parameters,
                    mutable_parameters: asked.mutable_parameters,
                });
            Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed, message: refusal.unwrap_or_default() })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = CAPABILITIES.map(|capability| csi::ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc {
                r#type: capability.into(),
            })),
        });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn list_volumes(
        &self,
        _request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        Err(not_served("ListVolumes"))
    }

    async fn get_capacity(
        &self,
        _request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        Err(not_served("GetCapacity"))
    }

    async fn create_snapshot(
        &self,
        _request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        Err(not_served("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        Err(not_served("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        Err(not_served("ListSnapshots"))
    }

    async fn get_snapshot(
        &self,
        _request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        Err(not_served("GetSnapshot"))
    }

    async fn controller_expand_volume(
        &self,
        _request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        Err(not_served("ControllerExpandVolume"))
    }

    async fn controller_get_volume(
        &self,
        _request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        Err(not_served("ControllerGetVolume"))
    }

    async fn controller_modify_volume(
        &self,
        _request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        Err(not_served("ControllerModifyVolume"))
    }
}

/// The answer of an RPC whose capability is not advertised.
fn not_served(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not served by this driver"))
}

/// Why the volume does not serve the capabilities; `None` = it does.
async fn validate(
    infra: &Infra,
    operation: &Operation,
    wanted: &request::Validate,
) -> Result<Option<String>, Error> {
    let name = infra.guard().volume_name(&wanted.volume)?;
    let found = operation.wait(infra.data_volume(&name)).await??.ok_or(infra::Foreign)?;
    let found = infra.guard().admit(found)?;
    Ok(match &wanted.sharing {
        Ok(Sharing::ManyNodes) if !volume::is_shared(&found) => Some(Error::NotShared(name).to_string()),
        Ok(Sharing::OneNode | Sharing::ManyNodes) => None,
        Err(invalid) => Some(invalid.to_string()),
    })
}

fn volume_on_wire(created: &Created, bus: Bus) -> csi::Volume {
    let metadata = &created.volume.metadata;
    csi::Volume {
        volume_id: metadata.name.clone(),
        capacity_bytes: i64::try_from(created.size).unwrap_or(i64::MAX),
        volume_context: HashMap::from([
            (BUS.to_owned(), bus.as_str().to_owned()),
            (SERIAL.to_owned(), metadata.uid.clone()),
        ]),
        ..Default::default()
    }
}
