use super::*;
use proptest::prelude::*;
use rstest::rstest;

const U1: &str = "11111111-0000-4000-8000-000000000001";
/// What KubeVirt made of the name of the VM `w`.
const OF_NAME: &str = "7412fbce-9c8e-5906-8d27-fd43af0aaa0a";
const U2: &str = "22222222-0000-4000-8000-000000000002";
const U3: &str = "33333333-0000-4000-8000-000000000003";

fn vm(strategy: RunStrategy, printable_status: &str) -> Seen<Arc<Vm>> {
    let printable_status = printable_status.to_owned();
    Seen::Present(Arc::new(Vm { name: "w".into(), strategy, printable_status, ..Vm::default() }))
}

fn vmi(phase: Phase) -> Seen<Arc<Vmi>> {
    Seen::Present(Arc::new(Vmi { name: "w".into(), phase, ..Vmi::default() }))
}

#[rstest]
#[case::runs(vm(RunStrategy::Always, "Running"), vmi(Phase::Running), VmState::Exists)]
#[case::starts(vm(RunStrategy::Always, "Starting"), vmi(Phase::Starting), VmState::Exists)]
#[case::halted(vm(RunStrategy::Halted, "Stopped"), Seen::Absent, VmState::ShutDown)]
#[case::being_halted(vm(RunStrategy::Halted, "Stopping"), vmi(Phase::Running), VmState::Exists)]
#[case::halted_instance_ended(vm(RunStrategy::Halted, "Stopping"), vmi(Phase::Succeeded), VmState::ShutDown)]
#[case::restarts(vm(RunStrategy::Always, "Stopped"), Seen::Absent, VmState::Exists)]
#[case::crashed(vm(RunStrategy::Always, "CrashLoopBackOff"), vmi(Phase::Failed), VmState::Exists)]
#[case::ran_once(vm(RunStrategy::Other, "Stopped"), vmi(Phase::Succeeded), VmState::ShutDown)]
#[case::restarts_by_hand(vm(RunStrategy::Other, "Starting"), Seen::Absent, VmState::Exists)]
#[case::stopped_by_hand(vm(RunStrategy::Other, "Stopped"), Seen::Absent, VmState::ShutDown)]
#[case::failed(vm(RunStrategy::RerunOnFailure, "Starting"), vmi(Phase::Failed), VmState::Exists)]
#[case::shut_down(vm(RunStrategy::RerunOnFailure, "Stopped"), vmi(Phase::Succeeded), VmState::ShutDown)]
#[case::host_lost(vm(RunStrategy::Always, "Unknown"), vmi(Phase::Unknown("Unknown".into())), VmState::Unknown)]
#[case::instance_only(Seen::Absent, vmi(Phase::Running), VmState::Exists)]
#[case::instance_only_ended(Seen::Absent, vmi(Phase::Failed), VmState::ShutDown)]
#[case::instance_only_unknown(Seen::Absent, vmi(Phase::Unknown("New".into())), VmState::Unknown)]
#[case::gone(Seen::Absent, Seen::Absent, VmState::Gone)]
#[case::vm_not_read(Seen::Unseen, Seen::Absent, VmState::Unknown)]
#[case::instance_not_read(Seen::Absent, Seen::Unseen, VmState::Unknown)]
#[case::nothing_read(Seen::Unseen, Seen::Unseen, VmState::Unknown)]
#[case::only_the_vm_read(vm(RunStrategy::Halted, "Stopped"), Seen::Unseen, VmState::Exists)]
#[case::only_the_instance_read(Seen::Unseen, vmi(Phase::Running), VmState::Exists)]
fn lives(#[case] vm: Seen<Arc<Vm>>, #[case] vmi: Seen<Arc<Vmi>>, #[case] expected: VmState) {
    assert_eq!(vm_state(&vm, &vmi), expected);
}

/// VMs with instances: name, host name, system UUID.
struct World {
    vms: BTreeMap<String, Arc<Vm>>,
    vmis: BTreeMap<String, Arc<Vmi>>,
}

impl World {
    fn of(machines: &[(&str, Option<&str>, Option<&str>)]) -> Self {
        let mut world = Self { vms: BTreeMap::new(), vmis: BTreeMap::new() };
        for (name, hostname, uuid) in machines {
            let (name, hostname) = ((*name).to_owned(), hostname.map(str::to_owned));
            let uuid = uuid.and_then(SystemUuid::parse);
            let vm =
                Vm { name: name.clone(), hostname: hostname.clone(), uuid: uuid.clone(), ..Vm::default() };
            let vmi = Vmi { name: name.clone(), hostname, uuid, ..Vmi::default() };
            world.vms.insert(name.clone(), Arc::new(vm));
            world.vmis.insert(name, Arc::new(vmi));
        }
        world
    }

    fn known(&self) -> Known<'_> {
        Known { vms: Some(&self.vms), vmis: Some(&self.vmis) }
    }

    fn identify(&self, node: &Claims) -> Recognition {
        identify(node, self.known())
    }
}

fn node(name: &str, uuid: Option<&str>) -> Claims {
    Claims { name: name.into(), uuid: uuid.and_then(SystemUuid::parse), ..Claims::default() }
}

fn is(name: &str, by: Key) -> Recognition {
    Recognition::Vm { id: ProviderId::of(name).unwrap(), by }
}

fn ambiguous(vms: &[&str]) -> Recognition {
    Recognition::Ambiguous { vms: vms.iter().map(|&vm| vm.to_owned()).collect() }
}

#[test]
fn a_provider_id_says_it_all() {
    let world = World::of(&[("w1", None, Some(U1))]);
    let with = |provider_id: &str| Claims { provider_id: provider_id.into(), ..node("w1", Some(U1)) };
    assert_eq!(world.identify(&with("kubevirt://w9")), is("w9", Key::ProviderId), "known or not");
    assert_eq!(
        world.identify(&with("aws:///eu/i-1")),
        Recognition::Foreign,
        "though name and UUID are a VM's"
    );
    assert_eq!(world.identify(&with("kubevirt://No_Name")), Recognition::Foreign);
}

#[test]
fn the_label_is_believed_where_there_is_such_a_vm() {
    let world = World::of(&[("w1", None, Some(U1)), ("w2", None, Some(U2))]);
    let with = |label: &str| Claims { instance_id: Some(label.into()), ..node("w1", Some(U1)) };
    assert_eq!(world.identify(&with("w2")), is("w2", Key::InstanceId));
    assert_eq!(world.identify(&with("i-0abc")), is("w1", Key::Name), "another provider's instance id");
}

#[rstest]
#[case::name("w1", &[], is("w1", Key::Name))]
#[case::name_with_dots("pool.w3", &[], is("pool.w3", Key::Name))]
#[case::hostname("alpha", &[], is("w2", Key::Hostname))]
#[case::hostname_address("node-7", &["alpha"], is("w2", Key::Hostname))]
#[case::fqdn_of_the_name("w1.example.com", &[], is("w1", Key::ShortName))]
#[case::fqdn_of_the_hostname("alpha.example.com", &[], is("w2", Key::ShortName))]
#[case::nobody("w8", &[], Recognition::Unidentified)]
fn names_are_enough_where_there_is_no_uuid(
    #[case] name: &str,
    #[case] hostnames: &[&str],
    #[case] expected: Recognition,
) {
    let world = World::of(&[("w1", None, None), ("w2", Some("alpha"), None), ("pool.w3", None, None)]);
    let hostnames = hostnames.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(world.identify(&Claims { hostnames, ..node(name, None) }), expected);
}

#[test]
fn the_uuid_alone_is_enough() {
    let world = World::of(&[("w1", None, Some(U1)), ("w2", None, Some(U2))]);
    let spelled_otherwise = U2.to_ascii_uppercase();
    assert_eq!(world.identify(&node("node-7", Some(&spelled_otherwise))), is("w2", Key::Uuid));
}

#[test]
fn a_name_with_anothers_uuid_is_refused() {
    let world = World::of(&[("w1", None, Some(U1)), ("w2", None, Some(U2))]);
    assert_eq!(world.identify(&node("w1", Some(U2))), ambiguous(&["w1", "w2"]));
    // A machine id instead of a UUID, as on boards without SMBIOS: it matches no VM and contradicts nothing.
    assert_eq!(world.identify(&node("w1", Some(U3))), is("w1", Key::Name));
}

#[test]
fn two_vms_with_one_host_name_are_told_apart_by_uuid_or_not_at_all() {
    let twins = World::of(&[("w1", Some("alpha"), Some(U1)), ("w2", Some("alpha"), Some(U2))]);
    assert_eq!(twins.identify(&node("alpha", Some(U2))), is("w2", Key::Hostname));
    assert_eq!(twins.identify(&node("alpha", None)), ambiguous(&["w1", "w2"]));
    let clones = World::of(&[("w1", None, Some(U1)), ("w2", None, Some(U1))]);
    assert_eq!(clones.identify(&node("node-7", Some(U1))), ambiguous(&["w1", "w2"]));
    assert_eq!(clones.identify(&node("w2", Some(U1))), is("w2", Key::Name), "the name tells clones apart");
}

#[test]
fn no_vm_is_said_only_with_proof() {
    let world = World::of(&[("w1", None, Some(U1)), ("w2", None, Some(U2))]);
    let stranger = node("node-7", Some(U3));
    assert_eq!(world.identify(&stranger), Recognition::NoVm);
    assert_eq!(world.identify(&node("node-7", None)), Recognition::Unidentified, "the node shows no UUID");
    let without = |known: Known<'_>| identify(&stranger, known);
    assert_eq!(without(Known { vms: None, ..world.known() }), Recognition::Unidentified, "VMs were not read");
    assert_eq!(
        without(Known { vmis: None, ..world.known() }),
        Recognition::Unidentified,
        "VMIs were not read"
    );
    let unmarked = World::of(&[("w1", None, Some(U1)), ("w2", None, None)]);
    assert_eq!(unmarked.identify(&stranger), Recognition::Unidentified, "w2 may be it");
    assert_eq!(World::of(&[]).identify(&stranger), Recognition::NoVm);
}

#[test]
fn a_stopped_vm_is_recognised_without_an_instance() {
    let world = World::of(&[("w1", None, Some(U1))]);
    let known = Known { vmis: Some(&BTreeMap::new()), ..world.known() };
    assert_eq!(identify(&node("node-7", Some(U1)), known), is("w1", Key::Uuid));
}

#[rstest]
#[case::label(Some("guest"), None, None, None, None)]
#[case::uuid(None, Some(U1), Some(U1), None, None)]
#[case::nothing(None, None, None, Some(Mismatch::Unproved), None)]
#[case::only_the_vm_has_a_uuid(None, Some(U1), None, Some(Mismatch::Unproved), None)]
#[case::only_the_node_has_a_uuid(None, None, Some(U1), Some(Mismatch::Unproved), None)]
#[case::another_uuid(Some("guest"), Some(U1), Some(U2), Some(Mismatch::Uuid), None)]
#[case::uuid_of_its_name(None, Some(OF_NAME), Some(OF_NAME), Some(Mismatch::Unproved), None)]
#[case::anothers(Some("b"), None, Some(U1), Some(Mismatch::Cluster("guest".into())), Some(Mismatch::Cluster("guest".into())))]
#[case::anothers_uuid(Some("b"), Some(U1), Some(U2), Some(Mismatch::Cluster("guest".into())), Some(Mismatch::Cluster("guest".into())))]
#[case::another_cluster_name_flag(Some("b"), Some(U1), Some(U1), Some(Mismatch::Cluster("guest".into())), None)]
fn a_claim_to_be_a_vm_needs_a_proof(
    #[case] label: Option<&str>,
    #[case] vm: Option<&str>,
    #[case] claimed: Option<&str>,
    #[case] backend: Option<Mismatch>,
    #[case] upkeep: Option<Mismatch>,
) {
    let uuid = vm.and_then(SystemUuid::parse);
    let vmi = Vmi { name: "w".into(), cluster: label.map(str::to_owned), uuid, ..Vmi::default() };
    let (node, cluster) = (node("w", claimed), "guest".parse().unwrap());
    let contradicted = backend.clone().filter(|doubt| *doubt != Mismatch::Unproved);
    // The label may be on the VMI or on the VM.
    let unlabelled = Vmi { cluster: None, ..vmi.clone() };
    let vm = Vm { name: "w".into(), cluster: vmi.cluster.clone(), ..Vm::default() };
    for machine in [Machine { vm: None, vmi: &vmi }, Machine { vm: Some(&vm), vmi: &unlabelled }] {
        assert_eq!(backend_doubt(machine, &node, &cluster, Unlabelled::Refused), backend);
        assert_eq!(backend_doubt(machine, &node, &cluster, Unlabelled::Allowed), contradicted);
        assert_eq!(upkeep_doubt(machine, &node, &cluster), upkeep);
    }
}

#[rstest]
#[case::the_vm_is_anothers(Some("b"), Some("guest"))]
#[case::the_vmi_is_anothers(Some("guest"), Some("b"))]
#[case::both_are_anothers(Some("b"), Some("b"))]
fn a_vm_that_one_label_calls_anothers_is_not_the_nodes(#[case] vm: Option<&str>, #[case] vmi: Option<&str>) {
    let vm = Vm { name: "w".into(), cluster: vm.map(str::to_owned), ..Vm::default() };
    let vmi = Vmi { name: "w".into(), cluster: vmi.map(str::to_owned), ..Vmi::default() };
    let (node, cluster) = (node("w", Some(U1)), "guest".parse().unwrap());
    let (machine, wanted) = (Machine { vm: Some(&vm), vmi: &vmi }, Some(Mismatch::Cluster("guest".into())));
    assert_eq!(backend_doubt(machine, &node, &cluster, Unlabelled::Allowed), wanted);
    assert_eq!(upkeep_doubt(machine, &node, &cluster), wanted);
    let shown = wanted.unwrap().to_string();
    assert!(shown.contains("\"guest\"") && !shown.contains("\"b\""), "{shown}");
}

/// The default of `--cluster-name` is no name that a label could contradict; upstream does not compare it. What is needed is a
/// proof.
#[rstest]
#[case::same_uuid("kubernetes", Some(U1), Some(U1), None)]
#[case::other_uuid("kubernetes", Some(U1), Some(U2), Some(Mismatch::Cluster("kubernetes".into())))]
#[case::no_uuid("kubernetes", None, Some(U1), Some(Mismatch::Cluster("kubernetes".into())))]
#[case::uuid_of_its_name("kubernetes", Some(OF_NAME), Some(OF_NAME), Some(Mismatch::Cluster("kubernetes".into())))]
#[case::a_name_of_its_own("guest", Some(U1), Some(U1), Some(Mismatch::Cluster("guest".into())))]
fn without_a_cluster_name_the_uuid_proves_a_backend(
    #[case] cluster: &str,
    #[case] vm: Option<&str>,
    #[case] claimed: Option<&str>,
    #[case] wanted: Option<Mismatch>,
) {
    let uuid = vm.and_then(SystemUuid::parse);
    let vmi = Vmi { name: "w".into(), cluster: Some("b".to_owned()), uuid, ..Vmi::default() };
    let machine = Machine { vm: None, vmi: &vmi };
    let doubt = backend_doubt(machine, &node("w", claimed), &cluster.parse().unwrap(), Unlabelled::Refused);
    assert_eq!(doubt, wanted);
}

fn names() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "a.example.com"]).prop_map(str::to_owned)
}

fn uuids() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![None, Some(U1), Some(U2), Some(U3)])
}

proptest! {
    /// In every world an answer names only VMs that exist, and NoVm is never the answer for a Node that matches one.
    #[test]
    fn an_answer_is_about_what_is_there(
        machines in prop::collection::btree_map(names(), (prop::option::of(names()), uuids()), 0..4),
        name in names(), uuid in uuids(), label in prop::option::of(names()), vms_read: bool, vmis_read: bool,
    ) {
        let list: Vec<_> =
            machines.iter().map(|(name, (hostname, uuid))| (name.as_str(), hostname.as_deref(), *uuid)).collect();
        let world = World::of(&list);
        let known = Known { vms: vms_read.then_some(&world.vms), vmis: vmis_read.then_some(&world.vmis) };
        match identify(&Claims { instance_id: label, ..node(&name, uuid) }, known) {
            Recognition::Vm { id, .. } => prop_assert!(machines.contains_key(id.vm())),
            Recognition::Ambiguous { vms } => {
                prop_assert!(vms.len() > 1 && vms.iter().all(|vm| machines.contains_key(vm)));
            }
            Recognition::NoVm => {
                prop_assert!(vms_read && vmis_read && uuid.is_some());
                prop_assert!(list.iter().all(|(vm, _, its)| *vm != name && its.is_some() && *its != uuid));
            }
            Recognition::Unidentified => {}
            Recognition::Foreign => prop_assert!(false, "it has no providerID"),
        }
    }
}
