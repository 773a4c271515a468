//! The one watch of the guest's Nodes, for all controllers that read them.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt};
use kube::{
    Api, ResourceExt,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{
            ObjectRef, Store,
            store::{Writer, store},
        },
        watcher::{self, Event},
    },
};
use serving::Tasks;
use tokio::sync::{Notify, watch};

use crate::{
    access::{GuestCluster, chain},
    call::{is_watch_answered, is_watch_forbidden},
    changes::{Changes, Subscription},
    guest::nodes::WireNode,
    unreadable::Readable,
    watching::watch_known,
};

/// Nodes per page of a list: a whole Node takes some tens of KiB on the wire.
const PAGE: u32 = 20;

/// The guest's Nodes as the watch shows them. Clones share the watch.
#[derive(Clone)]
pub struct NodeWatch(Arc<Shared>);

struct Shared {
    guest: GuestCluster,
    tasks: Tasks,
    nodes: Store<WireNode>,
    /// Taken by the start.
    writer: Mutex<Option<Writer<WireNode>>>,
    /// By name.
    changes: Changes<String>,
    listing: watch::Sender<Listing>,
    /// Whether the API server has not answered since the watch failed.
    failing: AtomicBool,
    /// Has a new value with each answer of the API server.
    answers: watch::Sender<()>,
    refused: Notify,
    retry: Notify,
}

/// Whether the Nodes are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listing {
    /// Not yet.
    #[default]
    Pending,
    /// They can't be read, and never could.
    Failed,
    /// All are known; if the watch fails now, they stay as they are.
    Complete,
}

impl NodeWatch {
    /// A watch of the Nodes of `guest`, as one of `tasks`. It reads nothing before it is started.
    pub fn new(guest: &GuestCluster, tasks: Tasks) -> Self {
        let (nodes, writer) = store();
        Self(Arc::new(Shared {
            guest: guest.clone(),
            tasks,
            nodes,
            writer: Mutex::new(Some(writer)),
            changes: Changes::default(),
            listing: watch::Sender::default(),
            failing: AtomicBool::new(false),
            answers: watch::Sender::default(),
            refused: Notify::new(),
            retry: Notify::new(),
        }))
    }

    /// Starts the watch, unless another controller has started it.
    pub fn start(&self) {
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            self.0.tasks.spawn("the watch of the guest's Nodes", self.clone().follow(writer));
        }
    }

    /// The Nodes, for kube's applier.
    pub(crate) fn store(&self) -> Store<WireNode> {
        self.0.nodes.clone()
    }

    /// All Nodes.
    pub(crate) fn all(&self) -> Vec<Arc<WireNode>> {
        self.0.nodes.state()
    }

    /// One Node.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<WireNode>> {
        self.0.nodes.get(&ObjectRef::new(name))
    }

    /// Receives the names of the Nodes that are there now, and of each that changes or is deleted from now on.
    pub(crate) fn subscribe(&self) -> Subscription<String> {
        let subscription = self.0.changes.subscribe();
        subscription.add(self.names());
        subscription
    }

    /// Whether the Nodes are known.
    pub(crate) fn listing(&self) -> Listing {
        *self.0.listing.borrow()
    }

    /// Waits until the Nodes are known, or known to be unreadable.
    pub(crate) async fn wait_until_listed(&self) {
        self.wait_for(|listing| listing != Listing::Pending).await;
    }

    /// Waits until the Nodes are known.
    pub(crate) async fn wait_until_complete(&self) {
        self.wait_for(|listing| listing == Listing::Complete).await;
    }

    /// Waits until the Nodes are known, and, if the watch fails, until the API server has answered again: a Node may be gone
    /// since.
    pub(crate) async fn wait_until_current(&self) {
        let mut answers = self.0.answers.subscribe();
        self.wait_until_complete().await;
        if self.0.failing.load(Ordering::Relaxed) {
            // The sender lives as long as `self`, so the case that it ends does not occur.
            drop(answers.changed().await);
        }
    }

    async fn wait_for(&self, condition: impl Fn(Listing) -> bool) {
        // The sender lives as long as `self`, so the case that it ends does not occur.
        drop(self.0.listing.subscribe().wait_for(|listing| condition(*listing)).await);
    }

    /// Waits until the API server refuses the watch because a right is missing.
    pub(crate) async fn refused(&self) {
        self.0.refused.notified().await;
    }

    /// Ends the pause after a failure, if there is one: the caller knows that the right is there.
    pub(crate) fn retry(&self) {
        if self.0.failing.load(Ordering::Relaxed) {
            self.0.retry.notify_waiters();
        }
    }

    fn names(&self) -> Vec<String> {
        self.all().iter().map(|node| node.name_any()).collect()
    }

    /// Keeps the Nodes up to date, without end.
    async fn follow(self, mut writer: Writer<WireNode>) {
        let api: Api<Readable<WireNode>> = Api::all(self.0.guest.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        loop {
            let last = |meta: &ObjectMeta| self.get(meta.name.as_deref()?).map(|node| (*node).clone());
            let events = watch_known(api.clone(), config.clone(), self.0.guest.reader.clone(), last);
            let events = events.modify(WireNode::strip);
            tokio::select! {
                () = self.keep(events, &mut writer) => {}
                () = self.0.retry.notified() => {}
            }
        }
    }

    /// Keeps what this watch shows.
    async fn keep(
        &self,
        events: impl Stream<Item = watcher::Result<Event<WireNode>>>,
        writer: &mut Writer<WireNode>,
    ) {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    self.apply(&event, writer);
                    if is_watch_answered(&event) {
                        self.0.failing.store(false, Ordering::Relaxed);
                        self.0.answers.send_replace(());
                    }
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn apply(&self, event: &Event<WireNode>, writer: &mut Writer<WireNode>) {
        let mut changed = match event {
            Event::Init | Event::InitApply(_) => return writer.apply_watcher_event(event),
            Event::Apply(node) | Event::Delete(node) => vec![node.name_any()],
            // After a gap in the watch, only its absence shows that a Node was deleted, and any other may have changed.
            Event::InitDone => self.names(),
        };
        writer.apply_watcher_event(event);
        let is_list = matches!(event, Event::InitDone);
        if is_list {
            changed.extend(self.names());
        }
        // Whoever waits for the list has the notices of all Nodes then.
        self.0.changes.notify(&changed);
        if is_list {
            self.0.listing.send_replace(Listing::Complete);
        }
    }

    fn failed(&self, error: &watcher::Error) {
        if self.0.failing.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "the watch of nodes fails still");
        } else {
            tracing::warn!(
                error = chain(error),
                "the guest's nodes can't be watched; what is known of them stays"
            );
        }
        self.0.listing.send_if_modified(|listing| {
            let is_first = *listing == Listing::Pending;
            if is_first {
                *listing = Listing::Failed;
            }
            is_first
        });
        if is_watch_forbidden(error) {
            self.0.refused.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
