//! The end-to-end tests. They run inside a bench: `make test`, or `bench shell` and then
//! `cargo test --offline -p e2e --test suite [name]`. Without a bench each fails and names that command.
//!
//! Works under libtest's command line and under nextest (libtest-mimic). Ordinary tests share the bench, those that break
//! something have it alone; what a test was given (faults, its turn) ends with its connection.

mod attach;
mod attachments;
mod controller_process;
mod crash;
mod data_safety;
mod fixture;
mod infra_faults;
mod isolation;
mod node_faults;
mod node_socket;
mod outage;
mod replicas;
mod rights;
mod shapes;
mod sidecar_faults;
mod six_steps;
mod stack;
mod volume_life;
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
        trial(
            "infra_faults::every_call_survives_every_fault",
            Shared,
            infra_faults::every_call_and_every_fault,
        ),
        trial("crash::a_killed_controllers_work_is_finished_once", Shared, crash::killed_at_every_change),
        trial("node_faults::lost_replies_are_asked_for_again", Shared, node_faults::lost_replies),
        trial("sidecar_faults::a_broken_socket_doubles_nothing", Exclusive, sidecar_faults::socket_faults),
        trial(
            "replicas::the_other_ends_a_dead_leaders_attach",
            Exclusive,
            replicas::leader_dies_while_attaching,
        ),
        trial("outage::infra_is_away_for_two_minutes", Exclusive, outage::infra_away),
        trial(
            "rights::a_volumes_life_needs_few_calls_and_no_other_right",
            Exclusive,
            rights::few_calls_no_denial,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
