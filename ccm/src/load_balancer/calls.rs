//! The calls of the service controller. Each is one request.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    access::{GuestCluster, InfraCluster},
    call::{CallError, call, is_absent},
    guest::services::{FINALIZER, GuestService},
    infra::mirrors::InfraService,
    wire::metadata::FIELD_MANAGER,
};

/// The Service that API servers make for themselves (kube-apiserver, `kubernetesservice` controller).
const CLUSTER_NAMESPACE: &str = "default";
const CLUSTER_SERVICE: &str = "kubernetes";

/// The result of a call that another writer may have preceded.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// Done.
    Done(T),
    /// The object does not exist, or another object has its name.
    Absent,
    /// The object has changed since it was read.
    Changed,
}

/// An infra Service as infra answered: the whole object, and the fields that we use.
#[derive(Debug)]
pub(crate) struct Mirrored {
    pub(crate) object: Value,
    pub(crate) service: InfraService,
}

impl Mirrored {
    fn of(object: Value) -> Result<Self, kube::Error> {
        let service = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
        Ok(Self { object, service })
    }
}

/// What a delete of an infra Service led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// Infra removed it at once.
    Gone,
    /// A finalizer holds it, or infra does not report which.
    Going,
}

/// The Services of both clusters.
pub(crate) struct Services {
    guest: Client,
    infra: Client,
    mirrors: Api<InfraService>,
    /// Requests that carry whole objects, so that no field is lost.
    whole: Request,
}

impl Services {
    pub(crate) fn new(guest: &GuestCluster, infra: &InfraCluster) -> Self {
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

    /// Reads the guest Service. A Service of the same name with another UID counts as absent.
    pub(crate) async fn guest_now(&self, guest: &GuestService) -> Result<Answer<GuestService>, kube::Error> {
        let name = guest.metadata.name.as_deref().unwrap_or_default();
        Ok(match cluster::get(&self.guests(guest), name).await? {
            Some(now) if now.metadata.uid == guest.metadata.uid => Answer::Done(now),
            _ => Answer::Absent,
        })
    }

    /// Patches our part of the guest Service as the framework does: through its status, with the right
    /// `services/status: patch`. The UID in the patch makes sure that it is still the same Service.
    async fn patch_guest(
        &self,
        guest: &GuestService,
        mut patch: Value,
    ) -> Result<Answer<GuestService>, kube::Error> {
        patch["metadata"]["uid"] = json!(guest.metadata.uid);
        let name = guest.metadata.name.as_deref().unwrap_or_default();
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = self.guests(guest).patch_status(name, &parameters, &Patch::Strategic(patch)).await;
        match patched {
            Ok(now) => Ok(Answer::Done(now)),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Answer::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// The conditions go in the same call, because the patch is one of the status anyway.
    pub(crate) async fn add_finalizer(
        &self,
        guest: &GuestService,
        conditions: &[Value],
    ) -> Result<Answer<GuestService>, kube::Error> {
        let mut patch = json!({ "metadata": { "finalizers": [FINALIZER] } });
        if !conditions.is_empty() {
            patch["status"]["conditions"] = json!(conditions);
        }
        self.patch_guest(guest, patch).await
    }

    pub(crate) async fn remove_finalizer(
        &self,
        guest: &GuestService,
    ) -> Result<Answer<GuestService>, kube::Error> {
        let patch = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
        self.patch_guest(guest, patch).await
    }

    pub(crate) async fn set_status(
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

    pub(crate) async fn set_conditions(
        &self,
        guest: &GuestService,
        conditions: &[Value],
    ) -> Result<Answer<GuestService>, kube::Error> {
        self.patch_guest(guest, json!({ "status": { "conditions": conditions } })).await
    }

    /// Reads the guest Service of this name. `None` only if the API server itself reports that this Service does not
    /// exist.
    pub(crate) async fn guest_named(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<GuestService>, CallError> {
        let api: Api<GuestService> = Api::namespaced(self.guest.clone(), namespace);
        match call(|| "reading a service of the guest".to_owned(), api.get(name)).await {
            Ok(service) => Ok(Some(service)),
            Err(error) if error.proves_absence_of::<GuestService>(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The UID of the guest cluster, which is that of the Service that each API server makes for itself.
    pub(crate) async fn guest_cluster(&self) -> Result<Option<String>, CallError> {
        Ok(self.guest_named(CLUSTER_NAMESPACE, CLUSTER_SERVICE).await?.and_then(|own| own.metadata.uid))
    }

    /// Reads the infra Service: the whole object, and the fields that we use. `None` only if the API server itself
    /// reports that this Service does not exist.
    pub(crate) async fn mirror_now(&self, name: &str) -> Result<Option<Mirrored>, kube::Error> {
        let request =
            self.whole.get(name, &kube::api::GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let whole: Value = match self.infra.request(request).await {
            Ok(whole) => whole,
            Err(error) if is_absent::<InfraService>(&error, name) => return Ok(None),
            Err(error) => return Err(error),
        };
        Mirrored::of(whole).map(Some)
    }

    /// Creates the mirror; returns it as infra has it now.
    pub(crate) async fn create_mirror(&self, object: &Value) -> Result<Answer<Mirrored>, kube::Error> {
        let request = self.whole.create(&post(), object.to_string().into_bytes());
        match self.write(request).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Answer::Changed),
            written => Ok(Answer::Done(written?)),
        }
    }

    /// Replaces the infra Service by `object`, if it has not changed since `object` was made from it; returns it as
    /// infra has it now.
    pub(crate) async fn replace_mirror(
        &self,
        name: &str,
        object: &Value,
    ) -> Result<Answer<Mirrored>, kube::Error> {
        let request = self.whole.replace(name, &post(), object.to_string().into_bytes());
        match self.write(request).await {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Answer::Changed)
            }
            written => Ok(Answer::Done(written?)),
        }
    }

    async fn write(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Mirrored, kube::Error> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        Mirrored::of(self.infra.request(request).await?)
    }

    /// Deletes the infra Service, if it still has this UID.
    pub(crate) async fn delete_mirror(&self, name: &str, uid: &str) -> Result<Answer<Deleted>, kube::Error> {
        delete(&self.mirrors, name, uid).await
    }
}

/// Deletes the infra Service of this name, if it still has this UID.
pub(crate) async fn delete<K>(mirrors: &Api<K>, name: &str, uid: &str) -> Result<Answer<Deleted>, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match mirrors.delete(name, &parameters).await {
        Ok(answer) => Ok(Answer::Done(answer.left().map_or(Deleted::Going, |last| became(last.meta(), uid)))),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Answer::Absent),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Answer::Changed),
        Err(error) => Err(error),
    }
}

/// An API server answers with the Service as it was when it was removed, or, if a finalizer holds it, as it is now:
/// marked as deleting (k8s.io/apiserver, `registry.Store.Delete`). A Service that was removed at once therefore has
/// neither mark nor finalizer.
fn became(answered: &ObjectMeta, uid: &str) -> Deleted {
    let is_held =
        answered.deletion_timestamp.is_some() || answered.finalizers.iter().flatten().next().is_some();
    if answered.uid.as_deref() == Some(uid) && !is_held { Deleted::Gone } else { Deleted::Going }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{FakeApi, failure};
    use rstest::rstest;

    fn services(api: &FakeApi) -> Services {
        let infra = InfraCluster::over(api.client(), "hcp");
        Services::new(&GuestCluster::over(api.client()), &infra)
    }

    #[rstest]
    #[case::removed(json!({"uid": "u1"}), true)]
    #[case::held(json!({"uid": "u1", "finalizers": ["x/y"]}), false)]
    #[case::going(json!({"uid": "u1", "deletionTimestamp": "2026-11-21T00:00:00Z"}), false)]
    #[case::another(json!({"uid": "u2"}), false)]
    #[case::nobody(json!({}), false)]
    #[tokio::test]
    async fn gone_is_what_infra_removed_at_once(#[case] metadata: Value, #[case] gone: bool) {
        let api = FakeApi::default();
        let answer = json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata});
        api.answer("DELETE /api/v1/namespaces/hcp/services/a", 200, answer);
        let deleted = services(&api).delete_mirror("a", "u1").await.unwrap();
        assert!(
            matches!(deleted, Answer::Done(deleted) if (deleted == Deleted::Gone) == gone),
            "{deleted:?}"
        );
        assert_eq!(api.made("DELETE")[0].body["preconditions"]["uid"], "u1");
    }

    #[tokio::test]
    async fn a_bare_success_proves_no_end() {
        let api = FakeApi::default();
        let answer = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
        api.answer("DELETE /api/v1/namespaces/hcp/services/a", 200, answer);
        let deleted = services(&api).delete_mirror("a", "u1").await.unwrap();
        assert!(matches!(deleted, Answer::Done(Deleted::Going)), "{deleted:?}");
    }

    #[rstest]
    #[case::of_it(json!({"name": "a", "kind": "services"}), true)]
    #[case::of_another_kind(json!({"name": "a", "kind": "pods"}), false)]
    #[case::of_a_proxy(json!({}), false)]
    #[tokio::test]
    async fn only_a_404_about_the_infra_service_proves_its_absence(
        #[case] details: Value,
        #[case] gone: bool,
    ) {
        let api = FakeApi::default();
        let (code, body) = failure(404, "NotFound", &details);
        api.answer("GET /api/v1/namespaces/hcp/services/a", code, body);
        assert_eq!(matches!(services(&api).mirror_now("a").await, Ok(None)), gone);
    }
}
