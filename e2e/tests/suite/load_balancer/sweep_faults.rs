//! Sweeps of left-overs while the guest's API answers wrongly: a Service that it does not show is not proof that it is gone.

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, until_gone};
use fault_proxy::{Action, Faults, Guard, Matcher, Reply, Rule};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::{
    api_faults::api_faults_of,
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, merge, mirror_name},
};

tests! {
    Services:
        an_erring_guest_api_makes_no_left_overs;
}

/// The API's message in an injected answer.
const WORDS: &str = "said by the API server";
/// The Service by whose UID a guest cluster is known.
const CLUSTER_SERVICE: &str = "kubernetes";
/// The Service that lives all the time, and the one whose mirror is left over.
const KEPT: &str = "kept";
const LOST: &str = "lost";
/// So many sweeps under each fault: the second deletes what the first was not sure of.
const LOOKS: u32 = 2;
/// A sweep ends at an answer that is neither the Service nor the proof that it is gone.
const NO_PROOF: &str = "500: the read failed, and its code decides nothing";
/// An annotation that shows that the guest is watched.
const SEEN: &str = "example.com/seen";

/// The guest lists no Service at all, and each read of one is answered wrongly, late, or not at all: no mirror goes. When
/// the API is back, the left-over goes, and living Services are still served.
async fn an_erring_guest_api_makes_no_left_overs(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let first = place.provider("a", CLUSTER, &[ALONE]).await?;
    let lost = mirror_name(&place.create(LOST, json!({})).await?);
    let kept = mirror_name(&place.create(KEPT, json!({})).await?);
    place.served(LOST).await?;
    place.served(KEPT).await?;
    drop(first);
    merge(&place.guests, LOST, json!({"metadata": {"finalizers": null}})).await?;
    place.guests.delete(LOST, &DeleteParams::default()).await?;
    until_gone(&place.guests, LOST, "the guest's Service", Deadline::Reaction).await?;
    let before = [place.mirrors.get(&kept).await?, place.mirrors.get(&lost).await?];

    let proxies = place.proxies().await?;
    let guest = proxies.guest.faults();
    let blind = blind(&place, guest).await?;
    // No moment without a fault: the next one is in force before the last one is lifted.
    let mut lifted = wrong(guest, [KEPT, LOST], &text(200, "<html>please log in</html>"));
    let sweeping = json!({"sweepInterval": 1});
    let provider = place.provider_behind_with(&proxies, "b", &[ALONE], sweeping).await?;
    met(&lifted, "a page of a proxy").await?;
    for (name, action) in api_faults_of(WORDS, &["403", "409", "422"].map(|code| (code, NO_PROOF))) {
        let next = wrong(guest, [KEPT, LOST], &action);
        drop(lifted);
        met(&next, name).await?;
        lifted = next;
    }
    let another = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": CLUSTER_SERVICE, "namespace": "default", "uid": "another"}});
    for (name, action) in [
        ("another guest", text(200, &another.to_string())),
        ("no guest", Action::Answer(Reply::kubernetes(404, WORDS))),
        ("an unwell guest", Action::Answer(Reply::kubernetes(500, WORDS))),
    ] {
        let next = wrong(guest, [CLUSTER_SERVICE], &action);
        drop(lifted);
        met(&next, name).await?;
        lifted = next;
    }
    for before in &before {
        let name = before.metadata.name.as_deref().unwrap_or_default();
        let now = place
            .mirrors
            .get(name)
            .await
            .with_context(|| format!("expected {name} to stay, saw it deleted"))?;
        ensure!(now.metadata.uid == before.metadata.uid, "expected the same {name}, saw a new one");
        ensure!(now.metadata.deletion_timestamp.is_none(), "expected {name} to stay, saw it being deleted");
    }
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );

    drop((lifted, blind));
    until_gone(&place.mirrors, &lost, "the left-over", Deadline::Reaction).await?;
    merge(&place.guests, KEPT, json!({"metadata": {"annotations": {SEEN: "yes"}}})).await?;
    let now = place.mirror(&kept, "the change", |now| now["metadata"]["annotations"][SEEN] == "yes").await?;
    ensure!(
        now["metadata"]["uid"] == json!(before[0].metadata.uid),
        "expected the same {kept}, saw a new one"
    );
    place.served(KEPT).await?;
    Ok(())
}

/// The guest's lists of Services are empty, and no watch corrects them.
async fn blind(place: &Place, guest: &Faults) -> Result<[Guard; 2]> {
    let version = place.guests.list(&ListParams::default()).await?.metadata.resource_version;
    let empty = json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": version}, "items": []});
    let unwell = Action::Answer(Reply::kubernetes(500, WORDS));
    Ok([
        guest.add(Rule::each(Matcher::of("list", "services"), text(200, &empty.to_string()))),
        guest.add(Rule::each(Matcher::of("watch", "services"), unwell)),
    ])
}

fn text(code: u16, text: &str) -> Action {
    Action::Answer(Reply::Text { code, text: text.to_owned() })
}

/// Each read of one of these meets `action`.
fn wrong<const N: usize>(guest: &Faults, names: [&str; N], action: &Action) -> Vec<Guard> {
    let at = |name| Matcher::of("get", "services").named(name);
    names.into_iter().map(|name| guest.add(Rule::each(at(name), action.clone()))).collect()
}

/// Waits until so many sweeps have met the fault, whichever Service they read first.
async fn met(guards: &[Guard], name: &str) -> Result<()> {
    let any = guards.iter().map(|guard| Box::pin(guard.caught(LOOKS)));
    let met = tokio::time::timeout(Deadline::Reaction.duration(), futures::future::select_all(any)).await;
    met.with_context(|| format!("expected a sweep under {name}, saw none"))?;
    Ok(())
}
