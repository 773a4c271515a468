//! A watch of VMIs for the poller: each event carries the state of one VMI, and the end of the initial events proves
//! which VMIs do not exist.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use cluster::{Error, Readable};
use futures::{Stream, TryStreamExt};
use kube::core::WatchEvent;
use kubevirt::ObjectName;
use tokio::time::{Instant, sleep_until};

use crate::{
    machine::VirtualMachineInstance,
    reader::{Reader, VMIS, VmiEvent},
};

/// How long one watch lasts. Then the poller reads again, which also ends a connection that died without notice.
const LASTING: Duration = Duration::from_secs(30);
/// The server ends a watch in time. If it has not after this much longer, the connection is dead.
const OVERTIME: Duration = Duration::from_secs(5);
/// The bookmark after the last initial event carries this annotation (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The result of reading one VMI; `None` = there is no such VMI.
pub(crate) type Look = Result<Option<Arc<VirtualMachineInstance>>, Error>;
/// Name and state of a VMI.
pub(crate) type VmiState = (String, Look);

/// An open watch.
pub(crate) struct VmiWatch {
    events: Pin<Box<dyn Stream<Item = VmiEvent> + Send>>,
    /// Reports the VMIs that can't be read.
    odd: cluster::Reader,
    /// When the watch was requested: its events count for every wait that had begun by then.
    pub began: Instant,
    /// The watched VMIs that no initial event has shown yet.
    unseen: BTreeSet<String>,
    /// The VMIs that the end of the initial events proved absent and that [`Self::next`] has not returned yet.
    absent: Vec<String>,
}

impl VmiWatch {
    /// Watches `names`, which are sorted and not empty.
    pub(crate) async fn open(reader: &Reader, names: &[ObjectName]) -> Result<Self, Error> {
        let began = Instant::now();
        let only = if let [name] = names { Some(name) } else { None };
        let events = Box::pin(reader.watch_vmis(only, LASTING).await?);
        let unseen = names.iter().map(|name| name.as_str().to_owned()).collect();
        Ok(Self { events, odd: reader.odd.clone(), began, unseen, absent: Vec::new() })
    }

    /// Returns the next state; `None` when the watch has ended and a new one is due. The future may be dropped at any
    /// time.
    pub(crate) async fn next(&mut self) -> Result<Option<VmiState>, Error> {
        let over = self.began + LASTING + OVERTIME;
        loop {
            if let Some(name) = self.absent.pop() {
                return Ok(Some((name, Ok(None))));
            }
            let event = tokio::select! {
                event = self.events.try_next() => event?,
                () = sleep_until(over) => None,
            };
            match event {
                None => return Ok(None),
                Some(WatchEvent::Added(vmi) | WatchEvent::Modified(vmi)) => {
                    let (name, look) = self.look(vmi);
                    if name.is_empty() && look.is_err() {
                        // It may be one of those that are waited for.
                        return look.map(|_| None);
                    }
                    self.unseen.remove(&name);
                    return Ok(Some((name, look)));
                }
                // One that is gone need not be readable.
                Some(WatchEvent::Deleted(vmi)) => return Ok(Some((self.look(vmi).0, Ok(None)))),
                Some(WatchEvent::Bookmark(mark)) => {
                    if mark.metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        self.absent.extend(std::mem::take(&mut self.unseen));
                    }
                }
                // The version is too old, or the server is shutting down: neither applies to a new watch.
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
    /// Name and state of a VMI. One that can't be read is an error for those alone who wait for it.
    fn look(&self, vmi: Readable<VirtualMachineInstance>) -> VmiState {
        match self.odd.read_of(VMIS.plural, vmi) {
            Ok(vmi) => (vmi.name.clone(), Ok(Some(Arc::new(vmi)))),
            Err(odd) => (odd.name().to_owned(), Err(odd.to_error("watch", VMIS.plural))),
        }
    }
}
