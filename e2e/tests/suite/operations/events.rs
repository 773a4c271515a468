//! Why a guest's claim or pod does not become ready: the guest's own events pass on the infra cluster's messages.

use anyhow::{Result, ensure};
use bench::scenario::{
    Deadline, HCP_NAMESPACE, PodOnVolume, STORAGE_CLASS, claim, data_volumes, pod, until, until_gone,
};
use k8s_openapi::api::{
    core::v1::{Event, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use crate::{fixture::Fixture, infra_quota::under_quota};

tests! {
    Workers:
        an_exceeded_quota_is_an_event_of_the_claim;
    Calls:
        a_missing_infra_class_is_an_event_of_the_pod;
}

/// The claim of a test's guest namespace.
const CLAIM: &str = "claim";

/// The pod that uses it.
const POD: &str = "user";

/// What a quota counts a DataVolume as (Kubernetes, "Resource Quotas": `count/<resource>.<group>`).
const COUNTED: &str = "count/datavolumes.cdi.kubevirt.io";

/// An infra class that does not exist.
const NO_CLASS: &str = "no-such-class";

/// The infra namespace may have no volume more: the claim's event says so with the quota's name, and the claim is bound by
/// itself once the quota is gone.
async fn an_exceeded_quota_is_an_event_of_the_claim(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    under_quota(&fixture, COUNTED, "0", quota_event(&fixture, &claims)).await?;

    let bound = until("the claim to be bound without the quota", Deadline::MachineStart, async || {
        let status = claims.get(CLAIM).await?.status.unwrap_or_default();
        Ok(if status.phase.as_deref() == Some("Bound") { Ok(()) } else { Err(format!("{status:?}")) })
    });
    bound.await?;
    let volume = claims.get(CLAIM).await?.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
    claims.delete(CLAIM, &DeleteParams::default()).await?;
    let infra = data_volumes(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &volume, "DataVolume", Deadline::PodStart).await
}

async fn quota_event(fixture: &Fixture, claims: &Api<PersistentVolumeClaim>) -> Result<()> {
    claims.create(&PostParams::default(), &claim(CLAIM, STORAGE_CLASS, "Filesystem")).await?;
    let said =
        event(fixture, &About { object: CLAIM, reason: "ProvisioningFailed" }, "exceeded quota").await?;
    ensure!(said.contains(&fixture.word), "expected the event to name the quota, saw {said}");
    Ok(())
}

/// CDI's reason if no class determines a claim's modes.
const NO_CLASS_REASON: &str = "ErrClaimNotValid";

/// The guest's class names an infra class that does not exist: the pod's event names that class and CDI's reason; the reason alone does not name it.
async fn a_missing_infra_class_is_an_event_of_the_pod(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let classes: Api<StorageClass> = Api::all(fixture.guest.clone());
    let mut class = classes.get(STORAGE_CLASS).await?;
    class.metadata = ObjectMeta { name: Some(fixture.word.clone()), ..ObjectMeta::default() };
    class.parameters.get_or_insert_default().insert("infraStorageClassName".to_owned(), NO_CLASS.to_owned());
    classes.create(&PostParams::default(), &class).await?;

    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let wanted = claim(CLAIM, &fixture.word, "Filesystem");
    let made = claims.create(&PostParams::default(), &wanted).await?;
    let volume = format!("pvc-{}", made.uid().unwrap_or_default());
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), &namespace);
    let wanted =
        PodOnVolume { name: POD, claim: CLAIM, node: None, volume_mode: "Filesystem", script: "true" };
    pods.create(&PostParams::default(), &pod(&wanted)).await?;
    let said = event(&fixture, &About { object: POD, reason: "FailedAttachVolume" }, NO_CLASS).await?;
    ensure!(said.contains(NO_CLASS_REASON), "expected CDI's reason in the event, saw {said}");

    pods.delete(POD, &DeleteParams::default()).await?;
    until_gone(&pods, POD, "pod", Deadline::PodStart).await?;
    claims.delete(CLAIM, &DeleteParams::default()).await?;
    let infra = data_volumes(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &volume, "DataVolume", Deadline::MachineStart).await?;
    classes.delete(&fixture.word, &DeleteParams::default()).await?;
    Ok(())
}

/// Which events to find.
struct About<'a> {
    object: &'a str,
    reason: &'a str,
}

/// The message of an event of the test's guest namespace that contains `words`.
async fn event(fixture: &Fixture, about: &About<'_>, words: &str) -> Result<String> {
    let events: Api<Event> = Api::namespaced(fixture.guest.clone(), &fixture.word);
    let about = format!("involvedObject.name={},reason={}", about.object, about.reason);
    let wanted = ListParams::default().fields(&about);
    until(&format!("an event ({about}) that contains {words:?}"), Deadline::MachineStart, async || {
        let events = events.list(&wanted).await?.items.into_iter();
        let mut messages: Vec<String> = events.filter_map(|event| event.message).collect();
        let found = messages.iter().position(|message| message.contains(words));
        Ok(found.map(|index| messages.swap_remove(index)).ok_or_else(|| format!("{messages:?}")))
    })
    .await
}
