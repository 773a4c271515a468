//! Waiting without a watch, which the granted role does not hold: one poller per process, running only while someone waits.
//!
//! It looks at one VMI with a GET and at several with one paged LIST, soon after somebody began to wait and then ever more
//! slowly. Every waiter gets every fresh look at its VMI (the latest, where it is slower than the poller).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{error::Error, infra::Reader, machine::VirtualMachineInstance, object::ObjectName};

/// First look after somebody began to wait (design §3a).
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Longest pause between looks during the first minute of a wait (design §3a).
const SLOW_LOOK: Duration = Duration::from_secs(1);
/// Pause between looks after that (design §3a).
const SLOWEST_LOOK: Duration = Duration::from_secs(2);
/// Length of the first minute.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a look at one VMI gave; `None` = there is no such VMI.
type Look = Result<Option<Arc<VirtualMachineInstance>>, Error>;

/// Looks at VMIs for all who wait.
pub(crate) struct Poller {
    reader: Arc<Reader>,
    state: Mutex<State>,
    /// Somebody new waits: the pause under way may be too long for them.
    joined: Notify,
}

#[derive(Default)]
struct State {
    next_id: u64,
    waiters: HashMap<u64, Waiter>,
    running: bool,
}

struct Waiter {
    name: ObjectName,
    since: Instant,
    sender: watch::Sender<Option<Look>>,
}

/// A wait for one VMI; dropping it ends the wait.
pub struct VmiWait {
    poller: Arc<Poller>,
    id: u64,
    receiver: watch::Receiver<Option<Look>>,
}

impl VmiWait {
    /// The next look that began after this wait did; `None` where there is no such VMI.
    ///
    /// # Panics
    /// Never: the poller keeps the sending half as long as this wait lives.
    pub async fn next(&mut self) -> Result<Option<Arc<VirtualMachineInstance>>, Error> {
        self.receiver.changed().await.expect("the poller keeps the sender until this wait is dropped");
        self.receiver.borrow_and_update().clone().expect("a change carries a look")
    }
}

impl Drop for VmiWait {
    fn drop(&mut self) {
        self.poller.lock().waiters.remove(&self.id);
    }
}

impl Poller {
    pub(crate) fn new(reader: Arc<Reader>) -> Arc<Self> {
        Arc::new(Self { reader, state: Mutex::new(State::default()), joined: Notify::new() })
    }

    /// Begins to wait; starts the poller when nobody waited.
    pub(crate) fn wait(self: &Arc<Self>, name: &ObjectName) -> VmiWait {
        let (sender, receiver) = watch::channel(None);
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.waiters.insert(id, Waiter { name: name.clone(), since: Instant::now(), sender });
        if state.running {
            self.joined.notify_one();
        } else {
            state.running = true;
            tokio::spawn(Arc::clone(self).run());
        }
        VmiWait { poller: Arc::clone(self), id, receiver }
    }

    async fn run(self: Arc<Self>) {
        let mut last_look = Instant::now();
        let mut effort = Duration::ZERO;
        loop {
            let Some(youngest) = self.youngest() else { return };
            let due = last_look.max(youngest) + pause(youngest.elapsed()).max(effort);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.joined.notified() => continue,
            }
            let began = Instant::now();
            self.look(began).await;
            last_look = Instant::now();
            // Looks take at most half of the time, however slow the infra API is.
            effort = last_look - began;
        }
    }

    /// When the youngest wait began; `None` ends the poller, in the same critical section in which it marks itself ended.
    fn youngest(&self) -> Option<Instant> {
        let mut state = self.lock();
        let youngest = state.waiters.values().map(|waiter| waiter.since).max();
        state.running = youngest.is_some();
        youngest
    }

    async fn look(&self, began: Instant) {
        let mut names: Vec<_> = self.lock().waiters.values().map(|waiter| waiter.name.clone()).collect();
        names.sort();
        names.dedup();
        let seen: Result<HashMap<String, _>, Error> = match names.as_slice() {
            [] => return,
            [name] => {
                let vmi = self.reader.vmi(name).await;
                vmi.map(|vmi| vmi.into_iter().map(|vmi| (vmi.name.clone(), Arc::new(vmi))).collect())
            }
            _ => {
                let vmis = self.reader.vmis().await;
                vmis.map(|vmis| vmis.into_iter().map(|vmi| (vmi.name.clone(), Arc::new(vmi))).collect())
            }
        };
        let state = self.lock();
        // Who joined during the look waits for the next one: this one began before.
        let waiters =
            state.waiters.values().filter(|w| w.since <= began && names.binary_search(&w.name).is_ok());
        for waiter in waiters {
            let look =
                seen.as_ref().map(|vmis| vmis.get(waiter.name.as_str()).cloned()).map_err(Clone::clone);
            waiter.sender.send_replace(Some(look));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

/// Pause before the next look, by how long the youngest wait has lasted: looks come after 50, 150, 350, 750 ms, then each
/// second, after a minute every other.
fn pause(age: Duration) -> Duration {
    if age >= PATIENCE { SLOWEST_LOOK } else { (age + FIRST_LOOK).min(SLOW_LOOK) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_and_then_slowly() {
        let mut at = Duration::ZERO;
        let looks: Vec<_> = (0..8)
            .map(|_| {
                at += pause(at);
                at.as_millis()
            })
            .collect();
        assert_eq!(looks, [50, 150, 350, 750, 1550, 2550, 3550, 4550]);
        assert_eq!(pause(Duration::from_secs(61)), SLOWEST_LOOK);
    }
}
