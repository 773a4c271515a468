//! What happened to a Service before this reconcile. Losing it does no harm.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What is kept of each Service, by its UID.
#[derive(Debug, Default)]
pub(super) struct History {
    services: Mutex<HashMap<String, Remembered>>,
}

#[derive(Debug, Default)]
struct Remembered {
    /// Since when it waits for an address.
    without_address: Option<Instant>,
    /// UID of the infra Service that has lost its address, and since when.
    lost_address: Option<(String, Instant)>,
    /// The hash of the refusals that its users were last sent as events. The texts quote what the users wrote.
    told: Option<u64>,
}

impl History {
    /// Records that it waits for an address; returns how long it has waited.
    pub(super) fn waits(&self, uid: &str) -> Duration {
        let mut services = self.lock();
        let service = services.entry(uid.to_owned()).or_default();
        service.without_address.get_or_insert_with(Instant::now).elapsed()
    }

    /// How long it has waited for an address; zero = it does not wait.
    pub(super) fn waited(&self, uid: &str) -> Duration {
        let services = self.lock();
        let since = services.get(uid).and_then(|service| service.without_address);
        since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Ends the wait for an address; returns how long it was.
    pub(super) fn has_address(&self, uid: &str) -> Option<Duration> {
        self.lock().get_mut(uid)?.without_address.take().map(|since| since.elapsed())
    }

    /// Records that the infra Service with the UID `mirror` shows no address; returns how long it has shown none. `None` =
    /// it is another infra Service than the one that lost it.
    pub(super) fn lost_address(&self, uid: &str, mirror: &str) -> Option<Duration> {
        let mut services = self.lock();
        let lost = &mut services.entry(uid.to_owned()).or_default().lost_address;
        let (of, since) = lost.get_or_insert_with(|| (mirror.to_owned(), Instant::now()));
        (of == mirror).then(|| since.elapsed())
    }

    /// Records that the infra Service shows an address.
    pub(super) fn found_address(&self, uid: &str) {
        if let Some(service) = self.lock().get_mut(uid) {
            service.lost_address = None;
        }
    }

    /// Whether these texts differ from those that its users were sent last.
    pub(super) fn is_news(&self, uid: &str, texts: &[String]) -> bool {
        let mut services = self.lock();
        if texts.is_empty() && !services.contains_key(uid) {
            return false;
        }
        let service = services.entry(uid.to_owned()).or_default();
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        let now = (!texts.is_empty()).then(|| hasher.finish());
        let news = std::mem::replace(&mut service.told, now) != now;
        news && !texts.is_empty()
    }

    /// Drops what is kept of it.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Keeps only the Services that still exist: a Service can be deleted without us if somebody removes its finalizer
    /// by hand.
    pub(super) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| is_there(uid));
    }

    /// How many Services wait for an address.
    pub(super) fn waiting(&self) -> usize {
        self.lock().values().filter(|service| service.without_address.is_some()).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Remembered>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_an_address_counts_from_its_first_sight() {
        let history = History::default();
        assert_eq!(history.has_address("a"), None);
        assert_eq!(history.waits("a"), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((history.waits("a"), history.waiting()), (Duration::from_secs(3), 1));
        assert_eq!((history.waited("a"), history.waited("b")), (Duration::from_secs(3), Duration::ZERO));
        assert_eq!(history.has_address("a"), Some(Duration::from_secs(3)));
        assert_eq!((history.has_address("a"), history.waiting()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_address_is_lost_since_it_was_seen_last() {
        let history = History::default();
        history.found_address("a");
        assert!(history.lock().is_empty(), "nothing is kept of a Service that has its address");
        assert_eq!(history.lost_address("a", "m1"), Some(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(history.lost_address("a", "m1"), Some(Duration::from_secs(3)));
        assert_eq!(history.lost_address("a", "m2"), None, "another infra Service never had it");
        history.found_address("a");
        assert_eq!(history.lost_address("a", "m2"), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_those_that_are_gone() {
        let history = History::default();
        history.waits("a");
        history.waits("b");
        history.keep(|uid| uid == "b");
        assert_eq!(history.lock().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_same_words_are_news_once() {
        let history = History::default();
        let words = ["no".to_owned()];
        assert!(!history.is_news("a", &[]));
        assert!(history.is_news("a", &words));
        assert!(!history.is_news("a", &words));
        assert!(!history.is_news("a", &[]), "nothing to say");
        assert!(history.is_news("a", &words), "it came back");
    }
}
