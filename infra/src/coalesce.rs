//! One read for all callers that ask at the same time. A caller states from which moment on a read counts, so it can
//! also use what another caller has just read.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use cluster::Error;
use tokio::time::Instant;

type Answer<T> = Result<Arc<T>, Error>;

/// Shares reads of one thing.
pub(crate) struct Coalesced<T> {
    /// When the last finished read began, and its answer.
    last: tokio::sync::Mutex<Option<(Instant, Answer<T>)>>,
}

impl<T> Default for Coalesced<T> {
    fn default() -> Self {
        Self { last: tokio::sync::Mutex::new(None) }
    }
}

impl<T> Coalesced<T> {
    /// Returns the answer of a read that began after `since`, and when that read began.
    pub(crate) async fn read_since<F>(
        &self,
        since: Instant,
        read: impl FnOnce() -> F,
    ) -> Result<(Instant, Arc<T>), Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = self.last.lock().await;
        if let Some((began, answer)) = &*last
            && *began > since
        {
            return answer.clone().map(|answer| (*began, answer));
        }
        // The old answer is dropped before the next read, so that memory holds a big list only once.
        *last = None;
        let began = Instant::now();
        let answer = read().await.map(Arc::new);
        *last = Some((began, answer.clone()));
        answer.map(|answer| (began, answer))
    }
}

/// Shares reads of many things, by key. An entry that only the map holds is dropped, with its last answer.
pub(crate) struct CoalescedBy<K, T>(Mutex<HashMap<K, Arc<Coalesced<T>>>>);

impl<K, T> Default for CoalescedBy<K, T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Clone + Eq + Hash, T> CoalescedBy<K, T> {
    /// The reads of `key`. Their answers are kept as long as a caller holds the returned value.
    pub(crate) fn of(&self, key: &K) -> Arc<Coalesced<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, one| Arc::strong_count(one) > 1);
        Arc::clone(all.entry(key.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    #[tokio::test]
    async fn readers_that_ask_during_a_read_share_the_next_one() {
        let shared = Arc::new(Coalesced::<usize>::default());
        let reads = Arc::new(AtomicUsize::new(0));
        let ask = |shared: Arc<Coalesced<usize>>, reads: Arc<AtomicUsize>| {
            tokio::spawn(async move {
                let read = || async {
                    let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(number)
                };
                *shared.read_since(Instant::now(), read).await.unwrap().1
            })
        };
        let first = ask(shared.clone(), reads.clone());
        tokio::task::yield_now().await;
        let later: Vec<_> = (0..10).map(|_| ask(shared.clone(), reads.clone())).collect();
        assert_eq!(first.await.unwrap(), 1);
        for reader in later {
            assert_eq!(reader.await.unwrap(), 2, "a read that began before the question does not answer it");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_does_not_block_the_next() {
        let shared = Coalesced::<usize>::default();
        let never = tokio::time::timeout(
            Duration::from_millis(5),
            shared.read_since(Instant::now(), std::future::pending),
        );
        assert!(never.await.is_err());
        assert_eq!(*shared.read_since(Instant::now(), || async { Ok(7) }).await.unwrap().1, 7);
    }

    #[tokio::test]
    async fn who_is_content_with_an_earlier_moment_gets_what_is_there() {
        let all = CoalescedBy::<u8, usize>::default();
        let (one, asked) = (all.of(&1), Instant::now());
        let (began, _) = one.read_since(asked, || async { Ok(1) }).await.unwrap();
        let same = all.of(&1).read_since(asked, || async { Ok(2) }).await.unwrap();
        assert_eq!((same.0, *same.1), (began, 1));
        assert_eq!(*all.of(&2).read_since(asked, || async { Ok(3) }).await.unwrap().1, 3, "another key");
        assert_eq!(*one.read_since(began, || async { Ok(4) }).await.unwrap().1, 4, "not newer than it");
        drop(one);
        assert_eq!(*all.of(&1).read_since(asked, || async { Ok(5) }).await.unwrap().1, 5, "nobody kept it");
    }
}
