//! A worker booted once to "containerd and its images are ready, no kubelet" and saved; later workers resume from there
//! in half a second instead of ten.
//!
//! A state holds no node name, no cluster and no driver, so it serves every worker of every bench with the
//! same QEMU, image and command line. What clones must not share is renewed after each restore.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use qapi::qmp::{self, MigrationStatus};
use tokio::process::Command;

use super::{
    accelerator::{Accelerator, QEMU},
    command_line::{Files, arguments, shell_word},
    guest::Guest,
    machine::Machine,
    machine_spec::{Boot, MachineSpec},
    wait::wait_for,
    worker,
};
use crate::{
    artifact::{
        store::{Key, cached},
        worker_image::WorkerImage,
    },
    report::Progress,
    sandbox::network,
    supervise::Supervisor,
};

/// Memory of every worker: kubelet, containerd and three pods leave a third of it free.
pub const WORKER_MEMORY_MIB: u32 = 512;

/// The machine that is saved. Its address and card are replaced after every restore.
const NAME: &str = "saved-state";
const TAP: &str = "tap-saved";
const MAC: &str = "52:54:00:77:00:fe";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Writing about 80 MB.
const SAVE_LIMIT: Duration = Duration::from_mins(2);

/// Bytes per second that saving may use. QEMU's own default is sized for a network.
const BANDWIDTH: i64 = 10 << 30;

/// The saved state for `image`, made now if there is none yet. Runs in the sandbox: the worker needs a tap device.
pub async fn ensure(
    supervisor: &Supervisor,
    image: &WorkerImage,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let spec = spec(image);
    let key = key(image, &spec).await?;
    let dir = cached("worker-state", &key, async |dir: &Path| {
        let began = Instant::now();
        progress.step("booting a worker once, to save its state");
        network::add_tap(TAP)?;
        let machine = Machine::start(supervisor, &spec).await?;
        let saved = match machine.guest() {
            Some(guest) => save(&machine, guest, &dir.join(FILE)).await,
            None => Err(anyhow::anyhow!("the worker has no guest agent")),
        };
        machine.stop().await;
        progress.step(&format!("worker state saved after {:.1} s", began.elapsed().as_secs_f64()));
        saved
    })
    .await?;
    Ok(dir.join(FILE))
}

/// The state's file in its artifact folder.
const FILE: &str = "state.zst";

fn spec(image: &WorkerImage) -> MachineSpec {
    let image = WorkerImage { driver: None, ..image.clone() };
    let boot = Boot::Worker { image, mac: MAC.into(), address: ADDRESS, tap: TAP.into(), state: None };
    MachineSpec { name: NAME.into(), memory_mib: WORKER_MEMORY_MIB, boot }
}

/// A state is valid for one QEMU, one image and one shape of the machine.
async fn key(image: &WorkerImage, spec: &MachineSpec) -> Result<String> {
    let version =
        Command::new(QEMU).arg("--version").output().await.with_context(|| format!("run {QEMU}"))?;
    let accelerator = Accelerator::of_this_host(image).await?;
    let nowhere = Files { monitor: "qmp".as_ref(), agent: "agent".as_ref(), console: "console".as_ref() };
    let shape = arguments(spec, accelerator, &nowhere).join("\n");
    Ok(Key::new().bytes(&version.stdout).text(&image.key).text(&shape).finish())
}

async fn save(machine: &Machine, guest: &Guest, path: &Path) -> Result<()> {
    worker::wait_until_ready(guest).await?;
    let monitor = machine.monitor();
    monitor.execute(qmp::stop {}).await?;
    let bandwidth = serde_json::json!({"max-bandwidth": BANDWIDTH});
    let parameters: qmp::migrate_set_parameters = serde_json::from_value(bandwidth)?;
    monitor.execute(parameters).await?;
    let uri = format!("exec:zstd -1 -q -o {}", shell_word(path));
    let migrate = qmp::migrate { uri: Some(uri), channels: None, detach: None, resume: None };
    monitor.execute(migrate).await?;
    wait_for("the state to be saved", SAVE_LIMIT, || async {
        let info = monitor.execute(qmp::query_migrate {}).await?;
        match info.status {
            Some(MigrationStatus::completed) => Ok(Some(())),
            Some(MigrationStatus::failed) => bail!("{}", info.error_desc.unwrap_or("saving failed".into())),
            _ => Ok(None),
        }
    })
    .await
}
