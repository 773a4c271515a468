//! What runs the instructions of a machine's guest.

use serde::{Deserialize, Serialize};

/// The program of every machine.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// QEMU's translator. Works everywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's arguments. Without AVX, whose wide registers the translator keeps in memory: a worker's boot takes 40 seconds of
    /// a processor instead of 48, because the guest's programs copy and compare with what the processor says it has. A
    /// translation cache of 256 MiB: with 64 kubelet's code is translated repeatedly, and pods start three times slower.
    pub(super) fn words(self) -> Vec<String> {
        let words = match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,tb-size=256", "-cpu", "max,avx=off"],
        };
        words.map(String::from).to_vec()
    }
}
