//! Who may plug a volume that is for one node at a time.
//!
//! Hotplug calls are not conditional, and two replicas of this driver may serve at once. So the infra claim carries an
//! annotation with the VM that is to have the volume; it changes only by a conditional JSON patch, and so there is one winner.
//! The order is: hold, then look who has the volume (the truth is in VMs and VMIs, also for what the reference plugged in
//! without an annotation), then plug, then look that it is still held, then answer.
//!
//! It is an intent, not the state: detaching gives it up first, because a VM that still shows the volume keeps every other
//! away. A holder that died is replaced when no other VM's spec, volume request or VMI status names the volume.

use std::time::Duration;

use infra::{Claim, Class, Infra, ObjectName, PatchOp, annotation_path};
use tokio::time::Instant;

use crate::{error::Error, operation::Operation, waits::WaitCause};

/// Annotation of the infra claim: `<namespace>/<vm>` of the VM that may plug the volume.
pub(crate) const HOLDER_ANNOTATION: &str = "csi.kubevirt.io/holder";
/// Parent of the annotation.
const ANNOTATIONS: &str = "/metadata/annotations";
/// Version of the claim.
const RESOURCE_VERSION: &str = "/metadata/resourceVersion";
/// Pause before the next try: CDI makes a claim some 0.2 s after the `DataVolume`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// CDI makes a claim at once or needs somebody's help (a quota, a class that does not exist). After this time the answer tells
/// why, so that it becomes an event of the guest's while the sidecar calls again; its own time-out is minutes.
const CLAIM_PATIENCE: Duration = Duration::from_secs(20);
/// A holder without the volume is replaced after this time only: one that lives is about to plug it in. Not a matter of safety,
/// which the confirmation gives, but so that two nodes do not take a volume from each other in turns.
const IDLE_LIMIT: Duration = Duration::from_secs(3);

/// What stands between two VMs that want one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The annotation names our VM.
    Held,
    /// We may not patch the claim: look before and after plugging, and give way.
    Unarbitrated,
}

/// A volume and the VM that is to have it.
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
        display(self.infra, self.vm)
    }

    /// Becomes the holder. Waits a while for a claim that CDI has not made yet.
    pub(crate) async fn acquire(&self, operation: &Operation) -> Result<Hold, Error> {
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
                // A test failed: somebody holds it, or the claim has no annotations, or not our labels.
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

    /// `None` = try again. `idle` is the other holder that was seen without the volume, and since when.
    async fn acquire_from_other(
        &self,
        idle: &mut Option<(String, Instant)>,
        operation: &Operation,
    ) -> Result<Option<Hold>, Error> {
        let claim = match operation.wait(self.infra.claim(self.volume)).await? {
            Ok(Some(claim)) => claim,
            Ok(None) => return self.unclaimed(operation).await.map(|_| None),
            Err(error) if error.class() == Class::Forbidden => return Ok(Some(unarbitrated(&error))),
            Err(error) => return Err(error.into()),
        };
        let Ok(claim) = self.infra.guard().admit(claim) else {
            tracing::warn!("claim lacks the infra labels, attaching without the holder annotation");
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
                    operation
                        .note(format_args!("the volume is promised to {holder}, which does not have it yet"));
                    *idle = Some((holder.clone(), since));
                    return Ok(None);
                }
                tracing::info!(%holder, "no other VM has the volume, its holder is replaced");
            }
            None => {}
        }
        let patch = || self.infra.patch_claim(self.volume, replacing(&claim, &self.value()));
        match operation.change(patch).await? {
            Ok(claim) => self.held(&claim).map(Some),
            Err(error) if matches!(error.class(), Class::Invalid | Class::Conflict | Class::NotFound) => {
                operation.note(&error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn held(&self, claim: &Claim) -> Result<Hold, Error> {
        if claim.deleting() { Err(Error::Deleting(self.volume.clone())) } else { Ok(Hold::Held) }
    }

    /// Why there is no claim yet, which is noted; fails where there will be none.
    async fn unclaimed(&self, operation: &Operation) -> Result<Error, Error> {
        let volume = operation.wait(self.infra.data_volume(self.volume)).await??;
        let volume = volume.ok_or(infra::Foreign)?;
        crate::publish::check_usable(&volume, self.volume)?;
        let unclaimed = Error::Unclaimed { class: volume.storage_class.clone(), progress: volume.progress() };
        operation.note(&unclaimed);
        Ok(unclaimed)
    }

    /// Proves, once the volume is plugged in, that nobody else may have it.
    pub(crate) async fn confirm(&self, hold: Hold, operation: &Operation) -> Result<(), Error> {
        match hold {
            Hold::Held => {
                let claim = operation.wait(self.infra.claim(self.volume)).await??;
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

    /// An error that names another VM than ours.
    pub(crate) fn nobody_else(&self, holders: &[ObjectName]) -> Result<(), Error> {
        match holders.iter().find(|holder| *holder != self.vm) {
            Some(holder) => Err(Error::HeldElsewhere { holder: display(self.infra, holder) }),
            None => Ok(()),
        }
    }

    /// Gives up the intent if it is our VM's. The claim as it is then, which proves that it carries our labels; `None` where it
    /// was not ours to give up, or there is no claim, or no right to patch it.
    pub(crate) async fn release(&self, operation: &Operation) -> Result<Option<Claim>, Error> {
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
    tracing::warn!(%error, "the claim can't be patched, attaching without the holder annotation");
    Hold::Unarbitrated
}

/// `<namespace>/<vm>`: the form of the node id.
pub(crate) fn display(infra: &Infra, vm: &ObjectName) -> String {
    format!("{}/{vm}", infra.namespace())
}

fn when_free(holder: &str) -> Vec<PatchOp> {
    let path = annotation_path(HOLDER_ANNOTATION);
    vec![PatchOp::test_absent(&*path), PatchOp::add(path, holder)]
}

fn when_held(holder: &str) -> Vec<PatchOp> {
    let path = annotation_path(HOLDER_ANNOTATION);
    vec![PatchOp::test(&*path, holder), PatchOp::remove(path)]
}

/// Replaces whatever `claim` shows, unless it changed meanwhile.
fn replacing(claim: &Claim, holder: &str) -> Vec<PatchOp> {
    let unchanged = PatchOp::test(RESOURCE_VERSION, claim.metadata.resource_version.as_str());
    let set = if claim.metadata.annotations.is_empty() {
        PatchOp::add(ANNOTATIONS, serde_json::json!({ HOLDER_ANNOTATION: holder }))
    } else {
        PatchOp::add(annotation_path(HOLDER_ANNOTATION), holder)
    };
    vec![unchanged, set]
}
