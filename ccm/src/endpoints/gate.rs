//! What the service controller has to know of our slices before it takes a selector away.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::choice::Slices;

/// How far our slices are. The endpoint controller says it, the service controller asks.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    known: Notify,
}

#[derive(Debug, Default)]
struct State {
    work: Work,
    /// UIDs of the guest's Services whose slices are as they should be.
    written: HashSet<String>,
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
    /// Whether slices can be written. True = that is news.
    pub fn set(&self, work: Work) -> bool {
        let mut state = self.lock();
        if work != Work::On {
            state.written.clear();
        }
        if work != Work::Unknown {
            self.known.notify_one();
        }
        std::mem::replace(&mut state.work, work) != work
    }

    /// Waits until it is known whether slices can be written. For one who waits.
    pub async fn wait_until_known(&self) {
        while self.lock().work == Work::Unknown {
            self.known.notified().await;
        }
    }

    /// Whether the slices of the guest's Service with this UID are as they should be. True = that is news.
    pub fn wrote(&self, uid: &str, is_written: bool) -> bool {
        let mut state = self.lock();
        if is_written { state.written.insert(uid.to_owned()) } else { state.written.remove(uid) }
    }

    /// How far the slices of this Service are.
    pub fn slices(&self, uid: &str) -> Slices {
        let state = self.lock();
        match state.work {
            Work::Unknown => Slices::Unknown,
            Work::Off => Slices::Off,
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

    #[test]
    fn a_service_may_lose_its_selector_only_while_slices_are_written() {
        let gate = Gate::default();
        assert_eq!(gate.slices("a"), Slices::Unknown);
        assert!(gate.set(Work::On) && !gate.set(Work::On));
        assert_eq!(gate.slices("a"), Slices::Coming);
        assert!(gate.wrote("a", true) && !gate.wrote("a", true));
        assert_eq!((gate.slices("a"), gate.slices("b")), (Slices::Written, Slices::Coming));
        assert!(gate.set(Work::Off));
        assert_eq!(gate.slices("a"), Slices::Off);
        gate.set(Work::On);
        assert_eq!(gate.slices("a"), Slices::Coming, "what was written before is looked at again");
    }
}
