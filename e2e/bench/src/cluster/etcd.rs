//! One etcd for both clusters, each under a prefix of its own; and a larger one for a test.

use std::path::{Path, PathBuf};

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

/// Client address of the larger one.
pub const LARGE_URL: &str = "http://127.0.0.1:2381";

/// Peer address of the larger one.
const LARGE_PEER_URL: &str = "http://127.0.0.1:2382";

/// The Go runtime's soft limit, well above the 127 MiB that etcd held after a load test: near it the collector takes the
/// processor from everything else.
const MEMORY_LIMIT: &str = "800MiB";

/// In memory, in the sandbox's own tmpfs ([`crate::paths::RUNTIME`]). Compilers beside the bench keep a slow disk busy, and even
/// without fsync etcd then stood still for 12 seconds: longer than controllers wait before they give up their leases.
const DATA: &str = "etcd";

/// How much the larger one may keep, in bytes: by default etcd takes no more than 2 GiB.
const LARGE_QUOTA: &str = "8589934592";

/// After so many changes the larger one forgets them: by default it keeps 10,000, which is 2.5 GiB where each is of 256 KiB.
const LARGE_CHANGES_KEPT: &str = "500";

/// Starts etcd on an empty data folder. It is ready when an API server is.
pub fn start(supervisor: &Supervisor, programs: &Programs) -> Result<Process> {
    let data = PathBuf::from(RUNTIME).join(DATA);
    start_one(supervisor, programs, "etcd", (URL, PEER_URL), &data, &[])
}

/// Starts one that holds some GiB, in a folder on disk.
pub fn start_large(supervisor: &Supervisor, programs: &Programs, data: &Path) -> Result<Process> {
    let large = [
        ("--quota-backend-bytes", LARGE_QUOTA),
        ("--snapshot-count", LARGE_CHANGES_KEPT),
        ("--snapshot-catchup-entries", LARGE_CHANGES_KEPT),
    ];
    start_one(supervisor, programs, "large-etcd", (LARGE_URL, LARGE_PEER_URL), data, &large)
}

fn start_one(
    supervisor: &Supervisor,
    programs: &Programs,
    name: &str,
    (url, peer_url): (&str, &str),
    data: &Path,
    more: &[(&str, &str)],
) -> Result<Process> {
    let peers = format!("default={peer_url}");
    let data = data.display().to_string();
    let args = [
        ("--data-dir", data.as_str()),
        ("--listen-client-urls", url),
        ("--advertise-client-urls", url),
        ("--listen-peer-urls", peer_url),
        ("--initial-advertise-peer-urls", peer_url),
        ("--initial-cluster", &peers),
        ("--log-level", "warn"),
        // A bench's data need not survive a power cut.
        ("--unsafe-no-fsync", "true"),
    ];
    supervisor.start(&ProcessSpec {
        name: name.to_owned(),
        program: programs.path("etcd")?.to_owned(),
        args: args.iter().chain(more).map(|(flag, value)| format!("{flag}={value}")).collect(),
        env: vec![("GOMEMLIMIT".to_owned(), MEMORY_LIMIT.to_owned())],
        ..ProcessSpec::default()
    })
}
