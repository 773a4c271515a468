//! The memory of a provider's process.

use std::fmt;

use crate::provider::Provider;
use anyhow::{Context, Result};

/// KiB in a MiB.
const KIB_PER_MIB: f64 = 1024.0;

/// As the kernel counts it (`proc_pid_status(5)`), in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// `VmRSS`: everything in memory, the program's file too.
    pub resident: u32,
    /// `RssAnon`: what the process has allocated.
    pub anonymous: u32,
}

impl Memory {
    /// Reads it.
    pub fn of(provider: &Provider) -> Result<Self> {
        Ok(Self { resident: kib(provider, "VmRSS:")?, anonymous: kib(provider, "RssAnon:")? })
    }

    /// The most that was resident at a time since the process began (`VmHWM`), in KiB.
    pub fn peak(provider: &Provider) -> Result<u32> {
        kib(provider, "VmHWM:")
    }
}

/// A line of the process's status.
fn kib(provider: &Provider, key: &str) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", provider.process.pid()))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(key))
        .context("expected the key in the status, saw none")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: u32| f64::from(kib) / KIB_PER_MIB;
        write!(f, "{:.1} ({:.1}) MiB", mib(self.resident), mib(self.anonymous))
    }
}
