//! A watch of VMIs as the poller uses it: each event tells the state of one instance, the end of the initial ones tells which
//! instances do not exist.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use cluster::Error;
use futures::{Stream, TryStreamExt};
use kube::core::WatchEvent;
use tokio::time::{Instant, sleep_until};

use crate::{machine::VirtualMachineInstance, object::ObjectName, reader::Reader};

/// How long one watch lasts; then the poller looks afresh, which also ends a connection that died without a word.
const LASTING: Duration = Duration::from_secs(30);
/// The server ends the watch in time; when it does not, the connection is dead.
const OVERTIME: Duration = Duration::from_secs(5);
/// The bookmark after the last initial event carries this annotation (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What is now known of an instance; `None` = it does not exist.
pub(crate) type State = (String, Option<Arc<VirtualMachineInstance>>);

/// A watch under way.
pub(crate) struct VmiWatch {
    events: Pin<Box<dyn Stream<Item = Result<WatchEvent<VirtualMachineInstance>, Error>> + Send>>,
    /// When it was asked for: it counts for those who waited already.
    pub began: Instant,
    /// The instances that it is about and that no initial event has shown yet.
    unseen: BTreeSet<String>,
    /// Of which the end of the initial events proved that they do not exist.
    absent: Vec<String>,
}

impl VmiWatch {
    /// Watches `names`, which are sorted and not empty.
    pub(crate) async fn open(reader: &Reader, names: &[ObjectName]) -> Result<Self, Error> {
        let began = Instant::now();
        let only = if let [name] = names { Some(name) } else { None };
        let events = Box::pin(reader.watch_vmis(only, LASTING).await?);
        let unseen = names.iter().map(|name| name.as_str().to_owned()).collect();
        Ok(Self { events, began, unseen, absent: Vec::new() })
    }

    /// The next state; `None` when the watch is over and a fresh one is due. May be dropped at any time.
    pub(crate) async fn next(&mut self) -> Result<Option<State>, Error> {
        let over = self.began + LASTING + OVERTIME;
        loop {
            if let Some(name) = self.absent.pop() {
                return Ok(Some((name, None)));
            }
            let event = tokio::select! {
                event = self.events.try_next() => event?,
                () = sleep_until(over) => None,
            };
            match event {
                None => return Ok(None),
                Some(WatchEvent::Added(vmi) | WatchEvent::Modified(vmi)) => {
                    self.unseen.remove(&vmi.name);
                    return Ok(Some((vmi.name.clone(), Some(Arc::new(vmi)))));
                }
                Some(WatchEvent::Deleted(vmi)) => return Ok(Some((vmi.name, None))),
                Some(WatchEvent::Bookmark(mark)) => {
                    if mark.metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        self.absent.extend(std::mem::take(&mut self.unseen));
                    }
                }
                // Too old a version, or a server that is shutting down: a fresh watch has none of this.
                Some(WatchEvent::Error(status)) => {
                    tracing::debug!(
                        code = status.code,
                        "the watch of VM instances ended: {}",
                        status.message
                    );
                    return Ok(None);
                }
            }
        }
    }
}
