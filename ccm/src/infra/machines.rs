//! A VM of the infra cluster as a Node needs it: KubeVirt's `VirtualMachine` and `VirtualMachineInstance`, reduced to
//! identity, lifecycle, addresses and topology. (The `infra` crate reduces the same kinds to their volumes.)

pub mod feed;
pub mod index;
pub mod reads;
pub mod wire;

use crate::wire::system_uuid::SystemUuid;
use std::net::IpAddr;

use kubevirt::{Phase, RunStrategy};

/// The fields of a `VirtualMachine` that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vm {
    /// Name of the VM and of its VMI.
    pub name: String,
    /// `spec.runStrategy`, or the strategy that `spec.running` stands for.
    pub strategy: RunStrategy,
    /// `status.printableStatus`.
    pub printable_status: String,
    /// The host name that its template gives to the guest system.
    pub hostname: Option<String>,
    /// `spec.template.spec.domain.firmware.uuid`.
    pub uuid: Option<SystemUuid>,
    /// Label `cluster.x-k8s.io/cluster-name`. KubeVirt does not copy it to the VMI; it copies those of the template.
    pub cluster: Option<String>,
}

/// The fields of a `VirtualMachineInstance` that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmi {
    /// Name.
    pub name: String,
    /// UID; it is a new one after each restart.
    pub uid: String,
    /// Label `cluster.x-k8s.io/cluster-name`: the guest cluster to which the VMI is labelled to belong.
    pub cluster: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its conditions.
    pub conditions: VmiConditions,
    /// `status.phase`.
    pub phase: Phase,
    /// The host name that the guest system gets. Where the spec has none, KubeVirt uses the VMI's name.
    pub hostname: Option<String>,
    /// `spec.domain.firmware.uuid`: the guest system reads it as SMBIOS system UUID.
    pub uuid: Option<SystemUuid>,
    /// `status.nodeName`: the infra Node on which it runs. During a live migration this is the source.
    pub host: Option<String>,
    /// `status.interfaces`, each with its network.
    pub interfaces: Vec<Interface>,
    /// Whether the guest agent reports; only then is `interfaces` complete.
    pub agent_connected: bool,
    /// Name of the instance type, namespaced or cluster-wide.
    pub instance_type: Option<String>,
    /// The zone in a label or annotation of the VMI itself.
    pub zone: Option<String>,
    /// The region in a label or annotation of the VMI itself.
    pub region: Option<String>,
}

/// The conditions of a VMI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmiConditions {
    /// Condition `Ready`; where it is missing, whether the VMI runs.
    pub ready: bool,
    /// Condition `Paused`: its processors are stopped.
    pub paused: bool,
}

/// A network interface of a running VMI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the VM's spec. Empty for an interface that only the guest agent reports.
    pub name: String,
    /// What it is connected to.
    pub network: Network,
    /// Whether its binding is `masquerade`: KubeVirt shows the launcher pod's addresses then. With every other binding it
    /// shows those that the guest agent reports, which are the guest's own word.
    pub masquerade: bool,
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
    /// Not a network of the VM's spec.
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
