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
mod infra_quota;
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

/// The tests of all modules, in the order in which they run where the bench lets them (`bench::control::Lock`).
///
/// Those that have the workers alone wait for what they broke, and those of Services wait for controllers: beside each other they leave
/// neither processor idle, so they are the first. Then each worker has tests of its own, the longest first, so that both end at the same
/// time, beside those that only call. A test that measures, or needs all of the bench, comes last.
fn trials() -> Vec<Trial> {
    let workers_alone = [
        takeover::trials(),
        installers::trials(),
        content_outages::trials(),
        replicas::trials(),
        outage::trials(),
        sidecar_faults::trials(),
        hotplug_gates::trials(),
        rights::trials(),
    ];
    let services = [
        load_balancer::faults::trials(),
        load_balancer::trials(),
        endpoints::trials(),
        endpoints::two_guests::trials(),
        tenant::trials(),
        nodes::trials(),
        load_balancer::storm::trials(),
        load_balancer::credentials::trials(),
        load_balancer::narrow_rights::trials(),
        load_balancer::secure_endpoint::trials(),
        load_balancer::policy::trials(),
        load_balancer::left_overs::trials(),
        load_balancer::sweep_faults::trials(),
        load_balancer::explained::trials(),
        load_balancer::families::trials(),
    ];
    let one_worker = [
        sanity::trials(),
        expansion::trials(),
        expansion::trials_in_use(),
        clones::trials_cloned(),
        node_kill::trials(),
        snapshots::trials_restored(),
        snapshot_moment::trials(),
        foreign_content::trials(),
        vm_kill::trials(),
        image::trials(),
        busy_volume::trials(),
        disk_loss::trials(),
        data_safety::trials(),
        node_faults::trials(),
    ];
    let several_workers =
        [conformance::trials(), six_steps::trials(), growth::trials(), workers::trials(), shapes::trials()];
    let calls = [
        operations::trials(),
        operations::events::trials(),
        attach::trials(),
        isolation::trials(),
        infra_refusals::trials(),
        infra_faults::trials(),
        content_faults::trials(),
        controller_kill::trials(),
        infra_storage::trials(),
        snapshots::trials(),
        clones::trials(),
        admission_policy::trials(),
    ];
    let all_of_the_bench = [
        three_steps::trials(),
        traffic::trials(),
        traffic::disruption::trials(),
        load_balancer::burst::trials(),
        load_balancer::churn::trials(),
        figures::already_ready::trials(),
        figures::copies::trials(),
        figures::many_volumes::trials(),
        figures::many_claims::trials(),
        figures::hostile_guest::trials(),
    ];
    let beside_services = workers_alone.into_iter().chain(services);
    let of_workers = one_worker.into_iter().chain(several_workers);
    beside_services.chain(of_workers).chain(calls).chain(all_of_the_bench).flatten().collect()
}
