//! A virtual machine of the infra cluster as a Node sees it: KubeVirt's `VirtualMachine` and `VirtualMachineInstance`, projected
//! to identity, life, addresses and place. (The `infra` crate projects the same kinds to their volumes.)

pub mod feed;
pub mod index;
pub mod reads;
pub mod wire;

use crate::wire::system_uuid::SystemUuid;
use std::net::IpAddr;

/// What is read of a `VirtualMachine`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vm {
    /// Name of the VM and of its VMI.
    pub name: String,
    /// `spec.runStrategy`, or what `spec.running` stands for.
    pub strategy: RunStrategy,
    /// `status.printableStatus`.
    pub printable_status: String,
    /// Host name that its template gives the guest.
    pub hostname: Option<String>,
    /// `spec.template.spec.domain.firmware.uuid`.
    pub uuid: Option<SystemUuid>,
}

/// What KubeVirt does about a VM that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RunStrategy {
    /// `Always`: starts it again, whatever ended it.
    Always,
    /// `Halted`: keeps it stopped.
    Halted,
    /// `RerunOnFailure`, `Manual`, `Once` and whatever comes: the VM's status tells.
    #[default]
    Depends,
}

/// What is read of a `VirtualMachineInstance`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmi {
    /// Name.
    pub name: String,
    /// UID: another one after each restart.
    pub uid: String,
    /// Label `cluster.x-k8s.io/cluster-name`: the guest cluster that it says it belongs to.
    pub cluster: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What it can do.
    pub conditions: VmiConditions,
    /// `status.phase`.
    pub phase: Phase,
    /// Host name that the guest gets; KubeVirt takes the VMI's name where the spec has none.
    pub hostname: Option<String>,
    /// `spec.domain.firmware.uuid`: what the guest reads as SMBIOS system UUID.
    pub uuid: Option<SystemUuid>,
    /// `status.nodeName`: the infra node that it runs on. During a live migration the source.
    pub host: Option<String>,
    /// `status.interfaces`, each with its network.
    pub interfaces: Vec<Interface>,
    /// Whether the guest agent reports: then `interfaces` is all that there is.
    pub agent_connected: bool,
    /// Name of the instance type, of either kind.
    pub instance_type: Option<String>,
    /// Zone that the VMI itself names, by label or annotation.
    pub zone: Option<String>,
    /// Region that the VMI itself names.
    pub region: Option<String>,
}

/// What a VMI can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmiConditions {
    /// Condition `Ready`; where there is none, whether it runs.
    pub ready: bool,
    /// Condition `Paused`: its processors stand still.
    pub paused: bool,
}

/// Life of a VMI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// `Pending`, `Scheduling`, `Scheduled`, or none yet.
    #[default]
    Starting,
    /// `Running`.
    Running,
    /// `Succeeded`: the guest shut itself down, or was.
    Succeeded,
    /// `Failed`.
    Failed,
    /// `Unknown`, or a phase that this program does not know.
    Unknown(String),
}

/// A network interface of a running VMI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the VM's spec; empty for one that only the guest agent knows.
    pub name: String,
    /// What it is connected to.
    pub network: Network,
    /// Its addresses, the primary first.
    pub addresses: Vec<IpAddr>,
}

/// What an interface is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The infra cluster's pod network.
    Pod,
    /// A `NetworkAttachmentDefinition`, as `namespace/name` or `name`.
    Multus(String),
    /// Nothing of the VM's spec.
    #[default]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("5D307CA9-B3EF-428C-8861-06E72D69F223", true)]
    #[case("5d307ca9b3ef428c886106e72d69f223\n", true)]
    #[case("", false)]
    #[case("Not Settable", false)]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f22", false)]
    #[case("00000000-0000-0000-0000-000000000000", false)]
    #[case("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", false)]
    fn only_a_uuid_that_says_something_counts(#[case] text: &str, #[case] counts: bool) {
        assert_eq!(SystemUuid::parse(text).is_some(), counts);
    }

    #[test]
    fn one_uuid_in_two_spellings_is_one() {
        let spellings = ["5D307CA9-B3EF-428C-8861-06E72D69F223", "5d307ca9b3ef428c886106e72d69f223"];
        assert_eq!(SystemUuid::parse(spellings[0]), SystemUuid::parse(spellings[1]));
    }
}
