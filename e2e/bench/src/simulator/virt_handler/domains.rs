//! The machines behind VMIs: which runs for which VMI object, and when one ends by itself.
//!
//! What a machine boots is not decided here but by the bench's [`Boot`] callback.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures::Stream;
use tokio::sync::watch;

use super::{
    growth::Sizes,
    plan::{Alive, Domain},
    vmi::Vmi,
};
use crate::{
    sandbox::network,
    simulator::fault_plan,
    supervise::Supervisor,
    vm::{self, Disk, Machine, MachineSpec, Machines},
};

/// What `stat` counts a file's blocks in, in bytes (`st_blocks`).
const OCCUPIED_UNIT: u64 = 512;

/// Says what the machine of a VMI is. Must give the same answer for the same VMI object.
pub type Boot = Arc<dyn Fn(&Vmi) -> Result<MachineSpec> + Send + Sync>;

/// The machines of the VMIs.
pub(super) struct Domains {
    supervisor: Supervisor,
    machines: Machines,
    boot: Boot,
    owners: Mutex<BTreeMap<String, Owner>>,
    ended: watch::Sender<()>,
}

/// Whose machine it is that is registered under a VMI's key.
#[derive(Clone, Debug)]
struct Owner {
    uid: String,
    addresses: Option<(Vec<IpAddr>, String)>,
}

impl Domains {
    pub(super) fn new(supervisor: Supervisor, machines: Machines, boot: Boot) -> Self {
        Self { supervisor, machines, boot, owners: Mutex::default(), ended: watch::Sender::new(()) }
    }

    /// One item whenever a machine ended.
    pub(super) fn endings(&self) -> impl Stream<Item = ()> + Send + use<> {
        fault_plan::changes(self.ended.subscribe())
    }

    /// The machine of this very VMI object; one of an earlier object of that name is not it.
    pub(super) fn observe(&self, vmi: &Vmi) -> Result<Domain> {
        let Some(machine) = self.machines.get(&vmi.key()) else { return Ok(Domain::Absent) };
        let owner = match self.owner(&vmi.key()) {
            Some(owner) => owner,
            // Started before this simulator was: the machine of the VMI that runs, for none is started before the last
            // has been stopped.
            None => self.adopt(vmi, &machine)?,
        };
        if owner.uid != vmi.uid {
            return Ok(Domain::Absent);
        }
        if let Some(status) = machine.process().ended() {
            return Ok(Domain::Ended { clean: status.success() });
        }
        Ok(Domain::Alive(Alive {
            plugged: machine.plugged().into_iter().collect(),
            addresses: owner.addresses,
            agent: machine.guest().is_some(),
        }))
    }

    pub(super) async fn start(&self, vmi: &Vmi) -> Result<()> {
        self.stop(&vmi.key()).await;
        let spec = (self.boot)(vmi)?;
        let machine = Arc::new(Machine::start(&self.supervisor, &spec).await.context("start the machine")?);
        self.machines.insert(vmi.key(), Arc::clone(&machine));
        self.own(vmi, &spec, &machine);
        Ok(())
    }

    /// Ends the machine registered under `key`, whosever it is.
    pub(super) async fn stop(&self, key: &str) {
        if let Some(machine) = self.machines.get(key) {
            machine.stop().await;
            self.machines.remove(key);
        }
        self.owners().remove(key);
    }

    pub(super) async fn plug(&self, vmi: &Vmi, disk: &Disk) -> Result<()> {
        self.machine(vmi)?.plug(disk).await
    }

    pub(super) async fn unplug(&self, vmi: &Vmi, volume: &str) -> Result<()> {
        self.machine(vmi)?.unplug(volume).await
    }

    /// The sizes of a plugged disk; `None` when it is not plugged.
    pub(super) async fn sizes(&self, vmi: &Vmi, volume: &str) -> Result<Option<Sizes>> {
        let Some((guest, image)) = self.machine(vmi)?.disk_size(volume).await? else { return Ok(None) };
        let reading = || format!("read the size of {}", image.display());
        let file = tokio::fs::metadata(&image).await.with_context(reading)?;
        let around = nix::sys::statvfs::statvfs(&image).with_context(reading)?;
        let usable = file.blocks() * OCCUPIED_UNIT + around.blocks_available() * around.fragment_size();
        Ok(Some(Sizes { guest, image: file.len(), usable }))
    }

    pub(super) async fn grow(&self, vmi: &Vmi, volume: &str, bytes: u64) -> Result<()> {
        self.machine(vmi)?.grow(volume, bytes).await
    }

    /// Stops the machines whose VMI object is not among `living` (`key`, UID): somebody took it out of the API by force.
    pub(super) async fn sweep(&self, living: &BTreeSet<(String, String)>) {
        let orphans: Vec<String> = self
            .owners()
            .iter()
            .filter(|(key, owner)| !living.contains(&((*key).clone(), owner.uid.clone())))
            .map(|(key, _)| key.clone())
            .collect();
        for key in orphans {
            tracing::warn!(vmi = key, "its object is gone; stopping its machine");
            self.stop(&key).await;
        }
    }

    fn machine(&self, vmi: &Vmi) -> Result<Arc<Machine>> {
        self.machines.get(&vmi.key()).with_context(|| format!("no machine runs for {}", vmi.key()))
    }

    fn adopt(&self, vmi: &Vmi, machine: &Arc<Machine>) -> Result<Owner> {
        let spec = (self.boot)(vmi)?;
        Ok(self.own(vmi, &spec, machine))
    }

    fn own(&self, vmi: &Vmi, spec: &MachineSpec, machine: &Arc<Machine>) -> Owner {
        let addresses = match &spec.boot {
            vm::Boot::Nothing => None,
            vm::Boot::Worker { address, mac, .. } => Some((network::both(*address).into(), mac.clone())),
        };
        let owner = Owner { uid: vmi.uid.clone(), addresses };
        self.owners().insert(vmi.key(), owner.clone());
        let (process, ended) = (machine.process().clone(), self.ended.clone());
        tokio::spawn(async move {
            process.exited().await;
            ended.send_replace(());
        });
        owner
    }

    fn owner(&self, key: &str) -> Option<Owner> {
        self.owners().get(key).cloned()
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Owner>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domains")
            .field("owners", &self.owners().keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
