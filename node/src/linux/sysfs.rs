//! Reads disks from sysfs. No udev, no device links, no programs.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    device::{Disk, DiskIdentity, Partition, parse_designators, parse_unit_serial, parse_virtio_serial},
    device_number::DeviceNumber,
    error::{Error, Result},
};

/// Unit of sysfs `size` files, whatever the disk's own sectors are (Documentation/ABI/stable/sysfs-block).
const SECTOR_BYTES: u64 = 512;
/// Kernel name of virtio disks; other kinds have a `serial` file too, with other rules.
const VIRTIO_PREFIX: &str = "vd";
/// "All channels, all targets, all units" (Documentation/scsi: `scsi_host`, `scan`).
const SCAN_ALL: &str = "- - -";
/// Anything that is written there has the effect (the kernel's `store_rescan_field` ignores it).
const RESCAN: &[u8] = b"1";

/// Lists the whole disks. A disk that goes away while it is read is left out.
pub fn disks(sys: &Path) -> Result<Vec<Disk>> {
    let directory = sys.join("block");
    let mut disks = Vec::new();
    for entry in fs::read_dir(&directory).map_err(Error::observe(format!("list {}", directory.display())))? {
        let entry = entry.map_err(Error::observe(format!("list {}", directory.display())))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        disks.extend(read(&directory.join(&name), &name)?);
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// The whole disk with this number; `None` when there is none, or when the number is a partition's.
pub fn disk(sys: &Path, number: DeviceNumber) -> Result<Option<Disk>> {
    let link = sys.join("dev/block").join(number.to_string());
    let Some(directory) =
        present(fs::canonicalize(&link)).map_err(Error::observe(format!("read {}", link.display())))?
    else {
        return Ok(None);
    };
    let Some(name) = directory.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let found = read(&directory, name)?;
    Ok(found.filter(|disk| disk.number == number && !directory.join("partition").exists()))
}

/// Size of the block device with this number, a partition included.
pub fn bytes(sys: &Path, number: DeviceNumber) -> Result<Option<u64>> {
    let file = sys.join("dev/block").join(number.to_string()).join("size");
    let text =
        present(fs::read_to_string(&file)).map_err(Error::observe(format!("read {}", file.display())))?;
    Ok(text.and_then(|text| size(&text)))
}

/// Asks each SCSI host to scan for disks. All are tried; the first failure is returned.
pub fn rescan(sys: &Path) -> Result<()> {
    let directory = sys.join("class/scsi_host");
    let entries =
        present(fs::read_dir(&directory)).map_err(Error::observe(format!("list {}", directory.display())))?;
    let mut result = Ok(());
    for entry in entries.into_iter().flatten().flatten() {
        let scan = entry.path().join("scan");
        let one = fs::write(&scan, SCAN_ALL).map_err(Error::act(format!("write {}", scan.display())));
        result = result.and(one);
    }
    result
}

/// Asks the SCSI disk with this kernel name for its size; a disk of another kind has no such file.
pub fn rescan_disk(sys: &Path, name: &str) -> Result<()> {
    let file = sys.join("block").join(name).join("device/rescan");
    // Not created where it is missing: the tree is the kernel's.
    let file_there = present(fs::OpenOptions::new().write(true).open(&file));
    let asked = file_there.and_then(|file| file.map_or(Ok(()), |mut file| file.write_all(RESCAN)));
    asked.map_err(Error::act(format!("write {}", file.display())))
}

fn read(directory: &Path, name: &str) -> Result<Option<Disk>> {
    let attribute = |file: &str| -> Result<Option<String>> {
        let path = directory.join(file);
        present(fs::read_to_string(&path)).map_err(Error::observe(format!("read {}", path.display())))
    };
    let (Some(number), Some(sectors), Some(read_only)) =
        (attribute("dev")?, attribute("size")?, attribute("ro")?)
    else {
        return Ok(None);
    };
    let (Ok(number), Some(bytes)) = (number.parse(), size(&sectors)) else { return Ok(None) };
    let partitions = partitions(directory)?;
    let mut holders = names(&directory.join("holders"))?;
    for partition in &partitions {
        holders.extend(names(&directory.join(&partition.name).join("holders"))?);
    }
    Ok(Some(Disk {
        name: name.to_owned(),
        number,
        bytes,
        read_only: read_only.trim() != "0",
        identity: identity(directory, name),
        partitions,
        holders,
    }))
}

fn size(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok()?.checked_mul(SECTOR_BYTES)
}

/// An identity that cannot be read is `None`, which matches no serial.
fn identity(directory: &Path, name: &str) -> DiskIdentity {
    let page = |file: &str| fs::read(directory.join("device").join(file)).ok();
    let (unit_serial, device_id) = (page("vpd_pg80"), page("vpd_pg83"));
    if unit_serial.is_some() || device_id.is_some() {
        return DiskIdentity::Scsi {
            unit_serial: unit_serial.as_deref().and_then(parse_unit_serial),
            designators: device_id.as_deref().map(parse_designators).unwrap_or_default(),
        };
    }
    if name.starts_with(VIRTIO_PREFIX) {
        let serial = fs::read(directory.join("serial")).ok();
        return serial
            .as_deref()
            .and_then(parse_virtio_serial)
            .map_or(DiskIdentity::None, DiskIdentity::Virtio);
    }
    DiskIdentity::None
}

fn partitions(directory: &Path) -> Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    for name in names(directory)? {
        let place: PathBuf = directory.join(&name);
        if !place.join("partition").exists() {
            continue;
        }
        let number = fs::read_to_string(place.join("dev"))
            .map_err(Error::observe(format!("read {}", place.display())))?;
        partitions.extend(number.parse().ok().map(|number| Partition { name, number }));
    }
    partitions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(partitions)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries =
        present(fs::read_dir(directory)).map_err(Error::observe(format!("list {}", directory.display())))?;
    Ok(entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// A file that is not there, or whose disk went away while it was read, is `None`.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error)
            if error.raw_os_error() == Some(nix::libc::ENODEV)
                || error.raw_os_error() == Some(nix::libc::ENXIO) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Serial;
    use std::os::unix::fs::symlink;

    /// A tree as the kernel lays it out, with one SCSI disk, one virtio disk and one without a name.
    fn tree() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let file = sys.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        };
        for (name, number) in [("sda", "8:0"), ("vda", "252:0"), ("loop0", "7:0")] {
            put(&format!("devices/{name}/dev"), format!("{number}\n").as_bytes());
            put(&format!("devices/{name}/size"), b"2048\n");
            put(&format!("devices/{name}/ro"), b"0\n");
            fs::create_dir_all(sys.path().join(format!("devices/{name}/holders"))).unwrap();
            for (link, up) in [(format!("block/{name}"), ".."), (format!("dev/block/{number}"), "../..")] {
                fs::create_dir_all(sys.path().join(&link).parent().unwrap()).unwrap();
                symlink(format!("{up}/devices/{name}"), sys.path().join(link)).unwrap();
            }
        }
        put("devices/sda/device/vpd_pg80", b"\0\x80\0\x03abc");
        put("devices/sda/sda1/partition", b"1\n");
        put("devices/sda/sda1/dev", b"8:1\n");
        put("devices/sda/sda1/size", b"1024\n");
        put("devices/sda/sda1/ro", b"0\n");
        put("devices/sda/sda1/holders/dm-0", b"");
        symlink("../../devices/sda/sda1", sys.path().join("dev/block/8:1")).unwrap();
        put("devices/vda/serial", b"298d9cd3-9791-4830-8");
        put("class/scsi_host/host0/scan", b"");
        sys
    }

    #[test]
    fn disks_are_listed_with_identity_partitions_and_holders() {
        let sys = tree();
        let found = disks(sys.path()).unwrap();
        assert_eq!(found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["loop0", "sda", "vda"]);
        assert_eq!(found[0].identity, DiskIdentity::None);
        assert!(found[1].identity.is(&Serial::new("abc").unwrap()));
        assert_eq!(found[1].bytes, 1 << 20);
        assert_eq!(found[1].partitions, [Partition { name: "sda1".into(), number: DeviceNumber::new(8, 1) }]);
        assert_eq!(found[1].holders, ["dm-0"]);
        assert!(found[2].identity.is(&Serial::new("298d9cd3-9791-4830-8abc").unwrap()));
    }

    #[test]
    fn a_number_leads_to_its_whole_disk_only() {
        let sys = tree();
        assert_eq!(disk(sys.path(), DeviceNumber::new(8, 0)).unwrap().unwrap().name, "sda");
        assert_eq!(disk(sys.path(), DeviceNumber::new(8, 1)).unwrap(), None, "a partition");
        assert_eq!(disk(sys.path(), DeviceNumber::new(8, 16)).unwrap(), None);
        assert_eq!(bytes(sys.path(), DeviceNumber::new(8, 1)).unwrap(), Some(512 << 10));
    }

    #[test]
    fn each_scsi_host_is_asked_to_look_again() {
        let sys = tree();
        rescan(sys.path()).unwrap();
        assert_eq!(fs::read_to_string(sys.path().join("class/scsi_host/host0/scan")).unwrap(), "- - -");
        rescan(tempfile::tempdir().unwrap().path()).unwrap();
    }

    #[test]
    fn one_scsi_disk_is_asked_for_its_size_and_no_file_is_made_for_others() {
        let sys = tree();
        fs::write(sys.path().join("devices/sda/device/rescan"), "").unwrap();
        rescan_disk(sys.path(), "sda").unwrap();
        assert_eq!(fs::read(sys.path().join("devices/sda/device/rescan")).unwrap(), RESCAN);
        for other in ["vda", "loop0", "gone"] {
            rescan_disk(sys.path(), other).unwrap();
            assert!(!sys.path().join("block").join(other).join("device").exists());
        }
    }
}
