//! The end-to-end tests. They run inside a bench: `make test`, or `bench shell` and then
//! `cargo test --offline -p e2e --test suite [name]`. Without a bench each fails and names that command.
//!
//! Works under libtest's command line and under nextest (libtest-mimic). Ordinary tests share the bench, those that break
//! something have it alone; what a test was given (faults, its turn) ends with its connection.

mod api_faults;
mod attach;
mod attachments;
mod bare_disk;
mod bound_token;
mod busy_volume;
mod controller_kill;
mod controller_process;
mod data_safety;
mod disk_content;
mod disk_loss;
mod endpoints;
mod figures;
mod fixture;
mod foreign_content;
mod growth;
mod held_requests;
mod hotplug_gates;
mod image;
mod infra_faults;
mod isolation;
mod load_balancer;
mod node_faults;
mod node_kill;
mod node_socket;
mod nodes;
mod operations;
mod outage;
mod replicas;
mod rights;
mod sanity;
mod shapes;
mod sidecar_faults;
mod six_steps;
mod stack;
mod vm_kill;
mod volume_life;
mod workers;

use bench::control::Lock::{Exclusive, Shared};
use fixture::trial;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let traffic = load_balancer::traffic::trials();
    let trials =
        [volumes(), disks(), faults_and_operations(), cloud_controller_manager(), traffic, shapes::trials()];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// What a volume goes through between guest and VM, and the figures of it.
fn volumes() -> Vec<Trial> {
    vec![
        trial(
            "six_steps::one_guest_claim_reaches_one_pod_and_comes_back",
            Shared,
            six_steps::claim_reaches_pod,
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
        trial("data_safety::a_disk_with_a_read_error_is_not_formatted", Shared, data_safety::read_error),
        trial("data_safety::a_blank_disk_is_formatted_and_keeps_its_data", Shared, data_safety::blank),
        trial("sanity::mounted_volumes", Shared, sanity::mount),
        trial("sanity::block_volumes", Shared, sanity::block),
        trial("figures::publish_answers_soon_after_ready", Exclusive, figures::answers_soon_after_ready),
        trial(
            "figures::fifty_volumes_of_one_vm_beside_the_bare_burst",
            Exclusive,
            figures::fifty_volumes_beside_the_bare_burst,
        ),
        trial("figures::thirty_claims_with_pods", Exclusive, figures::thirty_claims_with_pods),
    ]
}

/// What the node plugin does with disks.
fn disks() -> Vec<Trial> {
    vec![
        trial(
            "foreign_content::whatever_is_no_blank_disk_is_refused_and_unchanged",
            Shared,
            foreign_content::refused,
        ),
        trial("foreign_content::what_was_asked_for_and_is_there_is_mounted", Shared, foreign_content::kept),
        trial(
            "foreign_content::the_survey_of_a_large_disk_has_a_limit",
            Shared,
            foreign_content::survey_limit,
        ),
        trial(
            "foreign_content::a_stale_link_to_another_disk_is_not_followed",
            Exclusive,
            foreign_content::stale_link,
        ),
        trial(
            "foreign_content::two_disks_with_one_cut_serial_are_not_used",
            Shared,
            foreign_content::ambiguous,
        ),
        trial(
            "disk_loss::a_disk_lost_while_it_is_formatted_is_formatted_again",
            Exclusive,
            disk_loss::while_formatted,
        ),
        trial(
            "disk_loss::a_disk_lost_before_publish_is_published_when_it_is_back",
            Shared,
            disk_loss::before_publish,
        ),
        trial("disk_loss::a_disk_lost_while_mounted_is_unmounted", Shared, disk_loss::while_mounted),
        trial("busy_volume::what_is_in_use_stays_and_says_by_whom", Shared, busy_volume::busy),
        trial("node_kill::each_call_killed_is_done_by_its_repetition", Exclusive, node_kill::at_each_call),
        trial(
            "node_kill::mkfs_killed_anywhere_ends_in_one_filesystem",
            Exclusive,
            node_kill::in_the_midst_of_mkfs,
        ),
        trial("image::the_node_role_runs_as_it_is_shipped", Shared, image::runs_as_shipped),
        trial("image::the_probes_reach_the_pod", Shared, image::probes_reach_the_pod),
        trial(
            "image::a_killed_node_process_comes_back_and_volumes_stay",
            Exclusive,
            image::killed_process_comes_back,
        ),
        trial("growth::a_filesystem_smaller_than_its_disk_grows_at_stage", Shared, growth::at_stage),
    ]
}

/// Faults between the parts, and what those who operate it see.
fn faults_and_operations() -> Vec<Trial> {
    vec![
        trial(
            "infra_faults::every_call_survives_every_fault",
            Shared,
            infra_faults::every_call_and_every_fault,
        ),
        trial(
            "controller_kill::a_killed_controllers_work_is_finished_once",
            Shared,
            controller_kill::killed_at_every_change,
        ),
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
        trial("hotplug_gates::both_ways_of_kubevirt_attach_and_detach", Exclusive, hotplug_gates::both_ways),
        trial("vm_kill::filesystems_of_a_killed_vm_are_made_whole", Shared, vm_kill::unclean_filesystems),
        trial(
            "operations::changed_credentials_are_taken_up_without_a_restart",
            Shared,
            operations::credentials_change,
        ),
        trial("operations::a_volumes_life_shows_in_the_metrics", Shared, operations::metrics_of_a_life),
        trial("operations::alive_and_ready_without_an_infra_api", Shared, operations::alive_without_infra),
        trial(
            "operations::a_stop_in_the_midst_of_a_publish_loses_nothing",
            Shared,
            operations::stopped_while_it_waits,
        ),
        trial("operations::an_exceeded_quota_is_an_event_of_the_claim", Exclusive, operations::quota_is_told),
        trial(
            "operations::a_missing_infra_class_is_an_event_of_the_pod",
            Shared,
            operations::missing_class_is_told,
        ),
    ]
}

/// Nodes and load balancers.
fn cloud_controller_manager() -> Vec<Trial> {
    vec![
        trial("nodes::a_node_is_recognised_and_initialised", Exclusive, nodes::initialised),
        trial("nodes::a_node_shows_what_its_vm_is", Exclusive, nodes::shows_its_vm),
        trial("nodes::a_node_that_load_balancers_leave_out_is_told", Exclusive, nodes::doubted),
        trial("nodes::a_node_follows_its_vm", Exclusive, nodes::follows_its_vm),
        trial("nodes::a_node_follows_a_live_migration", Exclusive, nodes::follows_a_migration),
        trial("nodes::two_hundred_nodes_follow_their_vms", Exclusive, nodes::two_hundred),
        trial("nodes::left_overs_go_and_foreign_nodes_stay", Exclusive, nodes::left_overs_and_foreigners),
        trial("load_balancer::its_life_from_a_late_address_to_a_slow_end", Exclusive, load_balancer::life),
        trial("load_balancer::every_change_and_drift_is_mirrored", Exclusive, load_balancer::mirrored),
        trial("load_balancer::what_the_reference_left_is_taken_over", Exclusive, load_balancer::adopted),
        trial("load_balancer::a_stuck_service_holds_up_no_other", Exclusive, load_balancer::stuck),
        trial("load_balancer::a_clone_neither_steals_nor_deletes", Exclusive, load_balancer::foreign),
        trial("load_balancer::another_replica_takes_over", Exclusive, load_balancer::replicas),
        trial(
            "load_balancer::every_change_survives_every_fault",
            Exclusive,
            load_balancer::faults::every_fault,
        ),
        trial(
            "load_balancer::a_killed_providers_work_is_finished_once",
            Exclusive,
            load_balancer::faults::killed,
        ),
        trial("load_balancer::both_api_servers_are_away", Exclusive, load_balancer::faults::outage),
        trial("load_balancer::two_leaders_double_nothing", Exclusive, load_balancer::faults::two_leaders),
        trial("load_balancer::a_service_flips_a_hundred_times", Exclusive, load_balancer::storm::flips),
        trial(
            "load_balancer::changed_credentials_are_taken_up_without_a_restart",
            Exclusive,
            load_balancer::credentials::change,
        ),
        trial("load_balancer::a_thousand_at_once", Exclusive, load_balancer::storm::thousand),
        trial(
            "load_balancer::the_rights_that_installers_give_suffice",
            Exclusive,
            load_balancer::narrow_rights::as_installed,
        ),
        trial(
            "load_balancer::the_guest_says_who_reads_the_metrics",
            Exclusive,
            load_balancer::secure_endpoint::readers,
        ),
        trial("load_balancer::two_hundred_are_served_soon", Exclusive, load_balancer::burst::served_soon),
        trial(
            "load_balancer::only_what_the_policy_allows_passes",
            Exclusive,
            load_balancer::policy::filtered,
        ),
        trial("load_balancer::a_quota_holds_and_is_used", Exclusive, load_balancer::policy::quota),
        trial("load_balancer::left_overs_go_and_nothing_else", Exclusive, load_balancer::left_overs::swept),
        trial(
            "load_balancer::an_erring_guest_api_makes_no_left_overs",
            Exclusive,
            load_balancer::sweep_faults::spared,
        ),
        trial(
            "load_balancer::churn_leaves_no_memory_behind",
            Exclusive,
            load_balancer::churn::leaves_nothing,
        ),
        trial("load_balancer::an_owner_takes_all_with_it", Exclusive, load_balancer::left_overs::owned),
        trial("load_balancer::a_guest_is_cleaned_up", Exclusive, load_balancer::left_overs::cleaned_up),
        trial("load_balancer::conditions_tell_its_state", Exclusive, load_balancer::explained::conditions),
        trial("load_balancer::no_node_is_told", Exclusive, load_balancer::explained::no_nodes),
        trial("endpoints::they_follow_the_guest", Exclusive, endpoints::follow_the_guest),
        trial("endpoints::they_follow_the_vms", Exclusive, endpoints::follow_the_vms),
        trial("endpoints::handed_over_without_a_gap", Exclusive, endpoints::handed_over),
        trial("endpoints::what_is_anothers_stays", Exclusive, endpoints::anothers_stays),
        trial("endpoints::two_guests_of_one_namespace_stay_apart", Exclusive, endpoints::apart),
        trial("endpoints::without_the_right_a_selector_stays", Exclusive, endpoints::without_the_right),
    ]
}
