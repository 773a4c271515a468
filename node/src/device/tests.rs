use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::mount_table::Mount;

const UID: &str = "298d9cd3-9791-4830-8f00-0123456789ab";

fn serial(text: &str) -> Serial {
    Serial::new(text).unwrap()
}

fn scsi(text: &str) -> DiskIdentity {
    DiskIdentity::Scsi { unit_serial: Some(serial(text)), designators: Vec::new() }
}

fn disk(name: &str, minor: u64, identity: DiskIdentity) -> Disk {
    Disk {
        name: name.to_owned(),
        number: DeviceNumber::new(8, minor),
        bytes: 1 << 30,
        read_only: false,
        identity,
        partitions: Vec::new(),
        holders: Vec::new(),
    }
}

fn page(code: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, code, length[0], length[1]], payload].concat()
}

#[rstest]
#[case(scsi(UID), true)]
#[case(scsi(&UID[..20]), false)] // a cut serial on SCSI is another disk
#[case(DiskIdentity::Scsi { unit_serial: None, designators: vec![serial(UID)] }, true)]
#[case(DiskIdentity::Scsi { unit_serial: Some(serial("other")), designators: vec![serial(UID)] }, false)]
#[case(DiskIdentity::Virtio(serial(UID)), true)]
#[case(DiskIdentity::Virtio(serial(&UID[..20])), true)]
#[case(DiskIdentity::Virtio(serial(&UID[..19])), false)] // shorter than virtio's own limit: not cut by virtio
#[case(DiskIdentity::Virtio(serial("298d9cd3-9791-4830-9")), false)]
#[case(DiskIdentity::None, false)]
fn a_serial_fits(#[case] identity: DiskIdentity, #[case] fits: bool) {
    assert_eq!(identity.is(&serial(UID)), fits);
}

#[test]
fn one_disk_is_found_two_are_ambiguous_and_an_unfinished_one_is_not_there_yet() {
    let ours = disk("sdb", 16, scsi(UID));
    let disks = [disk("sda", 0, scsi("root")), ours.clone(), disk("vda", 32, DiskIdentity::None)];
    assert_eq!(find(&disks, &serial(UID)), Found::One(Box::new(ours.clone())));

    let twice = [ours.clone(), disk("vdb", 48, DiskIdentity::Virtio(serial(&UID[..20])))];
    assert_eq!(find(&twice, &serial(UID)), Found::Ambiguous(vec!["sdb".into(), "vdb".into()]));

    let Found::NotYet(text) = find(&disks[..1], &serial(UID)) else {
        panic!("found a disk that is not there")
    };
    assert_eq!(text, "serials seen: sda=root");
    let empty = Disk { bytes: 0, ..ours };
    assert!(matches!(find(&[empty], &serial(UID)), Found::NotYet(text) if text.contains("size is still 0")));
    assert!(matches!(find(&[], &serial(UID)), Found::NotYet(text) if text.contains("no disk with a serial")));
}

/// The kernel does not read such a disk again by itself, so a person has to know which disks it may be.
#[test]
fn scsi_disks_whose_serial_the_kernel_could_not_read_are_named() {
    let text = |disks: &[Disk]| match find(disks, &serial(UID)) {
        Found::NotYet(text) => text,
        found => panic!("{found:?}"),
    };
    let without_pages = disk("sdb", 16, DiskIdentity::None);
    let without_designators = DiskIdentity::Scsi { unit_serial: None, designators: Vec::new() };
    let empty_pages = Disk { bytes: 512, ..disk("sdc", 32, without_designators) };
    let others = [
        disk("sda", 0, scsi("root")),
        disk("vda", 48, DiskIdentity::None),
        disk("loop0", 64, DiskIdentity::None),
    ];
    assert_eq!(text(&others), "serials seen: sda=root", "no SCSI disks");
    let nameless = "; SCSI disks without a readable serial: ";
    assert_eq!(
        text(std::slice::from_ref(&without_pages)),
        format!("no disk with a serial was seen{nameless}sdb (1073741824 bytes)")
    );
    let all = [&others[..], &[without_pages.clone(), empty_pages]].concat();
    assert_eq!(
        text(&all),
        format!("serials seen: sda=root{nameless}sdb (1073741824 bytes), sdc (512 bytes)")
    );
    // A disk that has the serial is used, whatever the others show.
    let ours = disk("sdd", 80, scsi(UID));
    assert_eq!(find(&[without_pages, ours.clone()], &serial(UID)), Found::One(Box::new(ours)));
}

#[rstest]
#[case("")]
#[case(" ")]
#[case("a b")]
#[case("a\n")]
fn what_can_not_be_a_serial_is_refused(#[case] text: &str) {
    assert_eq!(Serial::new(text), None);
}

#[test]
fn pages_are_read_as_spc_defines_them() {
    assert_eq!(parse_unit_serial(&page(0x80, UID.as_bytes())), Some(serial(UID)));
    assert_eq!(parse_unit_serial(&page(0x80, b"  abc\0\0")), Some(serial("abc")));
    assert_eq!(parse_unit_serial(&page(0x83, UID.as_bytes())), None, "another page");
    assert_eq!(parse_unit_serial(&page(0x80, UID.as_bytes())[..30]), None, "cut short");
    assert_eq!(parse_unit_serial(&page(0x80, b"    ")), None, "empty");
    assert_eq!(parse_unit_serial(&[0, 0x80]), None, "no header");

    let designator =
        |code_set: u8, text: &[u8]| [&[code_set, 0, 0, u8::try_from(text.len()).unwrap()], text].concat();
    let both = [designator(1, &[1, 2, 3]), designator(2, UID.as_bytes())].concat();
    assert_eq!(parse_designators(&page(0x83, &both)), [serial(UID)]);
    assert_eq!(
        parse_designators(&page(0x83, &both[..both.len() - 1])),
        [],
        "a cut designator spoils the page"
    );
    assert_eq!(parse_virtio_serial(&UID.as_bytes()[..20]), Some(serial(&UID[..20])));
    assert_eq!(parse_virtio_serial(b"\n"), None);
}

fn mounted(number: DeviceNumber, point: &str) -> MountTable {
    MountTable(vec![Mount {
        number,
        root: "/".into(),
        point: point.into(),
        fs_type: "ext4".into(),
        options: ["rw".to_owned()].into(),
        super_options: ["rw".to_owned()].into(),
    }])
}

#[test]
fn the_systems_disk_a_held_disk_and_a_partitioned_disk_are_refused() {
    let path = Path::new("/var/lib/kubelet/plugins/x/globalmount");
    let plain = disk("sdb", 16, scsi(UID));
    let none = MountTable::default();
    check(&plain, DiskUse::Filesystem, &none, path).unwrap();
    check(&plain, DiskUse::Filesystem, &mounted(plain.number, path.to_str().unwrap()), path).unwrap();
    check(&plain, DiskUse::Filesystem, &mounted(plain.number, "/var/lib/kubelet/pods/p/mount"), path)
        .unwrap();
    for system in ["/", "/var/lib/kubelet"] {
        check(&plain, DiskUse::Block, &mounted(plain.number, system), path).unwrap_err();
    }

    let partition = Partition { name: "sdb1".into(), number: DeviceNumber::new(8, 17) };
    let partitioned = Disk { partitions: vec![partition.clone()], ..plain.clone() };
    check(&partitioned, DiskUse::Filesystem, &none, path).unwrap_err();
    check(&partitioned, DiskUse::Block, &none, path).unwrap();
    check(&partitioned, DiskUse::Block, &mounted(partition.number, "/"), path).unwrap_err();

    let held = Disk { holders: vec!["dm-0".into()], ..plain };
    let error = check(&held, DiskUse::Filesystem, &none, path).unwrap_err();
    assert!(error.to_string().contains("dm-0"), "{error}");
    check(&held, DiskUse::Block, &none, path).unwrap();
}

proptest! {
    #[test]
    fn no_bytes_break_the_parsers(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(parse_unit_serial(&bytes));
        drop(parse_designators(&bytes));
        drop(parse_virtio_serial(&bytes));
    }

    #[test]
    fn a_padded_serial_comes_back(text in "[!-~]{1,36}", spaces in 0_usize..5, nuls in 0_usize..5) {
        let padded = format!("{}{text}{}", " ".repeat(spaces), "\0".repeat(nuls));
        prop_assert_eq!(parse_unit_serial(&page(0x80, padded.as_bytes())), Some(serial(&text)));
    }

    #[test]
    fn a_disk_is_found_only_by_its_own_serial(all in proptest::collection::hash_set("[a-f0-9]{8}-[a-f0-9]{27}", 1..6)) {
        let all: Vec<String> = all.into_iter().collect();
        let disks: Vec<Disk> =
            all.iter().zip(0..).map(|(text, minor)| disk(&format!("sd{minor}"), minor, scsi(text))).collect();
        for (text, wanted) in all.iter().zip(&disks) {
            prop_assert_eq!(find(&disks, &serial(text)), Found::One(Box::new(wanted.clone())));
        }
        prop_assert!(matches!(find(&disks, &serial("unknown")), Found::NotYet(_)));
    }

    #[test]
    fn device_numbers_survive_their_text(major in 0_u64..4096, minor in 0_u64..1_048_576) {
        let number = DeviceNumber::new(major, minor);
        prop_assert_eq!(number.to_string().parse(), Ok(number));
    }
}
