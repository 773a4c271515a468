//! Keeps the index up to date: by watches where RBAC grants them, else by polling.
//!
//! A poll costs one LIST per kind. While a Node needs its VM (it is new, or not ready), the next poll follows soon
//! after the request, otherwise at long intervals. If RBAC refuses to watch, that is logged once, and the watch is
//! tried again after a while, as with every right.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use kube::{ResourceExt, runtime::watcher};
use tokio::{sync::watch as signal, time};

use crate::{
    access::chain,
    call::status_code,
    infra::machines::{
        Vm, Vmi,
        index::{Kept, MachineIndex},
        reads::{InfraReads, PAGE},
        wire::{Machine, Reduced},
    },
    unreadable::Readable,
    watching::watch,
};

/// Pause between polls while nobody needs one.
const IDLE_LOOK: Duration = Duration::from_secs(30);
/// Shortest pause between polls: a hundred new Nodes share one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a refused watch is not tried again: an API server that starts refuses what it allows a moment later. The time
/// doubles with each refusal in a row, up to the longest.
const WATCH_AGAIN: Duration = Duration::from_mins(1);
const WATCH_AGAIN_AT_LAST: Duration = Duration::from_mins(15);

/// Fills an index. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    reads: InfraReads,
    index: Arc<MachineIndex>,
    hurried: Arc<signal::Sender<()>>,
    runs: Arc<AtomicBool>,
}

/// The last error of one kind; each new error is logged once.
#[derive(Default)]
struct LastError {
    said: Option<String>,
}

impl Feed {
    /// Makes a feed for `index`. It reads nothing before it runs.
    pub fn new(reads: InfraReads, index: Arc<MachineIndex>) -> Self {
        Self { reads, index, hurried: Arc::new(signal::Sender::new(())), runs: Arc::default() }
    }

    /// Asks for a fresh poll soon. Does nothing where watches report changes.
    pub fn hurry(&self) {
        self.hurried.send_replace(());
    }

    /// Runs until it is dropped. If several tasks share the feed, the first one runs it for all.
    pub async fn run(&self) {
        if self.runs.swap(true, Ordering::Relaxed) {
            return std::future::pending().await;
        }
        tokio::join!(self.follow::<Vm>(), self.follow::<Vmi>());
    }

    async fn follow<T: Machine>(&self) {
        let (kind, mut pause) = (T::RESOURCE, WATCH_AGAIN);
        loop {
            let began = time::Instant::now();
            self.watch::<T>().await;
            if began.elapsed() > WATCH_AGAIN {
                pause = WATCH_AGAIN;
            }
            if pause == WATCH_AGAIN {
                tracing::info!(
                    kind,
                    "no right to watch in the infra cluster, so they are listed every {IDLE_LOOK:?}, or sooner where a node needs it; the right is asked for again within {WATCH_AGAIN_AT_LAST:?}"
                );
            }
            drop(time::timeout(pause, self.look_again_and_again::<T>()).await);
            pause = (pause * 2).min(WATCH_AGAIN_AT_LAST);
        }
    }

    /// Watches a kind; ends only when RBAC refuses that.
    async fn watch<T: Machine>(&self) {
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = pin!(watch(self.reads.api::<T>(), config, self.reads.reader().clone()));
        let (mut listed, mut trouble) = (Vec::new(), LastError::default());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.push(self.read(object)),
                Ok(watcher::Event::InitDone) => {
                    self.index.replace(std::mem::take(&mut listed));
                    trouble.is_over();
                }
                Ok(watcher::Event::Apply(object)) => self.index.put(self.read(object)),
                Ok(watcher::Event::Delete(object)) => self.index.remove::<T>(&object.name_any()),
                Err(watcher::Error::WatchStartFailed(error)) if status_code(&error) == Some(403) => return,
                Err(error) => {
                    if let watcher::Error::InitialListFailed(cause) = &error
                        && status_code(cause) == Some(403)
                    {
                        self.index.forget::<T>();
                    }
                    trouble.is::<T>(&error);
                }
            }
        }
    }

    /// What is kept of an object, which the watch has reported if it can't be read.
    fn read<T: Machine>(&self, object: Readable<Reduced<T>>) -> T {
        object.0.map_or_else(|odd| self.index.unread(odd.name()), |object| object.kept)
    }

    async fn look_again_and_again<T: Machine>(&self) {
        let (mut hurried, mut trouble) = (self.hurried.subscribe(), LastError::default());
        loop {
            hurried.mark_unchanged();
            match self.reads.list(|name| self.index.unread::<T>(name)).await {
                Ok(objects) => {
                    self.index.replace(objects);
                    trouble.is_over();
                }
                Err(error) => {
                    if error.is_forbidden() {
                        self.index.forget::<T>();
                    }
                    trouble.is::<T>(&error);
                }
            }
            time::sleep(SHORTEST_PAUSE).await;
            // The sender lives as long as this feed; if the time is over, poll as if a poll was requested.
            drop(time::timeout(IDLE_LOOK.saturating_sub(SHORTEST_PAUSE), hurried.changed()).await);
        }
    }
}

impl LastError {
    fn is<T: Kept>(&mut self, error: &(dyn std::error::Error + 'static)) {
        let text = chain(error);
        if self.said.as_ref() != Some(&text) {
            let kind = T::RESOURCE;
            tracing::warn!(
                kind,
                error = text,
                "can't read the infra cluster; Nodes stay as they are, none is deleted"
            );
            self.said = Some(text);
        }
    }

    fn is_over(&mut self) {
        self.said = None;
    }
}
