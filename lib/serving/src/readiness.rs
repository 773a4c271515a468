//! The named conditions that a program still waits for. The answer of `/readyz` comes from here; nothing is decided
//! here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// The condition that counts as unmet once the program is being stopped.
const STOPPING: &str = "not stopping";

/// The set of conditions that must all hold before the program is ready. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    stop: CancellationToken,
    conditions: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

/// One condition of a [`Readiness`]; it starts as not met.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// A set without conditions, which is never ready after `stop` is cancelled.
    pub fn until(stop: CancellationToken) -> Self {
        Self { stop, conditions: Arc::default() }
    }

    /// Adds a condition. Two with one name are the same condition.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.write(name, false);
        Condition { name, readiness: self.clone() }
    }

    /// The names of the conditions that are not met, in order; empty means ready.
    pub fn unmet(&self) -> Vec<&'static str> {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let unmet = conditions.iter().filter(|(_, met)| !**met).map(|(name, _)| *name);
        unmet.chain(self.stop.is_cancelled().then_some(STOPPING)).collect()
    }

    fn write(&self, name: &'static str, met: bool) {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).insert(name, met);
    }
}

impl Condition {
    /// Sets whether the condition is met now.
    pub fn set(&self, met: bool) {
        self.readiness.write(self.name, met);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_only_when_each_condition_is_met() {
        let readiness = Readiness::default();
        assert!(readiness.unmet().is_empty());
        let socket = readiness.condition("socket");
        let cache = readiness.condition("cache");
        assert_eq!(readiness.unmet(), ["cache", "socket"]);
        socket.set(true);
        assert_eq!(readiness.unmet(), ["cache"]);
        cache.set(true);
        assert!(readiness.unmet().is_empty());
        readiness.stop.cancel();
        assert_eq!(readiness.unmet(), [STOPPING], "at once, whatever holds");
        socket.set(false);
        assert_eq!(readiness.unmet(), ["socket", STOPPING]);
    }
}
