//! CSI Controller on the wire: reads requests, runs each in a task of its own, writes answers. No policy.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use csi_proto::v1::{
    self as csi, controller_server, controller_service_capability,
    controller_service_capability::rpc::Type as Capability,
};
use infra::Infra;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::{
    Identity, StorageClassPolicy,
    create::{self, Created},
    delete,
    error::Error,
    operation::{self, Lock, Locks, Operation, Scope},
    publish,
    request::{self, BUS, Bus, SERIAL, Sharing},
    unpublish,
    vm_queue::VmQueues,
    volume,
    waits::{OldestOperation, Waits},
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
    tasks: TaskTracker,
    waits: Waits,
    /// Cancelled when waits must end because the process does.
    closing: CancellationToken,
    settings: Settings,
}

impl Controller {
    /// A controller over one infra cluster. Makes no call.
    pub fn new(infra: Infra, settings: Settings) -> Self {
        let tasks = TaskTracker::new();
        let waits = Waits::default();
        let queues = VmQueues::new(&infra, &tasks, &waits);
        let (locks, closing) = (Locks::default(), CancellationToken::new());
        let shared = Shared { infra, queues, locks, tasks, waits, closing, settings };
        Self { shared: Arc::new(shared) }
    }

    /// The Identity service of a program that has this role.
    pub fn identity(&self) -> Identity {
        let Settings { driver_name, vendor_version, .. } = &self.shared.settings;
        Identity::new(driver_name, vendor_version, vec![Identity::controller_service()])
    }

    /// Registers the metrics of infra calls and of waits. RPCs are counted elsewhere, for all services alike.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.infra.register(registry);
        self.shared.waits.register(registry);
        registry.register_collector(Box::new(OldestOperation(self.shared.locks.clone())));
    }

    /// Why this process will not recover by itself, if so: an operation hangs that should have ended long ago. An infra
    /// cluster that does not answer is no such reason.
    pub fn wedged(&self) -> Option<String> {
        let late = self.shared.locks.overdue()?;
        Some(format!("an operation still runs {} s after its deadline", late.as_secs()))
    }

    /// Ends what merely waits: each caller is told to try again. Changes that are being made go on to their end.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Waits for operations that outlived their callers and for changes under way, but not longer than `grace`. True: all
    /// have ended.
    ///
    /// What has not ended is safe to leave: the infra cluster holds the truth, and the next call goes on from it.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.shared.tasks.close();
        timeout(grace, self.shared.tasks.wait()).await.is_ok()
    }

    /// Runs one RPC. The work is a task of its own that holds the volume's lock: a caller that hangs up ends its waits, never a
    /// change that is being made. The answer comes in time even where the work does not.
    async fn run<T, F>(
        &self,
        lock: Option<Lock>,
        deadline: Instant,
        work: impl FnOnce(Arc<Shared>, Arc<Operation>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let operation = Arc::new(Operation::new(deadline, lock.as_ref(), self.shared.waits.clone()));
        let _hang_up = operation.cancelled().clone().drop_guard();
        let work = work(Arc::clone(&self.shared), Arc::clone(&operation));
        let unheard = operation.cancelled().clone();
        let task = async move {
            let _lock = lock;
            let done = work.await;
            // Nobody else tells how it ended: the caller has had its answer.
            if unheard.is_cancelled() {
                match &done {
                    Ok(_) => tracing::info!("done after its caller was gone"),
                    Err(error @ Error::Cancelled(_)) => tracing::debug!(%error, "ended with its caller"),
                    Err(error) => tracing::warn!(%error, "ended after its caller was gone"),
                }
            }
            done
        };
        let task = self.shared.tasks.spawn(task.in_current_span());
        let answer = tokio::select! {
            // An answer that is there counts, also at the last moment.
            biased;
            done = task => done.unwrap_or(Err(Error::Panicked)),
            () = tokio::time::sleep_until(operation.deadline()) => Err(operation.expired()),
            () = self.shared.closing.cancelled() => Err(operation.stopping()),
        };
        let answer = answer.map_err(|error| match (error, self.shared.infra.asked_to_wait()) {
            (Error::Deadline(last), Some(asked)) => Error::Deadline(format!("{last}; {asked}")),
            (error, _) => error,
        });
        Ok(Response::new(answer?))
    }
}

#[tonic::async_trait]
impl controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let deadline = operation::deadline(request.metadata());
        let wanted = request::Create::read(request.get_ref()).map_err(Error::from)?;
        let lock = self.shared.locks.lock(&wanted.name, Scope::Volume, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
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
        let deadline = operation::deadline(request.metadata());
        let volume = request::read_delete(request.get_ref()).map_err(Error::from)?;
        let lock = self.shared.locks.lock(&volume, Scope::Volume, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            delete::delete(&shared.infra, &operation, &volume).await?;
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let deadline = operation::deadline(request.metadata());
        let wanted = request::Publish::read(request.get_ref()).map_err(Error::from)?;
        let node = request.into_inner().node_id;
        let lock = self.shared.locks.lock(&wanted.volume, Scope::Node(node), deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            publish::publish(&shared.infra, &shared.queues, &operation, &wanted).await?;
            Ok(csi::ControllerPublishVolumeResponse { publish_context: HashMap::new() })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let deadline = operation::deadline(request.metadata());
        let wanted = request::Unpublish::read(request.get_ref()).map_err(Error::from)?;
        let node = request.into_inner().node_id;
        let scope = if node.is_empty() { Scope::Volume } else { Scope::Node(node) };
        let lock = self.shared.locks.lock(&wanted.volume, scope, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            unpublish::unpublish(&shared.infra, &shared.queues, &operation, &wanted).await?;
            Ok(csi::ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let deadline = operation::deadline(request.metadata());
        let wanted = request::Validate::read(request.get_ref()).map_err(Error::from)?;
        let asked = request.into_inner();
        self.run(None, deadline, |shared, operation| async move {
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
