//! Which VM may have a volume that only one node may use at a time: its holder.
//!
//! Hotplug calls are not conditional, and two replicas of this driver may serve at once. So the infra claim carries an
//! annotation that names the VM that is to have the volume; it changes only by a conditional JSON patch, so there is
//! one winner. The order is: write the annotation; read which VM has the volume (the truth is in VMs and VMIs, also for
//! volumes that kubevirt/csi-driver plugged in without an annotation); hotplug; check that the annotation is still
//! ours; answer.
//!
//! The annotation is an intent, not the state: a detach releases it first, because a VM that still shows the volume
//! keeps every other VM away. A holder that is gone is replaced when no other VM's spec, volume request or VMI status
//! names the volume.

use std::time::Duration;

use infra::{Claim, Class, Infra, ObjectName, PatchOp, annotation_path};
use tokio::time::Instant;

use crate::{
    controller_operation::ControllerOperation, error::Error, keys::HOLDER_ANNOTATION, metrics::WaitCause,
    moved, node_id::node_id, usable,
};

/// Pause before the next try: CDI makes a claim some 0.2 s after the `DataVolume`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// CDI makes a claim at once, or a person has to help (a quota, a class that does not exist). After this time the RPC
/// answers with the reason, which becomes an event in the guest while the sidecar tries again; the sidecar's own
/// timeout is minutes.
const CLAIM_PATIENCE: Duration = Duration::from_secs(20);
/// A holder without the volume is replaced only after this time: a live one is about to plug it in. Safety does not
/// depend on it (see [`Holder::confirm`]); it keeps two nodes from taking a volume from each other in turns.
const IDLE_LIMIT: Duration = Duration::from_secs(3);

/// What keeps a second VM from the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The annotation names our VM.
    Held,
    /// We may not patch the claim: read all VMs before and after the hotplug call, and withdraw if another VM has the
    /// volume.
    Unarbitrated,
}

/// A volume and the VM that should have it.
pub(crate) struct Holder<'a> {
    infra: &'a Infra,
    volume: &'a ObjectName,
    vm: &'a ObjectName,
}

impl<'a> Holder<'a> {
    pub(crate) fn new(infra: &'a Infra, volume: &'a ObjectName, vm: &'a ObjectName) -> Self {
        Self { infra, volume, vm }
    }

    fn value(&self) -> String {
        node_id(self.infra, self.vm)
    }

    /// Makes our VM the holder. Waits for a while if CDI has not made the claim yet.
    pub(crate) async fn acquire(&self, operation: &ControllerOperation) -> Result<Hold, Error> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut idle = None;
        loop {
            let mut cause = WaitCause::OtherHolder;
            let patch = || self.infra.patch_claim(self.volume, when_free(&self.value()));
            let error = match operation.change(patch).await? {
                Ok(claim) => return self.held(&claim),
                Err(error) => error,
            };
            match error.class() {
                Class::Forbidden => return Ok(unarbitrated(&error)),
                Class::NotFound => {
                    cause = WaitCause::InfraClaim;
                    let unclaimed = self.unclaimed(operation).await?;
                    if began.elapsed() >= CLAIM_PATIENCE {
                        return Err(unclaimed);
                    }
                }
                // A test of the patch failed: there is a holder, or the claim has no annotations, or not our labels.
                Class::Invalid | Class::Conflict | Class::BadRequest => {
                    if let Some(hold) = self.acquire_from_other(&mut idle, operation).await? {
                        return Ok(hold);
                    }
                }
                _ => return Err(error.into()),
            }
            operation.wait_for(cause, tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// `None` = try again. `idle` is the holder that was found without the volume, and since when.
    async fn acquire_from_other(
        &self,
        idle: &mut Option<(String, Instant)>,
        operation: &ControllerOperation,
    ) -> Result<Option<Hold>, Error> {
        let claim = match operation.wait(self.infra.claim(self.volume)).await? {
            Ok(Some(claim)) => claim,
            Ok(None) => return self.unclaimed(operation).await.map(|_| None),
            Err(error) if error.class() == Class::Forbidden => return Ok(Some(unarbitrated(&error))),
            Err(error) => return Err(error.into()),
        };
        let Ok(claim) = self.infra.guard().admit(claim) else {
            tracing::warn!("the claim lacks the infra labels; attaching without the holder annotation");
            return Ok(Some(Hold::Unarbitrated));
        };
        match claim.metadata.annotations.get(HOLDER_ANNOTATION) {
            Some(holder) if *holder == self.value() => return self.held(&claim).map(Some),
            Some(holder) => {
                let census = operation.wait(self.infra.census()).await??;
                let holders = census.holders(self.volume);
                self.nobody_else(&holders)?;
                let since = idle
                    .take()
                    .filter(|(seen, _)| seen == holder)
                    .map_or_else(Instant::now, |(_, since)| since);
                if holders.is_empty() && since.elapsed() < IDLE_LIMIT {
                    operation.report(format_args!(
                        "the holder annotation names {holder}, which does not have the volume yet"
                    ));
                    *idle = Some((holder.clone(), since));
                    return Ok(None);
                }
                tracing::info!(%holder, "no other VM has the volume; replacing its holder");
            }
            None => {}
        }
        let patch =
            || self.infra.patch_claim(self.volume, claim.annotating(HOLDER_ANNOTATION, &self.value()));
        match operation.change(patch).await? {
            Ok(claim) => self.held(&claim).map(Some),
            Err(error) if matches!(error.class(), Class::Invalid | Class::Conflict | Class::NotFound) => {
                operation.report(&error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn held(&self, claim: &Claim) -> Result<Hold, Error> {
        moved::check(self.volume, claim)?;
        if claim.deleting() { Err(Error::Deleting(self.volume.clone())) } else { Ok(Hold::Held) }
    }

    /// Returns and reports the error for a claim that does not exist yet; fails where there will be none.
    async fn unclaimed(&self, operation: &ControllerOperation) -> Result<Error, Error> {
        let volume = operation.wait(self.infra.data_volume(self.volume)).await??;
        let volume = volume.ok_or(infra::Foreign)?;
        usable::check(&volume, self.volume)?;
        let unclaimed = Error::Unclaimed { class: volume.storage_class.clone(), progress: volume.progress() };
        operation.report(&unclaimed);
        Ok(unclaimed)
    }

    /// Proves, once the volume is plugged in, that no other VM may have it.
    pub(crate) async fn confirm(&self, hold: Hold, operation: &ControllerOperation) -> Result<(), Error> {
        match hold {
            Hold::Held => {
                let claim = operation.wait(self.infra.claim(self.volume)).await??;
                if let Some(claim) = &claim {
                    // A detach elsewhere may have recorded it since the annotation was written.
                    moved::check(self.volume, claim)?;
                }
                let holder =
                    claim.and_then(|claim| claim.metadata.annotations.get(HOLDER_ANNOTATION).cloned());
                match holder {
                    Some(holder) if holder == self.value() => Ok(()),
                    Some(holder) => Err(Error::HeldElsewhere { holder }),
                    None => Err(Error::Changed(self.volume.clone())),
                }
            }
            Hold::Unarbitrated => {
                let census = operation.wait(self.infra.census()).await??;
                self.nobody_else(&census.holders(self.volume))
            }
        }
    }

    /// Fails where `holders` has another VM than ours.
    pub(crate) fn nobody_else(&self, holders: &[ObjectName]) -> Result<(), Error> {
        match holders.iter().find(|holder| *holder != self.vm) {
            Some(holder) => Err(Error::HeldElsewhere { holder: node_id(self.infra, holder) }),
            None => Ok(()),
        }
    }

    /// Removes the annotation if it names our VM. Returns the claim, which proves that it carries our labels; `None`
    /// where the annotation was not ours, or there is no claim, or no right to patch it.
    pub(crate) async fn release(&self, operation: &ControllerOperation) -> Result<Option<Claim>, Error> {
        let patch = || self.infra.patch_claim(self.volume, when_held(&self.value()));
        match operation.change(patch).await? {
            Ok(claim) => Ok(Some(claim)),
            Err(error)
                if matches!(
                    error.class(),
                    Class::NotFound | Class::Invalid | Class::Conflict | Class::BadRequest | Class::Forbidden
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn unarbitrated(error: &infra::Error) -> Hold {
    tracing::warn!(%error, "the claim can't be patched; attaching without the holder annotation");
    Hold::Unarbitrated
}

fn when_free(holder: &str) -> Vec<PatchOp> {
    let path = annotation_path(HOLDER_ANNOTATION);
    vec![PatchOp::test_absent(&*path), PatchOp::add(path, holder)]
}

fn when_held(holder: &str) -> Vec<PatchOp> {
    let path = annotation_path(HOLDER_ANNOTATION);
    vec![PatchOp::test(&*path, holder), PatchOp::remove(path)]
}
