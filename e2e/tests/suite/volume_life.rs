//! One volume's life by direct RPCs, through a fault proxy of its own: create, publish, unpublish, delete; what the clusters
//! show of each; and a check that each was done once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{
    Deadline, HCP_NAMESPACE, data_volumes, hotplugged, until, until_gone, virtual_machines,
};
use csi_proto::v1::Volume;
use fault_proxy::{Faults, KubeProxy, Matcher};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use tonic::{Code, Status};

use crate::{
    controller_process::{Controller, block, service_account_kubeconfig},
    fixture::Fixture,
};

/// Deadline of an RPC that is to succeed.
const CALM: Duration = Duration::from_mins(1);

/// The annotation that says which VM may have a volume.
const HOLDER: &str = "csi.kubevirt.io/holder";

/// Calls that change something in infra and must land once in a volume's life, as verb and resource.
const ONCE: [(&str, &str); 4] = [
    ("create", "datavolumes"),
    ("update", "virtualmachines/addvolume"),
    ("update", "virtualmachines/removevolume"),
    ("delete", "datavolumes"),
];

/// The four RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    Create,
    Publish,
    Unpublish,
    Delete,
}

/// A volume, the controller that serves it, and the proxy between that controller and infra.
pub struct VolumeLife<'a> {
    fixture: &'a Fixture,
    proxy: KubeProxy,
    controller: Controller,
    generation: u32,
    machine: String,
    name: String,
    volume: Volume,
}

impl<'a> VolumeLife<'a> {
    /// Starts a proxy and a controller for the volume `pvc-<word>-<suffix>`, which `machine` will get.
    pub async fn start(fixture: &'a Fixture, suffix: &str, machine: &str) -> Result<Self> {
        let name = format!("pvc-{}-{suffix}", fixture.word);
        let proxy = KubeProxy::start(&service_account_kubeconfig(fixture).await?).await?;
        let controller = Controller::behind(fixture, suffix, &proxy).await?;
        let volume = Volume { volume_id: name.clone(), ..Volume::default() };
        Ok(Self { fixture, proxy, controller, generation: 0, machine: machine.to_owned(), name, volume })
    }

    /// The faults between controller and infra.
    pub fn faults(&self) -> &Faults {
        self.proxy.faults()
    }

    /// The controller kills its last process and starts another, as kubelet would.
    pub async fn kill_and_start_again(&mut self) -> Result<()> {
        self.controller.kill().await;
        self.generation += 1;
        let suffix = format!("{}-{}", self.name, self.generation);
        self.controller = Controller::behind(self.fixture, &suffix, &self.proxy).await?;
        Ok(())
    }

    /// SIGKILL to the controller.
    pub async fn kill(&self) {
        self.controller.kill().await;
    }

    /// One RPC.
    pub async fn call(&self, rpc: Rpc, within: Duration) -> Result<Option<Volume>, Status> {
        let controller = &self.controller;
        match rpc {
            Rpc::Create => controller.create_within(&self.name, block(), within).await.map(Some),
            Rpc::Publish => {
                controller.publish_within(&self.volume, &self.machine, within).await.map(|()| None)
            }
            Rpc::Unpublish => {
                controller.unpublish_within(&self.volume, &self.machine, within).await.map(|()| None)
            }
            Rpc::Delete => controller.delete_within(&self.name, within).await.map(|()| None),
        }
    }

    /// Repeats the RPC, as a sidecar does, until it answers OK; then the clusters must show it.
    pub async fn succeed(&mut self, rpc: Rpc) -> Result<()> {
        let answer = until(&format!("{rpc:?} of {} to succeed", self.name), Deadline::PodStart, async || {
            Ok(match self.call(rpc, CALM).await {
                Err(status) if is_uncertain(status.code()) => Err(format!("{status:?}")),
                answer => Ok(answer),
            })
        })
        .await?;
        match answer {
            Ok(Some(volume)) => self.volume = volume,
            Ok(None) => {}
            Err(status) => bail!("expected {rpc:?} to succeed without a fault, saw {status:?}"),
        }
        ensure!(self.is_done(rpc).await?, "expected the work of {rpc:?} to be done after OK, saw it undone");
        Ok(())
    }

    /// Waits until infra has provisioned the volume, so that each later call meets its claim.
    pub async fn provisioned(&self) -> Result<()> {
        self.fixture.image_of(&self.name).await.map(drop)
    }

    /// Whether the clusters show what `rpc` is for.
    pub async fn is_done(&self, rpc: Rpc) -> Result<bool> {
        let infra = &self.fixture.infra;
        let object = data_volumes(infra, HCP_NAMESPACE).get_opt(&self.name).await?;
        if matches!(rpc, Rpc::Create | Rpc::Delete) {
            return Ok(object.is_some() == (rpc == Rpc::Create));
        }
        let vm = virtual_machines(infra, HCP_NAMESPACE).get(&self.machine).await?;
        let volumes = vm.data["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let entries = volumes.iter().filter(|volume| volume["name"] == self.name.as_str()).count();
        let disks = hotplugged(infra, HCP_NAMESPACE, &self.name).await?;
        ensure!(
            entries <= 1 && disks.len() <= 1,
            "expected {} to be plugged in once, saw {disks:?}",
            self.name
        );
        Ok(match rpc {
            Rpc::Publish => {
                entries == 1 && disks.iter().all(|disk| disk.phase == "Ready" && disk.vmi == self.machine)
            }
            _ => entries == 0 && disks.is_empty(),
        })
    }

    /// The VM that the infra claim names as its holder.
    pub async fn holder(&self) -> Result<Option<String>> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.fixture.infra.clone(), HCP_NAMESPACE);
        let claim = claims.get(&self.name).await?;
        Ok(claim.metadata.annotations.and_then(|mut annotations| annotations.remove(HOLDER)))
    }

    /// The end of a life: each change landed once, and nothing is left over.
    pub async fn ended(&self) -> Result<()> {
        for (verb, resource) in ONCE {
            let landed = self.faults().succeeded(&Matcher::of(verb, resource));
            ensure!(landed == 1, "expected {verb} {resource} to be carried out once, saw {landed} times");
        }
        ensure!(
            self.is_done(Rpc::Unpublish).await?,
            "expected {} without {}, saw it attached",
            self.machine,
            self.name
        );
        let infra = &self.fixture.infra;
        let objects = data_volumes(infra, HCP_NAMESPACE);
        until_gone(&objects, &self.name, "DataVolume", Deadline::Reaction).await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
        until_gone(&claims, &self.name, "infra claim", Deadline::PodStart)
            .await
            .context("a claim is left over")
    }
}

/// The codes that mean "it may still be in progress" to a sidecar (external-provisioner, external-attacher).
pub fn is_uncertain(code: Code) -> bool {
    matches!(code, Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted)
}
