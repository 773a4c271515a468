//! Which VM a Node is, and whether that VM still exists. Pure.
//!
//! A VM exists as long as its `VirtualMachine` or its `VirtualMachineInstance` does: a stopped VM has no VMI, and a VMI
//! may have been created without a VM. Only two successful reads prove *gone*. A VM that was not read, or that has an
//! unknown phase, is neither gone nor stopped.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    cluster_name::ClusterName,
    guest::nodes::Claims,
    guest_names::CLUSTER_NAME_LABEL,
    infra::machines::{Vm, Vmi, index::Known},
    wire::system_uuid::SystemUuid,
};
use std::{collections::BTreeMap, fmt, sync::Arc};

use kubevirt::{
    Labelled, Phase, RunStrategy, Seen,
    provider_id::{Claimed, ProviderId},
};

/// `status.printableStatus` of a VM that is stopped (kubevirt.io/api, `VirtualMachineStatusStopped`).
const STOPPED: &str = "Stopped";

/// The state of a Node's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// It exists, and runs or will run soon.
    Exists,
    /// It exists, and nothing will start it.
    ShutDown,
    /// Neither the VM nor the VMI exists.
    Gone,
    /// What is known does not decide.
    Unknown,
}

/// The state that VM and VMI show.
pub fn vm_state(vm: &Seen<Arc<Vm>>, vmi: &Seen<Arc<Vmi>>) -> VmState {
    match (vm, vmi) {
        (vm, Seen::Present(vmi)) => match &vmi.phase {
            Phase::Starting | Phase::Running => VmState::Exists,
            Phase::Unknown(_) => VmState::Unknown,
            Phase::Succeeded | Phase::Failed => match vm {
                Seen::Present(vm) => ended(vm),
                Seen::Unseen | Seen::Absent => VmState::ShutDown,
            },
        },
        (Seen::Present(vm), Seen::Absent) => ended(vm),
        (Seen::Present(_), Seen::Unseen) => VmState::Exists,
        (Seen::Absent, Seen::Absent) => VmState::Gone,
        (Seen::Unseen, _) | (Seen::Absent, Seen::Unseen) => VmState::Unknown,
    }
}

/// The state of a VM whose VMI has ended or does not exist. During a restart it looks the same for a moment.
fn ended(vm: &Vm) -> VmState {
    match vm.strategy {
        RunStrategy::Halted => VmState::ShutDown,
        RunStrategy::RerunOnFailure | RunStrategy::Other if vm.printable_status == STOPPED => {
            VmState::ShutDown
        }
        RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Other => VmState::Exists,
    }
}

/// The property by which a Node was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `spec.providerID`.
    ProviderId,
    /// The label `node.kubernetes.io/instance-id`.
    InstanceId,
    /// Its name is the VM's.
    Name,
    /// One of its names is the host name of the guest system.
    Hostname,
    /// The first part of one of its full names is the VM's name or the host name of the guest system.
    ShortName,
    /// SMBIOS system UUID.
    Uuid,
}

/// Which VM a Node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognition {
    /// This one.
    Vm {
        /// Its id.
        id: ProviderId,
        /// How it was recognised.
        by: Key,
    },
    /// Not one of ours, by its providerID.
    Foreign,
    /// Several VMs match, or names and system UUID contradict each other.
    Ambiguous {
        /// The VMs in question, sorted.
        vms: Vec<String>,
    },
    /// None of the known VMs, which proves nothing.
    Unidentified,
    /// None: all VMs and VMIs were read, each has a system UUID, and none is the Node's.
    NoVm,
}

/// Which VM a Node is. Only a unique match counts. A providerID and an instance-id label are set on purpose and count
/// alone. A name can match by accident, so it does not count if the system UUID is another VM's.
pub fn identify(node: &Claims, known: Known<'_>) -> Recognition {
    match Claimed::parse(&node.provider_id) {
        Claimed::Vm(id) => return Recognition::Vm { id, by: Key::ProviderId },
        Claimed::Foreign => return Recognition::Foreign,
        Claimed::Nothing => {}
    }
    let candidates = known.candidates();
    let named = |by, name: &str| ProviderId::of(name).map(|id| Recognition::Vm { id, by });
    if let Some(name) = node.instance_id.as_deref().filter(|name| candidates.contains_key(*name)) {
        return named(Key::InstanceId, name).unwrap_or(Recognition::Unidentified);
    }
    let by_uuid: Vec<&str> = matching(&candidates, |c| node.uuid.is_some() && c.uuid == node.uuid.as_ref());
    for key in [Key::Name, Key::Hostname, Key::ShortName, Key::Uuid] {
        let mut found = matching(&candidates, |candidate| node.is_like(candidate, key));
        if found.len() > 1 && by_uuid.len() == 1 {
            found.retain(|name| by_uuid.contains(name));
        }
        match found.as_slice() {
            [] => {}
            [name] if by_uuid.is_empty() || by_uuid.contains(name) => {
                return named(key, name).unwrap_or(Recognition::Unidentified);
            }
            several => {
                let mut vms: Vec<String> =
                    several.iter().chain(&by_uuid).map(|&name| name.to_owned()).collect();
                vms.sort();
                vms.dedup();
                return Recognition::Ambiguous { vms };
            }
        }
    }
    let all_read = known.vms.is_some() && known.vmis.is_some();
    let comparable = node.uuid.is_some() && candidates.values().all(|candidate| candidate.uuid.is_some());
    if all_read && comparable { Recognition::NoVm } else { Recognition::Unidentified }
}

/// The VM of a Node that has a providerID of another scheme, if there is a proof: its system UUID is that VM's and no
/// other's, or its label names the VM on purpose and no UUID contradicts that. A name alone can match by accident.
pub fn prove(node: &Claims, known: Known<'_>) -> Option<ProviderId> {
    if Claimed::parse(&node.provider_id) != Claimed::Foreign {
        return None;
    }
    let candidates = known.candidates();
    let by_uuid = matching(&candidates, |it| node.uuid.is_some() && it.uuid == node.uuid.as_ref());
    let by_label = node.instance_id.as_deref().and_then(|name| candidates.get(name));
    match (by_uuid.as_slice(), by_label) {
        ([name], None) => ProviderId::of(name),
        ([name], Some(label)) if *name == label.name => ProviderId::of(name),
        ([], Some(label)) if node.uuid.is_none() || label.uuid.is_none() => ProviderId::of(label.name),
        _ => None,
    }
}

/// Why the CCM does not accept a VM as the machine of the Node that claims to be it, however the Node was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The VM's label names another cluster than this, the guest. The other's name is not the guest's business.
    Cluster(String),
    /// Both have a system UUID, and the two differ.
    Uuid,
    /// The VM has no label of a cluster, and not both have a system UUID, or one that follows from the VM's name.
    Unproved,
}

/// Whether load balancers send traffic to a VM without a label of a cluster because a Node claims to be it, where no
/// system UUID proves that (`instancesV2.unlabelledVMs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlabelled {
    /// They do not: it may be anybody's.
    #[default]
    Refused,
    /// They do: the operator has only VMs of this guest in the infra namespace.
    Allowed,
}

/// The reason not to accept the VM as the machine of this Node of the guest `cluster`. Whose VM it is, its labels say by the
/// rule of both programs ([`Labelled`]).
fn doubt(machine: Machine<'_>, node: &Claims, cluster: &ClusterName) -> Option<Mismatch> {
    match (machine.labelled(cluster), &machine.vmi.uuid, &node.uuid) {
        (Labelled::Another(_), ..) => Some(Mismatch::Cluster(cluster.to_string())),
        (_, Some(vm), Some(node)) if vm != node => Some(Mismatch::Uuid),
        _ => None,
    }
}

/// The reason not to send a load balancer's traffic to the VM for this Node: a doubt, or that nothing proves the claim.
/// The guest's users write Nodes, so what proves it is a label of the VM, or a system UUID that they would have to guess.
pub fn backend_doubt(
    machine: Machine<'_>,
    node: &Claims,
    cluster: &ClusterName,
    unlabelled: Unlabelled,
) -> Option<Mismatch> {
    let is_labelled = machine.labelled(cluster) != Labelled::Nothing;
    let has_secret = machine.has_secret_of(node);
    let is_proved = is_labelled || has_secret || unlabelled == Unlabelled::Allowed;
    // Without `--cluster-name` the program does not know the name that the labels have: the UUID decides, if there is one.
    let is_named = |doubt: &Mismatch| !(cluster.is_default() && is_of_another(doubt) && has_secret);
    doubt(machine, node, cluster).filter(is_named).or_else(|| (!is_proved).then_some(Mismatch::Unproved))
}

fn is_of_another(doubt: &Mismatch) -> bool {
    matches!(doubt, Mismatch::Cluster(_))
}

/// The reason to write nothing of the VM into this Node: it is labelled as another guest's. A Node with its system UUID
/// is that machine nevertheless: many installations run with another `--cluster-name` than the one in the labels.
pub fn upkeep_doubt(machine: Machine<'_>, node: &Claims, cluster: &ClusterName) -> Option<Mismatch> {
    doubt(machine, node, cluster).filter(|doubt| is_of_another(doubt) && !machine.has_uuid_of(node))
}

/// A running VM that a Node claims to be.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The VM; `None` = it does not exist, or nothing is known of it.
    pub vm: Option<&'a Vm>,
    /// Its VMI.
    pub vmi: &'a Vmi,
}

impl<'a> Machine<'a> {
    /// The VMI, with what was seen of its VM.
    pub fn of(vm: &'a Seen<Arc<Vm>>, vmi: &'a Vmi) -> Self {
        let vm = match vm {
            Seen::Present(vm) => Some(&**vm),
            Seen::Absent | Seen::Unseen => None,
        };
        Self { vm, vmi }
    }

    fn labelled(self, cluster: &ClusterName) -> Labelled<'a> {
        let of_vm = self.vm.and_then(|vm| vm.cluster.as_deref());
        Labelled::of(cluster.as_str(), of_vm, self.vmi.cluster.as_deref())
    }

    /// Whether both have a system UUID, and it is the same.
    fn has_uuid_of(self, node: &Claims) -> bool {
        self.vmi.uuid.is_some() && self.vmi.uuid == node.uuid
    }

    /// Whether both have the same system UUID, and it is none that the VM's name gives away.
    fn has_secret_of(self, node: &Claims) -> bool {
        self.has_uuid_of(node) && self.vmi.uuid != SystemUuid::of_name(&self.vmi.name)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(own) => {
                write!(f, "the VM's label {CLUSTER_NAME_LABEL} names another cluster, this one is {own:?}")
            }
            Self::Unproved => write!(
                f,
                "the VM has no label {CLUSTER_NAME_LABEL}, and no system UUID (status.nodeInfo.systemUUID, \
                 spec.domain.firmware.uuid) proves that it is this Node: one of the two has none, or KubeVirt made the VM's \
                 from its name, so that anybody can know it"
            ),
            Self::Uuid => f.write_str("the Node's system UUID (status.nodeInfo.systemUUID) is not the VM's"),
        }
    }
}

/// A VM or VMI, with the properties by which a Node can match it.
struct Candidate<'a> {
    name: &'a str,
    hostname: &'a str,
    uuid: Option<&'a SystemUuid>,
}

fn matching<'a>(
    candidates: &BTreeMap<&'a str, Candidate<'a>>,
    matches: impl Fn(&Candidate<'a>) -> bool,
) -> Vec<&'a str> {
    candidates.values().filter(|candidate| matches(candidate)).map(|candidate| candidate.name).collect()
}

impl<'a> Known<'a> {
    /// Each VM once. What its VMI shows is what the guest system has.
    fn candidates(&self) -> BTreeMap<&'a str, Candidate<'a>> {
        let of_vm = |vm: &'a Arc<Vm>| Candidate {
            name: &vm.name,
            hostname: vm.hostname.as_deref().unwrap_or(&vm.name),
            uuid: vm.uuid.as_ref(),
        };
        let of_vmi = |vmi: &'a Arc<Vmi>| Candidate {
            name: &vmi.name,
            hostname: vmi.hostname.as_deref().unwrap_or(&vmi.name),
            uuid: vmi.uuid.as_ref(),
        };
        let templates = self.vms.into_iter().flat_map(BTreeMap::values).map(of_vm);
        let instances = self.vmis.into_iter().flat_map(BTreeMap::values).map(of_vmi);
        let mut all: BTreeMap<&str, Candidate<'_>> = templates.map(|it| (it.name, it)).collect();
        for instance in instances {
            let template = all.get(instance.name).and_then(|vm| vm.uuid);
            let instance = Candidate { uuid: instance.uuid.or(template), ..instance };
            all.insert(instance.name, instance);
        }
        all
    }
}

impl Claims {
    fn is_like(&self, candidate: &Candidate<'_>, key: Key) -> bool {
        let mut names = std::iter::once(&self.name).chain(&self.hostnames);
        match key {
            Key::Name => self.name == candidate.name,
            Key::Hostname => names.any(|name| name == candidate.hostname),
            Key::ShortName => names.any(|name| {
                name.split_once('.')
                    .is_some_and(|(short, _)| short == candidate.hostname || short == candidate.name)
            }),
            Key::Uuid => self.uuid.is_some() && candidate.uuid == self.uuid.as_ref(),
            Key::ProviderId | Key::InstanceId => false,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProviderId => "its providerID",
            Self::InstanceId => "its label node.kubernetes.io/instance-id",
            Self::Name => "its name",
            Self::Hostname => "its host name",
            Self::ShortName => "the first part of its full name",
            Self::Uuid => "its system UUID",
        })
    }
}

#[cfg(test)]
mod tests;
