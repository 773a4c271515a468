//! QEMU's names for the parts of a disk.

use sha2::{Digest, Sha256};

/// QEMU's names for the parts of one disk. Node names hold 31 bytes at most, volume names 63: hence a digest.
pub(super) struct Nodes {
    pub(super) file: String,
    pub(super) faults: String,
    pub(super) format: String,
    pub(super) device: String,
}

impl Nodes {
    pub(super) fn of(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let id = digest[..8].iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
        Self {
            file: format!("file-{id}"),
            faults: format!("faults-{id}"),
            format: format!("format-{id}"),
            device: format!("disk-{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_qemus_31_bytes_and_differ() {
        let (a, b) = (Nodes::of(&"a".repeat(63)), Nodes::of("b"));
        for name in [&a.file, &a.faults, &a.format, &a.device] {
            assert!(name.len() <= 31, "{name}");
        }
        assert_ne!(a.device, b.device);
    }
}
