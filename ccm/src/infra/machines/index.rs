//! All VMs and VMIs of the namespace as they were read last, with a notification for every change. It makes no calls.
//!
//! It is behind the infra cluster by the time of a watch event or of a poll: good enough to add and to correct, never
//! good enough to delete.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kubevirt::{Phase, Seen, WireVm, WireVmi};
use tokio::sync::watch;

use crate::infra::machines::{Vm, Vmi};

/// Objects of one kind by name, shared between snapshots.
type ByName<T> = Arc<BTreeMap<String, Arc<T>>>;

/// The index.
#[derive(Debug, Default)]
pub struct MachineIndex {
    snapshot: Mutex<Snapshot>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

/// What was known at one moment. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `None` = not read yet, or reading is not allowed.
    vms: Option<ByName<Vm>>,
    vmis: Option<ByName<Vmi>>,
}

/// All known VMs and VMIs of the namespace. `None` = not read.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// VMs by name.
    pub vms: Option<&'a BTreeMap<String, Arc<Vm>>>,
    /// VMIs by name.
    pub vmis: Option<&'a BTreeMap<String, Arc<Vmi>>>,
}

/// A kind of object that the index keeps.
pub trait Kept: Eq + Sized {
    /// Name of the kind's resource.
    const RESOURCE: &'static str;

    /// Name of the object.
    fn name(&self) -> &str;

    /// An object of this name that can't be read: it exists, and nothing else is known of it.
    fn unread(name: &str) -> Self;

    /// The part of a snapshot that has this kind.
    fn by_name(snapshot: &mut Snapshot) -> &mut Option<ByName<Self>>;
}

impl Kept for Vm {
    const RESOURCE: &'static str = WireVm::PLURAL;

    fn name(&self) -> &str {
        &self.name
    }

    fn unread(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn by_name(snapshot: &mut Snapshot) -> &mut Option<ByName<Self>> {
        &mut snapshot.vms
    }
}

impl Kept for Vmi {
    const RESOURCE: &'static str = WireVmi::PLURAL;

    fn name(&self) -> &str {
        &self.name
    }

    fn unread(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn by_name(snapshot: &mut Snapshot) -> &mut Option<ByName<Self>> {
        &mut snapshot.vmis
    }
}

impl MachineIndex {
    /// The current snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Notifies of every change from now on; one notification may stand for several changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Replaces all objects of the kind by these.
    pub fn replace<T: Kept>(&self, objects: impl IntoIterator<Item = T>) {
        let objects =
            objects.into_iter().map(|object| (object.name().to_owned(), Arc::new(object))).collect();
        let mut snapshot = self.lock();
        let kept = T::by_name(&mut snapshot);
        if kept.as_deref() != Some(&objects) {
            *kept = Some(Arc::new(objects));
            self.tell();
        }
    }

    /// Adds or changes one object. Does nothing before all objects were read once.
    pub fn put<T: Kept + Clone>(&self, object: T) {
        let mut snapshot = self.lock();
        if let Some(kept) = T::by_name(&mut snapshot)
            && kept.get(object.name()).is_none_or(|known| **known != object)
        {
            Arc::make_mut(kept).insert(object.name().to_owned(), Arc::new(object));
            self.tell();
        }
    }

    /// What stands for an object that can't be read: what was read of it last, or its name alone. If it were left out, its
    /// VM would be taken for absent.
    pub fn unread<T: Kept + Clone>(&self, name: &str) -> T {
        let known = T::by_name(&mut self.lock()).as_ref().and_then(|kept| kept.get(name).cloned());
        known.map_or_else(|| T::unread(name), |known| (*known).clone())
    }

    /// Removes one object.
    pub fn remove<T: Kept + Clone>(&self, name: &str) {
        let mut snapshot = self.lock();
        if let Some(kept) = T::by_name(&mut snapshot)
            && kept.contains_key(name)
        {
            Arc::make_mut(kept).remove(name);
            self.tell();
        }
    }

    /// Drops a kind that may not be read any more.
    pub fn forget<T: Kept>(&self) {
        let mut snapshot = self.lock();
        if T::by_name(&mut snapshot).take().is_some() {
            self.tell();
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// A snapshot of complete lists.
    pub fn of(machines: Vec<Vm>, instances: Vec<Vmi>) -> Self {
        let index = MachineIndex::default();
        index.replace(machines);
        index.replace(instances);
        index.snapshot()
    }

    /// All objects, to find the VM of a Node.
    pub fn known(&self) -> Known<'_> {
        Known { vms: self.vms.as_deref(), vmis: self.vmis.as_deref() }
    }

    /// One VM.
    pub fn vm(&self, name: &str) -> Seen<Arc<Vm>> {
        seen(self.vms.as_ref(), name)
    }

    /// All VMIs that run.
    pub fn running(&self) -> impl Iterator<Item = &Vmi> + Clone {
        let all = self.vmis.as_deref().into_iter().flat_map(BTreeMap::values).map(|vmi| &**vmi);
        all.filter(|vmi| vmi.phase == Phase::Running)
    }

    /// One VMI.
    pub fn vmi(&self, name: &str) -> Seen<Arc<Vmi>> {
        seen(self.vmis.as_ref(), name)
    }
}

fn seen<T>(by_name: Option<&ByName<T>>, name: &str) -> Seen<Arc<T>> {
    by_name.map_or(Seen::Unseen, |by_name| by_name.get(name).cloned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, status: &str) -> Vm {
        Vm { name: name.into(), printable_status: status.into(), ..Vm::default() }
    }

    #[test]
    fn what_was_not_read_is_not_absent() {
        let index = MachineIndex::default();
        assert_eq!(index.snapshot().vm("a"), Seen::Unseen);
        index.put(vm("a", ""));
        assert_eq!(index.snapshot().vm("a"), Seen::Unseen, "one object is not all");
        index.replace(Vec::<Vm>::new());
        assert_eq!(index.snapshot().vm("a"), Seen::Absent);
        assert_eq!(index.snapshot().vmi("a"), Seen::Unseen, "another kind");
        index.forget::<Vm>();
        assert_eq!(index.snapshot().vm("a"), Seen::Unseen);
    }

    #[test]
    fn only_a_change_is_told() {
        let index = MachineIndex::default();
        let mut receiver = index.changes();
        let mut tells = |what: &dyn Fn(&MachineIndex)| {
            what(&index);
            let told = receiver.has_changed().unwrap();
            receiver.mark_unchanged();
            told
        };
        assert!(tells(&|index| index.replace([vm("a", "x")])));
        assert!(!tells(&|index| index.replace([vm("a", "x")])));
        assert!(!tells(&|index| index.put(vm("a", "x"))));
        assert!(tells(&|index| index.put(vm("a", "y"))));
        assert!(!tells(&|index| index.remove::<Vm>("b")));
        assert!(tells(&|index| index.remove::<Vm>("a")));
        assert!(tells(&|index| index.forget::<Vm>()));
        assert!(!tells(&|index| index.forget::<Vm>()));
    }

    #[test]
    fn what_was_read_last_stands_for_a_vm_that_cannot_be_read() {
        let index = MachineIndex::default();
        assert_eq!(index.unread::<Vm>("a"), vm("a", ""), "its name is known");
        index.replace([vm("a", "Running")]);
        assert_eq!(index.unread::<Vm>("a"), vm("a", "Running"));
        assert_eq!(index.unread::<Vmi>("a"), Vmi { name: "a".into(), ..Vmi::default() });
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let index = MachineIndex::default();
        index.replace([vm("a", "x")]);
        let before = index.snapshot();
        index.remove::<Vm>("a");
        assert!(matches!(before.vm("a"), Seen::Present(_)));
        assert_eq!(index.snapshot().vm("a"), Seen::Absent);
    }
}
