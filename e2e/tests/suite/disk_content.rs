//! What disks hold before a test plugs them: made by the real tools where this machine has them.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::bare_disk::{BareDisk, MIB};

/// A file in each filesystem that [`filesystem`] makes.
pub const KEPT_FILE: &str = "kept";
/// Its content.
pub const KEPT_TEXT: &str = "written before";

/// An ext2, ext3, ext4 or xfs with [`KEPT_FILE`] in it.
pub fn filesystem(disk: &BareDisk<'_>, kind: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(KEPT_FILE);
    std::fs::write(&file, KEPT_TEXT)?;
    if kind != "xfs" {
        let source = folder.path().to_str().context("a path that is not UTF-8")?;
        return tool(&format!("mkfs.{kind}"), &["-q", "-F", "-d", source], disk.image(), "");
    }
    // mkfs.xfs(8), "prototype": boot block, sizes, then the tree.
    let prototype = tempfile::NamedTempFile::new()?;
    let tree = format!("/\n0 0\nd--755 0 0\n{KEPT_FILE} ---644 0 0 {}\n$\n", file.display());
    std::fs::write(prototype.path(), tree)?;
    let path = prototype.path().to_str().context("a path that is not UTF-8")?;
    tool("mkfs.xfs", &["-q", "-f", "-p", path], disk.image(), "")
}

/// btrfs.
pub fn btrfs(disk: &BareDisk<'_>) -> Result<()> {
    tool("mkfs.btrfs", &["-q", "-f"], disk.image(), "")
}

/// Swap space.
pub fn swap(disk: &BareDisk<'_>) -> Result<()> {
    tool("mkswap", &["-q"], disk.image(), "")
}

/// A LUKS header of that version.
pub fn luks(disk: &BareDisk<'_>, version: &str) -> Result<()> {
    let options =
        ["luksFormat", "-q", "--type", version, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    tool("cryptsetup", &[&options[..], &["--key-file", "-"]].concat(), disk.image(), "secret")
}

/// A partition table by sfdisk's script.
pub fn partitions(disk: &BareDisk<'_>, script: &str) -> Result<()> {
    tool("sfdisk", &["-q"], disk.image(), script)
}

/// The label of an LVM physical volume, which `pvcreate` writes to real devices only: `struct label_header` of LVM2's
/// `lib/label/label.h` in sector 1, then the volume's name.
pub fn lvm(disk: &BareDisk<'_>) -> Result<()> {
    const SECTOR: usize = 512;
    /// What the checksum covers begins here.
    const COVERED: usize = 20;
    const CONTENT: u32 = 32;
    let mut label = [0_u8; SECTOR];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[20..24].copy_from_slice(&CONTENT.to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"0123456789abcdefghijklmnopqrstuv");
    let checksum = lvm_checksum(&label[COVERED..]);
    label[16..20].copy_from_slice(&checksum.to_le_bytes());
    disk.write(&label, SECTOR as u64)
}

/// LVM2's `calc_crc`: CRC-32 (reflected) from a start value of its own, not inverted.
fn lvm_checksum(bytes: &[u8]) -> u32 {
    const START: u32 = 0xf597_a6cf;
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let shift = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { (sum >> 1) ^ POLYNOMIAL };
    bytes.iter().fold(START, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| shift(sum)))
}

/// Random bytes at the beginning: data of a user without any signature.
pub fn random(disk: &BareDisk<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    File::open("/dev/urandom")?.take(4 * MIB).read_to_end(&mut bytes)?;
    disk.write(&bytes, 0)
}

/// Checks the filesystem in an image without changing it.
pub fn check(image: &Path, kind: &str) -> Result<()> {
    match kind {
        "xfs" => tool("xfs_repair", &["-n", "-f"], image, ""),
        _ => tool("e2fsck", &["-f", "-n"], image, ""),
    }
}

/// Runs a tool on an image.
fn tool(program: &str, arguments: &[&str], image: &Path, input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&said));
    Ok(())
}
