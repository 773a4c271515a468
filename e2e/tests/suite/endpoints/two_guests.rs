//! Two guest clusters whose VMs and load balancers are in one infra namespace.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bench::cluster::start_another_tenant;
use bench::command::goal::Plan;
use bench::scenario::{Deadline, until_gone};
use bench::supervise::Supervisor;
use kube::api::DeleteParams;
use nix::sys::signal::Signal;
use serde_json::json;

use super::managed;
use super::scene::Scene;
use crate::fixture::Fixture;
use crate::provider::mirror_name;

tests! {
    Services:
        two_guests_of_one_namespace_stay_apart;
}

/// The other guest cluster's name.
const OTHER: &str = "other";

/// The API server of the other guest cluster; killed when dropped.
pub struct Started(pub Supervisor);

impl Drop for Started {
    fn drop(&mut self) {
        for process in self.0.alive() {
            process.signal(Signal::SIGKILL);
        }
    }
}

/// One of the guests: its VMs, and its Service's mirror.
struct Guest {
    scene: Scene,
    machines: [String; 2],
}

impl Guest {
    async fn new(scene: Scene) -> Result<Self> {
        Ok(Self { machines: scene.two_workers().await?, scene })
    }

    /// Creates the Service `web`, and waits until its mirror has its own guest's name and VMs; the mirror's name.
    async fn served(&self) -> Result<String> {
        let place = &self.scene.place;
        let service = place.create("web", json!({"selector": {"app": "web"}})).await?;
        place.served("web").await?;
        let mirror = mirror_name(&service);
        self.scene.until(&mirror, "its own VMs", |all| all.ready_names() == self.machines).await?;
        let labels = place.mirrors.get(&mirror).await?.metadata.labels.unwrap_or_default();
        let cluster = labels.get("cluster.x-k8s.io/cluster-name").map(String::as_str);
        ensure!(
            cluster == Some(self.scene.cluster),
            "expected the mirror of {}, saw that of {cluster:?}",
            self.scene.cluster
        );
        Ok(mirror)
    }

    /// The versions of a mirror and of its slices: what any write changes.
    async fn versions(&self, mirror: &str) -> Result<BTreeMap<String, String>> {
        let mut versions = self.scene.versions(mirror).await?;
        let service = self.scene.place.mirrors.get(mirror).await?;
        versions.insert(mirror.to_owned(), service.metadata.resource_version.unwrap_or_default());
        Ok(versions)
    }
}

/// Services of one name in two guests have mirrors of their own, each with endpoints in its own guest's VMs. A provider that
/// deletes one, or stops and starts, changes nothing of the other guest's.
async fn two_guests_of_one_namespace_stay_apart(fixture: Fixture) -> Result<()> {
    let started = Started(Supervisor::new(fixture.run.join("logs")));
    let programs = Plan::read(&fixture.run)?.artifacts.programs;
    let server = start_another_tenant(&started.0, &programs).await?;
    let scene = Scene::new(&fixture).await?;
    let second = Guest::new(scene.in_another_guest(&fixture, &server, OTHER).await?).await?;
    let first = Guest::new(scene).await?;

    let _of_first = first.scene.provider("a", &managed()).await?;
    let of_second = second.scene.provider("b", &managed()).await?;
    let mirror = first.served().await?;
    second.served().await?;

    let before = first.versions(&mirror).await?;
    let services = &second.scene.place.guests;
    services.delete("web", &DeleteParams::default()).await?;
    until_gone(services, "web", "the other guest's Service", Deadline::Reaction).await?;
    drop(of_second);
    let _again = second.scene.provider("c", &managed()).await?;
    second.served().await?;
    let after = first.versions(&mirror).await?;
    ensure!(before == after, "expected the other guest's objects unchanged, saw {after:?} after {before:?}");
    first.scene.end().await
}
