//! The command line: every flag, default and environment variable of kubevirt/csi-driver (2026-06-24), and ours, whose
//! defaults change nothing. It checks what can be checked without another system, before anything starts.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Parser};
use serving::go_flags::{Ignored, IgnoredList, parse_bool};
use serving::{Endpoint, LogFormat};

/// The command line, parsed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kubevirt-csi-driver",
    version,
    about = "CSI driver for the volumes of a guest cluster whose workers are KubeVirt virtual machines",
    long_about = None,
    after_help = "One program, two roles: the controller runs on the infra cluster beside the guest's VMs, the node \
                  role inside each VM.\nRUST_LOG (filter directives such as info,controller=debug) overrides --v.",
    args_override_self = true,
    max_term_width = 100
)]
pub struct Flags {
    #[arg(
        help = "The socket to serve CSI on: unix:///dir/csi.sock or tcp://ip:port",
        long,
        value_name = "URL",
        default_value = "unix:/csi/csi.sock"
    )]
    pub endpoint: Endpoint,

    /// Serve the controller role
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub run_controller_service: bool,

    /// Serve the node role
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub run_node_service: bool,

    /// Controller role: the infra namespace of this guest's VMs and volumes
    #[arg(long, value_name = "NAMESPACE", default_value = "")]
    pub infra_cluster_namespace: String,

    /// Controller role: labels of every infra object of this guest, k=v,k=v; objects without them are refused
    #[arg(long, value_name = "LABELS", default_value = "")]
    pub infra_cluster_labels: String,

    /// Controller role: labels that a VM must carry to get volumes of this guest, k=v,k=v; empty refuses only a VM with a
    /// label of --infra-cluster-labels that has another value
    #[arg(long, value_name = "LABELS", default_value = "")]
    pub infra_vm_labels: String,

    /// Controller role: kubeconfig of the infra cluster; empty means the pod's service account
    #[arg(long, value_name = "PATH", default_value = "")]
    pub infra_cluster_kubeconfig: String,

    /// Controller role: how many changes per second are sent to the infra API, over time; reads do not count. 0 means the
    /// default, a negative number no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 50.0, allow_negative_numbers = true)]
    pub kube_api_qps: f64,

    /// Controller role: how many changes are sent to the infra API at once, after a time with few; 0 means the default
    #[arg(long, value_name = "NUMBER", default_value_t = 200, allow_negative_numbers = true)]
    pub kube_api_burst: i32,

    /// Controller role: volume ids must start with this and a dash
    #[arg(long, value_name = "PREFIX", default_value = "pvc")]
    pub volume_prefix: String,

    /// Controller role: which infra storage classes the guest may name, as YAML text with the keys allowAll,
    /// allowDefault, allowList and storageSnapshotMapping; empty means all
    #[arg(long, value_name = "YAML", env = "INFRA_STORAGE_CLASS_ENFORCEMENT", default_value = "")]
    pub infra_storage_class_enforcement: String,

    /// Node role: the name of the guest Node object that this process runs on
    #[arg(long, value_name = "NAME", default_value = "")]
    pub node_name: String,

    /// Node role: kubeconfig of the guest cluster; empty means the pod's service account. The controller role makes
    /// no call to the guest cluster and ignores it
    #[arg(long, value_name = "PATH", default_value = "")]
    pub tenant_cluster_kubeconfig: String,

    /// Node role: also format a disk that holds data without a known signature. Off, such a disk is refused: infra
    /// storage that hands out unwiped blocks needs it, and it can destroy data that nothing recognises
    #[arg(long, value_name = "BOOL", default_value = "false", action = ArgAction::Set, value_parser = parse_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_format_nonzero: bool,

    /// Serve /livez, /readyz and /metrics over HTTP at ip:port or :port; empty means off
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub http_endpoint: String,

    /// How a log line looks: text or json
    #[arg(long, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,

    /// Log verbosity as klog counts it: up to 3 info, 4 and 5 our debug lines, 6 and 7 all debug lines, from 8 on trace
    #[arg(long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,

    /// klog flags of manifests written for kubevirt/csi-driver.
    #[command(flatten)]
    pub klog: Ignored<Klog>,
}

/// The flags that klog registers (k8s.io/klog/v2 `InitFlags`), except `v`, which has an effect here.
#[derive(Clone, Copy, Debug)]
pub struct Klog;

impl IgnoredList for Klog {
    const WITH_VALUE: &'static [&'static str] =
        &["log_backtrace_at", "log_dir", "log_file", "log_file_max_size", "stderrthreshold", "vmodule"];
    const BOOLEAN: &'static [&'static str] = &[
        "add_dir_header",
        "alsologtostderr",
        "legacy_stderr_threshold_behavior",
        "logtostderr",
        "one_output",
        "skip_headers",
        "skip_log_headers",
    ];
}

impl Flags {
    /// Checks what each role needs. The labels and the storage class text are checked by the crates that own them.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.run_controller_service || self.run_node_service,
            "no role to run: leave --run-controller-service or --run-node-service at true"
        );
        if self.run_controller_service {
            ensure!(
                !self.infra_cluster_namespace.is_empty(),
                "the controller role needs --infra-cluster-namespace: the infra namespace of this guest's VMs"
            );
            ensure!(
                !self.infra_cluster_labels.is_empty(),
                "the controller role needs --infra-cluster-labels, for example csi-driver/cluster=tenant: they tell \
                 this guest's volumes from others'"
            );
            ensure!(!self.volume_prefix.is_empty(), "--volume-prefix must not be empty; its default is pvc");
        }
        if self.run_node_service && self.node_name.is_empty() {
            bail!(
                "the node role needs --node-name: the name of its Node object, spec.nodeName in the downward API"
            );
        }
        Ok(())
    }
}

/// An empty path is how the reference spells "none".
pub fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

#[cfg(test)]
mod tests;
