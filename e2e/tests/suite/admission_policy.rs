//! The policies of `deploy/infra-admission-policy`: RBAC lets the accounts of our programs change all claims and Services of their
//! namespace, and the infra API server refuses those that are not the guest's.

use anyhow::{Context, Result, bail};
use bench::scenario::{Deadline, data_volumes, until};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Error,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{administrator, kubectl_with},
};

tests! {
    Calls:
        the_accounts_change_only_what_has_the_guests_labels;
}

/// What an operator installs for the accounts: their rights, and the `ConfigMap`s that say which guest it is.
const INSTALLED: [&str; 5] = [
    include_str!("../../../deploy/controller-infra/base/rbac.yaml"),
    include_str!("../../../deploy/controller-infra/base/driver-config.yaml"),
    include_str!("../../../deploy/cloud-controller-manager/infra/base/rbac.yaml"),
    include_str!("../../../deploy/cloud-controller-manager/infra/base/cloud-config.yaml"),
    include_str!("../../../deploy/cloud-controller-manager/infra/endpoints/role.yaml"),
];

const POLICIES: [&str; 2] = [
    include_str!("../../../deploy/infra-admission-policy/csi-driver.yaml"),
    include_str!("../../../deploy/infra-admission-policy/cloud-controller-manager.yaml"),
];

/// The names of the policies as they are shipped end with it.
const POLICY_SUFFIX: &str = "-own-objects";

/// The label that `driver-config` demands.
const CSI_LABEL: (&str, &str) = ("csi-driver/cluster", "tenant");
/// The label that `cloud-config` demands.
const CCM_LABEL: (&str, &str) = ("cluster.x-k8s.io/cluster-name", "kvcluster");

/// The policies, in force in the namespace of the test only.
fn policies(word: &str) -> String {
    let selector = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {word}}}}}");
    let own = POLICIES.join("---\n").replace(POLICY_SUFFIX, &format!("-{word}"));
    own.replace("  paramRef:\n", &format!("  matchResources: {{{selector}}}\n  paramRef:\n"))
}

async fn the_accounts_change_only_what_has_the_guests_labels(fixture: Fixture) -> Result<()> {
    let namespace = fixture.word.clone();
    let namespaces: Api<Namespace> = Api::all(fixture.infra.clone());
    let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
    namespaces.create(&PostParams::default(), &object).await?;
    let kubectl = administrator("infra");
    let apply = ["apply", "--namespace", &namespace];
    kubectl_with(&fixture, &kubectl, &apply, &INSTALLED.join("---\n")).await?;
    let policies = policies(&namespace);
    kubectl_with(&fixture, &kubectl, &["apply"], &policies).await?;
    let seen = async {
        let driver = fixture.infra_as(&format!("system:serviceaccount:{namespace}:kubevirt-csi")).await?;
        volumes(&fixture.infra, driver, &namespace).await.context("the CSI driver's account")?;
        let ccm = format!("system:serviceaccount:{namespace}:cloud-controller-manager");
        let ccm = fixture.infra_as(&ccm).await?;
        services(&fixture.infra, ccm, &namespace).await.context("the cloud controller manager's account")
    };
    let seen = seen.await;
    let removed = kubectl_with(&fixture, &kubectl, &["delete"], &policies).await;
    namespaces.delete(&namespace, &DeleteParams::default()).await?;
    seen.and(removed)
}

async fn volumes(administrator: &Client, driver: Client, namespace: &str) -> Result<()> {
    let (all, ours) = (data_volumes(administrator, namespace), data_volumes(&driver, namespace));
    let data_volume = |name: &str, labels: Value| {
        serde_json::from_value::<DynamicObject>(json!({
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume",
            "metadata": {"name": name, "labels": labels},
            "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "64Mi"}}}},
        }))
    };
    let (key, guest) = CSI_LABEL;
    all.create(&PostParams::default(), &data_volume("etcd", json!({}))?).await?;
    until("the policy to be in force", Deadline::Reaction, async || {
        let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
        let answer = ours.delete("etcd", &dry_run).await.map(drop);
        Ok(refused("delete what has no labels", answer).map_err(|error| error.to_string()))
    })
    .await?;
    for (name, labels) in
        [("bare", json!({})), ("others", json!({ key: "another" })), ("near", json!({ key: "" }))]
    {
        let created = ours.create(&PostParams::default(), &data_volume(name, labels)?).await.map(drop);
        refused(name, created)?;
    }
    ours.create(&PostParams::default(), &data_volume("own", json!({ key: guest }))?).await?;

    let claims: Api<PersistentVolumeClaim> = Api::namespaced(driver.clone(), namespace);
    let patch = async |name: &str, change: Value| {
        claims.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.map(drop)
    };
    // CDI gives the claim the labels of its DataVolume: what the driver patches there has them.
    for name in ["own", "etcd"] {
        until(&format!("CDI to make the claim {name}"), Deadline::Reaction, async || {
            Ok(claims.get_opt(name).await?.map(drop).ok_or_else(|| "absent".to_owned()))
        })
        .await?;
    }
    let annotation = json!({"metadata": {"annotations": {"csi.kubevirt.io/test": "1"}}});
    patch("own", annotation.clone()).await.context("patch the guest's claim")?;
    refused("patch another's claim", patch("etcd", annotation).await)?;
    refused("take another's claim", patch("etcd", json!({"metadata": {"labels": {key: guest}}})).await)?;
    refused("give a claim away", patch("own", json!({"metadata": {"labels": {key: null}}})).await)?;

    let kind =
        ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshot"));
    let snapshots: Api<DynamicObject> = Api::namespaced_with(driver, namespace, &kind);
    let snapshot = |labels: Value| {
        serde_json::from_value::<DynamicObject>(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "s", "labels": labels},
            "spec": {"source": {"persistentVolumeClaimName": "etcd"}},
        }))
    };
    let created = snapshots.create(&PostParams::default(), &snapshot(json!({}))?).await.map(drop);
    refused("a snapshot without labels", created)?;
    snapshots.create(&PostParams::default(), &snapshot(json!({ key: guest }))?).await?;
    snapshots.delete("s", &DeleteParams::default()).await?;
    ours.delete("own", &DeleteParams::default()).await.context("delete the guest's volume")?;

    // A namespace without the ConfigMap has no guest.
    let configs: Api<ConfigMap> = Api::namespaced(administrator.clone(), namespace);
    configs.delete("driver-config", &DeleteParams::default()).await?;
    let another = data_volume("late", json!({ key: guest }))?;
    until("the missing ConfigMap to be noticed", Deadline::Reaction, async || {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let answer = ours.create(&dry_run, &another).await.map(drop);
        let refused = refused_with("a namespace without a guest", answer, 422, "no params found");
        Ok(refused.map_err(|error| error.to_string()))
    })
    .await
}

async fn services(administrator: &Client, ccm: Client, namespace: &str) -> Result<()> {
    let all: Api<Service> = Api::namespaced(administrator.clone(), namespace);
    let ours: Api<Service> = Api::namespaced(ccm.clone(), namespace);
    let service = |name: &str, labels: Value| {
        serde_json::from_value::<Service>(
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"ports": [{"port": 443}]}}),
        )
    };
    let (key, guest) = CCM_LABEL;
    let mut foreign = all.create(&PostParams::default(), &service("kube-apiserver", json!({}))?).await?;
    until("the policy to be in force", Deadline::Reaction, async || {
        let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
        let answer = ours.delete("kube-apiserver", &dry_run).await.map(drop);
        Ok(refused("delete what has no labels", answer).map_err(|error| error.to_string()))
    })
    .await?;
    for (name, labels) in [("bare", json!({})), ("others", json!({ key: "another" }))] {
        refused(name, ours.create(&PostParams::default(), &service(name, labels)?).await.map(drop))?;
    }
    let mut own = ours.create(&PostParams::default(), &service("own", json!({ key: guest }))?).await?;
    foreign.metadata.labels.get_or_insert_default().insert(key.to_owned(), guest.to_owned());
    let replaced = ours.replace("kube-apiserver", &PostParams::default(), &foreign).await.map(drop);
    refused("take another's Service", replaced)?;
    own.metadata.labels.get_or_insert_default().insert("a".to_owned(), "b".to_owned());
    let mut own =
        ours.replace("own", &PostParams::default(), &own).await.context("replace the guest's Service")?;
    own.metadata.labels = None;
    let replaced = ours.replace("own", &PostParams::default(), &own).await.map(drop);
    refused("give a Service away", replaced)?;

    let slices: Api<EndpointSlice> = Api::namespaced(ccm, namespace);
    let slice = |labels: Value| {
        serde_json::from_value::<EndpointSlice>(
            json!({"metadata": {"name": "slice", "labels": labels}, "addressType": "IPv4", "endpoints": []}),
        )
    };
    let created =
        slices.create(&PostParams::default(), &slice(json!({"kubernetes.io/service-name": "x"}))?).await;
    refused("a slice of another's Service", created.map(drop))?;
    slices.create(&PostParams::default(), &slice(json!({ key: guest }))?).await?;
    slices.delete("slice", &DeleteParams::default()).await?;
    ours.delete("own", &DeleteParams::default()).await.context("delete the guest's Service").map(drop)
}

/// Checks that a policy refused the call because of the labels.
fn refused(what: &str, answer: Result<(), Error>) -> Result<()> {
    refused_with(what, answer, 403, "may only change objects with the label")
}

/// Checks that a policy, and not RBAC, refused the call with this text.
fn refused_with(what: &str, answer: Result<(), Error>, code: u16, text: &str) -> Result<()> {
    match answer {
        Err(Error::Api(status))
            if status.code == code
                && status.message.contains("ValidatingAdmissionPolicy")
                && status.message.contains(text) =>
        {
            Ok(())
        }
        answer => bail!("expected a policy to refuse {what:?} with {code} and {text:?}, saw {answer:?}"),
    }
}
