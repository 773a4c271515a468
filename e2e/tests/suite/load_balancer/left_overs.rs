//! What a guest leaves in infra goes: by itself, with the object that owns it, or by `--cleanup`. Objects of others stay.

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until, until_gone};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Service},
    rbac::v1::{Role, RoleBinding},
};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, merge, mirror_name},
};

tests! {
    Services:
        left_overs_go_and_nothing_else,
        an_owner_takes_all_with_it,
        a_guest_is_cleaned_up,
        a_cleanup_names_what_it_leaves;
}

/// The annotation that marks an infra Service as one of a guest cluster.
const MARK: &str = "cluster.x-k8s.io/tenant-cluster-uid";
/// The label with the name of the guest cluster.
const CLUSTER_LABEL: &str = "cluster.x-k8s.io/cluster-name";
/// The object that owns all infra Services of the guest.
const ANCHOR: &str = "anchor";

/// A mirror without Service is deleted by the first sweep, one of kubevirt/cloud-provider-kubevirt by the second; those of another
/// cluster in the same namespace, and of the same name, stay, and so do mirrors of living Services.
async fn left_overs_go_and_nothing_else(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let first = place.provider("a", CLUSTER, &[ALONE]).await?;
    let lost = place.create("lost", json!({})).await?;
    let kept = mirror_name(&place.create("kept", json!({})).await?);
    place.served("lost").await?;
    place.served("kept").await?;
    drop(first);
    merge(&place.guests, "lost", json!({"metadata": {"finalizers": null}})).await?;
    place.guests.delete("lost", &DeleteParams::default()).await?;
    until_gone(&place.guests, "lost", "the guest's Service", Deadline::Reaction).await?;

    let lost = mirror_name(&lost);
    let before = serde_json::to_value(place.mirrors.get(&lost).await?)?;
    ensure!(before["metadata"]["annotations"][MARK].is_string(), "expected a marked mirror, saw {before}");
    let others = [
        copy(&place, &before, '1', |object| object["metadata"]["labels"][CLUSTER_LABEL] = json!("other"))
            .await?,
        copy(&place, &before, '2', |object| object["metadata"]["annotations"][MARK] = json!("another"))
            .await?,
    ];
    let unmarked =
        copy(&place, &before, '3', |object| object["metadata"]["annotations"] = json!({"by": "reference"}))
            .await?;
    let _provider = place.provider_with("b", CLUSTER, &[ALONE], json!({"sweepInterval": 1})).await?;
    until_gone(&place.mirrors, &lost, "the left-over", Deadline::Reaction).await?;
    // It takes a second sweep, so all others were judged before.
    until_gone(&place.mirrors, &unmarked, "the unmarked left-over", Deadline::Reaction).await?;
    for other in others.iter().chain([&kept]) {
        let there = place.mirrors.get_opt(other).await?;
        ensure!(
            there.is_some_and(|there| there.metadata.deletion_timestamp.is_none()),
            "expected {other} to stay, saw it deleted"
        );
    }
    place.served("kept").await?;
    Ok(())
}

/// Where the owner may not be read, Services are served without an owner. With the right each has it, and goes when it does; what is made
/// again while the guest lives has no stale owner.
async fn an_owner_takes_all_with_it(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let anchors: Api<ConfigMap> = Api::namespaced(fixture.infra.clone(), &place.namespace);
    let anchor = serde_json::from_value(json!({"metadata": {"name": ANCHOR}}))?;
    let uid = anchors.create(&PostParams::default(), &anchor).await?.metadata.uid;
    let owner = json!({"owner": {"apiVersion": "v1", "kind": "ConfigMap", "name": ANCHOR}});
    let first = place.provider_with("a", CLUSTER, &[ALONE], owner.clone()).await?;
    let mirror = mirror_name(&place.create("web", json!({})).await?);
    place.served("web").await?;
    place.mirror(&mirror, "no owner", |now| now["metadata"].get("ownerReferences").is_none()).await?;
    drop(first);

    may_read_config_maps(&fixture, &place.namespace).await?;
    let second = place.provider_with("b", CLUSTER, &[ALONE], owner).await?;
    let is_owned = |now: &Value| now["metadata"]["ownerReferences"][0]["uid"] == json!(uid);
    let kept = place.mirror(&mirror, "the owner", is_owned).await?;
    let reference = &kept["metadata"]["ownerReferences"][0];
    ensure!(
        reference["controller"] != true && reference["blockOwnerDeletion"] != true,
        "expected an owner that is no controller and does not block, saw {reference}"
    );

    anchors.delete(ANCHOR, &DeleteParams::default()).await?;
    let before = kept["metadata"]["uid"].clone();
    place
        .mirror(&mirror, "another one without owner", |now| {
            now["metadata"]["uid"] != before && now["metadata"].get("ownerReferences").is_none()
        })
        .await?;
    drop(second);
    Ok(())
}

/// `--cleanup` is refused while a provider acts; then it deletes the guest's objects and frees the guest's Services, and works
/// without the guest's API too.
async fn a_guest_is_cleaned_up(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let lease = format!("--leader-elect-resource-name=cleanup-{}", place.namespace);
    let provider = place.provider("a", CLUSTER, &[&lease]).await?;
    let mirror = mirror_name(&place.create("web", json!({})).await?);
    place.served("web").await?;
    let said = place.run("b", CLUSTER, &["--cleanup", &lease]).await?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(
        !said.status.success() && error.contains("stop it first"),
        "expected a refusal while a provider acts, saw {error}"
    );
    ensure!(
        place.mirrors.get_opt(&mirror).await?.is_some(),
        "expected the mirror to stay after the refusal, saw it deleted"
    );

    provider.process.signal(Signal::SIGTERM);
    provider.process.exited().await;
    let before = serde_json::to_value(place.mirrors.get(&mirror).await?)?;
    let other =
        copy(&place, &before, '1', |object| object["metadata"]["labels"][CLUSTER_LABEL] = json!("other"))
            .await?;
    let said = place.run("c", CLUSTER, &["--cleanup", &lease]).await?;
    let output = String::from_utf8_lossy(&said.stdout);
    ensure!(
        said.status.success(),
        "expected exit code 0, saw {}: {}",
        said.status,
        String::from_utf8_lossy(&said.stderr)
    );
    ensure!(
        output.contains(&format!("deleting infra service {mirror} (of {}/web)", place.namespace)),
        "{output}"
    );
    ensure!(place.mirrors.get_opt(&mirror).await?.is_none(), "expected no mirror, saw one");
    ensure!(
        place.mirrors.get_opt(&other).await?.is_some(),
        "expected the mirror of another cluster to stay, saw it deleted"
    );
    let freed = serde_json::to_value(place.guests.get("web").await?)?;
    ensure!(freed["metadata"].get("finalizers").is_none(), "expected no finalizer, saw {freed}");
    ensure!(freed["status"]["loadBalancer"].get("ingress").is_none(), "expected no address, saw {freed}");

    // Held by a finalizer of infra's: the deadline ends the wait. The guest's API does not answer.
    let held = copy(&place, &before, '2', |object| {
        object["metadata"]["finalizers"] = json!(["bench.local/held"]);
    })
    .await?;
    let silent = ["--cleanup", "--cleanup-timeout=2s", "--master=https://127.0.0.1:1", &lease];
    let said = place.run("d", CLUSTER, &silent).await?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(
        !said.status.success() && error.contains("not gone after 2 s") && error.contains(&held),
        "{error}"
    );
    merge(&place.mirrors, &held, json!({"metadata": {"finalizers": null}})).await?;
    let said = place.run("e", CLUSTER, &silent).await?;
    let output = String::from_utf8_lossy(&said.stdout);
    ensure!(
        said.status.success() && output.contains("the guest cluster does not answer"),
        "expected success without the guest, saw {output}"
    );
    until("only the mirror of the other cluster to be left", Deadline::Reaction, async || {
        let left: Vec<_> = place.mirrors.list(&kube::api::ListParams::default()).await?.items;
        let left: Vec<_> = left.into_iter().filter_map(|left| left.metadata.name).collect();
        Ok(if left == [other.clone()] { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await
}

/// A mirror that bears the mark of another guest of the same name stays, however often the cleanup runs, unless a Service of this
/// guest proves that the mark is an earlier one, or the operator says so. What is left is never a success.
async fn a_cleanup_names_what_it_leaves(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let lease = format!("--leader-elect-resource-name=left-{}", place.namespace);
    let provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let mirror = mirror_name(&place.create("web", json!({})).await?);
    place.served("web").await?;
    provider.stop().await?;
    let before = serde_json::to_value(place.mirrors.get(&mirror).await?)?;
    let marked = async |digit, mark: &str| {
        copy(&place, &before, digit, |object| object["metadata"]["annotations"][MARK] = json!(mark)).await
    };
    let (other, odd) = (
        marked('1', "another").await?,
        copy(&place, &before, '2', |object| {
            object["metadata"]["labels"]["cluster.x-k8s.io/tenant-service-name"] = json!("");
        })
        .await?,
    );
    // Its own, as it looks when the guest's users deleted the Service default/kubernetes since.
    merge(&place.mirrors, &mirror, json!({"metadata": {"annotations": {MARK: "earlier"}}})).await?;
    let earlier = marked('3', "earlier").await?;
    for run in ["b", "c"] {
        let said = place.run(run, CLUSTER, &["--cleanup", &lease]).await?;
        let error = String::from_utf8_lossy(&said.stderr);
        ensure!(
            !said.status.success() && [&other, &odd].iter().all(|left| error.contains(*left)),
            "expected a failure that names {other} and {odd}, saw {error}"
        );
        ensure!(error.contains("--cleanup-force"), "expected the way out, saw {error}");
        for (name, stays) in [(&mirror, false), (&earlier, false), (&other, true), (&odd, true)] {
            let there = place.mirrors.get_opt(name).await?.is_some();
            ensure!(there == stays, "run {run}: expected {name} there: {stays}, saw {there}");
        }
    }
    place.mirrors.delete(&odd, &DeleteParams::default()).await?;
    until_gone(&place.mirrors, &odd, "the odd infra Service", Deadline::Reaction).await?;
    let said = place.run("d", CLUSTER, &["--cleanup", "--cleanup-force", &lease]).await?;
    ensure!(
        said.status.success() && place.mirrors.get_opt(&other).await?.is_none(),
        "expected {other} to be deleted, saw {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

/// Makes another infra Service after this one; its name is another Service's, by its last digit. Returns the name.
async fn copy(place: &Place, of: &Value, digit: char, change: impl FnOnce(&mut Value)) -> Result<String> {
    let name = of["metadata"]["name"].as_str().unwrap_or_default();
    let start = name.strip_suffix(|_: char| true).unwrap_or_default();
    let last = if name.ends_with(digit) { 'f' } else { digit };
    let name = format!("{start}{last}");
    let mut annotations = of["metadata"]["annotations"].clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove("cluster.x-k8s.io/tenant-service-uid");
    }
    let mut labels = of["metadata"]["labels"].clone();
    labels["cluster.x-k8s.io/tenant-service-name"] = json!(format!("copy-{digit}"));
    let mut object = json!({
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"type": "LoadBalancer", "selector": of["spec"]["selector"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 30080}]},
    });
    change(&mut object);
    let object: Service = serde_json::from_value(object)?;
    place.mirrors.create(&PostParams::default(), &object).await?;
    Ok(name)
}

/// Gives the provider's account the right that the owner needs.
async fn may_read_config_maps(fixture: &Fixture, namespace: &str) -> Result<()> {
    let roles: Api<Role> = Api::namespaced(fixture.infra.clone(), namespace);
    let role = json!({"metadata": {"name": "owner"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [ANCHOR], "verbs": ["get"]}]});
    roles.create(&PostParams::default(), &serde_json::from_value(role)?).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(fixture.infra.clone(), namespace);
    let binding = json!({"metadata": {"name": "owner"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "owner"},
        "subjects": [{"kind": "ServiceAccount", "name": "cloud-controller-manager", "namespace": namespace}]});
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    Ok(())
}
