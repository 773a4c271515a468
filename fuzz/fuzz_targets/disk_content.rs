//! What is on a disk: blkid's exit code and output, and the first bytes. The input is the code, the answer, a zero byte, and
//! the bytes. Only an answer that is fully understood leads to a disk that is called blank.
#![no_main]

use fuzz::chosen;
use libfuzzer_sys::fuzz_target;
use node::{
    device::{Serial, parse_designators, parse_unit_serial, parse_virtio_serial},
    filesystem::{Completion, FilesystemType, SUPERBLOCK_BYTES, xfs_made_at, xfs_root_inode},
    probe::{Answer, Content, Evidence, Samples, export_values, judge, own_kinds},
};

const TYPES: [FilesystemType; 4] =
    [FilesystemType::Ext2, FilesystemType::Ext3, FilesystemType::Ext4, FilesystemType::Xfs];
const DISK_BYTES: u64 = 64 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((code, rest)) = chosen(input) else { return };
    let (output, head) = rest.split_at(rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()));
    let head: Vec<u8> =
        head.iter().skip(1).copied().chain(std::iter::repeat(0)).take(SUPERBLOCK_BYTES).collect();
    for serial in [parse_unit_serial(rest), parse_virtio_serial(rest)]
        .into_iter()
        .flatten()
        .chain(parse_designators(rest))
    {
        assert_eq!(Serial::new(serial.as_str()).as_ref(), Some(&serial));
    }
    drop((xfs_made_at(rest), xfs_root_inode(&head)));
    superblocks(&head);
    let code = (code != u8::MAX).then(|| i32::from(code));
    let output = String::from_utf8_lossy(output).into_owned();
    for (name, _) in export_values(&output) {
        assert!(!name.contains('=') && !name.contains('\n'), "{name:?}");
    }
    let first_data = head.iter().position(|byte| *byte != 0).map(|at| at as u64);
    let samples = Samples { first_data, fingerprint: 7, head, root_inode: rest.to_vec() };
    let blkid = Answer { code, output: output.clone(), errors: String::new() };
    let own = own_kinds(&blkid, &samples, DISK_BYTES);
    let evidence = Evidence { blkid: blkid.clone(), without_own: None, samples: Ok(samples.clone()) };
    let outvoted = Evidence { without_own: Some(blkid.clone()), ..evidence.clone() };
    let unread = Evidence { samples: Err("Input/output error".into()), ..evidence.clone() };
    assert!(matches!(judge(&unread), Content::Unreadable { .. }));
    for content in [judge(&evidence), judge(&outvoted)] {
        let is_nothing = code == Some(2) && output.trim().is_empty() && first_data.is_none();
        assert_eq!(matches!(content, Content::Blank { .. }), is_nothing, "{content:?}");
        if let Content::Filesystem { completion: Completion::Unfinished, kind, .. } = &content {
            assert_eq!((kind.as_str(), code), ("xfs", Some(0)), "only xfs says that its mkfs did not end");
        }
        drop(content.to_string());
    }
    // What blkid is told not to look for is only hidden by a superblock that fits the disk.
    let fits =
        TYPES.iter().filter_map(|kind| kind.superblock(&samples.head)).any(|block| block.bytes <= DISK_BYTES);
    assert!(own.is_empty() || fits, "{own:?}");
    for kind in TYPES {
        drop(evidence.making(kind));
    }
});

fn superblocks(head: &[u8]) {
    for kind in TYPES {
        let Some(block) = kind.superblock(head) else { continue };
        // ext counts its size in blocks of 1 KiB to 64 KiB, xfs in blocks of 512 bytes to 64 KiB. Another size is no superblock's,
        // and a size that was cut off would be grown, or taken for one that leaves room for another owner's data.
        let (count, least): (u64, u64) = match kind {
            FilesystemType::Xfs => (u64::from_be_bytes(head[8..16].try_into().expect("8 bytes")), 512),
            _ => (u64::from(u32::from_le_bytes(head[1028..1032].try_into().expect("4 bytes"))), 1024),
        };
        assert!(
            u128::from(block.bytes) >= u128::from(count) * u128::from(least),
            "{kind}: {count} blocks make {} bytes",
            block.bytes
        );
        assert_eq!(node::origin::FilesystemUuid::parse(&block.uuid.to_string()), Some(block.uuid));
    }
}
