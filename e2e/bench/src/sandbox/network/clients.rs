//! The clients' network: where the users of load balancers are, beside the infra cluster and not in it.
//!
//! ```text
//!   namespace client ── clients0 ── the infra node ── workers0 ── VMs
//!   10.78.0.50, .51     10.78.0.1                     10.77.0.0/24
//! ```
//!
//! To a client the addresses of load balancers (`LOAD_BALANCERS`) are in its own network: it asks by ARP, or neighbour
//! discovery, who has one. The infra node answers for those that are [`announce`]d and for no other, as MetalLB's layer 2 mode does, and none is an
//! address of the node.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::{
    INFRA_API, NAMED_NAMESPACES, PREFIX_LENGTH, SECOND_PREFIX_LENGTH, ip_batch, namespace_on, second,
};

/// Bridge of the clients.
const BRIDGE: &str = "clients0";
/// The infra node's address there.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The clients' network namespace.
const NAMESPACE: &str = "client";
/// A client's two addresses. It sends from the first unless the caller chooses the other.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 50);
/// See [`CLIENT`].
pub const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 51);
/// Addresses of load balancers: the network for tests between networks (RFC 2544).
const LOAD_BALANCERS: &str = "198.18.0.0/15";
/// Those of the second family.
const SECOND_LOAD_BALANCERS: &str = "fd00:198::/32";
/// The device to which they are routed on the infra node when no kube-proxy sends them elsewhere, a bridge without ports. The
/// kernel answers ARP for another only if it has a route to it.
const NOWHERE: &str = "nowhere0";
/// How long the kernel waits before it answers for another, here not at all, and that it answers neighbour discovery for another
/// whatsoever; `arp(7)`, `ip-sysctl`.
const PROXY: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/neigh/clients0/proxy_delay", "0"),
    ("/proc/sys/net/ipv6/neigh/clients0/proxy_delay", "0"),
    ("/proc/sys/net/ipv6/conf/clients0/proxy_ndp", "1"),
];

/// Makes bridge and namespace; called once, by the sandbox's PID 1.
pub(super) fn set_up() -> Result<()> {
    let [node, client, other] = [NODE, CLIENT, OTHER_CLIENT].map(second);
    ip_batch(
        &[],
        &format!(
            "link add {BRIDGE} type bridge\n\
             addr add {NODE}/{PREFIX_LENGTH} dev {BRIDGE}\n\
             addr add {node}/{SECOND_PREFIX_LENGTH} dev {BRIDGE} nodad\n\
             link set {BRIDGE} up\n\
             rule add preference 11 iif {BRIDGE} to {INFRA_API}/{PREFIX_LENGTH} prohibit\n\
             link add {NOWHERE} type bridge\n\
             link set {NOWHERE} up\n\
             route add {LOAD_BALANCERS} dev {NOWHERE}\n\
             route add {SECOND_LOAD_BALANCERS} dev {NOWHERE}\n"
        ),
    )
    .context("make the clients' network")?;
    for (setting, value) in PROXY {
        std::fs::write(setting, value).with_context(|| format!("answer the clients at once: {setting}"))?;
    }
    namespace_on(BRIDGE, NODE, NAMESPACE, CLIENT)?;
    let own = format!(
        "addr add {OTHER_CLIENT}/{PREFIX_LENGTH} dev eth0\n\
         addr add {other}/{SECOND_PREFIX_LENGTH} dev eth0 nodad\n\
         addr add {client}/{SECOND_PREFIX_LENGTH} dev eth0 nodad\n\
         route add {LOAD_BALANCERS} dev eth0 src {CLIENT}\n\
         route add {SECOND_LOAD_BALANCERS} dev eth0 src {client}\n"
    );
    ip_batch(&["-n", NAMESPACE], &own).context("make the client's addresses")
}

/// From now on answers clients that ask for a load balancer's address. Calling it again is a success.
pub fn announce(address: IpAddr) -> Result<()> {
    ip_batch(&[], &format!("neigh replace proxy {address} dev {BRIDGE}\n"))
        .with_context(|| format!("announce {address}"))
}

/// Answers no more for an address that was announced. What clients know of it they forget at once: a real speaker's successor
/// or a router would tell them.
pub fn withdraw(address: IpAddr) -> Result<()> {
    ip_batch(&[], &format!("neigh delete proxy {address} dev {BRIDGE}\n"))
        .with_context(|| format!("withdraw {address}"))?;
    ip_batch(&["-n", NAMESPACE], &format!("neigh flush to {address}\n"))
        .with_context(|| format!("make clients forget {address}"))
}

/// Moves the calling thread into the clients' network: sockets that it opens from now on are a client's. Only this thread, so
/// give it one of its own that ends afterwards.
pub fn enter() -> Result<()> {
    let path = Path::new(NAMED_NAMESPACES).join(NAMESPACE);
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the clients' network")
}
