//! VMs and VMIs as both programs read them. One that can't be read hides no other one of its list; no address is proved that the
//! guest may have made up.
#![no_main]

use ccm::{
    infra::machines::{Vm, Vmi, index::Kept, wire::Reduced},
    nodes::{
        address::{AddressPolicy, addresses},
        place,
        recognise::{VmState, vm_state},
    },
};
use cluster::Readable;
use infra::{VirtualMachine, VirtualMachineInstance};
use kubevirt::{Seen, WireVm, WireVmi};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use std::sync::Arc;

fuzz_target!(|input: &[u8]| {
    let Ok(object @ Value::Object(_)) = serde_json::from_slice(input) else { return };
    let list = json!([object, {"metadata": {"name": "next"}}]);
    let read: Vec<Readable<Reduced<Vmi>>> =
        serde_json::from_value(list.clone()).expect("an object hides no other");
    assert!(read.len() == 2 && read[1].0.is_ok());
    if let Err(unreadable) = &read[0].0 {
        assert!(unreadable.error.len() <= 600 && unreadable.name().len() <= 253);
    }
    let machines: Vec<Readable<Reduced<Vm>>> =
        serde_json::from_value(list).expect("an object hides no other");
    assert!(machines[1].0.is_ok());
    let of_driver = serde_json::from_value::<VirtualMachineInstance>(object.clone());
    let wire = serde_json::from_value::<WireVmi>(object.clone());
    assert_eq!(of_driver.is_ok(), wire.is_ok(), "both programs read the same type");
    assert_eq!(wire.is_ok(), read[0].0.is_ok());
    let machine = serde_json::from_value::<VirtualMachine>(object.clone());
    assert_eq!(machine.is_ok(), serde_json::from_value::<WireVm>(object).is_ok());
    if let Ok(reduced) = &read[0].0 {
        judge(&reduced.kept, machines[0].0.as_ref().ok().map(|reduced| &reduced.kept));
    }
});

fn judge(vmi: &Vmi, vm: Option<&Vm>) {
    assert!(!vmi.name().contains('\u{0}') || vmi.name().len() > 1);
    let open = AddressPolicy::default();
    let within = AddressPolicy::parse("", "", &["10.0.0.0/8".to_owned()], &[]).expect("a policy");
    let shown = || vmi.interfaces.iter().flat_map(|interface| &interface.addresses);
    for proved in open.proved(vmi, &[]).into_iter().flatten() {
        let translated = vmi.interfaces.iter().any(|it| it.masquerade && it.addresses.contains(&proved));
        assert!(translated, "{proved} is the guest's own word");
    }
    for proved in within.proved(vmi, &[]).into_iter().flatten() {
        assert!(shown().any(|ip| *ip == proved) && proved.to_string().starts_with("10."), "{proved}");
    }
    let of_node = addresses(&open, Some(vmi), &[], &[]);
    assert!(of_node.len() <= 2, "{of_node:?}");
    assert_eq!(addresses(&open, Some(vmi), &[], &of_node), of_node, "a second pass changes nothing");
    drop(place::labels(vmi, &ccm::infra::hosts::Host::default()));
    let (vm, vmi) =
        (vm.cloned().map(Arc::new).map_or(Seen::Absent, Seen::Present), Seen::Present(Arc::new(vmi.clone())));
    assert_ne!(vm_state(&vm, &vmi), VmState::Gone, "what was seen is not gone");
}
