//! Metrics that every Kubernetes program has, under the same names (`k8s.io/component-base`): its build, which
//! controllers run, and the results of its health checks.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The framework's name of the program in `running_managed_controllers`.
const MANAGER: &str = "cloud-controller-manager";
/// The only health check: the process answers, and for `readyz`, it serves.
const PING: &str = "ping";
const SUCCESS: &str = "success";
const ERROR: &str = "error";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    major: &'static str,
    minor: &'static str,
    git_version: &'static str,
    compiler: &'static str,
    platform: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerLabels {
    name: &'static str,
    manager: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CheckLabels {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CheckedLabels {
    name: &'static str,
    r#type: &'static str,
    status: &'static str,
}

/// The metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FrameworkMetrics {
    running: Family<ControllerLabels, Gauge>,
    check: Family<CheckLabels, Gauge>,
    checks: Family<CheckedLabels, Counter>,
}

impl FrameworkMetrics {
    /// Registers them, with the program's version.
    pub fn register(&self, registry: &mut Registry) {
        let build = Family::<BuildLabels, Gauge>::default();
        let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
        let labels = BuildLabels {
            major: env!("CARGO_PKG_VERSION_MAJOR"),
            minor: env!("CARGO_PKG_VERSION_MINOR"),
            git_version: concat!("v", env!("CARGO_PKG_VERSION")),
            compiler: "rustc",
            platform,
        };
        build.get_or_create(&labels).set(1);
        registry.register("kubernetes_build_info", "1, with the version of this program", build);
        registry.register(
            "running_managed_controllers",
            "1 for each controller that runs in this process",
            self.running.clone(),
        );
        registry.register("kubernetes_healthcheck", "1 = the check passed last", self.check.clone());
        registry.register("kubernetes_healthchecks", "Checks, by their results", self.checks.clone());
    }

    /// Records that a controller runs; `name` is the framework's.
    pub fn runs(&self, name: &'static str) {
        self.running.get_or_create(&ControllerLabels { name, manager: MANAGER }).set(1);
    }

    /// Counts an answered check of this kind (`healthz`, `livez`, `readyz`).
    pub fn answered(&self, kind: &'static str, passed: bool) {
        let status = if passed { SUCCESS } else { ERROR };
        self.check.get_or_create(&CheckLabels { name: PING, r#type: kind }).set(i64::from(passed));
        self.checks.get_or_create(&CheckedLabels { name: PING, r#type: kind, status }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_dashboards_know() {
        let (mut registry, mut text) = (Registry::default(), String::new());
        let metrics = FrameworkMetrics::default();
        metrics.register(&mut registry);
        metrics.runs("service");
        metrics.answered("livez", true);
        metrics.answered("readyz", false);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "running_managed_controllers{name=\"service\",manager=\"cloud-controller-manager\"} 1\n",
            "kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n",
            "kubernetes_healthchecks_total{name=\"ping\",type=\"livez\",status=\"success\"} 1\n",
            "kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 0\n",
            "kubernetes_healthchecks_total{name=\"ping\",type=\"readyz\",status=\"error\"} 1\n",
            "kubernetes_build_info{major=\"",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
