//! The planner against a model of virt-controller: every interleaving of its steps, of other writers and of a driver
//! that may die.

use proptest::prelude::*;
use rstest::rstest;

use infra::{RunStrategy, VirtualMachine, VolumeSource};

use super::*;

const VOLUME: &str = "pvc-1";

fn status(phase: VolumePhase) -> VolumeStatus {
    let target = if phase == VolumePhase::Ready { "sda" } else { "" };
    VolumeStatus {
        name: VOLUME.into(),
        phase,
        target: target.into(),
        hotplug: true,
        ..VolumeStatus::default()
    }
}

fn vm(spec: SpecEntry) -> VmView {
    VmView {
        deleting: false,
        automatic: true,
        status: "Running".into(),
        complaint: String::new(),
        moves_volumes: false,
        spec,
        request: None,
    }
}

fn vmi(in_spec: bool, phase: Option<VolumePhase>) -> VmiView {
    VmiView {
        deleting: false,
        phase: Phase::Running,
        pods_are_gone: false,
        complaint: String::new(),
        in_spec,
        hotplugged: in_spec,
        claim: in_spec.then(|| VOLUME.to_owned()),
        migrating: false,
        status: phase.map(status),
    }
}

fn seen(vm: VmView, vmi: VmiView) -> Observed {
    known(Seen::Present(vm), Seen::Present(vmi))
}

fn known(vm: Seen<VmView>, vmi: Seen<VmiView>) -> Observed {
    Observed { vm, vmi, recorded_move: None }
}

#[test]
fn a_free_volume_is_added_and_a_ready_one_is_done() {
    let free = seen(vm(SpecEntry::Absent), vmi(false, None));
    assert_eq!(next(&free, Wanted::Attached), Step::Call(HotplugCall::Add));
    assert_eq!(next(&free, Wanted::Detached), Step::Done);
    let ready = seen(vm(SpecEntry::Hotplugged), vmi(true, Some(VolumePhase::Ready)));
    assert_eq!(next(&ready, Wanted::Attached), Step::Done);
    assert_eq!(next(&ready, Wanted::Detached), Step::Call(HotplugCall::Remove));
}

#[rstest]
#[case::no_target(VolumeStatus { target: String::new(), ..status(VolumePhase::Ready) })]
#[case::not_a_hotplug(VolumeStatus { hotplug: false, ..status(VolumePhase::Ready) })]
#[case::pending(status(VolumePhase::Pending))]
#[case::mounted(status(VolumePhase::MountedToPod))]
#[case::unknown(status(VolumePhase::Unknown("HotplugVolumeFailed".into())))]
fn in_the_spec_but_not_ready_is_not_attached(#[case] status: VolumeStatus) {
    let mut view = vmi(true, None);
    view.status = Some(status.clone());
    let observed = seen(vm(SpecEntry::Hotplugged), view);
    assert_eq!(next(&observed, Wanted::Attached), Step::Wait(Cause::Attaching(status)));
}

#[rstest]
#[case(vmi(true, Some(VolumePhase::Ready)))]
#[case(vmi(false, Some(VolumePhase::Detaching)))]
#[case(vmi(false, Some(VolumePhase::Unknown("New".into()))))]
#[case(vmi(true, None))]
fn what_is_leaving_is_neither_added_nor_gone(#[case] view: VmiView) {
    let observed = seen(vm(SpecEntry::Absent), view.clone());
    for wanted in [Wanted::Attached, Wanted::Detached] {
        assert_eq!(next(&observed, wanted), Step::Wait(Cause::Detaching(view.status.clone())));
    }
}

#[rstest]
#[case::in_spec_and_status(vmi(true, Some(VolumePhase::Ready)))]
#[case::in_spec(vmi(true, None))]
#[case::in_status(vmi(false, Some(VolumePhase::Detaching)))]
fn a_volume_of_an_ended_vmi_is_not_gone_and_the_wait_says_who_can_help(
    #[case] mut view: VmiView,
    #[values(Phase::Succeeded, Phase::Failed)] phase: Phase,
) {
    view.phase = phase;
    for automatic in [true, false] {
        let machine = VmView { automatic, ..vm(SpecEntry::Absent) };
        assert_eq!(next(&seen(machine, view.clone()), Wanted::Detached), Step::Wait(Cause::Ended));
    }
    let unseen = known(Seen::Unseen, Seen::Present(view.clone()));
    assert_eq!(next(&unseen, Wanted::Detached), Step::Wait(Cause::Ended));
    let text = Cause::Ended.to_string();
    assert!(
        text.contains("delete the completed virt-launcher pod") && text.contains("delete the VMI"),
        "{text}"
    );
    // Once virt-controller has recorded that the pods are gone, nothing writes any more, whatever spec and status keep.
    let gone = VmiView { pods_are_gone: true, ..view.clone() };
    assert_eq!(next(&seen(vm(SpecEntry::Absent), gone.clone()), Wanted::Detached), Step::Done);
    let without_vm = known(Seen::Absent, Seen::Present(gone.clone()));
    assert_eq!(next(&without_vm, Wanted::Detached), Step::Done);
    let in_vm = seen(vm(SpecEntry::Hotplugged), gone);
    assert_eq!(
        next(&in_vm, Wanted::Detached),
        Step::Call(HotplugCall::Remove),
        "the next start must not bring it back"
    );
    // Its object is what counts: without the volume, or without the object, it is gone.
    let without = VmiView { in_spec: false, status: None, ..view };
    assert_eq!(next(&seen(vm(SpecEntry::Absent), without), Wanted::Detached), Step::Done);
    let deleted = known(Seen::Present(vm(SpecEntry::Absent)), Seen::Absent);
    assert_eq!(next(&deleted, Wanted::Detached), Step::Done);
}

#[test]
fn a_volume_of_the_vmi_alone_is_told_from_one_that_leaves() {
    let only = |vm: VmView, vmi: VmiView| seen(vm, vmi).is_only_in_vmi();
    let plugged = || vmi(true, Some(VolumePhase::Ready));
    assert!(only(vm(SpecEntry::Absent), plugged()));
    assert!(!only(vm(SpecEntry::Hotplugged), plugged()));
    assert!(!only(VmView { request: Some(Request::Remove), ..vm(SpecEntry::Absent) }, plugged()));
    assert!(
        !only(vm(SpecEntry::Absent), VmiView { hotplugged: false, ..plugged() }),
        "a disk of the VMI's own"
    );
    assert!(!only(vm(SpecEntry::Absent), VmiView { deleting: true, ..plugged() }));
    assert!(!only(vm(SpecEntry::Absent), VmiView { phase: Phase::Failed, ..plugged() }));
    assert!(!only(vm(SpecEntry::Absent), vmi(false, Some(VolumePhase::Detaching))));
    assert!(!known(Seen::Unseen, Seen::Present(plugged())).is_only_in_vmi());
}

#[test]
fn kubevirts_complaints_are_told_once() {
    let with = |of_vm: &str, of_vmi: &str| {
        let vm = VmView { complaint: of_vm.into(), ..vm(SpecEntry::Absent) };
        seen(vm, VmiView { complaint: of_vmi.into(), ..vmi(false, None) }).complaint()
    };
    assert_eq!(with("", ""), None);
    assert_eq!(with("a", "").as_deref(), Some("a"));
    assert_eq!(with("", "b").as_deref(), Some("b"));
    assert_eq!(with("a", "a; c").as_deref(), Some("a; c"));
    assert_eq!(with("a", "b").as_deref(), Some("b; a"));
}

#[rstest]
#[case(Request::Add)]
#[case(Request::Remove)]
fn an_accepted_call_is_waited_out(#[case] request: Request) {
    for spec in [SpecEntry::Absent, SpecEntry::Hotplugged] {
        let mut machine = vm(spec);
        machine.request = Some(request);
        let observed = seen(machine, vmi(false, None));
        for wanted in [Wanted::Attached, Wanted::Detached] {
            assert_eq!(next(&observed, wanted), Step::Wait(Cause::Requested(request)));
        }
    }
}

#[test]
fn a_halted_vm_is_refused_without_a_call_and_a_starting_one_is_waited_for() {
    let mut machine = vm(SpecEntry::Absent);
    let observed = |machine: &VmView| known(Seen::Present(machine.clone()), Seen::Absent);
    assert!(matches!(next(&observed(&machine), Wanted::Attached), Step::Wait(Cause::Starting(_))));
    machine.automatic = false;
    machine.status = "Stopped".into();
    let halted = Step::Refuse(Refusal::Halted("Stopped".into()));
    assert_eq!(next(&observed(&machine), Wanted::Attached), halted);
    machine.spec = SpecEntry::Hotplugged;
    assert_eq!(
        next(&observed(&machine), Wanted::Attached),
        halted,
        "in the spec of a halted VM is not attached"
    );
    assert_eq!(next(&observed(&machine), Wanted::Detached), Step::Call(HotplugCall::Remove));
}

#[test]
fn a_vm_that_is_gone_is_detached_when_its_instance_is_gone_too() {
    let gone = |vmi| known(Seen::Absent, vmi);
    let alive = gone(Seen::Present(vmi(true, Some(VolumePhase::Ready))));
    assert_eq!(next(&alive, Wanted::Detached), Step::Refuse(Refusal::InstanceOutlivesVm));
    assert_eq!(next(&gone(Seen::Present(vmi(false, None))), Wanted::Detached), Step::Done);
    assert_eq!(next(&gone(Seen::Absent), Wanted::Detached), Step::Done);
    assert_eq!(next(&gone(Seen::Unseen), Wanted::Detached), Step::Wait(Cause::VmiUnseen));
    assert_eq!(next(&alive, Wanted::Attached), Step::Refuse(Refusal::NoSuchVm));
}

#[test]
fn a_disk_that_is_not_ours_is_neither_plugged_nor_unplugged() {
    let observed = seen(vm(SpecEntry::Fixed { name: "root".into() }), vmi(true, Some(VolumePhase::Ready)));
    for wanted in [Wanted::Attached, Wanted::Detached] {
        assert_eq!(next(&observed, wanted), Step::Refuse(Refusal::Fixed("root".into())));
    }
}

/// A storage migration by the administrator of the infra cluster. After a detach nothing in the VM shows it, and the next
/// attach would plug the claim with the older data: so the move is recorded first.
#[test]
fn a_volume_that_kubevirt_has_moved_is_recorded_then_unplugged_and_never_plugged() {
    let moved = || vm(SpecEntry::Moved { claim: "faster".into() });
    let at_new = |claim: Option<&str>| VmiView {
        claim: claim.map(str::to_owned),
        hotplugged: false,
        ..vmi(claim.is_some(), claim.map(|_| VolumePhase::Ready))
    };
    let record = Step::RecordMove("faster".into());
    for view in [Seen::Present(at_new(Some("faster"))), Seen::Present(at_new(None)), Seen::Absent] {
        let mut observed = known(Seen::Present(moved()), view);
        assert_eq!(
            next(&observed, Wanted::Attached),
            Step::Refuse(Refusal::Moved { claim: "faster".into() })
        );
        assert_eq!(next(&observed, Wanted::Detached), record);
        // What is recorded of another claim is of an earlier move.
        observed.recorded_move = Some("slower".into());
        assert_eq!(next(&observed, Wanted::Detached), record);
        observed.recorded_move = Some("faster".into());
        assert_eq!(next(&observed, Wanted::Detached), Step::Call(HotplugCall::Remove));
        assert_eq!(
            next(&observed, Wanted::Attached),
            Step::Refuse(Refusal::Moved { claim: "faster".into() })
        );
    }
    let text = Refusal::Moved { claim: "faster".into() }.to_string();
    assert!(text.contains("moved the volume to PVC faster") && text.contains("move it back"), "{text}");
}

#[rstest]
#[case::copying(VmiView { claim: Some("faster".into()), migrating: true, ..vmi(true, Some(VolumePhase::Ready)) })]
#[case::not_begun(vmi(true, Some(VolumePhase::Ready)))]
#[case::on_to_a_third(VmiView { claim: Some("slower".into()), ..vmi(true, Some(VolumePhase::Ready)) })]
fn a_volume_that_kubevirt_is_moving_is_detached_when_that_has_ended(#[case] view: VmiView) {
    for recorded_move in [None, Some("faster".to_owned())] {
        let vm = Seen::Present(vm(SpecEntry::Moved { claim: "faster".into() }));
        let observed = Observed { vm, vmi: Seen::Present(view.clone()), recorded_move };
        assert_eq!(next(&observed, Wanted::Detached), Step::Wait(Cause::Moving("faster".into())));
    }
    // An ended VMI whose pods are gone copies nothing any more.
    let ended = VmiView { phase: Phase::Failed, pods_are_gone: true, ..view };
    let observed = seen(vm(SpecEntry::Moved { claim: "faster".into() }), ended);
    assert_eq!(next(&observed, Wanted::Detached), Step::RecordMove("faster".into()));
}

#[test]
fn an_open_volume_migration_is_named_where_it_holds_a_change_up() {
    let with = |moves_volumes| seen(VmView { moves_volumes, ..vm(SpecEntry::Hotplugged) }, vmi(true, None));
    let leaving = Cause::Detaching(None);
    for cause in [&Cause::NotInVmi, &leaving] {
        assert!(with(true).hint(cause).contains("updateVolumesStrategy: Migration"), "{cause}");
        assert_eq!(with(false).hint(cause), "");
    }
    assert_eq!(with(true).hint(&Cause::Stopping), "", "it has nothing to do with that");
    assert_eq!(known(Seen::Unseen, Seen::Unseen).hint(&Cause::NotInVmi), "");
}

#[test]
fn what_kubevirt_writes_of_a_volume_migration_is_read() {
    let vm: VirtualMachine = serde_json::from_value(serde_json::json!({
        "spec": {"updateVolumesStrategy": "Migration", "template": {"spec": {"volumes": [
            {"name": VOLUME, "dataVolume": {"name": "faster", "hotpluggable": true}}]}}}}))
    .unwrap();
    let view = VmView::of(&vm, VOLUME);
    assert_eq!((view.moves_volumes, view.spec), (true, SpecEntry::Moved { claim: "faster".into() }));
    let vmi: infra::VirtualMachineInstance = serde_json::from_value(serde_json::json!({
        "spec": {"volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": "faster", "hotpluggable": true}}]},
        "status": {"phase": "Running", "migratedVolumes": [{"volumeName": VOLUME, "sourcePVCInfo": {"claimName": VOLUME}}]}}))
    .unwrap();
    let view = VmiView::of(&vmi, VOLUME);
    assert!(view.migrating && view.in_spec && !view.hotplugged);
    assert_eq!(view.claim.as_deref(), Some("faster"));
    assert!(!VmiView::of(&vmi, "pvc-2").migrating);
}

#[test]
fn a_volume_under_another_name_or_source_is_not_ours() {
    let entry = |name: &str, source: &str, hotpluggable| infra::Volume {
        name: name.into(),
        source: VolumeSource::DataVolume(source.into()),
        hotpluggable,
    };
    let spec = |volume| {
        VmView::of(&VirtualMachine { volumes: vec![volume], ..VirtualMachine::default() }, VOLUME).spec
    };
    assert_eq!(spec(entry(VOLUME, VOLUME, true)), SpecEntry::Hotplugged);
    assert!(matches!(spec(entry(VOLUME, VOLUME, false)), SpecEntry::Fixed { .. }));
    assert!(matches!(spec(entry("data", VOLUME, true)), SpecEntry::Fixed { .. }));
    assert_eq!(spec(entry(VOLUME, "other", true)), SpecEntry::Moved { claim: "other".into() });
    assert!(matches!(spec(entry(VOLUME, "other", false)), SpecEntry::Fixed { .. }));
    assert_eq!(spec(entry("a", "b", true)), SpecEntry::Absent);
}

fn any_vm() -> impl Strategy<Value = Seen<VmView>> {
    let spec = prop_oneof![
        Just(SpecEntry::Absent),
        Just(SpecEntry::Hotplugged),
        Just(SpecEntry::Fixed { name: "root".into() }),
        Just(SpecEntry::Moved { claim: "faster".into() })
    ];
    let request = prop_oneof![Just(None), Just(Some(Request::Add)), Just(Some(Request::Remove))];
    let view =
        (any::<bool>(), any::<bool>(), spec, request).prop_map(|(deleting, automatic, spec, request)| {
            Seen::Present(VmView { deleting, automatic, spec, request, ..vm(SpecEntry::Absent) })
        });
    prop_oneof![Just(Seen::Unseen), Just(Seen::Absent), view]
}

fn any_phase() -> impl Strategy<Value = VolumePhase> {
    prop_oneof![
        Just(VolumePhase::Pending),
        Just(VolumePhase::MountedToPod),
        Just(VolumePhase::Ready),
        Just(VolumePhase::Detaching),
        Just(VolumePhase::Unknown("Surprise".into())),
    ]
}

fn any_vmi() -> impl Strategy<Value = Seen<VmiView>> {
    let phase = prop_oneof![
        Just(Phase::Running),
        Just(Phase::Starting),
        Just(Phase::Succeeded),
        Just(Phase::Failed),
        Just(Phase::Unknown("Surprise".into()))
    ];
    let volume = proptest::option::of(any_phase().prop_map(status));
    let view = (any::<bool>(), phase, any::<bool>(), any::<bool>(), any::<bool>(), volume).prop_map(
        |(deleting, phase, gone, in_spec, migrating, status)| {
            let pods_are_gone = gone && matches!(phase, Phase::Succeeded | Phase::Failed);
            Seen::Present(VmiView { deleting, phase, pods_are_gone, migrating, status, ..vmi(in_spec, None) })
        },
    );
    prop_oneof![Just(Seen::Unseen), Just(Seen::Absent), view]
}

fn names_volume(observed: &Observed) -> bool {
    let in_vm =
        matches!(&observed.vm, Seen::Present(vm) if vm.spec != SpecEntry::Absent || vm.request.is_some());
    in_vm || matches!(&observed.vmi, Seen::Present(vmi) if vmi.holds_volume())
}

#[rstest]
#[case(RunStrategy::Always, true)]
#[case(RunStrategy::RerunOnFailure, true)]
#[case(RunStrategy::Halted, false)]
#[case(RunStrategy::Other, false)]
fn kubevirt_starts_a_vm_by_its_strategy(#[case] run_strategy: RunStrategy, #[case] automatic: bool) {
    let vm = VirtualMachine { run_strategy, ..VirtualMachine::default() };
    assert_eq!(VmView::of(&vm, VOLUME).automatic, automatic);
}

#[rstest]
fn a_vm_whose_instance_ended_is_not_running(#[values(Phase::Succeeded, Phase::Failed)] phase: Phase) {
    let ended = VmiView { phase, ..vmi(false, None) };
    let halted = VmView { automatic: false, ..vm(SpecEntry::Absent) };
    let refused = Step::Refuse(Refusal::Halted("Running".into()));
    assert_eq!(next(&seen(halted, ended.clone()), Wanted::Attached), refused);
    let starting = Step::Wait(Cause::Starting("Running".into()));
    assert_eq!(next(&seen(vm(SpecEntry::Absent), ended), Wanted::Attached), starting);
}

proptest! {
    #[test]
    fn whatever_is_seen(vm in any_vm(), vmi in any_vmi(), recorded: bool) {
        let observed = Observed { vm, vmi, recorded_move: recorded.then(|| "faster".to_owned()) };
        for wanted in [Wanted::Attached, Wanted::Detached] {
            prop_assert_eq!(next(&observed, wanted), next(&observed, wanted));
        }
        let both_present = matches!((&observed.vm, &observed.vmi), (Seen::Present(_), Seen::Present(_)));
        match next(&observed, Wanted::Attached) {
            Step::Call(call) => {
                prop_assert_eq!(call, HotplugCall::Add, "attaching never removes");
                prop_assert!(both_present && !names_volume(&observed), "an addition where nothing names the volume");
                let Seen::Present(vmi) = &observed.vmi else { unreachable!() };
                prop_assert!(vmi.phase == Phase::Running && !vmi.deleting, "only on a running VM");
            }
            Step::Done => {
                let Seen::Present(vmi) = &observed.vmi else { panic!("done without a status") };
                prop_assert!(both_present && vmi.in_spec && vmi.status.as_ref().is_some_and(is_ready));
            }
            Step::RecordMove(to) => return Err(TestCaseError::fail(format!("attaching recorded a move to {to}"))),
            Step::Wait(_) | Step::Refuse(_) => {}
        }
        match next(&observed, Wanted::Detached) {
            Step::Call(call) => {
                prop_assert_eq!(call, HotplugCall::Remove, "detaching never adds");
                let Seen::Present(vm) = &observed.vm else { panic!("a removal without the VM") };
                let moved = matches!(vm.spec, SpecEntry::Moved { .. }) && recorded;
                prop_assert!(vm.spec == SpecEntry::Hotplugged || moved, "only our own disk, a moved one only once that is recorded");
            }
            Step::Done => {
                prop_assert!(!names_volume(&observed));
                prop_assert!(observed.vm != Seen::Unseen && observed.vmi != Seen::Unseen, "gone is only what was seen");
            }
            Step::RecordMove(_) => prop_assert!(!recorded),
            Step::Wait(_) | Step::Refuse(_) => {}
        }
    }
}

/// A small infra cluster: one volume, one VM. `declarative` = the gate `DeclarativeHotplugVolumes`, else
/// `HotplugVolumes`.
#[derive(Clone, Debug)]
struct Model {
    declarative: bool,
    spec: bool,
    request: Option<Request>,
    vmi_spec: bool,
    status: Option<VolumePhase>,
    adds_accepted: u32,
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    /// The driver reads, plans and acts.
    Driver,
    /// The driver acts on a read from before the previous step (a slow reply).
    SlowDriver,
    /// virt-controller carries out a volume request.
    Request,
    /// virt-controller brings the VMI's spec in line with the VM's.
    Sync,
    /// virt-handler moves the volume on.
    Handler,
    /// Another client unplugs it.
    Stranger,
}

impl Model {
    fn new(declarative: bool) -> Self {
        Self { declarative, spec: false, request: None, vmi_spec: false, status: None, adds_accepted: 0 }
    }

    fn observe(&self) -> Observed {
        let mut machine = vm(if self.spec { SpecEntry::Hotplugged } else { SpecEntry::Absent });
        machine.request = self.request;
        seen(machine, vmi(self.vmi_spec, self.status.clone()))
    }

    /// virt-api's answer to a call: refused calls change nothing.
    fn call(&mut self, call: HotplugCall) {
        let accepted = match call {
            HotplugCall::Add => !self.spec && self.request.is_none(),
            HotplugCall::Remove => self.spec && self.request != Some(Request::Remove),
        };
        if !accepted {
            return;
        }
        self.adds_accepted += u32::from(call == HotplugCall::Add);
        match (self.declarative, call) {
            (true, call) => self.spec = call == HotplugCall::Add,
            (false, HotplugCall::Add) => self.request = Some(Request::Add),
            (false, HotplugCall::Remove) => self.request = Some(Request::Remove),
        }
    }

    fn turn(&mut self, turn: Turn, wanted: Wanted, earlier: &Observed) {
        match turn {
            Turn::Driver => self.drive(wanted, &self.observe()),
            Turn::SlowDriver => self.drive(wanted, earlier),
            Turn::Request => {
                if let Some(request) = self.request.take() {
                    self.spec = request == Request::Add;
                }
            }
            Turn::Sync => self.vmi_spec = self.spec,
            Turn::Handler => {
                self.status = match (self.vmi_spec, self.status.take()) {
                    (true, None) => Some(VolumePhase::Pending),
                    (true, Some(VolumePhase::Pending)) => Some(VolumePhase::MountedToPod),
                    (true, Some(_)) => Some(VolumePhase::Ready),
                    (false, Some(VolumePhase::Detaching) | None) => None,
                    (false, Some(_)) => Some(VolumePhase::Detaching),
                };
            }
            Turn::Stranger => self.call(HotplugCall::Remove),
        }
    }

    fn drive(&mut self, wanted: Wanted, observed: &Observed) {
        if let Step::Call(call) = next(observed, wanted) {
            self.call(call);
        }
    }

    fn is_as(&self, wanted: Wanted) -> bool {
        let attached = self.spec && self.vmi_spec && self.status == Some(VolumePhase::Ready);
        let gone = !self.spec && self.request.is_none() && !self.vmi_spec && self.status.is_none();
        if wanted == Wanted::Attached { attached } else { gone }
    }
}

fn any_turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        3 => Just(Turn::Driver),
        2 => Just(Turn::SlowDriver),
        2 => Just(Turn::Request),
        3 => Just(Turn::Sync),
        3 => Just(Turn::Handler),
        1 => Just(Turn::Stranger),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// After any history, only the driver and the infra's own controllers act: the volume becomes as desired, and only
    /// then does the planner return `Done`.
    #[test]
    fn every_history_ends_as_wanted(
        declarative: bool,
        history in prop::collection::vec((any_turn(), any::<bool>()), 0..40),
        attach: bool,
    ) {
        let mut model = Model::new(declarative);
        let mut earlier = model.observe();
        for (turn, attaching) in history {
            let before = model.observe();
            let wanted = if attaching { Wanted::Attached } else { Wanted::Detached };
            model.turn(turn, wanted, &earlier);
            earlier = before;
            let observed = model.observe();
            for wanted in [Wanted::Attached, Wanted::Detached] {
                prop_assert_eq!(next(&observed, wanted) == Step::Done, model.is_as(wanted) && model.request.is_none());
            }
        }
        let wanted = if attach { Wanted::Attached } else { Wanted::Detached };
        let adds = model.adds_accepted;
        for _ in 0..8 {
            for turn in [Turn::Driver, Turn::Request, Turn::Sync, Turn::Handler] {
                model.turn(turn, wanted, &earlier);
            }
        }
        prop_assert!(model.is_as(wanted), "{model:?}");
        prop_assert!(model.adds_accepted <= adds + u32::from(attach), "at most one addition from here on");
    }
}
