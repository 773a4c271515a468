//! Flags that are accepted without effect: other providers obey them, or Go's runtime and libraries do.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

/// Flags with a value.
const WITH_VALUE: [&str; 47] = [
    "allow-metric-labels",
    "allow-metric-labels-manifest",
    "cert-dir",
    "cidr-allocator-type",
    "cluster-cidr",
    "concurrent-node-status-updates",
    "controller-start-interval",
    "disabled-metrics",
    "emulated-version",
    "emulation-forward-compatible",
    "external-cloud-volume-plugin",
    "feature-gates",
    "goaway-chance",
    "http2-max-streams-per-connection",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "leader-migration-config",
    "log-backtrace-at",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "min-compatibility-version",
    "min-resync-period",
    "node-sync-period",
    "route-reconciliation-period",
    "runtime-config",
    "show-hidden-metrics-for-version",
    "stderrthreshold",
    "strict-transport-security-directives",
    "tls-sni-cert-key",
    "tracing-config-file",
    "vmodule",
    "webhook-bind-address",
    "webhook-cert-dir",
    "webhook-secure-port",
    "webhook-tls-cert-file",
    "webhook-tls-cipher-suites",
    "webhook-tls-min-version",
    "webhook-tls-private-key-file",
    "webhook-tls-sni-cert-key",
    "webhooks",
    "authentication-webhook-config-file",
    "authorization-webhook-config-file",
];

/// Flags that may stand alone.
const BOOLEAN: [&str; 19] = [
    "add-dir-header",
    "allocate-node-cidrs",
    "allow-untagged-cloud",
    "alsologtostderr",
    "configure-cloud-routes",
    "contention-profiling",
    "disable-http2-serving",
    "enable-leader-migration",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "one-output",
    "permit-address-sharing",
    "permit-port-sharing",
    "profiling",
    "skip-headers",
    "skip-log-headers",
    "use-service-account-credentials",
    "legacy-stderr-threshold-behavior",
];

/// The flags without effect that were given, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Their names.
    pub given: Vec<&'static str>,
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        let with_value = WITH_VALUE.into_iter().map(|name| accepted(name).num_args(1));
        let boolean = BOOLEAN
            .into_iter()
            .map(|name| accepted(name).num_args(0..=1).require_equals(true).default_missing_value("true"));
        with_value.chain(boolean).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn accepted(name: &'static str) -> Arg {
    let help = "Accepted without effect";
    Arg::new(name).long(name).action(ArgAction::Append).allow_hyphen_values(true).hide(true).help(help)
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let names = WITH_VALUE.into_iter().chain(BOOLEAN);
        Ok(Self { given: names.filter(|name| matches.contains_id(name)).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
