//! The end-to-end tests. They run inside a bench: `make test`, or `bench shell` and then
//! `cargo test --offline -p e2e --test suite [name]`. Without a bench each fails and names that command.
//!
//! They run under libtest's command line and under nextest (libtest-mimic). Ordinary tests share the bench, those that break
//! something have it alone; what a test holds (faults, its turn) ends with its connection.

#![allow(
    clippy::disallowed_methods,
    reason = "the tests talk to the bench's own API servers, with no proxy between"
)]

#[macro_use]
mod trial;

mod admission_policy;
mod api_faults;
mod attach;
mod attachments;
mod bare_disk;
mod bound_token;
mod busy_volume;
mod clones;
mod conformance;
mod content_faults;
mod content_life;
mod content_outages;
mod controller_kill;
mod controller_process;
mod data_safety;
mod disk_content;
mod disk_loss;
mod endpoints;
mod expansion;
mod faulted_call;
mod figures;
mod fixture;
mod foreign_content;
mod ginkgo;
mod growth;
mod guest_claims;
mod held_requests;
mod hotplug_gates;
mod image;
mod infra_faults;
mod infra_refusals;
mod infra_storage;
mod installers;
mod isolation;
mod load_balancer;
mod node_faults;
mod node_kill;
mod node_socket;
mod nodes;
mod operations;
mod outage;
mod provider;
mod refusing_policy;
mod replicas;
mod rights;
mod rows;
mod sanity;
mod shapes;
mod sidecar_faults;
mod six_steps;
mod snapshot_moment;
mod snapshots;
mod stack;
mod takeover;
mod tenant;
mod three_steps;
mod traffic;
mod vm_kill;
mod volume_life;
mod workers;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.include_ignored || arguments.ignored {
        rows::run_all();
    }
    let trials = trials();
    // Each test waits for its turn in a thread of its own: the bench says which are next.
    arguments.test_threads.get_or_insert(trials.len());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The tests of all modules, in the order in which they run.
fn trials() -> Vec<Trial> {
    let modules = [
        six_steps::trials(),
        workers::trials(),
        attach::trials(),
        infra_refusals::trials(),
        isolation::trials(),
        admission_policy::trials(),
        tenant::trials(),
        data_safety::trials(),
        sanity::trials(),
        conformance::trials(),
        figures::already_ready::trials(),
        figures::copies::trials(),
        figures::many_volumes::trials(),
        figures::many_claims::trials(),
        figures::hostile_guest::trials(),
        foreign_content::trials(),
        disk_loss::trials(),
        busy_volume::trials(),
        node_kill::trials(),
        image::trials(),
        growth::trials(),
        expansion::trials(),
        expansion::trials_in_use(),
        snapshots::trials(),
        snapshots::trials_restored(),
        snapshot_moment::trials(),
        clones::trials(),
        clones::trials_cloned(),
        infra_storage::trials(),
        infra_faults::trials(),
        content_faults::trials(),
        content_outages::trials(),
        controller_kill::trials(),
        node_faults::trials(),
        sidecar_faults::trials(),
        replicas::trials(),
        outage::trials(),
        rights::trials(),
        installers::trials(),
        takeover::trials(),
        hotplug_gates::trials(),
        vm_kill::trials(),
        operations::trials(),
        operations::events::trials(),
        nodes::trials(),
        load_balancer::trials(),
        load_balancer::faults::trials(),
        load_balancer::storm::trials(),
        load_balancer::credentials::trials(),
        load_balancer::narrow_rights::trials(),
        load_balancer::secure_endpoint::trials(),
        load_balancer::burst::trials(),
        load_balancer::policy::trials(),
        load_balancer::left_overs::trials(),
        load_balancer::sweep_faults::trials(),
        load_balancer::churn::trials(),
        load_balancer::explained::trials(),
        load_balancer::families::trials(),
        endpoints::trials(),
        endpoints::two_guests::trials(),
        three_steps::trials(),
        traffic::trials(),
        traffic::disruption::trials(),
        shapes::trials(),
    ];
    modules.into_iter().flatten().collect()
}
