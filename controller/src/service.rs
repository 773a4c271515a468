//! CSI Controller on the wire: reads requests, runs each in a task of its own, writes answers. No policy.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use csi_call::{
    Deadline, Identity, Lock, Operation, Operations, Scope, Unanswered,
    log_fields::{record_node, record_volume},
};
use csi_proto::v1::{
    self as csi, controller_server, controller_service_capability,
    controller_service_capability::rpc::Type as Capability,
};
use infra::Infra;
use prometheus_client::registry::Registry;
use serving::Tasks;
use tonic::{Request, Response, Status};

use crate::{
    StorageClassPolicy,
    answer::{snapshot_on_wire, volume_on_wire},
    controller_operation::ControllerOperation,
    create,
    create_snapshot::create_snapshot,
    delete,
    delete_snapshot::delete_snapshot,
    error::Error,
    expand_volume,
    list_snapshots::list_snapshots,
    metrics::{OldestOperation, Waits},
    publish, request, take_snapshot, unpublish, validate,
    vm_queue::VmQueues,
};

/// The RPCs that are advertised. `GetSnapshot` is served and not advertised: it is alpha in CSI 1.12, and csi-snapshotter
/// lists by id instead.
const CAPABILITIES: [Capability; 6] = [
    Capability::CreateDeleteVolume,
    Capability::PublishUnpublishVolume,
    Capability::CreateDeleteSnapshot,
    Capability::ListSnapshots,
    Capability::ExpandVolume,
    Capability::CloneVolume,
];

/// The settings of the controller.
#[derive(Clone, Debug)]
pub struct ControllerSettings {
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
    operations: Operations,
    waits: Waits,
    settings: ControllerSettings,
}

impl Controller {
    /// A controller over one infra cluster. Makes no call. `tasks` owns the workers of the VMs' queues.
    pub fn new(infra: Infra, settings: ControllerSettings, tasks: &Tasks) -> Self {
        let (operations, waits) = (Operations::default(), Waits::default());
        let queues = VmQueues::new(&infra, tasks, operations.tasks(), &waits);
        Self { shared: Arc::new(Shared { infra, queues, operations, waits, settings }) }
    }

    /// The Identity service of a program that has this role.
    pub fn identity(&self) -> Identity {
        let ControllerSettings { driver_name, vendor_version, .. } = &self.shared.settings;
        let capabilities = vec![Identity::controller_service(), Identity::online_expansion()];
        Identity::new(driver_name, vendor_version, capabilities)
    }

    /// Registers the metrics of infra calls and of waits. RPCs are counted elsewhere, for all services alike.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.infra.register(registry);
        self.shared.waits.register(registry);
        registry.register_collector(Box::new(OldestOperation(self.shared.operations.in_flight().clone())));
    }

    /// Why this process will not recover by itself, if so: an operation hangs that should have ended long ago. An infra
    /// cluster that does not answer is no such reason.
    pub fn wedged(&self) -> Option<String> {
        let late = self.shared.operations.in_flight().overdue()?;
        Some(format!("an operation still runs {} s after its deadline", late.as_secs()))
    }

    /// Ends the calls that only wait: each caller is asked to try again. Changes that are being made go on to their
    /// end.
    pub fn close(&self) {
        self.shared.operations.close();
    }

    /// Waits for calls that outlived their callers and for changes under way, but not longer than `grace`. True: all
    /// have ended.
    ///
    /// What has not ended is safe to leave: the infra cluster holds the truth, and the next call goes on from it.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.shared.operations.shutdown(grace).await
    }

    fn lock(
        &self,
        name: &'static str,
        volume: &str,
        scope: Scope,
        deadline: Deadline,
    ) -> Result<Lock, Error> {
        Ok(self.shared.operations.in_flight().lock(name, volume, scope, deadline)?)
    }

    /// Runs one RPC in a task of its own, which holds the volume's lock.
    async fn run<T, F>(
        &self,
        lock: Option<Lock>,
        deadline: Deadline,
        work: impl FnOnce(Arc<Shared>, ControllerOperation) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let operation = Operation::new(deadline, lock.as_ref());
        let work = work(
            Arc::clone(&self.shared),
            ControllerOperation::new(operation.clone(), self.shared.waits.clone()),
        );
        let answer = self.shared.operations.run(&operation, lock, work).await;
        let answer = answer.map_err(|error| match (error, self.shared.infra.asked_to_wait()) {
            (Error::Unanswered(Unanswered::Late(last)), Some(asked)) => {
                Unanswered::Late(format!("{last}; {asked}")).into()
            }
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
        record_volume(&request.get_ref().name);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::Create::read(request.get_ref()).map_err(Error::from)?;
        let lock = self.lock("CreateVolume", &wanted.name, Scope::Volume, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            let policy = &shared.settings.storage_classes;
            let created = create::create(&shared.infra, policy, &operation, &wanted).await?;
            Ok(csi::CreateVolumeResponse { volume: Some(volume_on_wire(&created, &wanted)) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let volume = request::read_delete(request.get_ref()).map_err(Error::from)?;
        let lock = self.lock("DeleteVolume", &volume, Scope::Volume, deadline)?;
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
        record_volume(&request.get_ref().volume_id);
        record_node(&request.get_ref().node_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::Publish::read(request.get_ref()).map_err(Error::from)?;
        let scope = Scope::Node(wanted.node.to_string());
        let lock = self.lock("ControllerPublishVolume", &wanted.volume, scope, deadline)?;
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
        record_volume(&request.get_ref().volume_id);
        record_node(&request.get_ref().node_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::Unpublish::read(request.get_ref()).map_err(Error::from)?;
        let scope = wanted.node.as_ref().map_or(Scope::Volume, |node| Scope::Node(node.to_string()));
        let lock = self.lock("ControllerUnpublishVolume", &wanted.volume, scope, deadline)?;
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
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::Validate::read(request.get_ref()).map_err(Error::from)?;
        let asked = request.into_inner();
        self.run(None, deadline, |shared, operation| async move {
            let refusal = validate::validate(&shared.infra, &operation, &wanted).await?;
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
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        record_volume(&request.get_ref().source_volume_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::CreateSnapshot::read(request.get_ref()).map_err(Error::from)?;
        let lock = self.lock("CreateSnapshot", &wanted.name, Scope::Volume, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            let policy = &shared.settings.storage_classes;
            let taken = create_snapshot(&shared.infra, policy, &operation, &wanted).await?;
            Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot_on_wire(&taken)) })
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        record_volume(&request.get_ref().snapshot_id);
        let deadline = Deadline::read(request.metadata());
        let snapshot = request::read_delete_snapshot(request.get_ref()).map_err(Error::from)?;
        let lock = self.lock("DeleteSnapshot", &snapshot, Scope::Volume, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            delete_snapshot(&shared.infra, &operation, &snapshot).await?;
            Ok(csi::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        record_volume(&request.get_ref().snapshot_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::ListSnapshots::read(request.get_ref()).map_err(Error::from)?;
        self.run(None, deadline, |shared, operation| async move {
            let page = list_snapshots(&shared.infra, &operation, &wanted).await?;
            let entry =
                |taken| csi::list_snapshots_response::Entry { snapshot: Some(snapshot_on_wire(taken)) };
            let entries = page.snapshots.iter().map(entry).collect();
            Ok(csi::ListSnapshotsResponse { entries, next_token: page.next })
        })
        .await
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        record_volume(&request.get_ref().snapshot_id);
        let deadline = Deadline::read(request.metadata());
        let snapshot = request::read_get_snapshot(request.get_ref()).map_err(Error::from)?;
        self.run(None, deadline, |shared, operation| async move {
            let taken = take_snapshot::find(&shared.infra, &operation, &snapshot).await?;
            Ok(csi::GetSnapshotResponse { snapshot: Some(snapshot_on_wire(&taken)) })
        })
        .await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let wanted = request::Expand::read(request.get_ref()).map_err(Error::from)?;
        let lock = self.lock("ControllerExpandVolume", &wanted.volume, Scope::Size, deadline)?;
        self.run(Some(lock), deadline, |shared, operation| async move {
            let size = expand_volume::expand(&shared.infra, &operation, &wanted).await?;
            Ok(csi::ControllerExpandVolumeResponse {
                capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX),
                node_expansion_required: true,
            })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        Err(not_served("ControllerGetVolume"))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        Err(not_served("ControllerModifyVolume"))
    }
}

/// The answer to an RPC whose capability is not advertised.
fn not_served(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not served by this driver"))
}
