//! Who writes the endpoints of an infra Service: the configuration decides, never the rights. Also the progress of our
//! own slices, which the service controller must know before it removes a selector.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What the cloud-config sets for endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointChoice {
    /// `loadBalancer.selectorless`: no infra Service has a selector.
    pub selectorless: bool,
    /// `loadBalancer.enableEPSController`: the CCM writes the endpoints of Services with policy Local, and of all
    /// without a selector.
    pub slices_for_local: bool,
    /// `loadBalancer.endpoints: Managed`: the CCM writes the endpoints of all Services.
    pub slices_for_all: bool,
}

/// Who writes the endpoints of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Infra's own controllers, by the selector.
    Infra,
    /// Another program; the CCM changes nothing.
    Others,
    /// The CCM.
    Ours,
}

/// The progress of our own slices of one Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slices {
    /// They are written.
    #[default]
    Written,
    /// They will be written soon.
    Coming,
    /// It is not known yet whether the CCM can write them.
    Unknown,
    /// The CCM can't write them: a right is missing, the endpoint controller is switched off, or a VM's address is not
    /// proved.
    Off,
}

/// Where the endpoints of one Service come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointSource {
    /// The configuration.
    pub choice: EndpointChoice,
    /// The progress of our own slices.
    pub slices: Slices,
}

impl EndpointChoice {
    /// Who writes the endpoints of a Service; `local` = its traffic policy is Local.
    pub fn writer(self, local: bool) -> Writer {
        if self.slices_for_all || (self.slices_for_local && (local || self.selectorless)) {
            Writer::Ours
        } else if self.selectorless {
            Writer::Others
        } else {
            Writer::Infra
        }
    }

    /// Whether the CCM writes the endpoints of any Service.
    pub fn is_ours(self) -> bool {
        self.slices_for_all || self.slices_for_local
    }
}

impl EndpointSource {
    /// Whether the infra Service should have a selector. `has` tells whether the existing one has a selector.
    ///
    /// A Service loses its selector only after our slices are written, so that it has endpoints at all times. A Service
    /// for which nobody could write endpoints has its selector.
    pub fn wants_selector(self, local: bool, has: Option<bool>) -> bool {
        match (self.choice.writer(local), self.slices) {
            (Writer::Infra, _) | (Writer::Ours, Slices::Off) => true,
            (Writer::Others, _) | (Writer::Ours, Slices::Written) => false,
            (Writer::Ours, Slices::Coming) => has.unwrap_or(false),
            (Writer::Ours, Slices::Unknown) => has.unwrap_or(true),
        }
    }
}

/// The progress of our slices. The endpoint controller reports it, the service controller reads it.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    known: Notify,
}

#[derive(Debug, Default)]
struct State {
    work: Work,
    /// UIDs of the guest Services whose slices are as they should be.
    written: HashSet<String>,
    /// UIDs of those for which no slices are written, because addresses of VMs are not proved.
    unproved: HashSet<String>,
}

/// Whether slices can be written at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Not known yet.
    #[default]
    Unknown,
    /// They are written.
    On,
    /// Switched off, or a right is missing.
    Off,
}

impl Gate {
    /// Records whether slices can be written. Returns true if this changed.
    pub fn set(&self, work: Work) -> bool {
        let mut state = self.lock();
        if work != Work::On {
            state.written.clear();
            state.unproved.clear();
        }
        if work != Work::Unknown {
            self.known.notify_one();
        }
        std::mem::replace(&mut state.work, work) != work
    }

    /// Waits until it is known whether slices can be written.
    pub async fn wait_until_known(&self) {
        while self.lock().work == Work::Unknown {
            self.known.notified().await;
        }
    }

    /// Records whether the slices of the guest Service with this UID are as they should be. Returns true if this
    /// changed.
    pub fn wrote(&self, uid: &str, is_written: bool) -> bool {
        let mut state = self.lock();
        if is_written { state.written.insert(uid.to_owned()) } else { state.written.remove(uid) }
    }

    /// Records whether the slices of the guest Service with this UID can't be written because addresses of VMs are not
    /// proved. Returns true if this changed.
    pub fn unproved(&self, uid: &str, is_unproved: bool) -> bool {
        let mut state = self.lock();
        if is_unproved { state.unproved.insert(uid.to_owned()) } else { state.unproved.remove(uid) }
    }

    /// Keeps only the guest Services that still exist.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        state.written.retain(|uid| is_there(uid));
        state.unproved.retain(|uid| is_there(uid));
    }

    /// The progress of the slices of this Service.
    pub fn slices(&self, uid: &str) -> Slices {
        let state = self.lock();
        match state.work {
            Work::Unknown => Slices::Unknown,
            Work::Off => Slices::Off,
            Work::On if state.unproved.contains(uid) => Slices::Off,
            Work::On if state.written.contains(uid) => Slices::Written,
            Work::On => Slices::Coming,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const fn choice(selectorless: bool, slices_for_local: bool, slices_for_all: bool) -> EndpointChoice {
        EndpointChoice { selectorless, slices_for_local, slices_for_all }
    }

    #[rstest]
    #[case::nothing_set(choice(false, false, false), Writer::Infra, Writer::Infra)]
    #[case::hypershift(choice(true, false, false), Writer::Others, Writer::Others)]
    #[case::reference(choice(false, true, false), Writer::Infra, Writer::Ours)]
    #[case::cozystack(choice(true, true, false), Writer::Ours, Writer::Ours)]
    #[case::managed(choice(false, false, true), Writer::Ours, Writer::Ours)]
    #[case::managed_wins(choice(true, false, true), Writer::Ours, Writer::Ours)]
    fn the_configuration_decides(
        #[case] choice: EndpointChoice,
        #[case] cluster: Writer,
        #[case] local: Writer,
    ) {
        assert_eq!((choice.writer(false), choice.writer(true)), (cluster, local));
    }

    #[rstest]
    #[case(Slices::Written, Some(true), false)]
    #[case(Slices::Coming, Some(true), true)]
    #[case(Slices::Coming, Some(false), false)]
    #[case(Slices::Coming, None, false)]
    #[case(Slices::Unknown, Some(true), true)]
    #[case(Slices::Unknown, Some(false), false)]
    #[case(Slices::Unknown, None, true)]
    #[case(Slices::Off, Some(false), true)]
    fn a_selector_goes_when_our_slices_are_there(
        #[case] slices: Slices,
        #[case] has: Option<bool>,
        #[case] wants: bool,
    ) {
        let source = EndpointSource { choice: choice(false, false, true), slices };
        assert_eq!(source.wants_selector(false, has), wants);
        let others = EndpointSource { choice: choice(true, false, false), slices };
        assert!(!others.wants_selector(false, has), "rights decide nothing where others write");
    }

    #[test]
    fn a_service_may_lose_its_selector_only_while_slices_are_written() {
        let gate = Gate::default();
        assert_eq!(gate.slices("a"), Slices::Unknown);
        assert!(gate.set(Work::On) && !gate.set(Work::On));
        assert_eq!(gate.slices("a"), Slices::Coming);
        assert!(gate.wrote("a", true) && !gate.wrote("a", true));
        assert_eq!((gate.slices("a"), gate.slices("b")), (Slices::Written, Slices::Coming));
        assert!(gate.unproved("a", true) && !gate.unproved("a", true));
        assert_eq!((gate.slices("a"), gate.slices("b")), (Slices::Off, Slices::Coming));
        assert!(gate.unproved("a", false) && !gate.unproved("b", false));
        gate.unproved("gone", true);
        gate.wrote("gone", true);
        gate.keep(|uid| uid != "gone");
        assert_eq!((gate.slices("a"), gate.slices("gone")), (Slices::Written, Slices::Coming));
        assert!(gate.set(Work::Off));
        assert_eq!(gate.slices("a"), Slices::Off);
        gate.set(Work::On);
        assert_eq!(gate.slices("a"), Slices::Coming, "what was written before is checked again");
    }
}
