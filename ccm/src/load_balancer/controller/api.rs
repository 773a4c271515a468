//! The calls of the service controller, each one request.

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::{Value, json};

use crate::access::{GuestCluster, InfraCluster};
use crate::call::{CallError, call};
use crate::load_balancer::service::{FIELD_MANAGER, FINALIZER, GuestService, InfraService};

/// The Service of the API servers themselves (kube-apiserver, `kubernetesservice` controller).
const CLUSTER_NAMESPACE: &str = "default";
const CLUSTER_SERVICE: &str = "kubernetes";

/// What came of a call that others may have been faster with.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// Done.
    Done(T),
    /// The object is not there, or is another of the same name.
    Absent,
    /// The object is not as it was when it was looked at.
    Changed,
}

/// The Services of both clusters.
pub(super) struct Services {
    guest: Client,
    infra: Client,
    mirrors: Api<InfraService>,
    /// Requests with whole objects, of which nothing gets lost.
    whole: Request,
}

impl Services {
    pub(super) fn new(guest: &GuestCluster, infra: &InfraCluster) -> Self {
        Self {
            guest: guest.client.clone(),
            infra: infra.client.clone(),
            mirrors: Api::namespaced(infra.client.clone(), &infra.namespace),
            whole: Request::new(InfraService::url_path(&(), Some(&infra.namespace))),
        }
    }

    fn guests(&self, guest: &GuestService) -> Api<GuestService> {
        let namespace = guest.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.guest.clone(), namespace)
    }

    /// The guest Service as it is now; absent also when it is another of the same name.
    pub(super) async fn guest_now(&self, guest: &GuestService) -> Result<Answer<GuestService>, kube::Error> {
        let name = guest.metadata.name.as_deref().unwrap_or_default();
        Ok(match self.guests(guest).get_opt(name).await? {
            Some(now) if now.metadata.uid == guest.metadata.uid => Answer::Done(now),
            _ => Answer::Absent,
        })
    }

    /// Changes what belongs to us of the guest Service, as the framework does: through its status, with the right
    /// `services/status: patch`. The UID makes sure that it is still this one.
    async fn patch_guest(
        &self,
        guest: &GuestService,
        mut patch: Value,
    ) -> Result<Answer<GuestService>, kube::Error> {
        patch["metadata"]["uid"] = json!(guest.metadata.uid);
        let name = guest.metadata.name.as_deref().unwrap_or_default();
        let patched =
            self.guests(guest).patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match patched {
            Ok(now) => Ok(Answer::Done(now)),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Answer::Absent)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn add_finalizer(
        &self,
        guest: &GuestService,
    ) -> Result<Answer<GuestService>, kube::Error> {
        self.patch_guest(guest, json!({ "metadata": { "finalizers": [FINALIZER] } })).await
    }

    pub(super) async fn remove_finalizer(
        &self,
        guest: &GuestService,
    ) -> Result<Answer<GuestService>, kube::Error> {
        let patch = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
        self.patch_guest(guest, patch).await
    }

    pub(super) async fn set_status(
        &self,
        guest: &GuestService,
        ingress: &[LoadBalancerIngress],
        conditions: &[Value],
    ) -> Result<Answer<GuestService>, kube::Error> {
        let ingress = if ingress.is_empty() { Value::Null } else { json!(ingress) };
        let mut status = json!({ "loadBalancer": { "ingress": ingress } });
        if !conditions.is_empty() {
            status["conditions"] = json!(conditions);
        }
        self.patch_guest(guest, json!({ "status": status })).await
    }

    pub(super) async fn set_conditions(
        &self,
        guest: &GuestService,
        conditions: &[Value],
    ) -> Result<Answer<GuestService>, kube::Error> {
        self.patch_guest(guest, json!({ "status": { "conditions": conditions } })).await
    }

    /// The guest Service of this name as it is now; `None` only where the API says so of this very Service.
    pub(super) async fn guest_named(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<GuestService>, CallError> {
        let api: Api<GuestService> = Api::namespaced(self.guest.clone(), namespace);
        match call(|| "reading a service of the guest".to_owned(), api.get(name)).await {
            Ok(service) => Ok(Some(service)),
            Err(error) if error.proves_absence_of(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The UID of the guest cluster: that of the Service that each API server makes for itself.
    pub(super) async fn guest_cluster(&self) -> Result<Option<String>, CallError> {
        Ok(self.guest_named(CLUSTER_NAMESPACE, CLUSTER_SERVICE).await?.and_then(|own| own.metadata.uid))
    }

    /// The infra Service as it is now, whole, and as far as it is read.
    pub(super) async fn mirror_now(&self, name: &str) -> Result<Option<(Value, InfraService)>, kube::Error> {
        let request =
            self.whole.get(name, &kube::api::GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let whole: Value = match self.infra.request(request).await {
            Ok(whole) => whole,
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = serde_json::from_value(whole.clone()).map_err(kube::Error::SerdeError)?;
        Ok(Some((whole, read)))
    }

    pub(super) async fn create_mirror(&self, object: &Value) -> Result<Answer<()>, kube::Error> {
        let request =
            self.whole.create(&post(), object.to_string().into_bytes()).map_err(kube::Error::BuildRequest)?;
        match self.infra.request::<Value>(request).await {
            Ok(_) => Ok(Answer::Done(())),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Answer::Changed),
            Err(error) => Err(error),
        }
    }

    /// Replaces the infra Service by `object`, if it still is as it was when `object` was made of it.
    pub(super) async fn replace_mirror(&self, name: &str, object: &Value) -> Result<Answer<()>, kube::Error> {
        let body = object.to_string().into_bytes();
        let request = self.whole.replace(name, &post(), body).map_err(kube::Error::BuildRequest)?;
        match self.infra.request::<Value>(request).await {
            Ok(_) => Ok(Answer::Done(())),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Answer::Changed)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the infra Service, if it still is the one with this UID.
    pub(super) async fn delete_mirror(&self, name: &str, uid: &str) -> Result<Answer<()>, kube::Error> {
        delete(&self.mirrors, name, uid).await
    }
}

/// Deletes the infra Service of this name, if it still is the one with this UID.
pub(super) async fn delete(
    mirrors: &Api<InfraService>,
    name: &str,
    uid: &str,
) -> Result<Answer<()>, kube::Error> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match mirrors.delete(name, &parameters).await {
        Ok(_) => Ok(Answer::Done(())),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Answer::Absent),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Answer::Changed),
        Err(error) => Err(error),
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
