//! A virtual machine: one QEMU process, its monitor, its disks and, for a worker, its inside.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use qapi::qmp::{self, RebootAction, RunState};

use super::{
    accelerator::{Accelerator, QEMU},
    command_line::{DRIVER_PORT, Files, arguments},
    disk::{Bus, Disk, Disks, plug_read_only},
    disk_fault::DiskFaults,
    guest::Guest,
    machine_spec::{Boot, DRIVER_SERIAL, MachineSpec},
    qmp::Monitor,
    refresh::refresh,
    wait::wait_for,
};
use crate::{
    paths::RUNTIME,
    sandbox::network,
    supervise::{Process, ProcessSpec, Supervisor},
};

/// From QEMU's start to the guest agent's answer: 5 s when quiet, several times that on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_mins(3);

/// Reading a saved state back.
const RESTORE_LIMIT: Duration = Duration::from_mins(1);

/// QEMU resets its devices in a few milliseconds, and reads kernel and initrd again.
const RESET_LIMIT: Duration = Duration::from_secs(20);

/// QEMU ends on SIGTERM as soon as its main loop turns.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Lines of a log that an error message quotes.
const LOG_LINES: usize = 15;

/// A running machine. Dropping it does not stop it; the supervisor does, or [`Machine::stop`].
#[derive(Debug)]
pub struct Machine {
    process: Process,
    monitor: Monitor,
    disks: Disks,
    guest: Option<Guest>,
}

impl Machine {
    /// Starts QEMU. For a worker, returns when its guest agent has answered and the driver's image is plugged as
    /// its driver disk; after a restore with a clock, random numbers and addresses of its own.
    pub async fn start(supervisor: &Supervisor, spec: &MachineSpec) -> Result<Self> {
        let accelerator = match &spec.boot {
            Boot::Nothing => Accelerator::Tcg,
            Boot::Worker { image, tap, .. } => {
                ensure!(network::has_device(tap), "no tap device {tap}; create it before the machine");
                Accelerator::of_this_host(image).await?
            }
        };
        let sockets = Path::new(RUNTIME).join("vm").join(&spec.name);
        std::fs::create_dir_all(&sockets).with_context(|| format!("create {}", sockets.display()))?;
        let (monitor, agent) = (sockets.join("qmp"), sockets.join("agent"));
        let console = supervisor.logs().join(format!("vm-{}-console.log", spec.name));
        let files = Files { monitor: &monitor, agent: &agent, console: &console };
        let process = supervisor.start(&ProcessSpec {
            name: format!("vm-{}", spec.name),
            program: QEMU.into(),
            args: arguments(spec, accelerator, &files),
            ..ProcessSpec::default()
        })?;
        let monitor = Monitor::connect(&monitor, &process).await?;
        let mut machine = Self { process, monitor, disks: Disks::default(), guest: None };
        let up = machine.bring_up(&spec.boot, &agent);
        if let Err(error) = up.await {
            let said = tail(&console, LOG_LINES);
            let error = error.context(format!("machine {}; its console: {said}", spec.name));
            machine.stop().await;
            return Err(error);
        }
        Ok(machine)
    }

    async fn bring_up(&mut self, boot: &Boot, agent: &Path) -> Result<()> {
        let Boot::Worker { image, mac, address, state, .. } = boot else {
            return Ok(());
        };
        if state.is_some() {
            self.resume().await?;
        }
        let process = self.process.clone();
        let guest = tokio::select! {
            guest = Guest::connect(agent, BOOT_LIMIT) => guest?,
            status = process.exited() => bail!("QEMU ended with {status}: {}", process.log_tail(LOG_LINES)),
        };
        if state.is_some() {
            refresh(&guest, mac, *address).await?;
        }
        if let Some(driver) = &image.driver {
            self.plug_driver(driver).await?;
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// Waits until the saved state is read and lets the processor run.
    async fn resume(&self) -> Result<()> {
        wait_for("the saved state to be read", RESTORE_LIMIT, || async {
            if let Some(status) = self.process.ended() {
                bail!("QEMU can't read the saved state ({status}): {}", self.process.log_tail(LOG_LINES));
            }
            Ok((self.status().await? != RunState::inmigrate).then_some(()))
        })
        .await?;
        self.monitor.execute(qmp::cont {}).await?;
        Ok(())
    }

    /// The driver's image comes on a disk of its own: it changes with every edit, the saved state must not.
    async fn plug_driver(&self, archive: &Path) -> Result<()> {
        let disk = Disk {
            name: DRIVER_SERIAL.into(),
            image: archive.into(),
            bus: Bus::Virtio,
            serial: DRIVER_SERIAL.into(),
            faults: DiskFaults::default(),
            by_test: false,
        };
        plug_read_only(&self.monitor, &disk, DRIVER_PORT)
            .await
            .context("plug the disk with the driver's image")
    }

    /// Plugs a disk; the same disk again is a success. Returns when QEMU has it: the guest sees it some time later.
    pub async fn plug(&self, disk: &Disk) -> Result<()> {
        self.disks.plug(&self.monitor, disk).await
    }

    /// Takes a disk out and returns when the guest has let go and the image is closed. One that isn't plugged is a success.
    pub async fn unplug(&self, name: &str) -> Result<()> {
        self.disks.unplug(&self.monitor, name).await
    }

    /// How many bytes of a plugged disk the guest sees, and its image; `None` when it is not plugged.
    pub async fn disk_size(&self, name: &str) -> Result<Option<(u64, PathBuf)>> {
        self.disks.size(&self.monitor, name).await
    }

    /// Grows a plugged disk to `bytes`. If its image file is shorter, the file grows too. The disk's controller notifies the guest.
    pub async fn grow(&self, name: &str, bytes: u64) -> Result<()> {
        self.disks.grow(&self.monitor, name, bytes).await
    }

    /// Gives a plugged disk other faults, or none, while the guest goes on.
    pub async fn set_disk_faults(&self, name: &str, faults: &DiskFaults) -> Result<()> {
        self.disks.set_faults(&self.monitor, name, faults).await.with_context(|| format!("faults of {name}"))
    }

    /// The names of the plugged disks but those of tests, sorted.
    pub fn plugged(&self) -> Vec<String> {
        self.disks.names()
    }

    /// The machine's inside; `None` where no guest runs.
    pub fn guest(&self) -> Option<&Guest> {
        self.guest.as_ref()
    }

    /// The QEMU process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Presses the reset button of a worker: the guest isn't asked, its memory is lost, its disks stay. Returns when the agent of
    /// the next boot answers; what joins a cluster has to join again.
    pub async fn reset(&self) -> Result<()> {
        let guest = self.guest().context("no guest runs in it")?;
        // The command line has QEMU end with the guest's kernel; here the end is wanted, and a beginning.
        self.on_reboot(RebootAction::reset).await?;
        self.monitor.reset(RESET_LIMIT).await?;
        self.monitor.execute(qmp::cont {}).await?;
        guest.answers(BOOT_LIMIT).await.context("after a reset")?;
        self.on_reboot(RebootAction::shutdown).await
    }

    async fn on_reboot(&self, action: RebootAction) -> Result<()> {
        let action = qmp::set_action { reboot: Some(action), panic: None, shutdown: None, watchdog: None };
        self.monitor.execute(action).await.map(drop)
    }

    /// Ends QEMU: power off without a warning to the guest.
    pub async fn stop(&self) {
        self.process.stop(STOP_GRACE).await;
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    async fn status(&self) -> Result<RunState> {
        Ok(self.monitor.execute(qmp::query_status {}).await?.status)
    }
}

/// The last lines of a text file; empty when there is none.
fn tail(path: &Path, lines: usize) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
