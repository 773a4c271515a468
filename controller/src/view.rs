//! Looking at one volume on one VM, as often as the planner asks and no more often.

use std::time::Duration;

use infra::{Census, Class, Infra, MachineLooks, ObjectName, VmiWait};
use tokio::time::Instant;

use crate::{
    attach::{Cause, Observed, Seen, VmView, VmiView},
    error::Error,
    operation::Operation,
};

/// While a change is awaited, the VM is looked at this often: somebody may have taken the volume out of it meanwhile.
const VM_LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after the first hotplug call that lost a race: concurrent calls take some 50 to 150 ms each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between tries of a hotplug call.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is known of one volume on one VM, and how it was learnt.
pub(crate) struct View {
    infra: Infra,
    vm: ObjectName,
    volume: ObjectName,
    looks: MachineLooks,
    observed: Observed,
    /// When the older of both looks began.
    since: Instant,
    vm_looked: Option<Instant>,
    wait: Option<VmiWait>,
    due: Due,
    /// Before the look that follows the next doubt.
    pause: Duration,
}

/// What the next refresh has to do first.
#[derive(Clone, Copy, Default)]
enum Due {
    #[default]
    Nothing,
    /// Wait for the poller.
    Tick,
    /// Look at both after a pause.
    LookAfter(Duration),
}

impl View {
    /// Nothing is known yet.
    pub(crate) fn new(infra: &Infra, vm: &ObjectName, volume: &ObjectName) -> Self {
        Self {
            infra: infra.clone(),
            vm: vm.clone(),
            volume: volume.clone(),
            looks: infra.machine(vm),
            observed: Observed::default(),
            since: Instant::now(),
            vm_looked: None,
            wait: None,
            due: Due::Nothing,
            pause: FIRST_PAUSE,
        }
    }

    /// Hands the view on, to be given back; what stays knows nothing.
    pub(crate) fn take(&mut self) -> Self {
        let blank = Self::new(&self.infra, &self.vm, &self.volume);
        std::mem::replace(self, blank)
    }

    pub(crate) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Takes over what a census shows that began at `since`.
    pub(crate) fn take_census(&mut self, census: &Census, since: Instant) {
        let volume = self.volume.as_str();
        self.observed.vm = census.vm(&self.vm).map(|vm| VmView::of(vm, volume)).into();
        self.observed.vmi = census.vmi(&self.vm).map(|vmi| VmiView::of(vmi, volume)).into();
        self.since = since;
        self.vm_looked = Some(since);
    }

    /// Looks at both. What the poller saw before does not count any more.
    pub(crate) async fn look(&mut self) -> Result<(), infra::Error> {
        self.look_after(Instant::now()).await
    }

    /// Has looked at both not longer ago than `age`; what others saw counts, unless this view has seen something newer.
    pub(crate) async fn look_within(&mut self, age: Duration) -> Result<(), infra::Error> {
        let Some(since) = Instant::now().checked_sub(age).filter(|since| *since > self.since) else {
            return Ok(());
        };
        self.look_after(since).await
    }

    async fn look_after(&mut self, since: Instant) -> Result<(), infra::Error> {
        self.wait = None;
        let ((vm_looked, vm), (instance_looked, vmi)) =
            tokio::try_join!(self.looks.vm(since), self.looks.vmi(since))?;
        self.observed.vm = vm.as_ref().as_ref().map(|vm| VmView::of(vm, self.volume.as_str())).into();
        self.observed.vmi = vmi.as_ref().as_ref().map(|vmi| VmiView::of(vmi, self.volume.as_str())).into();
        self.since = vm_looked.min(instance_looked);
        self.vm_looked = Some(vm_looked);
        Ok(())
    }

    /// A change was accepted: nothing that was seen counts any more, and the instance shows first how it goes on.
    pub(crate) fn changed(&mut self) {
        self.observed = Observed::default();
        self.vm_looked = Some(Instant::now());
        self.wait = Some(self.infra.wait_for_vmi(&self.vm));
        self.due = Due::Tick;
    }

    /// A change ended with an error that may hide a success or a lost race: both have to be looked at again, a little later
    /// each time, and not before the pause that the API `asked` for.
    pub(crate) fn doubted(&mut self, asked: Option<Duration>) {
        self.observed = Observed::default();
        self.due = Due::LookAfter(asked.unwrap_or_default().max(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// As [`Self::refresh`], and counts the time.
    pub(crate) async fn wait(&mut self, operation: &Operation, cause: &Cause) -> Result<(), Error> {
        let began = Instant::now();
        let refreshed = self.refresh(operation, cause).await;
        operation.waits().add(cause.into(), began.elapsed());
        refreshed
    }

    /// Looks again at what `cause` is about; waits for the poller's next look unless something was never looked at.
    async fn refresh(&mut self, operation: &Operation, cause: &Cause) -> Result<(), Error> {
        match std::mem::take(&mut self.due) {
            Due::Tick => return self.await_vmi(operation).await,
            Due::LookAfter(pause) => {
                operation.wait(tokio::time::sleep(pause)).await?;
                let looked = operation.wait(self.look()).await?;
                return looked.or_else(|error| {
                    self.due = Due::LookAfter(self.pause);
                    Self::judge(operation, error, true)
                });
            }
            Due::Nothing => {}
        }
        match cause {
            Cause::VmUnseen => self.look_at_vm(operation).await,
            Cause::VmiUnseen if self.wait.is_none() => self.look_at_vmi(operation).await,
            cause => {
                let due = self.vm_looked.map_or_else(Instant::now, |looked| looked + VM_LOOK_INTERVAL);
                // Where VMIs are watched and nothing happens, no look comes.
                let waited = tokio::time::timeout_at(due, self.await_vmi(operation)).await;
                waited.unwrap_or(Ok(()))?;
                if due <= Instant::now() || cause.is_about_vm() {
                    self.look_at_vm(operation).await
                } else {
                    Ok(())
                }
            }
        }
    }

    async fn look_at_vmi(&mut self, operation: &Operation) -> Result<(), Error> {
        let (_, vmi) = operation.wait(self.looks.vmi(Instant::now())).await??;
        self.observed.vmi = vmi.as_ref().as_ref().map(|vmi| VmiView::of(vmi, self.volume.as_str())).into();
        Ok(())
    }

    async fn look_at_vm(&mut self, operation: &Operation) -> Result<(), Error> {
        // Any look counts that is newer than the own last one: all who wait for this VM share it.
        let since = self.vm_looked.unwrap_or_else(Instant::now);
        match operation.wait(self.looks.vm(since)).await? {
            Ok((looked, vm)) => {
                self.observed.vm = vm.as_ref().as_ref().map(|vm| VmView::of(vm, self.volume.as_str())).into();
                self.vm_looked = Some(looked);
                self.since = looked;
                Ok(())
            }
            Err(error) => {
                Self::judge(operation, error, self.wait.is_some())?;
                // The poller paces the next try.
                self.await_vmi(operation).await
            }
        }
    }

    /// The poller's next look.
    async fn await_vmi(&mut self, operation: &Operation) -> Result<(), Error> {
        let wait = self.wait.get_or_insert_with(|| self.infra.wait_for_vmi(&self.vm));
        match operation.wait(wait.next()).await? {
            Ok(vmi) => {
                self.observed.vmi = vmi.map(|vmi| VmiView::of(&vmi, self.volume.as_str())).into();
                Ok(())
            }
            Err(error) => {
                self.observed.vmi = Seen::Unseen;
                Self::judge(operation, error, true)
            }
        }
    }

    /// A failed look ends the operation, unless the next one may succeed and something is being waited for.
    fn judge(operation: &Operation, error: infra::Error, waiting: bool) -> Result<(), Error> {
        let passing =
            matches!(error.class(), Class::Throttled | Class::Server | Class::Timeout | Class::Transport);
        if !passing || !waiting {
            return Err(error.into());
        }
        operation.note(&error);
        Ok(())
    }
}
