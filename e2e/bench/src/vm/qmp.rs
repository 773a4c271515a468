//! One QEMU's monitor (QMP). QEMU serves a single client per monitor socket, so a machine owns exactly one [`Monitor`]
//! and everybody goes through it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use qapi::{
    ExecuteError,
    futures::{QapiService, QmpStreamTokio},
    qmp::{self, QmpCommand},
};
use tokio::{
    io::WriteHalf,
    net::UnixStream,
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

use super::wait::wait_for;
use crate::supervise::Process;

/// From QEMU's start to its socket: dynamic linking only, but on a loaded machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Monitor commands answer at once; a longer silence means that QEMU hangs.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// Events kept for a slow reader; one that falls further behind reads the state itself.
const EVENTS_KEPT: usize = 256;

/// Lines of QEMU's own log that an error message quotes.
const LOG_LINES: usize = 10;

type Service = QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>;

/// The monitor connection.
pub(super) struct Monitor {
    service: Arc<Service>,
    events: broadcast::Sender<qmp::Event>,
    reader: JoinHandle<()>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("closed", &self.reader.is_finished()).finish_non_exhaustive()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Monitor {
    /// Connects to the socket of a QEMU that has just been started.
    pub(super) async fn connect(socket: &Path, process: &Process) -> Result<Self> {
        let stream = wait_for("for QEMU's monitor", CONNECT_LIMIT, || async {
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}: {}", process.name(), process.log_tail(LOG_LINES));
            }
            Ok(UnixStream::connect(socket).await.ok())
        })
        .await?;
        let negotiation = QmpStreamTokio::open(stream).await.context("read the monitor's greeting")?;
        let (service, mut events) =
            negotiation.negotiate().await.context("negotiate monitor capabilities")?.into_parts();
        let (sender, _) = broadcast::channel(EVENTS_KEPT);
        let publish = sender.clone();
        let reader = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    // Nobody listening is no error.
                    Ok(event) => drop(publish.send(event)),
                    Err(error) => tracing::warn!(%error, "the monitor's output could not be parsed"),
                }
            }
        });
        Ok(Self { service: Arc::new(service), events: sender, reader })
    }

    /// Runs one command. Dropping the future does not drop the command: its answer is awaited in a task of its own,
    /// because the protocol has no way to take a command back.
    pub(super) async fn execute<C>(&self, command: C) -> Result<C::Ok>
    where
        C: QmpCommand + Send + 'static,
        C::Ok: Send + 'static,
    {
        self.attempt(command).await?.map_err(|error| anyhow::anyhow!("QEMU refuses {}: {error}", C::NAME))
    }

    /// Like [`Monitor::execute`], but a refusal is a value: callers decide by its class.
    pub(super) async fn attempt<C>(&self, command: C) -> Result<Result<C::Ok, qapi::Error>>
    where
        C: QmpCommand + Send + 'static,
        C::Ok: Send + 'static,
    {
        let service = Arc::clone(&self.service);
        let answer = tokio::spawn(async move { service.execute(command).await });
        let answer = tokio::time::timeout(ANSWER_LIMIT, answer)
            .await
            .with_context(|| format!("QEMU does not answer {} within {} s", C::NAME, ANSWER_LIMIT.as_secs()))?
            .context("the command's task ended")?;
        match answer {
            Ok(value) => Ok(Ok(value)),
            Err(ExecuteError::Qapi(refusal)) => Ok(Err(refusal)),
            Err(ExecuteError::Io(error)) => Err(error).with_context(|| format!("send {} to QEMU", C::NAME)),
        }
    }

    /// Resets the machine while its processor stands still: when this returns nothing of the life before runs, and `cont` begins
    /// the next.
    pub(super) async fn reset(&self, limit: Duration) -> Result<()> {
        self.execute(qmp::stop {}).await?;
        let mut events = self.events.subscribe();
        self.execute(qmp::system_reset {}).await?;
        let done = async {
            loop {
                match events.recv().await {
                    Ok(qmp::Event::RESET { .. }) => return Ok(()),
                    // One that was missed may have been it, and none would follow.
                    Err(RecvError::Lagged(missed)) => {
                        bail!("{missed} of QEMU's events were missed during a reset")
                    }
                    Ok(_) => {}
                    Err(RecvError::Closed) => bail!("QEMU ended while it was reset"),
                }
            }
        };
        tokio::time::timeout(limit, done)
            .await
            .unwrap_or_else(|_| bail!("QEMU has not reset the machine within {} s", limit.as_secs()))
    }

    /// Whether the machine has a device of that id (those of `-device` and `device_add`).
    pub(super) async fn has_device(&self, id: &str) -> Result<bool> {
        let devices = self.execute(qmp::qom_list { path: "/machine/peripheral".into() }).await?;
        Ok(devices.iter().any(|device| device.name == id))
    }

    /// Takes a device away and waits until it is gone. A device that was never there is gone.
    pub(super) async fn remove_device(&self, id: &str, limit: Duration) -> Result<()> {
        // Listen first: the event may come before the command's own answer is read.
        let mut events = self.events.subscribe();
        if !self.has_device(id).await? {
            return Ok(());
        }
        if let Err(refusal) = self.attempt(qmp::device_del { id: id.into() }).await? {
            // Earlier removals that the guest has not acknowledged yet are refused a second time; wait for that one.
            if self.has_device(id).await? && !refusal.to_string().contains("process of unplug") {
                bail!("QEMU refuses to remove {id}: {refusal}");
            }
        }
        let gone = async {
            loop {
                match events.recv().await {
                    Ok(qmp::Event::DEVICE_DELETED { data, .. }) if data.device.as_deref() == Some(id) => {
                        return Ok(());
                    }
                    // Another event, or some were missed: read the state.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => bail!("QEMU ended while {id} was being removed"),
                }
                if !self.has_device(id).await? {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(limit, gone).await.unwrap_or_else(|_| {
            bail!("the guest has not let go of {id} within {} s; try again", limit.as_secs())
        })
    }
}
