//! A cloud controller manager that serves Nodes only, with rights that installers give in infra.

use anyhow::Result;
use bench::scenario::HCP_NAMESPACE;
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, Place, Provider},
};

/// Only the controllers of Nodes run.
const ONLY_NODES: &str = "--controllers=cloud-node-controller,cloud-node-lifecycle-controller";

/// Rights in infra, as installers give them.
#[derive(Clone, Copy)]
pub enum Rights {
    /// The role and the cluster role of kubevirt/cloud-provider-kubevirt.
    Reference,
    /// `HyperShift`'s role: no nodes.
    HyperShift,
    /// Those without watch: VMs and instances are listed.
    NoWatch,
}

/// Starts it with these rights in infra, the installed ones in the guest, and no key in the cloud-config.
pub async fn start(fixture: &Fixture, place: &Place, rights: Rights) -> Result<Provider> {
    let account = grant(fixture, rights).await?;
    let access = place.access_of(&fixture.infra, &account).await?;
    place.configured_as(rights.word(), &access, &json!({}), &[ALONE, ONLY_NODES]).await
}

impl Rights {
    /// In a word, for names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::HyperShift => "hypershift",
            Self::NoWatch => "no-watch",
        }
    }

    fn rules(self) -> Value {
        let rule = |resource: &str, verbs: &[&str]| json!({"apiGroups": ["kubevirt.io"], "resources": [resource], "verbs": verbs});
        match self {
            Self::Reference | Self::HyperShift => json!([
                rule("virtualmachines", &["get", "list", "watch"]),
                rule("virtualmachineinstances", &["get", "list", "watch", "update"]),
            ]),
            Self::NoWatch => json!([
                rule("virtualmachines", &["get", "list"]),
                rule("virtualmachineinstances", &["get", "list"]),
            ]),
        }
    }
}

/// Makes an account that has the rights in infra; its name.
async fn grant(fixture: &Fixture, rights: Rights) -> Result<String> {
    let name = format!("bench-ccm-{}", rights.word());
    let infra = &fixture.infra;
    let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": HCP_NAMESPACE}]);
    let refers = |kind: &str| json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let meta = json!({"name": name});
    let accounts: Api<ServiceAccount> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    ensure_there(&accounts, &name, json!({"metadata": meta})).await?;
    let roles: Api<Role> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    ensure_there(&roles, &name, json!({"metadata": meta, "rules": rights.rules()})).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    let binding = json!({"metadata": meta, "subjects": subjects, "roleRef": refers("Role")});
    ensure_there(&bindings, &name, binding).await?;
    if matches!(rights, Rights::Reference) {
        let of_nodes = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]);
        let roles: Api<ClusterRole> = Api::all(infra.clone());
        ensure_there(&roles, &name, json!({"metadata": meta, "rules": of_nodes})).await?;
        let bindings: Api<ClusterRoleBinding> = Api::all(infra.clone());
        let binding = json!({"metadata": meta, "subjects": subjects, "roleRef": refers("ClusterRole")});
        ensure_there(&bindings, &name, binding).await?;
    }
    Ok(name)
}

async fn ensure_there<K>(api: &Api<K>, name: &str, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    if api.get_opt(name).await?.is_none() {
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    }
    Ok(())
}
