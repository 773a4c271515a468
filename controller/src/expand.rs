//! The planner of an expansion: from what a claim shows to the one next step. It is a plain function; the same
//! observation always gives the same step.
//!
//! The volume is expanded when the claim's own status shows it, never when the request was accepted. A claim that no pod
//! uses, of a storage that has to be expanded on the node, stays in `NodeResizePending` until it is used: that is as far
//! as the infra cluster goes, so it counts as done, and the disk grows at the next attach. What the infra cluster calls
//! infeasible is refused only where it is about the size that the claim requests now: after a change of the request the
//! status still is about the size before.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::fmt;

use infra::{Claim, Quantity};

use crate::claim_size::Layout;

/// `status.phase` of a claim that has its volume.
const BOUND: &str = "Bound";

/// What a claim shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// `status.phase`.
    pub phase: String,
    /// Requested size in bytes.
    pub request: u64,
    /// Size in bytes; 0 before the claim is bound.
    pub capacity: u64,
    /// Size in bytes to which the volume is being expanded, or was at last.
    pub allocated: Option<u64>,
    pub resize: Resize,
}

/// How far the expansion to the allocated size is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resize {
    /// None is under way, or it has just been requested.
    #[default]
    Idle,
    /// In the infra storage; the reason of the last failure, after which the infra cluster tries again.
    Controller { failure: Option<String> },
    /// The infra storage refuses the size.
    Infeasible { reason: String },
    /// It is left to the next node that uses the claim.
    NodePending,
    /// On the infra node; the reason of the last failure, after which the infra node tries again.
    Node { failure: Option<String> },
    /// A state that this driver does not know.
    Unknown(String),
}

impl Observed {
    /// The part of a claim that the planner reads.
    pub(crate) fn of(claim: &Claim) -> Self {
        Self {
            phase: claim.status.phase.clone(),
            request: claim.request().and_then(Quantity::bytes).unwrap_or_default(),
            capacity: claim.capacity().unwrap_or_default(),
            allocated: claim.allocated(),
            resize: Resize::of(claim),
        }
    }
}

impl Resize {
    fn of(claim: &Claim) -> Self {
        let condition = |kind| claim.condition(kind).map(|condition| condition.message.clone());
        let controller_error = condition("ControllerResizeError");
        match claim.resize_status() {
            "ControllerResizeInfeasible" => Self::Infeasible {
                reason: controller_error.unwrap_or_else(|| "the infra storage gives no reason".to_owned()),
            },
            "ControllerResizeInProgress" => Self::Controller { failure: controller_error },
            "NodeResizePending" => Self::NodePending,
            "NodeResizeInProgress" | "NodeResizeInfeasible" => {
                Self::Node { failure: condition("NodeResizeError") }
            }
            "" if condition("FileSystemResizePending").is_some() => Self::NodePending,
            "" if claim.condition("Resizing").is_some() || controller_error.is_some() => {
                Self::Controller { failure: controller_error }
            }
            "" => Self::Idle,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

/// What the volume should become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Least size of the disk in bytes.
    pub disk: u64,
    /// Largest size of the disk in bytes.
    pub limit: Option<u64>,
    pub layout: Layout,
    /// Size in bytes that the disk has had from the start, whatever the claim shows.
    pub first_disk: u64,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Request `to` bytes. Lower than now only where the infra cluster failed with what is requested now.
    Patch {
        to: u64,
    },
    Wait(Cause),
    /// The disk has this size in bytes, or will have it as soon as it is used.
    Done(u64),
    Refuse(CannotExpand),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    needed: u64,
    observed: Observed,
}

/// Why a volume is not expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotExpand {
    /// No size of the claim gives a disk between the two sizes of the request; nothing was changed.
    #[error("its disk would have up to {largest} bytes, and the request allows {limit} at most")]
    OverLimit {
        /// Bytes.
        largest: u64,
        /// `limit_bytes`.
        limit: u64,
    },
    /// No number is large enough for the claim; nothing was changed.
    #[error("no infra claim is as large as a disk of {disk} bytes needs")]
    TooLarge {
        /// `required_bytes`.
        disk: u64,
    },
    /// The claim has no volume yet: with `WaitForFirstConsumer` it gets it at the first attach.
    #[error(
        "its infra claim is {}; a claim can be expanded once it is Bound",
        if phase.is_empty() { "new" } else { phase }
    )]
    NotBound {
        /// `status.phase` of the claim.
        phase: String,
    },
    /// The infra storage refuses the size.
    #[error("the infra storage refuses {size} bytes: {reason}")]
    Infeasible {
        /// Requested size of the claim in bytes.
        size: u64,
        /// The infra cluster's message.
        reason: String,
    },
    /// The infra storage fails again and again, which may pass.
    #[error("the infra storage fails: {reason}")]
    Failing {
        /// The infra cluster's message.
        reason: String,
    },
}

/// The next step towards `wanted`.
pub(crate) fn next(observed: &Observed, wanted: &Wanted) -> Step {
    let within = |disk: u64| match wanted.limit.filter(|limit| disk > *limit) {
        Some(limit) => Err(CannotExpand::OverLimit { largest: disk, limit }),
        None => Ok(disk),
    };
    let present = present_disk(observed, wanted.layout, wanted.first_disk);
    if present >= wanted.disk {
        return within(present).map_or_else(Step::Refuse, Step::Done);
    }
    let Some(needed) = wanted.layout.claim_for(wanted.disk) else {
        return Step::Refuse(CannotExpand::TooLarge { disk: wanted.disk });
    };
    if let Err(over) = within(wanted.layout.largest_disk(needed)) {
        return Step::Refuse(over);
    }
    if observed.phase != BOUND {
        return Step::Refuse(CannotExpand::NotBound { phase: observed.phase.clone() });
    }
    // Whether the state is about the size that is requested now.
    let current = observed.allocated == Some(observed.request);
    let failed = current
        && matches!(observed.resize, Resize::Infeasible { .. } | Resize::Controller { failure: Some(_) });
    // The API server allows a smaller request only above the capacity.
    let may_lower = failed && observed.request > needed && needed > observed.capacity;
    if observed.request < needed || may_lower {
        return Step::Patch { to: needed };
    }
    match &observed.resize {
        Resize::NodePending if observed.allocated.is_some_and(|allocated| allocated >= needed) => {
            Step::Done(wanted.layout.least_disk(needed))
        }
        Resize::Infeasible { reason } if current => {
            Step::Refuse(CannotExpand::Infeasible { size: observed.request, reason: reason.clone() })
        }
        _ => Step::Wait(Cause { needed, observed: observed.clone() }),
    }
}

/// The size of the disk, in bytes, that is there already. KubeVirt makes a file no larger than the claim's request and
/// capacity allow; a block device has the capacity.
pub(crate) fn present_disk(observed: &Observed, layout: Layout, first_disk: u64) -> u64 {
    let claim = match layout {
        Layout::Block => observed.capacity,
        Layout::File(_) => observed.capacity.min(observed.request),
    };
    layout.least_disk(claim).max(first_disk)
}

impl Cause {
    /// Why the last try of the infra storage failed, where it will try again.
    pub(crate) fn failure(&self) -> Option<&str> {
        match &self.observed.resize {
            Resize::Controller { failure } if self.observed.allocated == Some(self.observed.request) => {
                failure.as_deref()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observed { request, capacity, .. } = self.observed;
        write!(f, "the infra claim is being expanded: it has {capacity} of {request} bytes")?;
        if request > self.needed {
            write!(f, ", of which the disk needs {}", self.needed)?;
        }
        let (state, failure) = match &self.observed.resize {
            Resize::Idle => ("not begun", &None),
            Resize::Controller { failure } => ("in the infra storage", failure),
            Resize::Infeasible { .. } => ("the infra storage has refused another size before", &None),
            Resize::NodePending => ("a smaller size is left to the node", &None),
            Resize::Node { failure } => ("on the infra node", failure),
            Resize::Unknown(state) => (state.as_str(), &None),
        };
        write!(f, " ({state}")?;
        failure.iter().try_for_each(|failure| write!(f, ": {failure}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests;
