//! `kubevirt-csi-driver`: the controller and the node role of the CSI driver, chosen by flags. This crate only
//! composes: `controller` and `node` hold what the roles do, `serving` what every program shows and obeys.

#[cfg(test)]
mod docs;
mod flags;
mod methods;
mod node_identity;
mod rights;
mod roles;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use prometheus_client::registry::Registry;
use serving::go_flags::with_two_dashes;
use serving::program::{exit_code, run};
use serving::shutdown::DRAIN_BOUND;
use serving::{Admin, ProcessMetrics, Readiness, RpcLayer, Shutdown, Telemetry};
use tokio_util::sync::CancellationToken;

use crate::flags::Flags;
use crate::roles::Roles;

/// The crates whose debug lines `--v=4` and `--v=5` show.
const OWN_CRATES: &[&str] =
    &["kubevirt_csi_driver", "controller", "node", "csi_call", "infra", "cluster", "serving"];

/// The prefix of every metric of this program.
const METRICS_PREFIX: &str = "kubevirt_csi";

fn main() -> ExitCode {
    let flags = Flags::parse_from(with_two_dashes(std::env::args_os()));
    exit_code("kubevirt-csi-driver", start(flags))
}

fn start(flags: Flags) -> Result<(), Box<dyn Error + Send + Sync>> {
    flags.check()?;
    Telemetry { format: flags.log_format, verbosity: flags.verbosity, own_crates: OWN_CRATES }.install()?;
    if !flags.klog.given.is_empty() {
        tracing::info!(flags = ?flags.klog.given, "klog flags have no effect here");
    }
    run(|shutdown| serve(flags, shutdown))
}

async fn serve(flags: Flags, shutdown: Shutdown) -> Result<()> {
    let stop = shutdown.stopping();
    let readiness = Readiness::until(stop.clone());
    let bound = readiness.condition("socket");
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, METRICS_PREFIX, roles::VERSION);
    let layer = RpcLayer::new(registry.sub_registry_with_prefix(METRICS_PREFIX), methods::method);
    let roles = Roles::new(&flags, &mut registry, shutdown.tasks()).await?;

    let listener = flags.endpoint.bind().await.context("--endpoint")?;
    bound.set(true);
    let (wedged, settings) = (roles.wedged(), roles.settings(&flags));
    // Probes and metrics are served until the last RPC is answered.
    let drained = CancellationToken::new();
    let last = drained.clone().drop_guard();
    roles.close_after(stop.clone(), shutdown.tasks());
    shutdown.spawn("the CSI socket", async move {
        let _last = last;
        serving::grpc::serve(listener, roles.routes.clone(), layer, stop).await?;
        roles.finish(DRAIN_BOUND).await
    });
    if !flags.http_endpoint.is_empty() {
        let admin = Admin::bind(&flags.http_endpoint, wedged, readiness, Arc::new(registry)).await;
        let admin = admin.context("--http-endpoint")?;
        shutdown.spawn("the admin endpoint", admin.serve(drained));
    }
    tracing::info!(version = roles::VERSION, "serving: {settings}");
    Ok(())
}
