//! The end-to-end tests. They run inside a bench: `make test`, or `bench shell` and then
//! `cargo test --offline -p e2e --test suite [name]`. Without a bench each fails and names that command.
//!
//! Works under libtest's command line and under nextest (libtest-mimic). Ordinary tests share the bench, those that break
//! something have it alone; what a test was given (faults, its turn) ends with its connection.

mod attach;
mod controller_process;
mod data_safety;
mod fixture;
mod image;
mod isolation;
mod node_socket;
mod rights;
mod shapes;
mod six_steps;
mod workers;

use bench::control::Lock::{Exclusive, Shared};
use fixture::trial;
use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial(
            "six_steps::one_guest_claim_reaches_one_pod_and_comes_back",
            Shared,
            six_steps::claim_reaches_pod,
        ),
        trial(
            "shapes::a_block_volume_waits_for_its_first_consumer",
            Shared,
            shapes::block_on_wait_for_first_consumer,
        ),
        trial("workers::two_restored_from_one_state_differ", Shared, workers::restored_workers_differ),
        trial("attach::publish_waits_for_ready_not_for_the_spec", Shared, attach::publish_waits_for_ready),
        trial(
            "attach::deleting_the_vm_detaches_only_when_its_instance_ends",
            Shared,
            attach::vm_deleted_while_attached,
        ),
        trial(
            "attach::two_drivers_give_one_rwo_volume_to_one_vm_only",
            Shared,
            attach::two_drivers_one_volume,
        ),
        trial("attach::sixteen_volumes_reach_one_vm_at_once", Shared, attach::sixteen_volumes_at_once),
        trial("attach::a_halted_vm_is_refused_without_a_change", Shared, attach::halted_vm_is_refused),
        trial(
            "isolation::a_volume_without_our_labels_is_refused",
            Shared,
            isolation::foreign_volume_is_refused,
        ),
        trial("data_safety::a_disk_with_ext4_is_not_formatted", Shared, data_safety::ext4),
        trial("data_safety::a_disk_with_xfs_is_not_formatted", Shared, data_safety::xfs),
        trial("data_safety::a_disk_with_a_gpt_is_not_formatted", Shared, data_safety::gpt),
        trial("data_safety::a_disk_with_random_bytes_is_not_formatted", Shared, data_safety::random),
        trial("data_safety::a_disk_with_a_read_error_is_not_formatted", Shared, data_safety::read_error),
        trial("data_safety::a_blank_disk_is_formatted_and_keeps_its_data", Shared, data_safety::blank),
        trial("image::the_node_role_runs_as_it_is_shipped", Shared, image::runs_as_shipped),
        trial("image::the_probes_reach_the_pod", Shared, image::probes_reach_the_pod),
        trial(
            "image::a_killed_node_process_comes_back_and_volumes_stay",
            Exclusive,
            image::killed_process_comes_back,
        ),
        trial(
            "rights::a_volumes_life_needs_few_calls_and_no_other_right",
            Exclusive,
            rights::few_calls_no_denial,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
