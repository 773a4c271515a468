//! The text of `/proc/self/mountinfo`. A table that is read is the same after the kernel would have printed it again.
#![no_main]

use std::{fmt::Write, os::unix::ffi::OsStrExt, path::Path};

use libfuzzer_sys::fuzz_target;
use node::mount_table::{MountTable, unescape};

fuzz_target!(|input: &[u8]| {
    let Ok(table) = MountTable::parse(input) else { return };
    let printed: String = table
        .0
        .iter()
        .map(|mount| {
            let words = |words: &std::collections::BTreeSet<String>| {
                words.iter().cloned().collect::<Vec<_>>().join(",")
            };
            format!(
                "1 2 {} {} {} {} - {} none {}\n",
                mount.number,
                escaped(&mount.root),
                escaped(&mount.point),
                words(&mount.options),
                mount.fs_type,
                words(&mount.super_options),
            )
        })
        .collect();
    let again = MountTable::parse(printed.as_bytes());
    assert_eq!(again.as_ref().ok(), Some(&table), "{printed:?}");
    for mount in &table.0 {
        assert!(table.at(&mount.point).contains(mount));
        assert!(table.of(mount.number).contains(mount));
        assert!(!table.below(&mount.point).contains(&mount.point));
        assert_eq!(unescape(&escaped(&mount.point)), mount.point);
    }
});

/// As the kernel prints a path, and bytes that are not ASCII in the same way, because the table is read as text.
fn escaped(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_graphic() && !b"\\#".contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "\\{byte:03o}").expect("a text grows");
        }
        text
    })
}
