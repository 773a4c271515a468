//! Faults between a provider and both API servers: each call answered wrongly, late, or not at all; the
//! process killed before and after each of its changes; both API servers away. Each Service is served once, and nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, until, until_gone};
use fault_proxy::{Action, Faults, Guard, Matcher, Reply, Rule};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::{
    api_faults::api_faults_of,
    fixture::Fixture,
    provider::{ALONE, Place, Proxies, merge, mirror_name},
    rows::{Row::Like, chosen},
};

tests! {
    Services:
        every_change_survives_every_fault,
        a_killed_providers_work_is_finished_once,
        both_api_servers_are_away,
        two_leaders_double_nothing;
}

/// Infra's message in an injected answer.
const WORDS: &str = "said by the API server";
/// An annotation that a guest changes.
const CHANGE: &str = "example.com/change";
/// How long both API servers are away.
const OUTAGE: Duration = Duration::from_secs(20);
/// How many Services two providers serve at once.
const SERVICES: usize = 20;
/// The pause between two checks of a process that must live.
const LOOK: Duration = Duration::from_millis(500);

/// Which API server is called.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Infra,
    Guest,
}

/// A call that changes something, of one Service, in the order of its life.
struct Change {
    side: Side,
    verb: &'static str,
    resource: &'static str,
    /// What the user does before it.
    after: UserAction,
    /// How many calls of this kind the same Service makes before, repeatedly while they fail.
    skip: u32,
}

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum UserAction {
    /// Type `LoadBalancer`.
    Ask,
    /// Another annotation.
    Edit,
    /// Deletes it.
    Delete,
}

const fn change(
    side: Side,
    verb: &'static str,
    resource: &'static str,
    after: UserAction,
    skip: u32,
) -> Change {
    Change { side, verb, resource, after, skip }
}

/// All changes of a life: finalizer, mirror, status, the edited mirror, its deletion, the finalizer's end.
const CHANGES: [Change; 6] = [
    change(Side::Guest, "patch", "services/status", UserAction::Ask, 0),
    change(Side::Infra, "create", "services", UserAction::Ask, 0),
    change(Side::Guest, "patch", "services/status", UserAction::Ask, 1),
    change(Side::Infra, "update", "services", UserAction::Edit, 0),
    change(Side::Infra, "delete", "services", UserAction::Delete, 0),
    change(Side::Guest, "patch", "services/status", UserAction::Delete, 0),
];

/// Of two 4xx without a meaning of their own the cloud controller manager knows only that nothing was done.
const REFUSAL: &str = "403: a refusal of a change, whose code decides nothing";

/// The faults, each with a name; a watch gets the answer that its version is too old in [`both_api_servers_are_away`].
fn faults() -> Vec<(&'static str, Action)> {
    let expired = ("410", Action::Answer(Reply::kubernetes(410, WORDS)));
    let mut faults = api_faults_of(WORDS, &[("422", REFUSAL)]);
    faults.extend(chosen([(Like(REFUSAL), expired)]));
    faults
}

/// One guest Service of a test, named in every rule.
struct Subject<'a> {
    place: &'a Place,
    proxies: &'a Proxies,
    name: String,
    mirror: String,
}

impl<'a> Subject<'a> {
    /// Made without a load balancer, so that the name of its mirror is known before the first call.
    async fn new(place: &'a Place, proxies: &'a Proxies, name: &str) -> Result<Self> {
        let service = place.create(name, json!({"type": "ClusterIP"})).await?;
        Ok(Self { place, proxies, name: name.to_owned(), mirror: mirror_name(&service) })
    }

    fn faults(&self, side: Side) -> &Faults {
        match side {
            Side::Infra => self.proxies.infra.faults(),
            Side::Guest => self.proxies.guest.faults(),
        }
    }

    /// The calls of this kind about this Service; a create names nothing in its path.
    fn at(&self, change: &Change) -> Matcher {
        let all = Matcher::of(change.verb, change.resource);
        match (change.side, change.verb) {
            (_, "create") => all,
            (Side::Infra, _) => all.named(&self.mirror),
            (Side::Guest, _) => all.named(&self.name),
        }
    }

    /// One call of this kind meets `action`, after `skip` others.
    fn meet(&self, change: &Change, skip: u32, action: &Action) -> Guard {
        let rule = Rule { at: self.at(change), skip, limit: Some(1), action: action.clone() };
        self.faults(change.side).add(rule)
    }

    /// Does it.
    async fn user(&self, deed: UserAction) -> Result<()> {
        match deed {
            UserAction::Ask => {
                merge(&self.place.guests, &self.name, json!({"spec": {"type": "LoadBalancer"}})).await
            }
            UserAction::Edit => {
                let edit = json!({"metadata": {"annotations": {CHANGE: "yes"}}});
                merge(&self.place.guests, &self.name, edit).await
            }
            UserAction::Delete => {
                self.place.guests.delete(&self.name, &DeleteParams::default()).await?;
                Ok(())
            }
        }
    }

    /// Waits until the clusters show the result of a deed.
    async fn done(&self, deed: UserAction) -> Result<()> {
        match deed {
            UserAction::Ask => self.place.served(&self.name).await.map(drop),
            UserAction::Edit => {
                let changed = |now: &Value| now["metadata"]["annotations"][CHANGE] == "yes";
                self.place.mirror(&self.mirror, "the change", changed).await.map(drop)
            }
            UserAction::Delete => {
                until_gone(&self.place.guests, &self.name, "the guest's Service", Deadline::PodStart).await?;
                ensure!(
                    self.place.mirrors.get_opt(&self.mirror).await?.is_none(),
                    "expected no mirror left over, saw {}",
                    self.mirror
                );
                Ok(())
            }
        }
    }
}

/// Each change meets each fault, one Service for each fault; all are served, follow their change, and go.
async fn every_change_survives_every_fault(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let _provider = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    let mut subjects = Vec::new();
    for (name, action) in faults() {
        subjects.push((Subject::new(&place, &proxies, &format!("fault-{name}")).await?, name, action));
    }
    for deed in [UserAction::Ask, UserAction::Edit, UserAction::Delete] {
        let mut guards = Vec::new();
        for (subject, name, action) in &subjects {
            for change in CHANGES.iter().filter(|change| change.after == deed) {
                // What landed is not called again, although its reply was lost.
                let skip = if *action == Action::LoseReply { 0 } else { change.skip };
                guards.push((change, name, subject.meet(change, skip, action)));
            }
            subject.user(deed).await?;
            // The path of a create does not contain a name: the next one is this Service's.
            if let Some((_, _, guard)) = guards.iter().rfind(|(change, ..)| change.verb == "create") {
                let come = tokio::time::timeout(Deadline::Reaction.duration(), guard.caught(1)).await;
                come.with_context(|| format!("expected a create for {}, saw none", subject.name))?;
            }
        }
        let done = subjects.iter().map(|(subject, name, _)| async move {
            subject.done(deed).await.with_context(|| format!("{deed:?} under {name}"))
        });
        try_join_all(done).await?;
        for (change, name, guard) in &guards {
            // The clusters may show what a call did before the proxy has cut its connection.
            let met = tokio::time::timeout(Deadline::Reaction.duration(), guard.caught(1)).await;
            met.with_context(|| {
                format!("expected {} {} to meet {name}, saw no call", change.verb, change.resource)
            })?;
        }
    }
    let created = proxies.infra.faults().succeeded(&Matcher::of("create", "services"));
    ensure!(created == faults().len(), "expected {} Services created, saw {created}", faults().len());
    nothing_left(&place).await
}

/// Killed before each change landed, and after it landed and was not answered: the next process finishes the work once.
async fn a_killed_providers_work_is_finished_once(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let mut generation = 0;
    let mut start = async || {
        generation += 1;
        place.provider_behind(&proxies, &generation.to_string(), &[ALONE]).await
    };
    let mut provider = start().await?;
    for (word, action) in [("before", Action::FreezeBefore), ("after", Action::FreezeAfter)] {
        let subject = Subject::new(&place, &proxies, &format!("killed-{word}")).await?;
        for deed in [UserAction::Ask, UserAction::Edit, UserAction::Delete] {
            let mut changes = CHANGES.iter().filter(|change| change.after == deed);
            // What is before the change was done by an earlier process, so it is the first of its kind.
            let mut next = || changes.next().map(|change| (change, subject.meet(change, 0, &action)));
            let mut caught = next();
            subject.user(deed).await?;
            while let Some((change, guard)) = caught {
                let what = format!("{} {} of {deed:?}, {word} it landed", change.verb, change.resource);
                let come = tokio::time::timeout(Deadline::Reaction.duration(), guard.caught(1)).await;
                come.with_context(|| format!("expected the provider to reach {what}, saw it stop before"))?;
                provider.process.kill().await;
                drop(guard);
                caught = next();
                provider = start().await?;
            }
            subject
                .done(deed)
                .await
                .with_context(|| format!("{deed:?}, killed {word} each change landed"))?;
        }
    }
    let created = proxies.infra.faults().succeeded(&Matcher::of("create", "services"));
    ensure!(created == 2, "expected 2 Services created, saw {created}");
    nothing_left(&place).await
}

/// Both API servers away while a Service is asked for, another edited, a mirror deleted: the process lives on, and when they are
/// back all is repaired. Then every watch is cut, and gets the answer that its version is too old.
async fn both_api_servers_are_away(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let provider = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    let [edited, deleted, robbed] = ["edited", "deleted", "robbed"];
    for name in [edited, deleted, robbed] {
        place.create(name, json!({})).await?;
        place.served(name).await?;
    }
    for round in ["away", "expired"] {
        let new = Subject::new(&place, &proxies, &format!("new-{round}")).await?;
        let sides = [Side::Infra, Side::Guest];
        let away = sides.map(|side| new.faults(side).away());
        let expired = sides.map(|side| {
            let answer = Action::Answer(Reply::kubernetes(410, WORDS));
            let at = Matcher::of("watch", "services");
            (round == "expired")
                .then(|| new.faults(side).add(Rule { at, skip: 0, limit: Some(2), action: answer }))
        });
        new.user(UserAction::Ask).await?;
        merge(&place.guests, edited, json!({"metadata": {"annotations": {CHANGE: round}}})).await?;
        let mirror = mirror_name(&place.guests.get(robbed).await?);
        place.mirrors.delete(&mirror, &DeleteParams::default()).await?;
        if round == "away" {
            place.guests.delete(deleted, &DeleteParams::default()).await?;
            let gone = tokio::time::Instant::now();
            while gone.elapsed() < OUTAGE {
                ensure!(
                    provider.process.ended().is_none(),
                    "expected the provider to run, saw it ended: {}",
                    provider.process.log_tail(5)
                );
                tokio::time::sleep(LOOK).await;
            }
        }
        drop(away);
        new.done(UserAction::Ask).await.with_context(|| format!("after {round}"))?;
        let mirror = mirror_name(&place.guests.get(edited).await?);
        let changed = |now: &Value| now["metadata"]["annotations"][CHANGE] == round;
        place.mirror(&mirror, "the change", changed).await?;
        until_gone(&place.guests, deleted, "the guest's Service", Deadline::PodStart).await?;
        place.served(robbed).await?;
        let mirror = mirror_name(&place.guests.get(robbed).await?);
        place.mirror(&mirror, "another mirror", |_| true).await?;
        for guard in expired.iter().flatten() {
            ensure!(guard.count() > 0, "expected a refused watch, saw none");
        }
    }
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );
    Ok(())
}

/// Two providers that both believe to lead, as when a lease was stolen: nothing that is wanted is deleted, nothing exists twice.
async fn two_leaders_double_nothing(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let _first = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    let _second = place.provider_behind(&proxies, "b", &[ALONE]).await?;
    let names: Vec<String> = (0..SERVICES).map(|number| format!("both-{number}")).collect();
    try_join_all(names.iter().map(|name| place.create(name, json!({})))).await?;
    try_join_all(names.iter().map(|name| place.served(name))).await?;
    let kept = uids(&place).await?;
    let edit = json!({"metadata": {"annotations": {CHANGE: "yes"}}});
    try_join_all(names.iter().map(|name| merge(&place.guests, name, edit.clone()))).await?;
    until("all mirrors to be edited", Deadline::Reaction, async || {
        let mirrors = place.mirrors.list(&ListParams::default()).await?.items;
        let late = mirrors.iter().filter(|mirror| mirror.annotations().get(CHANGE).is_none()).count();
        Ok(if late == 0 { Ok(()) } else { Err(format!("{late} are as before")) })
    })
    .await?;
    ensure!(uids(&place).await? == kept, "expected the same mirrors, saw new ones");
    let created = proxies.infra.faults().succeeded(&Matcher::of("create", "services"));
    ensure!(created == SERVICES, "expected {SERVICES} Services created, saw {created}");
    for name in &names {
        place.guests.delete(name, &DeleteParams::default()).await?;
    }
    nothing_left(&place).await
}

/// The UIDs of the mirrors, in order.
async fn uids(place: &Place) -> Result<Vec<String>> {
    let mirrors = place.mirrors.list(&ListParams::default()).await?.items;
    let mut uids: Vec<String> = mirrors.iter().filter_map(Service::uid).collect();
    uids.sort();
    Ok(uids)
}

/// Waits until neither cluster has a Service of the test.
async fn nothing_left(place: &Place) -> Result<()> {
    until("all Services to be gone", Deadline::PodStart, async || {
        let all = ListParams::default();
        let (guests, mirrors) = (place.guests.list(&all).await?.items, place.mirrors.list(&all).await?.items);
        let left: Vec<String> = guests.iter().chain(&mirrors).map(Service::name_any).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) })
    })
    .await
}
