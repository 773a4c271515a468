//! `docs/guides/troubleshooting.md` quotes texts of the program: each must be in the source of one of its error tables.

use std::fs;
use std::path::Path;

/// The sources of the texts that reach an event in the guest.
const TABLES: [&str; 12] = [
    "controller/src/error.rs",
    "controller/src/request.rs",
    "controller/src/request/invalid.rs",
    "controller/src/attach.rs",
    "controller/src/attach/text.rs",
    "controller/src/holder.rs",
    "controller/src/volume.rs",
    "controller/src/content.rs",
    "controller/src/storage_class_policy.rs",
    "node/src/error.rs",
    "lib/csi-call/src/in_flight.rs",
    "lib/csi-call/src/operation.rs",
];
/// The guard's error, for whose text the tests of kubevirt/csi-driver search.
const GUARD: &str = "infra/src/guest_guard.rs";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn each_text_of_the_guide_is_one_that_the_driver_says() {
    let tables: String = TABLES.iter().chain([&GUARD]).map(|path| read(path)).collect();
    let guide = read("docs/guides/troubleshooting.md");
    let quoted: Vec<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(text, _)| text)
        .collect();
    assert!(quoted.len() > 20, "the tables are read: {quoted:?}");
    for text in quoted {
        assert!(tables.contains(text), "nothing says {text:?}");
    }
}
