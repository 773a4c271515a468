//! Registers a CSI driver with the kubelet of the node it runs on. Stands for node-driver-registrar in the bench's
//! workers; see `bench::simulator::plugin_registrar`.

use std::path::PathBuf;

use anyhow::Result;
use bench::simulator::plugin_registrar::{Options, PLUGINS_REGISTRY, run};
use clap::Parser;

/// klog's verbosity from which on debug lines are shown.
const DEBUG_VERBOSITY: u8 = 5;

/// Registers a CSI driver with kubelet.
#[derive(Debug, Parser)]
#[command(name = "plugin-registrar")]
struct Flags {
    /// The driver's socket.
    #[arg(long, default_value = "/run/csi/socket")]
    csi_address: PathBuf,
    /// The driver's socket as kubelet sees it.
    #[arg(long)]
    kubelet_registration_path: String,
    /// The folder in which kubelet looks for registration sockets.
    #[arg(long, default_value = PLUGINS_REGISTRY)]
    plugin_registration_path: PathBuf,
    /// Seconds that the driver may take to tell its name.
    #[arg(long, default_value_t = 1)]
    timeout_seconds: u64,
    /// Verbosity, as klog counts it.
    #[arg(long, short, default_value_t = 2)]
    v: u8,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    let level = if flags.v >= DEBUG_VERBOSITY { tracing::Level::DEBUG } else { tracing::Level::INFO };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    run(&Options {
        csi_address: flags.csi_address,
        kubelet_registration_path: flags.kubelet_registration_path,
        plugin_registration_path: flags.plugin_registration_path,
        timeout: std::time::Duration::from_secs(flags.timeout_seconds),
    })
    .await
}
