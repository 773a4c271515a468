//! Waits for VMIs: one poller per process, which runs only while there are waits.
//!
//! The usual role grants no `watch`. So the poller reads one VMI with a GET and several with one paged LIST: soon after
//! a wait began, then ever more slowly. Where `watch` on VMIs is granted, the poller keeps one watch open instead. A
//! watch starts with the present state of the VMIs, and the poller opens a new one only for a wait that began after it.
//! Every waiter gets every fresh read of its VMI, or only the latest where it is slower than the poller.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cluster::{Class, Error};
use kubevirt::ObjectName;
use serving::Tasks;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    list::Listed,
    machine::VirtualMachineInstance,
    reader::{Reader, VMIS},
    shared_reads::SharedReads,
    vmi_watch::{Look, VmiState, VmiWatch},
};

/// Pause before the first read of a wait.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Longest pause between reads during the first minute of a wait.
const SLOW_LOOK: Duration = Duration::from_secs(1);
/// Pause between reads after the first minute.
const SLOWEST_LOOK: Duration = Duration::from_secs(2);
/// Length of the first minute.
const PATIENCE: Duration = Duration::from_mins(1);
/// Above this many recent waits, reads are at least [`SLOW_LOOK`] apart. This happens when volume after volume begins
/// to wait for one VM, whose object grows with each: a new read for every one of them would take capacity of the API
/// server from the changes. A lone volume makes two waits: its own and that of its VM's queue.
const CROWD: usize = 4;
/// A wait is recent if it began within this time.
const LATELY: Duration = Duration::from_secs(5);

/// Reads VMIs for all waits.
pub(crate) struct Poller {
    reader: Arc<Reader>,
    reads: SharedReads,
    tasks: Tasks,
    state: Mutex<State>,
    /// Notified when a wait begins: the pause under way may be too long for it.
    joined: Notify,
    /// Whether the right to watch VMIs is granted.
    watches: AtomicBool,
}

#[derive(Default)]
struct State {
    next_id: u64,
    waiters: HashMap<u64, Waiter>,
    running: bool,
}

struct Waiter {
    name: ObjectName,
    since: Instant,
    sender: watch::Sender<Option<Look>>,
}

/// A wait for one VMI; dropping it ends the wait.
pub struct VmiWait {
    poller: Arc<Poller>,
    id: u64,
    receiver: watch::Receiver<Option<Look>>,
}

impl VmiWait {
    /// Returns the result of the next read that began after this wait did; `None` where there is no such VMI.
    ///
    /// # Panics
    /// Never: the poller keeps the sending half as long as this wait lives.
    pub async fn next(&mut self) -> Result<Option<Arc<VirtualMachineInstance>>, Error> {
        self.receiver.changed().await.expect("the poller keeps the sender until this wait is dropped");
        self.receiver.borrow_and_update().clone().expect("a change carries a result")
    }
}

impl Drop for VmiWait {
    fn drop(&mut self) {
        self.poller.lock().waiters.remove(&self.id);
    }
}

impl Poller {
    /// `tasks` owns the task that reads: if it panicked unnoticed, every wait would end at its deadline.
    pub(crate) fn new(reader: Arc<Reader>, reads: SharedReads, tasks: &Tasks) -> Arc<Self> {
        let watches = AtomicBool::new(false);
        let (state, joined) = (Mutex::new(State::default()), Notify::new());
        Arc::new(Self { reader, reads, tasks: tasks.clone(), state, joined, watches })
    }

    /// Sets whether the poller may watch from now on.
    pub(crate) fn may_watch(&self, granted: bool) {
        self.watches.store(granted, Ordering::Relaxed);
    }

    /// Begins a wait; starts the poller if there was no other wait.
    pub(crate) fn wait(self: &Arc<Self>, name: &ObjectName) -> VmiWait {
        let (sender, receiver) = watch::channel(None);
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.waiters.insert(id, Waiter { name: name.clone(), since: Instant::now(), sender });
        if state.running {
            self.joined.notify_one();
        } else {
            state.running = true;
            self.tasks.spawn_until_done("the poller of VM instances", Arc::clone(self).run());
        }
        VmiWait { poller: Arc::clone(self), id, receiver }
    }

    async fn run(self: Arc<Self>) {
        let mut last_look = Instant::now();
        let mut effort = Duration::ZERO;
        let mut watch: Option<VmiWatch> = None;
        loop {
            let Some(youngest) = self.youngest() else { return };
            let served = watch.as_ref().is_some_and(|watch| youngest <= watch.began);
            let due = last_look.max(youngest) + pause(youngest.elapsed()).max(effort);
            let due = if self.is_crowded() { due.max(last_look + SLOW_LOOK) } else { due };
            tokio::select! {
                () = tokio::time::sleep_until(due), if !served => {}
                () = self.joined.notified() => continue,
                seen = next(&mut watch) => {
                    let began = watch.as_ref().map_or(last_look, |watch| watch.began);
                    match seen {
                        Ok(Some(seen)) => self.tell(&Ok(HashMap::from([seen])), began),
                        Ok(None) => watch = None,
                        Err(error) => {
                            self.tell(&Err(error), began);
                            watch = None;
                        }
                    }
                    continue;
                }
            }
            let began = Instant::now();
            watch = self.poll(began).await;
            last_look = Instant::now();
            // The next pause is at least as long as this read took, so reads take at most half of the time, however
            // slow the infra API is.
            effort = last_look - began;
        }
    }

    /// When the youngest wait began. `None` ends the poller, which marks itself as ended in the same critical section.
    fn youngest(&self) -> Option<Instant> {
        let mut state = self.lock();
        let youngest = state.waiters.values().map(|waiter| waiter.since).max();
        state.running = youngest.is_some();
        youngest
    }

    fn is_crowded(&self) -> bool {
        self.lock().waiters.values().filter(|waiter| waiter.since.elapsed() < LATELY).count() > CROWD
    }

    /// Reads all VMIs that are waited for. Where watching is granted, opens a watch of them instead and returns it.
    async fn poll(&self, began: Instant) -> Option<VmiWatch> {
        let mut names: Vec<_> = self.lock().waiters.values().map(|waiter| waiter.name.clone()).collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return None;
        }
        if self.watches.load(Ordering::Relaxed) {
            match VmiWatch::open(&self.reader, &names).await {
                Ok(watch) => return Some(watch),
                Err(error) => self.judge_watch(&error),
            }
        }
        let seen =
            match names.as_slice() {
                [name] => self.reads.of(name).vmi(began).await.map(|(_, vmi)| Listed {
                    items: (*vmi).clone().into_iter().collect(),
                    unread: Vec::new(),
                }),
                _ => self.reader.vmis().await,
            };
        let seen = seen.map(|Listed { items, unread }| {
            let absent = names.iter().map(|name| (name.as_str().to_owned(), Ok(None)));
            let present = items.into_iter().map(|vmi| (vmi.name.clone(), Ok(Some(Arc::new(vmi)))));
            let odd =
                unread.iter().map(|odd| (odd.name().to_owned(), Err(odd.to_error("list", VMIS.plural))));
            absent.chain(present).chain(odd).collect::<HashMap<_, Look>>()
        });
        self.tell(&seen, began);
        None
    }

    /// Handles a watch that could not be opened: the poller polls this time, or from now on.
    fn judge_watch(&self, error: &Error) {
        let never = matches!(error.class(), Class::Forbidden | Class::Invalid | Class::BadRequest);
        if never {
            self.may_watch(false);
            tracing::info!(%error, "VMIs can't be watched, so they are polled");
        } else {
            tracing::debug!(%error, "VMIs can't be watched now, so they are polled");
        }
    }

    /// Passes the result of a read that began at `began` on to the waiters.
    fn tell(&self, seen: &Result<HashMap<String, Look>, Error>, began: Instant) {
        let state = self.lock();
        // A wait that began during the read gets the result of the next one, because this read began before the wait
        // did.
        for waiter in state.waiters.values().filter(|waiter| waiter.since <= began) {
            let result = match seen {
                Ok(seen) => match seen.get(waiter.name.as_str()) {
                    Some(look) => look.clone(),
                    None => continue,
                },
                Err(error) => Err(error.clone()),
            };
            waiter.sender.send_replace(Some(result));
        }
    }

    /// The list of waiters is valid after any panic: each change of it is one call.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the next state that the watch shows; waits for ever if there is no watch.
async fn next(watch: &mut Option<VmiWatch>) -> Result<Option<VmiState>, Error> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Pause before the next read, by how long the youngest wait has lasted: reads come after 50, 150, 350, 750 ms, then
/// every second, and after a minute every two seconds.
fn pause(age: Duration) -> Duration {
    if age >= PATIENCE { SLOWEST_LOOK } else { (age + FIRST_LOOK).min(SLOW_LOOK) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CallMetrics;
    use cluster::ApiServer;
    use kube::client::Body;
    use serving::Shutdown;
    use std::{future::poll_fn, io, task::Poll};

    #[tokio::test]
    async fn a_poller_that_panics_ends_the_process_with_an_error_that_names_it() {
        let broken = tower::service_fn(|_: http::Request<Body>| {
            poll_fn(|_| -> Poll<Result<http::Response<Body>, io::Error>> { panic!("no volume {}", 7) })
        });
        let server = ApiServer::over(kube::Client::new(broken, "infra"), CallMetrics::default());
        let reader = Arc::new(Reader::new(server, "infra".to_owned(), cluster::Reader::default()));
        let shutdown = Shutdown::default();
        let poller = Poller::new(Arc::clone(&reader), SharedReads::new(&reader), shutdown.tasks());
        let _wait = poller.wait(&ObjectName::parse("vm1").expect("is a name"));
        let ended =
            tokio::time::timeout(PATIENCE, shutdown.drained(PATIENCE)).await.expect("the process ends");
        let error = ended.expect_err("the poller panicked").to_string();
        assert_eq!(error, "the poller of VM instances panicked: no volume 7");
    }

    #[test]
    fn looks_come_soon_and_then_slowly() {
        let mut at = Duration::ZERO;
        let reads: Vec<_> = (0..8)
            .map(|_| {
                at += pause(at);
                at.as_millis()
            })
            .collect();
        assert_eq!(reads, [50, 150, 350, 750, 1550, 2550, 3550, 4550]);
        assert_eq!(pause(Duration::from_secs(61)), SLOWEST_LOOK);
    }
}
