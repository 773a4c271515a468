//! Which accelerator this host gets: KVM where a trial boot works with it, software emulation (TCG) everywhere else.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use tokio::{process::Command, sync::OnceCell};

use super::{
    accelerator::{Accelerator, QEMU},
    command_line::{KERNEL_WORDS, bare},
};
use crate::artifact::worker_image::WorkerImage;

/// Modules of hardware virtualisation. `/dev/kvm` alone is no evidence: some hosts offer one (KVM-PVM) on which an
/// unmodified kernel crawls through an instruction emulator and dies after a minute.
const KVM_MODULES: [&str; 2] = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"];

/// KVM brings the trial to user space in about a second.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);

/// Memory of the trial boot: kernel and initramfs.
const TRIAL_MEMORY_MIB: u32 = 192;

/// What the trial boot's init prints (`guest/initramfs-init`).
const TRIAL_ANSWER: &str = "BENCH-USERSPACE";

impl Accelerator {
    /// The accelerator of this host, decided once per process: KVM only after a trial boot has reached user space.
    pub async fn of_this_host(image: &WorkerImage) -> Result<Self> {
        static CHOICE: OnceCell<Accelerator> = OnceCell::const_new();
        let choose = || async {
            let hardware = KVM_MODULES.iter().any(|module| Path::new(module).exists());
            if hardware && Self::Kvm.reaches_user_space(image, TRIAL_LIMIT).await? {
                return Ok(Self::Kvm);
            }
            Ok(Self::Tcg)
        };
        CHOICE.get_or_try_init(choose).await.copied()
    }

    /// Boots the image's kernel and initramfs, which prints [`TRIAL_ANSWER`] and powers off.
    async fn reaches_user_space(self, image: &WorkerImage, limit: Duration) -> Result<bool> {
        let mut command = Command::new(QEMU);
        command
            .args(bare(self, TRIAL_MEMORY_MIB))
            .args(["-serial", "stdio", "-append", &format!("{KERNEL_WORDS} bench.trial")])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        match tokio::time::timeout(limit, command.output()).await {
            Ok(output) => {
                let output = output.with_context(|| format!("run {QEMU}"))?;
                Ok(String::from_utf8_lossy(&output.stdout).contains(TRIAL_ANSWER))
            }
            Err(_) => Ok(false),
        }
    }
}
