//! The infra object that owns all infra Services of a guest: deleting it deletes them. Any object that a hosting system
//! keeps for each guest can be the owner (a `HostedControlPlane`, a `Cluster`, a `ConfigMap`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DynamicObject, GroupVersionKind};
use kube::core::TypeMeta;
use kube::discovery::{self, Scope};

use crate::{access::InfraCluster, config::OwnerChoice};

impl OwnerChoice {
    /// Reads the object. `None` = it does not exist or is being deleted. As an owner it is not the controller of the
    /// Services, and its deletion does not wait for them.
    ///
    /// # Errors
    /// The API server refused, or did not answer.
    pub async fn find(&self, infra: &InfraCluster) -> Result<Option<OwnerReference>, kube::Error> {
        let kind = TypeMeta { api_version: self.api_version.clone(), kind: self.kind.clone() };
        let Ok(kind) = GroupVersionKind::try_from(&kind) else { return Ok(None) };
        let (resource, capabilities) = match discovery::pinned_kind(&infra.client, &kind).await {
            Ok(found) => found,
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(error) => return absent(error),
        };
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(infra.client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(infra.client.clone(), &infra.namespace, &resource),
        };
        let found = match api.get_metadata(&self.name).await {
            Ok(found) => found,
            Err(error) => return absent(error),
        };
        if found.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        Ok(found.metadata.uid.map(|uid| OwnerReference {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid,
            ..OwnerReference::default()
        }))
    }
}

fn absent(error: kube::Error) -> Result<Option<OwnerReference>, kube::Error> {
    match error {
        kube::Error::Api(status) if status.is_not_found() => Ok(None),
        error => Err(error),
    }
}

impl std::fmt::Display for OwnerChoice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{FakeApi, failure};
    use rstest::rstest;
    use serde_json::{Value, json};

    fn resources(version: &str, name: &str, kind: &str, namespaced: bool) -> Value {
        json!({"kind": "APIResourceList", "groupVersion": version, "resources": [
            {"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get"]}]})
    }

    fn choice(api_version: &str, kind: &str) -> OwnerChoice {
        OwnerChoice { api_version: api_version.into(), kind: kind.into(), name: "guest".into() }
    }

    #[rstest]
    #[case::core("v1", "ConfigMap", "configmaps", "/api/v1", "/namespaces/hcp", true)]
    #[case::group(
        "hypershift.openshift.io/v1beta1",
        "HostedControlPlane",
        "hostedcontrolplanes",
        "/apis/hypershift.openshift.io/v1beta1",
        "/namespaces/hcp",
        true
    )]
    #[case::cluster_wide("example.org/v1", "Tenant", "tenants", "/apis/example.org/v1", "", false)]
    #[tokio::test]
    async fn any_kind_of_object_can_be_the_owner(
        #[case] api_version: &str,
        #[case] kind: &str,
        #[case] plural: &str,
        #[case] group: &str,
        #[case] within: &str,
        #[case] namespaced: bool,
    ) {
        let api = FakeApi::default();
        let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "guest", "uid": "u1"}});
        api.answer(&format!("GET {group}"), 200, resources(api_version, plural, kind, namespaced));
        api.answer(&format!("GET {group}{within}/{plural}/guest"), 200, object);
        let infra = InfraCluster::over(api.client(), "hcp");
        let found = choice(api_version, kind).find(&infra).await.unwrap().unwrap();
        assert_eq!((found.uid.as_str(), found.api_version.as_str()), ("u1", api_version));
        assert_eq!((found.controller, found.block_owner_deletion), (None, None));
    }

    #[rstest]
    #[case::gone(404, "NotFound", true)]
    #[case::no_right(403, "Forbidden", false)]
    #[case::unwell(500, "InternalError", false)]
    #[tokio::test]
    async fn only_a_not_found_means_none(#[case] code: u16, #[case] reason: &str, #[case] is_none: bool) {
        let api = FakeApi::default();
        let (code, body) = failure(code, reason, &json!({"name": "guest"}));
        api.answer("GET /api/v1", 200, resources("v1", "configmaps", "ConfigMap", true));
        api.answer("GET /api/v1/namespaces/hcp/configmaps/guest", code, body);
        let infra = InfraCluster::over(api.client(), "hcp");
        let found = choice("v1", "ConfigMap").find(&infra).await;
        assert_eq!(matches!(found, Ok(None)), is_none, "{found:?}");
        assert_eq!(found.is_err(), !is_none);
    }

    #[tokio::test]
    async fn one_that_is_being_deleted_owns_nothing_new() {
        let api = FakeApi::default();
        let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "guest", "uid": "u1", "deletionTimestamp": "2026-11-21T00:00:00Z"}});
        api.answer("GET /api/v1", 200, resources("v1", "configmaps", "ConfigMap", true));
        api.answer("GET /api/v1/namespaces/hcp/configmaps/guest", 200, object);
        let infra = InfraCluster::over(api.client(), "hcp");
        assert_eq!(choice("v1", "ConfigMap").find(&infra).await.unwrap(), None);
    }
}
