//! One etcd for both clusters, each under a prefix of its own.

use anyhow::Result;

use crate::{
    artifact::Programs,
    paths::RUNTIME,
    supervise::{Process, ProcessSpec, Supervisor},
};

/// Client address; etcd is reached over loopback only.
pub const URL: &str = "http://127.0.0.1:2379";

/// Peer address; etcd wants one although it has no peer.
const PEER_URL: &str = "http://127.0.0.1:2380";

/// The Go runtime's soft limit, well above the 127 MiB that etcd held after a load test: near it the collector takes the
/// processor from everything else.
const MEMORY_LIMIT: &str = "800MiB";

/// In memory, in the sandbox's own tmpfs ([`crate::paths::RUNTIME`]). Compilers beside the bench keep a slow disk busy, and even
/// without fsync etcd then stood still for 12 seconds: longer than controllers wait before they give up their leases.
const DATA: &str = "etcd";

/// Starts etcd on an empty data folder. It is ready when an API server is.
pub fn start(supervisor: &Supervisor, programs: &Programs) -> Result<Process> {
    let peers = format!("default={PEER_URL}");
    let data = format!("{RUNTIME}/{DATA}");
    let args = [
        ("--data-dir", data.as_str()),
        ("--listen-client-urls", URL),
        ("--advertise-client-urls", URL),
        ("--listen-peer-urls", PEER_URL),
        ("--initial-advertise-peer-urls", PEER_URL),
        ("--initial-cluster", &peers),
        ("--log-level", "warn"),
        // A bench's data need not survive a power cut.
        ("--unsafe-no-fsync", "true"),
    ];
    supervisor.start(&ProcessSpec {
        name: "etcd".to_owned(),
        program: programs.path("etcd")?.to_owned(),
        args: args.map(|(flag, value)| format!("{flag}={value}")).to_vec(),
        env: vec![("GOMEMLIMIT".to_owned(), MEMORY_LIMIT.to_owned())],
        ..ProcessSpec::default()
    })
}
