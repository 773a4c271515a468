//! Threads for work that blocks, and may hang: bounded, of one kind each, and never waited for at shutdown.
//!
//! They are plain threads rather than the runtime's: a runtime that is dropped waits for its own threads, and a thread
//! that hangs in the kernel would delay the end of the process for ever.

use std::{sync::Arc, thread};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use tracing::Span;

use crate::error::{Error, Result};

/// A bounded set of threads.
#[derive(Debug, Clone)]
pub struct Pool {
    name: &'static str,
    size: usize,
    permits: Arc<Semaphore>,
}

impl Pool {
    /// At most `size` jobs at a time.
    pub fn new(name: &'static str, size: usize) -> Self {
        Self { name, size, permits: Arc::new(Semaphore::new(size)) }
    }

    /// The name that was given.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Threads that could start now.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Runs a job on a thread. Waits for a free one until `deadline`, and for the job itself without limit; a caller
    /// that goes away leaves the job running, and its thread taken. If the job panics, its caller gets
    /// [`Error::JobLost`], and its place is free again.
    pub async fn run<T, J>(&self, deadline: Instant, job: J) -> Result<T>
    where
        T: Send + 'static,
        J: FnOnce() -> Result<T> + Send + 'static,
    {
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Error::PoolExhausted { pool: self.name, size: self.size });
        };
        let (sender, receiver) = oneshot::channel();
        // The caller may be gone.
        self.spawn(permit, move || drop(sender.send(job())))?;
        receiver.await.map_err(|_| Error::JobLost)?
    }

    /// Starts a job that nobody waits for, unless all threads are taken; whether it did.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) -> Result<bool> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Ok(false) };
        self.spawn(permit, job)?;
        Ok(true)
    }

    fn spawn(&self, permit: OwnedSemaphorePermit, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let span = Span::current();
        let thread = thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let _permit = permit;
            span.in_scope(job);
        });
        thread.map(drop).map_err(Error::act(format!("start a {} thread", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[tokio::test]
    async fn a_full_pool_says_so_at_the_deadline_and_a_freed_place_is_used_again() {
        let pool = Pool::new("test", 1);
        let (release, held) = mpsc::channel::<()>();
        let (started, wait_started) = oneshot::channel();
        let first = pool.clone();
        let hanging = tokio::spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(10);
            first
                .run(deadline, move || {
                    started.send(()).unwrap();
                    held.recv().unwrap();
                    Ok(1)
                })
                .await
        });
        wait_started.await.unwrap();
        let error = pool.run(Instant::now() + Duration::from_millis(20), || Ok(2)).await.unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { pool: "test", size: 1 }), "{error:?}");
        release.send(()).unwrap();
        assert_eq!(hanging.await.unwrap().unwrap(), 1);
        assert_eq!(pool.run(Instant::now() + Duration::from_secs(10), || Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_lost_and_its_place_is_free_again() {
        let pool = Pool::new("test", 1);
        let soon = || Instant::now() + Duration::from_secs(10);
        let lost = pool.run::<(), _>(soon(), || panic!("on purpose")).await.unwrap_err();
        assert!(matches!(lost, Error::JobLost));
        assert_eq!(pool.run(soon(), || Ok(1)).await.unwrap(), 1);
    }
}
