//! `docs/guides/troubleshooting.md` quotes texts of the program: each must be in the source of one of its error tables.
//! `docs/guides/troubleshooting-services-and-nodes.md` explains the reasons of events and conditions: all of them, and no others.

use std::{collections::BTreeSet, fs, path::Path};

/// The sources of the texts that reach an event in the guest.
const TABLES: [&str; 18] = [
    "controller/src/error.rs",
    "controller/src/request.rs",
    "controller/src/request/invalid.rs",
    "controller/src/attach.rs",
    "controller/src/attach/text.rs",
    "controller/src/expand.rs",
    "controller/src/infra_reasons.rs",
    "controller/src/unpublish.rs",
    "controller/src/holder.rs",
    "controller/src/serial.rs",
    "controller/src/volume.rs",
    "controller/src/content.rs",
    "controller/src/storage_class_policy.rs",
    "node/src/device.rs",
    "node/src/error.rs",
    "lib/csi-call/src/in_flight.rs",
    "lib/csi-call/src/operation.rs",
    "lib/kubevirt/src/vm_guest.rs",
];
/// The guard's error, for whose text the tests of kubevirt/csi-driver search.
const GUARD: &str = "infra/src/guest_guard.rs";
/// The sources of the cloud controller manager that choose the reason of an event or condition.
const REASONS: [&str; 8] = [
    "ccm/src/endpoints/context.rs",
    "ccm/src/load_balancer/announce.rs",
    "ccm/src/load_balancer/conditions.rs",
    "ccm/src/load_balancer/explain.rs",
    "ccm/src/load_balancer/reconcile.rs",
    "ccm/src/nodes/controller.rs",
    "ccm/src/nodes/lifecycle.rs",
    "ccm/src/config/policy.rs",
];
/// Reasons of conditions that are as they should be: the reference of conditions has them, a guide to errors does not.
const GOOD: [&str; 2] = ["Provisioned", "Serving"];
/// Other words of these sources that look like a reason: the statuses of a condition, and a kind.
const NO_REASONS: [&str; 4] = ["True", "False", "Unknown", "Service"];

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

/// The words in quotation marks or backticks that consist of letters and begin with a capital.
fn words(text: &str, mark: char) -> BTreeSet<&str> {
    let quoted = text.lines().flat_map(|line| line.split(mark).skip(1).step_by(2));
    let is_word = |word: &&str| {
        word.starts_with(|first: char| first.is_ascii_uppercase())
            && word.bytes().all(|b| b.is_ascii_alphabetic())
    };
    quoted.filter(is_word).collect()
}

#[test]
fn each_reason_of_an_event_or_condition_is_explained() {
    let sources: String = REASONS
        .iter()
        .map(|path| read(path))
        .flat_map(|source| {
            let code = source.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            code.lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(|line| format!("{line}\n"))
                .collect::<Vec<_>>()
        })
        .collect();
    let given: BTreeSet<&str> =
        words(&sources, '"').into_iter().filter(|word| !NO_REASONS.contains(word)).collect();
    assert!(given.len() > 20, "the reasons are read: {given:?}");
    let guide = read("docs/guides/troubleshooting-services-and-nodes.md");
    let cells = guide.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" |").next()?.trim()));
    let first_column = cells.filter(|cell| cell.starts_with('`')).collect::<Vec<_>>().join("\n");
    let explained = words(&first_column, '`');
    let lacking: Vec<_> =
        given.iter().filter(|word| !explained.contains(*word) && !GOOD.contains(*word)).collect();
    assert!(lacking.is_empty(), "the guide lacks {lacking:?}");
    let unknown: Vec<_> = explained.difference(&given).collect();
    assert!(unknown.is_empty(), "nothing gives the reason {unknown:?}");
}
