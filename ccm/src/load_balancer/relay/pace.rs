//! How many events of other programs are relayed: a text that is repeated is relayed again only after a while, and the
//! texts of one program about one Service only so many, as client-go's recorder limits its own program
//! (`tools/record/events_cache.go`).

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::announcer::Kind;

/// A text that is repeated is relayed again after this time. The guest's event then has a new time and a higher count, so
/// that a state which lasts does not look over, and is not removed (an API server keeps an event for an hour).
const REPEATED_AFTER: Duration = Duration::from_mins(5);
/// How many events of one source are relayed without a pause (client-go, `defaultSpamBurst`).
const BURST: u32 = 25;
/// After these, one is relayed in this time (client-go, `defaultSpamQPS`, 1/300).
const REFILL: Duration = Duration::from_mins(5);
/// How many sources are kept; above it all are forgotten.
const MOST_KEPT: usize = 10_000;

/// Whose events are counted together. Warnings are counted apart: a stream of other events does not hide them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    /// UID of the guest Service.
    pub(super) service: String,
    /// The program of infra that wrote the event.
    pub(super) component: String,
    /// `type` of the event.
    pub(super) kind: Kind,
}

/// What was relayed of each source.
#[derive(Debug, Default)]
pub(super) struct RelayPace(Mutex<HashMap<Source, Relayed>>);

#[derive(Debug)]
struct Relayed {
    /// How many more may be relayed at once.
    left: u32,
    /// Since when `left` grows.
    since: Instant,
    /// When each text was relayed last, by its hash.
    texts: HashMap<u64, Instant>,
}

impl RelayPace {
    /// Whether to relay an event with this reason and message; if so, it counts.
    pub(super) fn takes(&self, source: Source, text: (&str, &str)) -> bool {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MOST_KEPT && !sources.contains_key(&source) {
            sources.clear();
        }
        sources.entry(source).or_insert_with(Relayed::nothing).takes(text)
    }
}

impl Relayed {
    fn nothing() -> Self {
        Self { left: BURST, since: Instant::now(), texts: HashMap::new() }
    }

    fn takes(&mut self, text: (&str, &str)) -> bool {
        while self.left < BURST && self.since.elapsed() >= REFILL {
            (self.left, self.since) = (self.left + 1, self.since + REFILL);
        }
        self.texts.retain(|_, relayed| relayed.elapsed() < REPEATED_AFTER);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let text = hasher.finish();
        if self.left == 0 || self.texts.contains_key(&text) {
            return false;
        }
        if self.left == BURST {
            self.since = Instant::now();
        }
        self.left -= 1;
        self.texts.insert(text, Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(component: &str, kind: Kind) -> Source {
        Source { service: "u1".to_owned(), component: component.to_owned(), kind }
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_is_relayed_again_only_after_a_while() {
        let pace = RelayPace::default();
        let takes = || pace.takes(source("speaker", Kind::Normal), ("nodeAssigned", "from a"));
        assert!(takes());
        let mut relayed = 0;
        for _ in 0..3600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            relayed += usize::from(takes());
        }
        assert_eq!(relayed, 12, "in an hour of one a second");
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_texts_are_as_many_as_client_go_lets_through() {
        let pace = RelayPace::default();
        let takes =
            |number: u32| pace.takes(source("speaker", Kind::Normal), ("nodeAssigned", &number.to_string()));
        assert_eq!((0..1000).filter(|number| takes(*number)).count(), 25);
        tokio::time::advance(REFILL * 2).await;
        assert_eq!((2000..3000).filter(|number| takes(*number)).count(), 2);
        tokio::time::advance(REFILL * 100).await;
        assert_eq!((4000..5000).filter(|number| takes(*number)).count(), 25, "no more than that is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_noisy_program_hides_no_other_and_no_warning() {
        let pace = RelayPace::default();
        for number in 0..100 {
            pace.takes(source("speaker", Kind::Normal), ("nodeAssigned", &number.to_string()));
        }
        assert!(!pace.takes(source("speaker", Kind::Normal), ("nodeAssigned", "more")));
        assert!(pace.takes(source("speaker", Kind::Warning), ("announceFailed", "why")));
        assert!(pace.takes(source("controller", Kind::Normal), ("IPAllocated", "why")));
        let other = Source { service: "u2".to_owned(), ..source("speaker", Kind::Normal) };
        assert!(pace.takes(other, ("nodeAssigned", "more")), "another Service");
    }

    #[tokio::test]
    async fn a_bounded_number_of_sources_is_kept() {
        let pace = RelayPace::default();
        for number in 0..=MOST_KEPT {
            pace.takes(source(&number.to_string(), Kind::Normal), ("a", "b"));
        }
        assert!(pace.0.lock().unwrap().len() <= MOST_KEPT);
    }
}
