//! Looks at single machines. Many volumes of one VM change at the same time, and each wants to know of the VM what the others
//! have just learnt: so a look says how old it may be at most.

use std::sync::Arc;

use cluster::Error;
use tokio::time::Instant;

use crate::{
    coalesce::{Coalesced, CoalescedBy},
    machine::{VirtualMachine, VirtualMachineInstance},
    object::ObjectName,
    reader::Reader,
};

/// What a look gave, and when it began.
pub type Looked<T> = Result<(Instant, Arc<Option<T>>), Error>;

/// The looks at all machines. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Looks {
    reader: Arc<Reader>,
    vms: Arc<CoalescedBy<ObjectName, Option<VirtualMachine>>>,
    vmis: Arc<CoalescedBy<ObjectName, Option<VirtualMachineInstance>>>,
}

impl Looks {
    pub(crate) fn new(reader: &Arc<Reader>) -> Self {
        Self { reader: Arc::clone(reader), vms: Arc::default(), vmis: Arc::default() }
    }

    pub(crate) fn of(&self, name: &ObjectName) -> MachineLooks {
        MachineLooks {
            reader: Arc::clone(&self.reader),
            name: name.clone(),
            vm: self.vms.of(name),
            vmi: self.vmis.of(name),
        }
    }
}

/// Looks at one VM and its VMI. What was seen last is remembered as long as somebody has this.
pub struct MachineLooks {
    reader: Arc<Reader>,
    name: ObjectName,
    vm: Arc<Coalesced<Option<VirtualMachine>>>,
    vmi: Arc<Coalesced<Option<VirtualMachineInstance>>>,
}

impl MachineLooks {
    /// The VM as a look showed it that began after `since`; `None` where there is none.
    pub async fn vm(&self, since: Instant) -> Looked<VirtualMachine> {
        self.vm.read_since(since, || self.reader.vm(&self.name)).await
    }

    /// The VMI as a look showed it that began after `since`; `None` where there is none.
    pub async fn vmi(&self, since: Instant) -> Looked<VirtualMachineInstance> {
        self.vmi.read_since(since, || self.reader.vmi(&self.name)).await
    }
}
