//! One read for all who ask at the same time: an answer counts for those who asked before its read began, never for later ones.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::error::Error;

type Answer<T> = Result<Arc<T>, Error>;

/// Shares reads of one thing.
struct Coalesced<T> {
    /// Number of the read that began last.
    begun: AtomicU64,
    /// Number and answer of the read that ended last.
    last: tokio::sync::Mutex<Option<(u64, Answer<T>)>>,
}

impl<T> Default for Coalesced<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: tokio::sync::Mutex::new(None) }
    }
}

impl<T> Coalesced<T> {
    /// The answer of a read that began after this call did.
    async fn read<F>(&self, read: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if let Some((number, answer)) = &*last
            && *number > before
        {
            return answer.clone();
        }
        // The old answer is not kept while the next is fetched: a big list is in memory once.
        *last = None;
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = read().await.map(Arc::new);
        *last = Some((number, answer.clone()));
        answer
    }
}

/// Shares reads of things by key. An entry that only the map holds has no reader and is dropped, with its last answer.
pub(crate) struct CoalescedBy<K, T>(Mutex<HashMap<K, Arc<Coalesced<T>>>>);

impl<K, T> Default for CoalescedBy<K, T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Clone + Eq + Hash, T> CoalescedBy<K, T> {
    /// As [`Coalesced::read`], for `key`.
    pub(crate) async fn read<F>(&self, key: &K, read: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let one = {
            let mut all = self.0.lock().expect("no holder of this lock panics");
            Arc::clone(all.entry(key.clone()).or_default())
        };
        let answer = one.read(read).await;
        drop(one);
        self.0.lock().expect("no holder of this lock panics").retain(|_, one| Arc::strong_count(one) > 1);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicUsize, time::Duration};

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
                *shared.read(read).await.unwrap()
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
        let never = tokio::time::timeout(Duration::from_millis(5), shared.read(std::future::pending));
        assert!(never.await.is_err());
        assert_eq!(*shared.read(|| async { Ok(7) }).await.unwrap(), 7);
    }
}
