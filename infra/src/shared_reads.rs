//! Reads of single VMs and their VMIs. Many volumes of one VM change at the same time, and the operation on each can
//! use what another has just read: so a caller states how old a read may be at most.

use std::sync::Arc;

use cluster::Error;
use kubevirt::ObjectName;
use tokio::time::Instant;

use crate::{
    coalesce::{Coalesced, CoalescedBy},
    machine::{VirtualMachine, VirtualMachineInstance},
    reader::Reader,
};

/// The result of a read, and when the read began.
pub type ReadResult<T> = Result<(Instant, Arc<Option<T>>), Error>;

/// The shared reads of all VMs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SharedReads {
    reader: Arc<Reader>,
    vms: Arc<CoalescedBy<ObjectName, Option<VirtualMachine>>>,
    vmis: Arc<CoalescedBy<ObjectName, Option<VirtualMachineInstance>>>,
}

impl SharedReads {
    pub(crate) fn new(reader: &Arc<Reader>) -> Self {
        Self { reader: Arc::clone(reader), vms: Arc::default(), vmis: Arc::default() }
    }

    pub(crate) fn of(&self, name: &ObjectName) -> VmReads {
        VmReads {
            reader: Arc::clone(&self.reader),
            name: name.clone(),
            vm: self.vms.of(name),
            vmi: self.vmis.of(name),
        }
    }
}

/// Reads one VM and its VMI. The last results are kept as long as a caller holds this value.
pub struct VmReads {
    reader: Arc<Reader>,
    name: ObjectName,
    vm: Arc<Coalesced<Option<VirtualMachine>>>,
    vmi: Arc<Coalesced<Option<VirtualMachineInstance>>>,
}

impl VmReads {
    /// The VM, by a read that began after `since`; `None` where there is no such VM.
    pub async fn vm(&self, since: Instant) -> ReadResult<VirtualMachine> {
        self.vm.read_since(since, || self.reader.vm(&self.name)).await
    }

    /// The VMI, by a read that began after `since`; `None` where there is no such VMI.
    pub async fn vmi(&self, since: Instant) -> ReadResult<VirtualMachineInstance> {
        self.vmi.read_since(since, || self.reader.vmi(&self.name)).await
    }
}
