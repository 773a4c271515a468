//! The command line: every flag that people pass to a cloud controller manager (k8s.io/cloud-provider v0.34), as pflag
//! reads it. What has no meaning here is accepted and named in one log line, so that no manifest has to change.

mod controllers;
mod ignored;
mod names;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use cluster::WriteRate;
use serving::LogFormat;
use serving::go_flags::{Ignored, parse_bool, parse_duration};

use crate::cluster_name::{ClusterName, DEFAULT_CLUSTER_NAME};
pub use controllers::{Controller, Controllers};
pub use ignored::Others;
pub use names::names;

/// Upstream's default is 1, with which one Node whose calls get no answer holds up all others.
const NODE_SYNCS: u16 = 16;

/// The command line, parsed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kubevirt-cloud-controller-manager",
    version,
    about = "Cloud controller manager of a guest cluster whose workers are KubeVirt virtual machines",
    long_about = None,
    after_help = "RUST_LOG (filter directives such as info,ccm=debug) overrides --v.",
    args_override_self = true,
    max_term_width = 100
)]
pub struct Flags {
    /// The provider; kubevirt is the only one
    #[arg(long, value_name = "NAME", default_value = "kubevirt", value_parser = ["kubevirt", ""])]
    pub cloud_provider: String,

    /// File with the cloud-config: where the infra cluster is, and what is served
    #[arg(long, value_name = "PATH")]
    pub cloud_config: PathBuf,

    /// Kubeconfig of the guest cluster; empty means the pod's service account
    #[arg(long, value_name = "PATH", default_value = "")]
    pub kubeconfig: String,

    /// Address of the guest cluster's API server, instead of the kubeconfig's
    #[arg(long, value_name = "URL", default_value = "")]
    pub master: String,

    /// Name of the guest cluster: a label of its infra Services and of its VMs. Quotes around it are dropped
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CLUSTER_NAME)]
    pub cluster_name: ClusterName,

    /// The controllers to run: * for all, NAME for one, -NAME for all but one
    #[arg(long, value_name = "LIST", default_value = "*", allow_hyphen_values = true)]
    pub controllers: Controllers,

    /// How many Services are synced at the same time; a value below 32 is raised to 32
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub concurrent_service_syncs: u16,

    /// How many Nodes are initialised, updated or deleted at the same time
    #[arg(long, value_name = "COUNT", default_value_t = NODE_SYNCS)]
    pub concurrent_node_syncs: u16,

    /// How many changes per second are sent to the infra API, over time; reads, and calls to the guest, do not count. 0
    /// means the default, a negative number no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 50.0, allow_negative_numbers = true)]
    pub kube_api_qps: f64,

    /// How many changes are sent to the infra API at once, after a time with few; 0 means the default
    #[arg(long, value_name = "NUMBER", default_value_t = 200, allow_negative_numbers = true)]
    pub kube_api_burst: i32,

    /// How often the VMs of Nodes that are not ready are checked
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub node_monitor_period: Duration,

    /// How often the addresses of all Nodes are compared, beside the watch
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub node_status_update_frequency: Duration,

    /// Delete all infra Services of this guest, wait until they are gone, and end: for the teardown of the guest
    #[arg(long, value_name = "BOOL", default_value = "false", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cleanup: bool,

    /// Let --cleanup ignore the guest's lease and UID: only for where no replica runs and no other guest has this name
    #[arg(long, value_name = "BOOL", default_value = "false", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cleanup_force: bool,

    /// How long --cleanup waits until they are gone
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub cleanup_timeout: Duration,

    /// The lease of the one replica that acts.
    #[command(flatten)]
    pub leader: LeaderFlags,

    /// The HTTPS endpoint.
    #[command(flatten)]
    pub serving: ServingFlags,

    /// How a log line looks: text or json
    #[arg(long, visible_alias = "log-format", value_name = "FORMAT", default_value_t)]
    pub logging_format: LogFormat,

    /// Log verbosity as klog counts it: up to 3 info, 4 and 5 our debug lines, 6 and 7 all debug lines, from 8 on trace
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,

    /// Flags that other providers obey.
    #[command(flatten)]
    pub ignored: Ignored<Others>,
}

/// Flags of the leader election.
#[derive(Clone, Debug, Parser)]
pub struct LeaderFlags {
    /// Act only while holding the lease
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,

    /// How long a lease that is not renewed is respected
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_duration)]
    pub leader_elect_lease_duration: Duration,

    /// How long the holder tries to renew before it gives up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub leader_elect_renew_deadline: Duration,

    /// How often the lease is renewed, and checked by the others
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub leader_elect_retry_period: Duration,

    /// Name of the lease
    #[arg(long, value_name = "NAME", default_value = "cloud-controller-manager")]
    pub leader_elect_resource_name: String,

    /// Namespace of the lease, in the guest cluster
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,

    /// Kind of the lock; leases is the only one
    #[arg(long, value_name = "KIND", default_value = "leases", value_parser = ["leases"])]
    pub leader_elect_resource_lock: String,
}

/// Flags of the HTTPS endpoint and of who may use it.
#[derive(Clone, Debug, Parser)]
pub struct ServingFlags {
    /// Address to serve HTTPS on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: String,

    /// Port to serve HTTPS on; 0 means off
    #[arg(long, value_name = "PORT", default_value_t = 10258)]
    pub secure_port: u16,

    /// File with the certificate; without it one is made at each start
    #[arg(long, value_name = "PATH", default_value = "", requires = "tls_private_key_file")]
    pub tls_cert_file: String,

    /// File with the key of the certificate
    #[arg(long, value_name = "PATH", default_value = "")]
    pub tls_private_key_file: String,

    /// Lowest TLS version: VersionTLS12 or VersionTLS13; lower ones become VersionTLS12
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub tls_min_version: String,

    /// Cipher suites of TLS 1.2, by their Go names; those that are not safe are left out
    #[arg(long, value_name = "NAMES", default_value = "", value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,

    /// Kubeconfig for token reviews; empty means the guest cluster's, and only for tokens that the guest issued
    #[arg(long, value_name = "PATH", default_value = "")]
    pub authentication_kubeconfig: String,

    /// Do not read the certificate authorities that the guest cluster's API server publishes in a ConfigMap
    #[arg(long, value_name = "BOOL", default_value = "false", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub authentication_skip_lookup: bool,

    /// If true, a failed read of this ConfigMap is logged as info, else as a warning. It never stops the program
    #[arg(long, value_name = "BOOL", default_value = "false", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub authentication_tolerate_lookup_failure: bool,

    /// How long the answer of a token review holds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub authentication_token_webhook_cache_ttl: Duration,

    /// File with the CA of clients that show a certificate; empty means what the guest cluster's API server publishes
    #[arg(long, value_name = "PATH", default_value = "")]
    pub client_ca_file: String,

    /// File with the CA of front proxies; empty means what the guest cluster's API server publishes, with the names below
    #[arg(long, value_name = "PATH", default_value = "")]
    pub requestheader_client_ca_file: String,

    /// Common names of front proxies whose headers are believed; empty means all whose certificate is verified
    #[arg(long, value_name = "NAMES", default_value = "", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,

    /// Headers in which a front proxy names the user
    #[arg(long, value_name = "NAMES", default_value = "x-remote-user", value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,

    /// Headers in which a front proxy names the user's uid
    #[arg(long, value_name = "NAMES", default_value = "", value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,

    /// Headers in which a front proxy names the user's groups
    #[arg(long, value_name = "NAMES", default_value = "x-remote-group", value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,

    /// How headers begin in which a front proxy says more about the user
    #[arg(long, value_name = "NAMES", default_value = "x-remote-extra-", value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// Kubeconfig for access reviews; empty means the guest cluster's
    #[arg(long, value_name = "PATH", default_value = "")]
    pub authorization_kubeconfig: String,

    /// Paths that everybody may read
    #[arg(long, value_name = "PATHS", default_value = "/healthz,/readyz,/livez", value_delimiter = ',')]
    pub authorization_always_allow_paths: Vec<String>,

    /// How long a yes of an access review holds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,

    /// How long a no of an access review holds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
}

impl Flags {
    /// The bound of `--kube-api-qps` and `--kube-api-burst`.
    pub fn write_rate(&self) -> WriteRate {
        WriteRate::of_flags(self.kube_api_qps, self.kube_api_burst)
    }
}

/// An empty path is how the reference spells "none".
pub fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

#[cfg(test)]
mod tests;
