//! Which addresses a Node gets, of all that its VM shows. Pure.
//!
//! One interface is the Node's; it gives one address per family, and none that is valid only on its own link. An
//! address that the Node already has, and that the VM still has, stays, so that what depends on it does not flap. The
//! addresses that kubelet has from `--node-ip` are kept and come first, unless nobody outside of the VM reaches them. When the guest agent stops reporting, a
//! VMI shows no addresses for a while: then the last known address of a family is kept.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    guest::nodes::{INTERNAL_IP, NodeAddress},
    infra::machines::{Interface, Network, Vmi},
    wire::ip_family::Family,
};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use kubevirt::Phase;

/// A group of an IPv6 address with four hexadecimal digits.
const LARGE_GROUP: u16 = 0x1000;
/// Name of the interface that the upstream cloud provider uses.
const DEFAULT_INTERFACE: &str = "default";

/// Which of a VM's addresses its Node gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// The interface.
    pub interface: InterfaceChoice,
    /// Only addresses in one of these networks; empty = all.
    pub within: Vec<IpNet>,
    /// No address in one of these networks.
    pub outside: Vec<IpNet>,
}

/// Which interface is the Node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// The interface named `default`, as in the upstream cloud provider; without one, the interface in the pod network;
    /// without that, the first in the VM's spec.
    #[default]
    Automatic,
    /// The interface with this name in the VM's spec.
    Named(String),
    /// The interface in this network: a `NetworkAttachmentDefinition` as the VM's spec names it.
    Network(String),
}

/// Why an address policy is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is not a network.
    #[error("{0:?} is no network; write for example 10.0.0.0/8 or 2001:db8::/32")]
    Network(String),
    /// Both a name and a network are given, but only one of them can choose the interface.
    #[error(
        "a node's interface is chosen by its name or by its network; leave one of {name:?} and {network:?} out"
    )]
    TwoChoices {
        /// The interface's name.
        name: String,
        /// The network's name.
        network: String,
    },
}

/// The addresses that a Node should have. `provided` are the addresses that kubelet has from `--node-ip`, `current`
/// those that the Node has. Entries of other types than `InternalIP` belong to kubelet or others and stay. A list that
/// has addresses never becomes empty.
pub fn addresses(
    policy: &AddressPolicy,
    vmi: Option<&Vmi>,
    provided: &[IpAddr],
    current: &[NodeAddress],
) -> Vec<NodeAddress> {
    // The upstream cloud provider also published link-local addresses; these need not be kept.
    let had: Vec<IpAddr> = internal(current).filter(|ip| is_routable(*ip)).collect();
    let internal = if provided.is_empty() { policy.choose(vmi, &had) } else { policy.outer(vmi, provided) };
    if internal.is_empty() {
        return current.to_vec();
    }
    let entry = |address: IpAddr| NodeAddress { kind: INTERNAL_IP.to_owned(), address: address.to_string() };
    let others = current.iter().filter(|address| address.kind != INTERNAL_IP).cloned();
    internal.into_iter().map(entry).chain(others).collect()
}

fn internal(addresses: &[NodeAddress]) -> impl Iterator<Item = IpAddr> {
    let internal = addresses.iter().filter(|address| address.kind == INTERNAL_IP);
    internal.filter_map(|address| address.address.parse().ok())
}

/// The VMI without the addresses that another VMI shows too, where it has one of its own of that family on the interface.
/// kube-vip and keepalived put one address on several VMs, which is none of them (harvester/harvester#5794). Only one VM may
/// show it now; `others` are those that run.
pub fn without_shared<'a>(vmi: &Vmi, others: &(impl Iterator<Item = &'a Vmi> + Clone)) -> Vmi {
    let is_shared = |ip: IpAddr| {
        let mut shown = others.clone().flat_map(|other| &other.interfaces).flat_map(|it| &it.addresses);
        shown.any(|other| *other == ip)
    };
    let mut vmi = vmi.clone();
    for interface in &mut vmi.interfaces {
        for family in [Family::V4, Family::V6] {
            let of_family = |ip: &IpAddr| Family::of(*ip) == family && is_routable(*ip);
            let all: Vec<_> = interface.addresses.iter().copied().filter(of_family).collect();
            if all.len() < 2 {
                continue;
            }
            let (shared, own): (Vec<_>, Vec<_>) = all.into_iter().partition(|ip| is_shared(*ip));
            if !own.is_empty() {
                interface.addresses.retain(|ip| !shared.contains(ip));
            }
        }
    }
    vmi
}

impl AddressPolicy {
    /// Reads a policy in the form in which an operator writes it. Empty texts and lists choose nothing.
    ///
    /// # Errors
    /// A text is not a network, or both an interface and a network are named.
    pub fn parse(
        interface: &str,
        network: &str,
        within: &[String],
        outside: &[String],
    ) -> Result<Self, PolicyError> {
        let networks = |texts: &[String]| -> Result<Vec<IpNet>, PolicyError> {
            texts.iter().map(|it| it.trim().parse().map_err(|_| PolicyError::Network(it.clone()))).collect()
        };
        let interface = match (interface, network) {
            ("", "") => InterfaceChoice::Automatic,
            (name, "") => InterfaceChoice::Named(name.to_owned()),
            ("", network) => InterfaceChoice::Network(network.to_owned()),
            (name, network) => {
                return Err(PolicyError::TwoChoices { name: name.to_owned(), network: network.to_owned() });
            }
        };
        Ok(Self { interface, within: networks(within)?, outside: networks(outside)? })
    }

    /// The addresses at which infra may send traffic to the VM, one per family: the first that is in `preferred`,
    /// otherwise the best. `None` = the VM shows addresses, and nothing proves that they are its own.
    ///
    /// Except with the binding `masquerade`, KubeVirt shows the addresses that the guest agent reports, so whoever is
    /// root in the VM chooses them (KubeVirt, `pkg/network/setup/netstat.go`). `infoSource` is no proof that the agent did
    /// not: an agent that names no interface leaves it as it was. With masquerade KubeVirt may show an agent's address of
    /// a family that the pod does not have (kubevirt/kubevirt#18760), for which infra has no Services either. Otherwise the
    /// operator tells by `within` which addresses the VMs may have.
    pub fn proved(&self, vmi: &Vmi, preferred: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let usable = self.usable(vmi);
        let is_translated = self.interface.of(vmi).is_some_and(|interface| interface.masquerade);
        if !usable.is_empty() && !is_translated && self.within.is_empty() {
            return None;
        }
        let of_family = |family: Family| {
            let mut known = preferred.iter().filter(|ip| usable.contains(ip)).chain(&usable);
            known.find(|ip| Family::of(**ip) == family).copied()
        };
        Some([Family::V4, Family::V6].into_iter().filter_map(of_family).collect())
    }

    /// The addresses that kubelet has from `--node-ip`, as others reach them: behind the binding masquerade a VM has an address
    /// that is the same in every VM, 10.0.2.2 (kubevirt/kubevirt#10171), and KubeVirt shows the one of its launcher pod.
    fn outer(&self, vmi: Option<&Vmi>, provided: &[IpAddr]) -> Vec<IpAddr> {
        let translated =
            vmi.filter(|vmi| self.interface.of(vmi).is_some_and(|interface| interface.masquerade));
        let shown = translated.map(|vmi| self.usable(vmi)).unwrap_or_default();
        let as_seen = |ip: IpAddr| {
            let of_family = || shown.iter().copied().find(|other| Family::of(*other) == Family::of(ip));
            if shown.contains(&ip) { ip } else { of_family().unwrap_or(ip) }
        };
        provided.iter().copied().map(as_seen).collect()
    }

    /// One address per family. The family that came first on the Node stays first.
    fn choose(&self, vmi: Option<&Vmi>, had: &[IpAddr]) -> Vec<IpAddr> {
        let shown = vmi.map(|vmi| self.usable(vmi)).unwrap_or_default();
        // Without the guest agent KubeVirt shows only the addresses that it gave to the VM itself.
        let is_all = vmi.is_some_and(|vmi| vmi.phase == Phase::Running && vmi.agent_connected);
        let mut chosen: Vec<IpAddr> = Vec::new();
        for ip in had.iter().chain(&shown) {
            let family = Family::of(*ip);
            if chosen.iter().any(|other| Family::of(*other) == family) {
                continue;
            }
            let of_family = |list: &[IpAddr]| list.iter().copied().find(|ip| Family::of(*ip) == family);
            let stays = had.iter().copied().find(|ip| Family::of(*ip) == family && shown.contains(ip));
            let last_known = || of_family(had).filter(|_| !is_all || shown.is_empty());
            chosen.extend(stays.or_else(|| of_family(&shown)).or_else(last_known));
        }
        chosen
    }

    /// The addresses of the Node's interface that may be published, the best first.
    fn usable(&self, vmi: &Vmi) -> Vec<IpAddr> {
        let Some(interface) = self.interface.of(vmi) else { return Vec::new() };
        let mut usable: Vec<IpAddr> =
            interface.addresses.iter().copied().filter(|ip| self.allows(*ip)).collect();
        // The sort is stable, because KubeVirt lists the primary address first.
        usable.sort_by_key(|ip| Lasting::of(*ip, &interface.addresses));
        usable
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let in_any = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        is_routable(ip) && (self.within.is_empty() || in_any(&self.within)) && !in_any(&self.outside)
    }
}

impl InterfaceChoice {
    fn of<'a>(&self, vmi: &'a Vmi) -> Option<&'a Interface> {
        let find = |matches: &dyn Fn(&Interface) -> bool| vmi.interfaces.iter().find(|it| matches(it));
        match self {
            Self::Named(name) => find(&|it| it.name == *name),
            Self::Network(network) => {
                find(&|it| matches!(&it.network, Network::Multus(name) if name == network))
            }
            // The guest agent adds interfaces that are not in the spec: bridges and overlays inside the guest.
            Self::Automatic => find(&|it| it.name == DEFAULT_INTERFACE)
                .or_else(|| find(&|it| it.network == Network::Pod))
                .or_else(|| find(&|it| !it.name.is_empty())),
        }
    }
}

/// Whether an address is valid beyond its own host and link.
fn is_routable(ip: IpAddr) -> bool {
    let on_link = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(on_link || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// How lasting an address is, the most lasting first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lasting {
    /// It was given by hand, by DHCP or by infra, as far as can be seen.
    Given,
    /// It is made from the hardware address (SLAAC).
    Hardware,
    /// It is a privacy address (RFC 8981), which is gone a day later, as far as can be seen.
    Temporary,
}

impl Lasting {
    /// `all` are the addresses of its interface. A privacy address is made for the same network as one from the hardware
    /// address, with a random interface part. A random part that is given for good looks the same, and then the one from the
    /// hardware address is as good.
    fn of(ip: IpAddr, all: &[IpAddr]) -> Self {
        let IpAddr::V6(v6) = ip else { return Self::Given };
        let network = |other: Ipv6Addr| other.segments()[..4].to_vec();
        let mut hardware = all.iter().filter_map(|other| match other {
            IpAddr::V6(other) if is_eui64(IpAddr::V6(*other)) => Some(*other),
            _ => None,
        });
        if is_eui64(ip) {
            Self::Hardware
        } else if is_random(v6) && hardware.any(|other| network(other) == network(v6)) {
            Self::Temporary
        } else {
            Self::Given
        }
    }
}

/// Whether the interface part looks random: at least three of its four groups are large, as of 98 in 100 random ones. One
/// that a person gave is small, or has the decimal digits of an IPv4 address.
fn is_random(ip: Ipv6Addr) -> bool {
    ip.segments()[4..].iter().filter(|group| **group >= LARGE_GROUP).count() >= 3
}

/// Whether the interface part is made from a hardware address: it has `ff:fe` in its middle (RFC 4291, appendix A).
fn is_eui64(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if middle(v6) == [0xff, 0xfe])
}

fn middle(ip: Ipv6Addr) -> [u8; 2] {
    let octets = ip.octets();
    [octets[11], octets[12]]
}

#[cfg(test)]
mod tests;
