//! Reads what one VM and its VMI show of one volume, as often as the planner needs and no more often.

use std::{collections::BTreeMap, time::Duration};

use infra::{Census, Class, Infra, ObjectName, VirtualMachine, VirtualMachineInstance, VmReads, VmiWait};
use kubevirt::{NotThisGuest, Seen};
use tokio::time::Instant;

use crate::{
    attach::{Cause, Observed, VmView, VmiView},
    controller_operation::ControllerOperation,
    error::Error,
    node_id::node_id,
};

/// While a change is awaited, the VM is read this often: another client may unplug the volume in that time.
const VM_READ_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after the first hotplug call that lost a race: concurrent calls take some 50 to 150 ms each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between tries of a hotplug call.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is known of one volume on one VM, and when it was read.
pub(crate) struct View {
    infra: Infra,
    vm: ObjectName,
    volume: ObjectName,
    reads: VmReads,
    observed: Observed,
    /// Whether the VM is this guest's, by the last read of both VM and VMI.
    ours: Result<(), NotThisGuest>,
    /// UID of the VMI that was read last.
    vmi_uid: Option<String>,
    /// When the older of the two reads began.
    since: Instant,
    vm_read_at: Option<Instant>,
    wait: Option<VmiWait>,
    due: Due,
    /// Pause before the read that follows the next call whose outcome is unknown.
    pause: Duration,
}

/// What the next refresh has to do first.
#[derive(Clone, Copy, Default)]
enum Due {
    #[default]
    Nothing,
    /// Wait for the poller.
    Tick,
    /// Read both after a pause.
    ReadAfter(Duration),
}

impl View {
    /// Nothing is known yet.
    pub(crate) fn new(infra: &Infra, vm: &ObjectName, volume: &ObjectName) -> Self {
        Self {
            infra: infra.clone(),
            vm: vm.clone(),
            volume: volume.clone(),
            reads: infra.machine(vm),
            observed: Observed::default(),
            ours: Ok(()),
            vmi_uid: None,
            since: Instant::now(),
            vm_read_at: None,
            wait: None,
            due: Due::Nothing,
            pause: FIRST_PAUSE,
        }
    }

    /// Moves the view out and leaves an empty one.
    pub(crate) fn take(&mut self) -> Self {
        let blank = Self::new(&self.infra, &self.vm, &self.volume);
        std::mem::replace(self, blank)
    }

    pub(crate) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The volume's own claim records that it was moved to `claim`.
    pub(crate) fn move_is_recorded(&mut self, claim: String) {
        self.observed.recorded_move = Some(claim);
    }

    /// The end of a report: what KubeVirt reports to be wrong with VM and VMI, if anything.
    pub(crate) fn complaint(&self) -> String {
        self.observed.complaint().map_or_else(String::new, |text| format!("; KubeVirt reports: {text}"))
    }

    /// UID of the VMI that was read last; `None` = there was none.
    pub(crate) fn vmi_uid(&self) -> Option<&str> {
        self.vmi_uid.as_deref()
    }

    /// Whether the labels of VM and VMI allow it to be this guest's. Before the first read nothing speaks against it.
    pub(crate) fn check_guest(&self) -> Result<(), Error> {
        let vm = || node_id(&self.infra, &self.vm);
        self.ours.clone().map_err(|reason| Error::OtherGuestsVm { vm: vm(), reason })
    }

    fn judge(&mut self, vm: Option<&VirtualMachine>, vmi: Option<&VirtualMachineInstance>) {
        self.vmi_uid = vmi.map(|vmi| vmi.uid.clone());
        let none = BTreeMap::new();
        let labels = (vm.map_or(&none, |vm| &vm.labels), vmi.map_or(&none, |vmi| &vmi.labels));
        // Of a VM that does not exist there is nothing to judge; the planner refuses it.
        self.ours = if vm.is_none() { Ok(()) } else { self.infra.vm_guest().check(labels.0, labels.1) };
    }

    /// Takes over what a census shows, whose reads began at `since`. Of a VM that it could not read, it shows nothing: the
    /// next read is of this VM alone, and reports why.
    pub(crate) fn take_census(&mut self, census: &Census, since: Instant) {
        if census.is_unread(&self.vm) {
            return;
        }
        self.judge(census.vm(&self.vm), census.vmi(&self.vm));
        let volume = self.volume.as_str();
        self.observed.vm = census.vm(&self.vm).map(|vm| VmView::of(vm, volume)).into();
        self.observed.vmi = census.vmi(&self.vm).map(|vmi| VmiView::of(vmi, volume)).into();
        self.since = since;
        self.vm_read_at = Some(since);
    }

    /// Reads VM and VMI. What the poller read before does not count.
    pub(crate) async fn read(&mut self) -> Result<(), infra::Error> {
        self.read_after(Instant::now()).await
    }

    /// Reads VM and VMI unless both were read within `age`. What other operations read within that time counts, unless
    /// this view has something newer.
    pub(crate) async fn read_within(&mut self, age: Duration) -> Result<(), infra::Error> {
        let Some(since) = Instant::now().checked_sub(age).filter(|since| *since > self.since) else {
            return Ok(());
        };
        self.read_after(since).await
    }

    async fn read_after(&mut self, since: Instant) -> Result<(), infra::Error> {
        self.wait = None;
        let ((vm_read_at, vm), (instance_read_at, vmi)) =
            tokio::try_join!(self.reads.vm(since), self.reads.vmi(since))?;
        self.judge(vm.as_ref().as_ref(), vmi.as_ref().as_ref());
        self.observed.vm = vm.as_ref().as_ref().map(|vm| VmView::of(vm, self.volume.as_str())).into();
        self.observed.vmi = vmi.as_ref().as_ref().map(|vmi| VmiView::of(vmi, self.volume.as_str())).into();
        self.since = vm_read_at.min(instance_read_at);
        self.vm_read_at = Some(vm_read_at);
        Ok(())
    }

    /// KubeVirt accepted a call: nothing read before counts, and the VMI is the first to show the progress.
    pub(crate) fn changed(&mut self) {
        self.observed = Observed::default();
        self.vm_read_at = Some(Instant::now());
        self.wait = Some(self.infra.wait_for_vmi(&self.vm));
        self.due = Due::Tick;
    }

    /// A call ended with an error that may hide a success or a lost race: VM and VMI have to be read again, a little
    /// later each time, and not before the pause that the API `asked` for.
    pub(crate) fn outcome_unknown(&mut self, asked: Option<Duration>) {
        self.observed = Observed::default();
        self.due = Due::ReadAfter(asked.unwrap_or_default().max(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// As [`Self::refresh`], and counts the time as a wait.
    pub(crate) async fn wait(&mut self, operation: &ControllerOperation, cause: &Cause) -> Result<(), Error> {
        let began = Instant::now();
        let refreshed = self.refresh(operation, cause).await;
        operation.waits().add(cause.into(), began.elapsed());
        refreshed
    }

    /// Reads again what `cause` is about; waits for the poller's next read unless something was never read.
    async fn refresh(&mut self, operation: &ControllerOperation, cause: &Cause) -> Result<(), Error> {
        match std::mem::take(&mut self.due) {
            Due::Tick => return self.await_vmi(operation).await,
            Due::ReadAfter(pause) => {
                operation.wait(tokio::time::sleep(pause)).await?;
                let read = operation.wait(self.read()).await?;
                return read.or_else(|error| {
                    self.due = Due::ReadAfter(self.pause);
                    Self::retry_or_fail(operation, error, true)
                });
            }
            Due::Nothing => {}
        }
        match cause {
            Cause::VmUnseen => self.read_vm(operation).await,
            Cause::VmiUnseen if self.wait.is_none() => self.read_vmi(operation).await,
            cause => {
                let due = self.vm_read_at.map_or_else(Instant::now, |read_at| read_at + VM_READ_INTERVAL);
                // Where VMIs are watched and nothing changes, no state arrives.
                let waited = tokio::time::timeout_at(due, self.await_vmi(operation)).await;
                waited.unwrap_or(Ok(()))?;
                if due <= Instant::now() || cause.is_about_vm() {
                    self.read_vm(operation).await
                } else {
                    Ok(())
                }
            }
        }
    }

    async fn read_vmi(&mut self, operation: &ControllerOperation) -> Result<(), Error> {
        let (_, vmi) = operation.wait(self.reads.vmi(Instant::now())).await??;
        self.observed.vmi = vmi.as_ref().as_ref().map(|vmi| VmiView::of(vmi, self.volume.as_str())).into();
        Ok(())
    }

    async fn read_vm(&mut self, operation: &ControllerOperation) -> Result<(), Error> {
        // Any read counts that is newer than our last one: all operations that wait for this VM share it.
        let since = self.vm_read_at.unwrap_or_else(Instant::now);
        match operation.wait(self.reads.vm(since)).await? {
            Ok((read_at, vm)) => {
                self.observed.vm = vm.as_ref().as_ref().map(|vm| VmView::of(vm, self.volume.as_str())).into();
                self.vm_read_at = Some(read_at);
                self.since = read_at;
                Ok(())
            }
            Err(error) => {
                Self::retry_or_fail(operation, error, self.wait.is_some())?;
                // The poller sets the interval to the next try.
                self.await_vmi(operation).await
            }
        }
    }

    /// Waits for the poller's next read of the VMI.
    async fn await_vmi(&mut self, operation: &ControllerOperation) -> Result<(), Error> {
        let wait = self.wait.get_or_insert_with(|| self.infra.wait_for_vmi(&self.vm));
        match operation.wait(wait.next()).await? {
            Ok(vmi) => {
                self.observed.vmi = vmi.map(|vmi| VmiView::of(&vmi, self.volume.as_str())).into();
                Ok(())
            }
            Err(error) => {
                self.observed.vmi = Seen::Unseen;
                Self::retry_or_fail(operation, error, true)
            }
        }
    }

    /// A failed read ends the operation, unless the next one may succeed and something is being waited for.
    fn retry_or_fail(
        operation: &ControllerOperation,
        error: infra::Error,
        waiting: bool,
    ) -> Result<(), Error> {
        let passing =
            matches!(error.class(), Class::Throttled | Class::Server | Class::Timeout | Class::Transport);
        if !passing || !waiting {
            return Err(error.into());
        }
        operation.report(&error);
        Ok(())
    }
}
