//! The engine's state: rules in force, calls that they hold, the journal of calls, whether the server is away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    call::Call,
    rule::{Action, Matcher, Rule, Rules},
};

/// The faults of one proxy, and the journal of its calls. Clones name the same proxy.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    away: watch::Sender<u32>,
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    live: Vec<Live>,
    journal: Vec<Entry>,
}

/// The state of a rule: which calls it has caught, and whether it is lifted.
#[derive(Clone, Debug)]
pub(super) struct Live {
    id: u64,
    caught: watch::Sender<u32>,
    lifted: CancellationToken,
}

/// A call that went through a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The call.
    pub call: Call,
    /// Whether a rule met it.
    pub faulted: bool,
    /// The HTTP code of the real server's answer; `None` = it gave none (yet).
    pub landed: Option<u16>,
}

impl Entry {
    /// Whether the real server carried the call out.
    pub fn succeeded(&self) -> bool {
        self.landed.is_some_and(|code| (200..300).contains(&code))
    }
}

/// A rule in force. Dropping it lifts the rule: what it held goes on.
#[derive(Debug)]
#[must_use = "dropping it lifts the rule"]
pub struct Guard {
    faults: Faults,
    live: Live,
}

/// A server that is away. Dropping it brings the server back.
#[derive(Debug)]
#[must_use = "dropping it brings the server back"]
pub struct Away(Faults);

impl Default for Faults {
    fn default() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), away: watch::Sender::new(0) }))
    }
}

impl Faults {
    /// Puts a rule in force.
    pub fn add(&self, rule: Rule) -> Guard {
        let mut state = self.lock();
        let id = state.rules.add(rule);
        let live = Live { id, caught: watch::Sender::new(0), lifted: CancellationToken::new() };
        state.live.push(live.clone());
        Guard { faults: self.clone(), live }
    }

    /// Takes the server away: every connection is cut and no new one is served.
    pub fn away(&self) -> Away {
        self.0.away.send_modify(|count| *count += 1);
        Away(self.clone())
    }

    /// What was called since the proxy began, in the order of arrival.
    pub fn journal(&self) -> Vec<Entry> {
        self.lock().journal.clone()
    }

    /// The calls that `at` selects.
    pub fn calls(&self, at: &Matcher) -> Vec<Entry> {
        self.lock().journal.iter().filter(|entry| at.selects(&entry.call)).cloned().collect()
    }

    /// How many calls that `at` selects the real server carried out.
    pub fn succeeded(&self, at: &Matcher) -> usize {
        self.calls(at).iter().filter(|entry| entry.succeeded()).count()
    }

    /// Notes a call and judges it: its place in the journal, and the fault that it meets.
    pub(super) fn begin(&self, call: Call) -> (usize, Option<(Action, Live)>) {
        let mut state = self.lock();
        let decided = state.rules.decide(&call).and_then(|(id, action)| {
            let live = state.live.iter().find(|live| live.id == id)?;
            Some((action, live.clone()))
        });
        state.journal.push(Entry { call, faulted: decided.is_some(), landed: None });
        (state.journal.len() - 1, decided)
    }

    /// Notes that the real server answered.
    pub(super) fn landed(&self, place: usize, code: u16) {
        self.lock().journal[place].landed = Some(code);
    }

    /// Whether the server is away.
    pub(super) fn is_away(&self) -> bool {
        *self.0.away.borrow() > 0
    }

    /// Ends when the server goes away.
    pub(super) async fn goes_away(&self) {
        let mut away = self.0.away.subscribe();
        // The sender lives as long as `self`.
        away.wait_for(|count| *count > 0).await.ok();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// A call is in the rule's hands now.
    pub(super) fn catch(&self) {
        self.caught.send_modify(|count| *count += 1);
    }

    /// Ends when the rule is lifted.
    pub(super) async fn lifted(&self) {
        self.lifted.cancelled().await;
    }
}

impl Guard {
    /// Waits until the rule has taken effect on `count` calls: a frozen one is frozen then, and with
    /// [`Action::FreezeAfter`] and [`Action::LoseReply`] the server has answered it.
    pub async fn caught(&self, count: u32) {
        let mut caught = self.live.caught.subscribe();
        // The sender lives as long as `self`.
        caught.wait_for(|seen| *seen >= count).await.ok();
    }

    /// On how many calls the rule has taken effect.
    pub fn count(&self) -> u32 {
        *self.live.caught.borrow()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.faults.lock();
        state.rules.remove(self.live.id);
        state.live.retain(|live| live.id != self.live.id);
        drop(state);
        self.live.lifted.cancel();
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.0.away.send_modify(|count| *count -= 1);
    }
}
