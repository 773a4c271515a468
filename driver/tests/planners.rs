//! The planners know no client, clock or environment (`CONTRIBUTING.md`, rule 1). Clippy holds the types: each planner
//! denies the types that `clippy.toml` lists. Here the functions are checked, which clippy can't allow elsewhere, and
//! that no planner is without its attribute.

mod source;

use source::{program, rust_files};

/// The planners, by their path in the repository.
const PLANNERS: [&str; 28] = [
    "ccm/src/load_balancer/plan.rs",
    "ccm/src/load_balancer/mirror.rs",
    "ccm/src/load_balancer/conditions.rs",
    "ccm/src/load_balancer/left_over.rs",
    "ccm/src/load_balancer/quota.rs",
    "ccm/src/load_balancer/size.rs",
    "ccm/src/endpoints/plan.rs",
    "ccm/src/endpoints/backend.rs",
    "ccm/src/endpoints/demand.rs",
    "ccm/src/endpoints/slice.rs",
    "ccm/src/nodes/init.rs",
    "ccm/src/nodes/address.rs",
    "ccm/src/nodes/place.rs",
    "ccm/src/nodes/recognise.rs",
    "ccm/src/nodes/backends.rs",
    "ccm/src/nodes/lifecycle/plan.rs",
    "ccm/src/lease/plan.rs",
    "controller/src/attach.rs",
    "controller/src/claim_size.rs",
    "controller/src/clone_method.rs",
    "controller/src/content.rs",
    "controller/src/expand.rs",
    "controller/src/snapshot.rs",
    "node/src/stage.rs",
    "node/src/unstage.rs",
    "node/src/publish.rs",
    "node/src/expand.rs",
    "node/src/probe.rs",
];
/// What begins a planner, after its documentation.
const ATTRIBUTE: &str = "#![deny(clippy::disallowed_types, ";
/// The functions that read a clock or the environment.
const FORBIDDEN: [&str; 4] = ["::now(", "env::", "env!(", ".elapsed("];

/// What a planner must not have.
fn faults(text: &str) -> Vec<&'static str> {
    let program = program(text);
    let mut lines = program.lines().filter(|line| !line.trim().is_empty());
    let mut faults = Vec::new();
    if !lines.next().is_some_and(|first| first.starts_with(ATTRIBUTE)) {
        faults.push("its first line is not the attribute");
    }
    faults.extend(FORBIDDEN.iter().filter(|forbidden| lines.clone().any(|line| line.contains(**forbidden))));
    faults
}

#[test]
fn no_planner_names_a_clock_or_the_environment() {
    for planner in PLANNERS {
        let (room, file) = planner.split_once("/src/").expect("is in a crate");
        let sources = rust_files(&format!("{room}/src"));
        let text = sources.get(file).expect("the planner is there");
        assert!(faults(text).is_empty(), "{planner}: {:?}", faults(text));
    }
}

#[test]
fn every_file_named_plan_is_a_planner() {
    for room in ["ccm", "controller", "node", "infra"] {
        for file in rust_files(&format!("{room}/src")).keys().filter(|file| file.ends_with("/plan.rs")) {
            let path = format!("{room}/src/{file}");
            assert!(PLANNERS.contains(&path.as_str()), "{path} is not listed");
        }
    }
}

#[test]
fn a_planner_that_reads_a_clock_is_found() {
    let pure = format!("//! Doc.\n\n{ATTRIBUTE}reason = \"x\")]\n\nfn f() {{}}\n");
    assert_eq!(faults(&pure), Vec::<&str>::new());
    assert_eq!(faults(&format!("{pure}fn g() {{ Timestamp::now() }}")), ["::now("]);
    assert_eq!(faults("fn f() {}"), ["its first line is not the attribute"]);
}
