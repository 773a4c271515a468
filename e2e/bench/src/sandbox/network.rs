//! The network inside the sandbox, and how it is made. Nothing in it reaches the machine's network.
//!
//! ```text
//!   infra0  10.76.0.0/24   .1 infra API server   .2 virt-api   .3 cdi-apiserver   .4 cdi-controller
//!   workers0 10.77.0.0/24  .1 guest API server  .11 worker-1  .12 worker-2   (tap devices)
//!   clients0 10.78.0.0/24  .1 the infra node's   .50 and .51 a client         (`clients`)
//! ```
//!
//! The sandbox's own network namespace is the infra node on which the workers run: their gateway, and the clients'
//! gateway to load balancers. It forwards.
//!
//! Traffic from `workers0` or `clients0` never reaches the infra network: a routing rule drops it, as an infra
//! cluster's network policy would. The other way is open, because infra sends traffic to its VMs.
//!
//! Each member of `workers0` and `clients0` has an IPv6 address too, of the same digits ([`second`]).
//!
//! Everything goes through the `ip` program; each change is one process of a few milliseconds.

pub mod clients;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Where `ip netns` keeps its named namespaces; `ip-netns(8)`.
pub const NAMED_NAMESPACES: &str = "/run/netns";

/// Bridge of the infra cluster's control plane.
pub const INFRA_BRIDGE: &str = "infra0";
/// The infra API server.
pub const INFRA_API: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 1);
/// virt-api, which the infra API server calls.
pub const VIRT_API: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 2);
/// cdi-apiserver, in a namespace of its own.
pub const CDI_API: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 3);
/// cdi-controller, in a namespace of its own.
pub const CDI_CONTROLLER: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 4);

/// Bridge of the worker VMs.
pub const WORKERS_BRIDGE: &str = "workers0";
/// The guest API server, and the workers' gateway.
pub const TENANT_API: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// All networks are /24.
pub const PREFIX_LENGTH: u8 = 24;
/// Those of the second family are /64.
pub const SECOND_PREFIX_LENGTH: u8 = 64;
/// Unique local addresses (RFC 4193): those of the second family begin so.
const SECOND_PREFIX: u16 = 0xfd00;

/// Last octet of worker 0's address and MAC address; worker `n` has this plus `n`.
const WORKER_HOST_BASE: u8 = 10;

/// Most workers of a bench.
pub const MOST_WORKERS: u8 = 2;

/// The sysctls that make the kernel forward between networks (`ip-sysctl`).
const FORWARD: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Longest name of a network device (`IFNAMSIZ` - 1).
const MAX_DEVICE_NAME: usize = 15;

/// The IPv6 address that belongs to `address`: the same decimal digits, `fd00:10:77::11` for `10.77.0.11`. So is the network of a
/// network's address.
pub fn second(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(|octet| {
        let octet = u16::from(octet);
        ((octet / 100) << 8) | ((octet / 10 % 10) << 4) | (octet % 10)
    });
    Ipv6Addr::new(SECOND_PREFIX, a, b, c, 0, 0, 0, d)
}

/// Address of worker `number`, counted from 1.
pub fn worker_address(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = TENANT_API.octets();
    Ipv4Addr::new(a, b, c, WORKER_HOST_BASE + number)
}

/// MAC address of worker `number`, counted from 1, in QEMU's range.
pub fn worker_mac(number: u8) -> String {
    format!("52:54:00:77:00:{:02x}", WORKER_HOST_BASE + number)
}

/// Name of the tap device of worker `number`, counted from 1.
pub fn worker_tap(number: u8) -> String {
    format!("tap-worker-{number}")
}

/// The networks of the pods on worker `number`, counted from 1, one of each family: parts of `guest/kube-proxy.yaml`'s
/// `clusterCIDR`.
pub fn worker_pods(number: u8) -> [String; 2] {
    let network = Ipv4Addr::new(10, 88, number, 0);
    [format!("{network}/{PREFIX_LENGTH}"), format!("{}/{SECOND_PREFIX_LENGTH}", second(network))]
}

/// The pod networks of the other workers than `number`, each with the worker that leads to it.
pub fn other_workers_pods(number: u8) -> Vec<(String, IpAddr)> {
    let others = (1..=MOST_WORKERS).filter(|other| *other != number);
    others.flat_map(|other| worker_pods(other).into_iter().zip(both(worker_address(other)))).collect()
}

/// An address and its [`second`].
pub fn both(address: Ipv4Addr) -> [IpAddr; 2] {
    [address.into(), second(address).into()]
}

/// Makes the bridges in a fresh network namespace; called once, by the sandbox's PID 1.
pub fn set_up() -> Result<()> {
    for forward in FORWARD {
        std::fs::write(forward, "1")
            .with_context(|| format!("forward between the sandbox's networks: {forward}"))?;
    }
    let second_gateway = second(TENANT_API);
    let infra_network = format!("{INFRA_API}/{PREFIX_LENGTH}");
    ip_batch(
        &[],
        &format!(
            "link set lo up\n\
             link add {INFRA_BRIDGE} type bridge\n\
             addr add {INFRA_API}/{PREFIX_LENGTH} dev {INFRA_BRIDGE}\n\
             addr add {VIRT_API}/{PREFIX_LENGTH} dev {INFRA_BRIDGE}\n\
             link set {INFRA_BRIDGE} up\n\
             link add {WORKERS_BRIDGE} type bridge\n\
             addr add {TENANT_API}/{PREFIX_LENGTH} dev {WORKERS_BRIDGE}\n\
             addr add {second_gateway}/{SECOND_PREFIX_LENGTH} dev {WORKERS_BRIDGE} nodad\n\
             link set {WORKERS_BRIDGE} up\n\
             rule add preference 100 lookup local\n\
             rule add preference 10 iif {WORKERS_BRIDGE} to {infra_network} prohibit\n\
             rule delete preference 0\n"
        ),
    )
    .context("make the sandbox's network")?;
    clients::set_up()
}

/// Whether this network namespace has the device `name`.
pub fn has_device(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

/// Makes the tap device `name` on the workers' bridge; an existing one of that name stays.
pub fn add_tap(name: &str) -> Result<()> {
    ensure!(name.len() <= MAX_DEVICE_NAME, "the device name {name} is longer than {MAX_DEVICE_NAME} bytes");
    if has_device(name) {
        return Ok(());
    }
    ip_batch(&[], &format!("tuntap add dev {name} mode tap\nlink set {name} master {WORKERS_BRIDGE} up\n"))
        .with_context(|| format!("make the tap device {name} (needs /dev/net/tun)"))
}

/// A network namespace on the infra bridge, made by [`add_namespace`]. Clones name the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

/// Makes the network namespace `name` (13 bytes at most) with `address` on the infra bridge.
pub fn add_namespace(name: &str, address: Ipv4Addr) -> Result<Namespace> {
    namespace_on(INFRA_BRIDGE, INFRA_API, name, address)
}

/// As [`add_namespace`], on another bridge with another `gateway`.
fn namespace_on(bridge: &str, gateway: Ipv4Addr, name: &str, address: Ipv4Addr) -> Result<Namespace> {
    let outer_end = format!("v-{name}");
    ensure!(
        outer_end.len() <= MAX_DEVICE_NAME,
        "the namespace name {name} is too long for its device {outer_end}"
    );
    ip_batch(
        &[],
        &format!(
            "netns add {name}\n\
             link add {outer_end} type veth peer name eth0 netns {name}\n\
             link set {outer_end} master {bridge} up\n"
        ),
    )
    .and_then(|()| {
        ip_batch(
            &["-n", name],
            &format!(
                "link set lo up\n\
                 addr add {address}/{PREFIX_LENGTH} dev eth0\n\
                 link set eth0 up\n\
                 route add default via {gateway}\n"
            ),
        )
    })
    .with_context(|| format!("make the network namespace {name}"))?;
    Ok(Namespace { name: name.to_owned() })
}

impl Namespace {
    /// The command line prefix with which a program runs in this network namespace, in a mount namespace of its own
    /// (which `ip netns exec` makes), with `/tmp` empty and its own.
    pub fn wrapper(&self) -> Vec<String> {
        let own_tmp = "mount -t tmpfs -o mode=1777 tmpfs /tmp && exec \"$@\"";
        ["ip", "netns", "exec", &self.name, "sh", "-c", own_tmp, "sh"].map(str::to_owned).to_vec()
    }
}

/// Runs `ip <options> -batch -` on `commands`, one per line; stops at the first that fails.
fn ip_batch(options: &[&str], commands: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip (package iproute2)")?;
    // Dropped at the end of the statement: ip sees the end of its input.
    child
        .stdin
        .take()
        .context("ip has no standard input")?
        .write_all(commands.as_bytes())
        .context("write to ip")?;
    let output = child.wait_with_output().context("wait for ip")?;
    ensure!(output.status.success(), "ip failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_numbered_from_one() {
        assert_eq!(worker_address(1), Ipv4Addr::new(10, 77, 0, 11));
        assert_eq!(worker_address(2), Ipv4Addr::new(10, 77, 0, 12));
        assert_eq!(worker_mac(1), "52:54:00:77:00:0b");
        assert_eq!(worker_tap(2), "tap-worker-2");
        assert!(worker_tap(99).len() <= MAX_DEVICE_NAME);
        let second_way = (format!("fd00:10:88:1::/{SECOND_PREFIX_LENGTH}"), second(worker_address(1)).into());
        assert_eq!(
            other_workers_pods(2),
            [("10.88.1.0/24".to_owned(), worker_address(1).into()), second_way]
        );
    }

    #[test]
    fn the_second_family_has_the_same_digits() {
        assert_eq!(second(Ipv4Addr::new(10, 77, 0, 11)).to_string(), "fd00:10:77::11");
        assert_eq!(second(Ipv4Addr::new(198, 19, 255, 0)).to_string(), "fd00:198:19:255::");
    }
}
