//! A volume whose content is copied, by direct RPCs through a fault proxy of its own: a snapshot, a volume restored from it, a clone, a
//! clone through a temporary snapshot, a larger size; what the clusters show of each; and a check that each was done once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{Deadline, HCP_NAMESPACE, data_volumes, until, until_gone};
use fault_proxy::{Action, Faults, KubeProxy, Matcher};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};
use tonic::{Code, Status};

use crate::{
    controller_process::{Content, Controller, VOLUME_BYTES, block, service_account_kubeconfig},
    faulted_call::{Case, Life, is_answer},
    fixture::Fixture,
    guest_claims::infra_capacity,
    snapshots::volume_snapshots,
    volume_life::is_uncertain,
};

/// Deadline of an RPC that is to succeed.
const CALM: Duration = Duration::from_mins(1);

/// The size to which the volume is expanded.
const GROWN: i64 = 2 * VOLUME_BYTES;

/// The infra API's names of what is called.
pub const SNAPSHOTS: &str = "volumesnapshots";
pub const VOLUMES: &str = "datavolumes";
pub const CLAIMS: &str = "persistentvolumeclaims";

/// The volumes that are made: the source, and one of each RPC.
const MADE: usize = 4;

/// The snapshots that are taken: the one that is asked for, and the temporary one.
const SNAPSHOTS_TAKEN: usize = 2;

/// The RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    /// `CreateSnapshot`.
    Snapshot,
    /// `ListSnapshots` of the volume.
    List,
    /// CreateVolume from the snapshot.
    Restore,
    /// CreateVolume from the volume, which no VM has.
    Clone,
    /// The same by a temporary snapshot.
    CloneBySnapshot,
    /// The same once the clone is there: nothing is left to do but to delete the temporary snapshot.
    CloneAgain,
    /// `ControllerExpandVolume`.
    Expand,
    /// `DeleteSnapshot`.
    DeleteSnapshot,
}

/// The volume, its copies, the controller that serves them, and the proxy between that controller and infra.
pub struct ContentLife<'a> {
    fixture: &'a Fixture,
    proxy: KubeProxy,
    controller: Controller,
    generation: u32,
    suffix: String,
}

impl<'a> ContentLife<'a> {
    /// Starts a proxy and a controller, and makes the volume.
    pub async fn start(fixture: &'a Fixture, suffix: &str) -> Result<Self> {
        let proxy = KubeProxy::start(&service_account_kubeconfig(fixture).await?).await?;
        let controller = Controller::behind(fixture, suffix, &proxy).await?;
        let life = Self { fixture, proxy, controller, generation: 0, suffix: suffix.to_owned() };
        life.controller.create(&life.source(), block()).await?;
        fixture.image_of(&life.source()).await?;
        Ok(life)
    }

    /// The controller kills its last process and starts another, as kubelet would.
    pub async fn kill_and_start_again(&mut self) -> Result<()> {
        self.controller.kill().await;
        self.generation += 1;
        let suffix = format!("{}-{}", self.suffix, self.generation);
        self.controller = Controller::behind(self.fixture, &suffix, &self.proxy).await?;
        Ok(())
    }

    /// SIGKILL to the controller.
    pub async fn kill(&self) {
        self.controller.kill().await;
    }

    /// The volume.
    pub fn source(&self) -> String {
        format!("pvc-{}-{}", self.fixture.word, self.suffix)
    }

    fn snapshot(&self) -> String {
        format!("snapshot-{}-{}", self.fixture.word, self.suffix)
    }

    /// The volume that an RPC makes.
    fn copy(&self, rpc: Rpc) -> String {
        let kind = match rpc {
            Rpc::Restore => "restored",
            Rpc::Clone => "cloned",
            _ => "copied",
        };
        format!("{}-{kind}", self.source())
    }

    /// One RPC; false where the answer is that the work goes on.
    async fn call_once(&self, rpc: Rpc, within: Duration) -> Result<bool, Status> {
        let (controller, source, snapshot) = (&self.controller, self.source(), self.snapshot());
        let copy = |content, parameters| {
            let name = self.copy(rpc);
            async move {
                controller
                    .create_from_within(content, &name, VOLUME_BYTES, parameters, within)
                    .await
                    .map(|_| true)
            }
        };
        match rpc {
            Rpc::Snapshot => Ok(controller.snapshot(&snapshot, &source, within).await?.ready_to_use),
            Rpc::List => Ok(controller.snapshots_of(&source, within).await?.contains(&snapshot)),
            Rpc::Restore => copy(Content::Snapshot(&snapshot), &[]).await,
            Rpc::Clone => copy(Content::Volume(&source), &[]).await,
            Rpc::CloneBySnapshot | Rpc::CloneAgain => {
                copy(Content::Volume(&source), &[("cloneMethod", "snapshot")]).await
            }
            Rpc::Expand => controller.expand(&source, GROWN, within).await.map(|_| true),
            Rpc::DeleteSnapshot => controller.delete_snapshot_within(&snapshot, within).await.map(|()| true),
        }
    }

    /// Repeats the RPC, as a sidecar does, until its work is done; then the clusters must show it.
    pub async fn succeed(&self, rpc: Rpc) -> Result<()> {
        let what = format!("{rpc:?} of {} to succeed", self.source());
        let answer = until(&what, Deadline::PodStart, async || {
            Ok(match self.call_once(rpc, CALM).await {
                Err(status) if is_uncertain(status.code()) => Err(format!("{status:?}")),
                Ok(true) if rpc == Rpc::CloneAgain && !self.temporary_snapshots().await?.is_empty() => {
                    Err("the temporary snapshot is there".to_owned())
                }
                Ok(false) => Err("not ready".to_owned()),
                answer => Ok(answer),
            })
        })
        .await?;
        if let Err(status) = answer {
            bail!("expected {rpc:?} to succeed without a fault, saw {status:?}");
        }
        ensure!(self.is_done(rpc).await?, "expected the work of {rpc:?} to be done after OK, saw it undone");
        if matches!(rpc, Rpc::Restore | Rpc::Clone | Rpc::CloneBySnapshot) {
            self.fixture.image_of(&self.copy(rpc)).await.with_context(|| format!("the copy of {rpc:?}"))?;
        }
        Ok(())
    }

    /// Names of the temporary snapshots of the copies.
    async fn temporary_snapshots(&self) -> Result<Vec<String>> {
        let snapshots = volume_snapshots(&self.fixture.infra, HCP_NAMESPACE);
        let all = snapshots.list(&ListParams::default()).await?.items;
        let names = all.iter().map(ResourceExt::name_any);
        Ok(names.filter(|name| name.starts_with(&format!("clone-{}-", self.source()))).collect())
    }

    /// The end of a life: all is deleted, each change landed once, and nothing is left over. `refused`: a volume was refused after
    /// its temporary snapshot was taken; if the answer was final, the snapshot was deleted then and taken again.
    pub async fn ended(&self, refused: bool) -> Result<()> {
        let names =
            [self.copy(Rpc::Restore), self.copy(Rpc::Clone), self.copy(Rpc::CloneBySnapshot), self.source()];
        let volumes = data_volumes(&self.fixture.infra, HCP_NAMESPACE);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.fixture.infra.clone(), HCP_NAMESPACE);
        for name in &names {
            self.controller.delete_id(name).await.with_context(|| format!("delete {name}"))?;
        }
        for name in &names {
            until_gone(&volumes, name, "DataVolume", Deadline::PodStart).await?;
            until_gone(&claims, name, "infra claim", Deadline::PodStart).await?;
        }
        let snapshots = volume_snapshots(&self.fixture.infra, HCP_NAMESPACE);
        until_gone(&snapshots, &self.snapshot(), "VolumeSnapshot", Deadline::PodStart).await?;
        let left = self.temporary_snapshots().await?;
        ensure!(left.is_empty(), "expected no temporary snapshot, saw {left:?}");

        let landed = |verb, resource| self.faults().succeeded(&Matcher::of(verb, resource));
        let taken = landed("create", SNAPSHOTS);
        ensure!(
            taken == SNAPSHOTS_TAKEN || (refused && taken == SNAPSHOTS_TAKEN + 1),
            "expected {SNAPSHOTS_TAKEN} snapshots to be created, saw {taken}"
        );
        for (verb, resource, times) in [
            ("create", VOLUMES, MADE),
            ("delete", VOLUMES, MADE),
            ("delete", SNAPSHOTS, taken),
            ("patch", CLAIMS, 1),
        ] {
            let has = landed(verb, resource);
            ensure!(has == times, "expected {verb} {resource} to be carried out {times} times, saw {has}");
        }
        Ok(())
    }
}

impl Life for ContentLife<'_> {
    type Rpc = Rpc;

    fn faults(&self) -> &Faults {
        self.proxy.faults()
    }

    async fn call(&self, rpc: Rpc, within: Duration) -> Result<(), Status> {
        self.call_once(rpc, within).await.map(drop)
    }

    async fn is_done(&self, rpc: Rpc) -> Result<bool> {
        let infra = &self.fixture.infra;
        let snapshot = volume_snapshots(infra, HCP_NAMESPACE).get_opt(&self.snapshot()).await?;
        let is_kept = snapshot.is_some_and(|snapshot| snapshot.metadata.deletion_timestamp.is_none());
        Ok(match rpc {
            // What a list must show is checked where it is read.
            Rpc::Snapshot | Rpc::List => is_kept,
            Rpc::DeleteSnapshot => !is_kept,
            Rpc::Restore | Rpc::Clone | Rpc::CloneBySnapshot | Rpc::CloneAgain => {
                data_volumes(infra, HCP_NAMESPACE).get_opt(&self.copy(rpc)).await?.is_some()
            }
            Rpc::Expand => infra_capacity(self.fixture, &self.source()).await? >= u64::try_from(GROWN)?,
        })
    }

    fn refusal(case: &Case<Rpc>) -> Option<Code> {
        // A 422 of a patch that does not say what is invalid is a lost race, after which the claim is read again.
        (case.verb == "create").then_some(Code::InvalidArgument)
    }

    /// A temporary snapshot that can't be deleted now is deleted by the next call; and where there are no snapshots, or no right on
    /// them, a clone is made without.
    fn goes_on(case: &Case<Rpc>, action: &Action) -> bool {
        case.rpc == Rpc::CloneAgain
            || (case.rpc == Rpc::Clone
                && case.resource == SNAPSHOTS
                && (is_answer(action, 403) || is_answer(action, 404)))
    }

    fn may_be_skipped(_: &Case<Rpc>) -> bool {
        false
    }
}
