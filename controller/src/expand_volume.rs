//! `ControllerExpandVolume`: the infra claim is made larger, and waited for until its status shows that it is.
//!
//! It answers the size of the disk that the guest surely gets, and always requires the expansion on the node, for block
//! volumes too. KubeVirt resizes a plugged disk after the claim is larger and reports that nowhere, so only the node sees
//! when the disk has its size; without that step the guest's claim would show a size that its disk does not have yet.

use std::time::Duration;

use infra::{
    Claim, Class, DataVolume, Infra, ObjectName, Owned, PatchOp, annotation_path, refuses_expansion,
    resize_ops,
};
use tokio::time::Instant;

use crate::{
    claim_size::Layout,
    controller_operation::ControllerOperation,
    error::Error,
    expand::{self, CannotExpand, Cause, Observed, Step, Wanted},
    keys::CREATED_REQUEST_ANNOTATION,
    metrics::WaitCause,
    moved,
    request::Expand,
    usable, volume,
};

/// Parent of the annotations.
const ANNOTATIONS: &str = "/metadata/annotations";
/// `resourceVersion` of the claim.
const RESOURCE_VERSION: &str = "/metadata/resourceVersion";
/// Pause before the next read: the sidecar of the infra storage begins some 0.1 s after the patch.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between reads, as between those of a VMI.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait, within one RPC, for the infra claim of a volume that was just created.
const BINDING_PATIENCE: Duration = Duration::from_secs(20);
/// An infra storage that still fails after this time probably needs a person. The answer is then final for csi-resizer, so
/// that the guest's user learns the reason and may request a smaller size; the infra cluster and csi-resizer try on.
const FAILING_PATIENCE: Duration = Duration::from_secs(20);

/// Expands the volume; returns the size of its disk in bytes.
pub(crate) async fn expand(
    infra: &Infra,
    operation: &ControllerOperation,
    request: &Expand,
) -> Result<u64, Error> {
    let name = infra.guard().volume_name(&request.volume)?;
    let volume = operation.wait(infra.data_volume(&name)).await??.ok_or(infra::Foreign)?;
    let volume = infra.guard().admit(volume).inspect_err(|_| usable::audit(&name, "expand"))?;
    usable::check(&volume, &name)?;
    Expansion { infra, operation, name: &name, volume, request }.run().await
}

struct Expansion<'a> {
    infra: &'a Infra,
    operation: &'a ControllerOperation,
    name: &'a ObjectName,
    volume: Owned<DataVolume>,
    request: &'a Expand,
}

/// A change that the infra API refused for its content, and why.
struct Refused {
    to: u64,
    error: infra::Error,
}

impl Expansion<'_> {
    /// Observes, plans and acts until the volume has its size.
    async fn run(&self) -> Result<u64, Error> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut refused: Option<Refused> = None;
        let mut claim = self.made(began).await?;
        loop {
            let (layout, first_request) = Layout::of(&self.volume, &claim);
            match expand::next(&Observed::of(&claim), &self.wanted(layout)) {
                Step::Done(size) => return Ok(size),
                Step::Refuse(refusal @ CannotExpand::NotBound { .. }) if self.binds_soon(began) => {
                    self.operation.report(&refusal);
                }
                Step::Refuse(refusal) => return Err(self.cannot(refusal)),
                Step::Patch { to } => {
                    // Some refusals are about a state that has changed meanwhile. One stands if nothing has.
                    if let Some(same) = refused.take().filter(|refused| refused.to == to) {
                        return Err(Error::RefusedExpansion(same.error));
                    }
                    match self.patch(&claim, to, first_request).await? {
                        Ok(patched) => {
                            claim = self.admit(patched)?;
                            continue;
                        }
                        Err(error) if error.is_content_refusal() => refused = Some(Refused { to, error }),
                        Err(error) => self.operation.report(error),
                    }
                }
                Step::Wait(cause) => {
                    self.operation.report(&cause);
                    self.fail_if_failing(&cause, began)?;
                }
            }
            self.operation.wait_for(WaitCause::Expansion, tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
            claim = self.read().await?;
        }
    }

    /// Whether the claim of a volume that does not wait for its first use may still become bound within this call.
    fn binds_soon(&self, began: Instant) -> bool {
        !volume::waits_for_consumer(&self.volume)
            && began.elapsed() < BINDING_PATIENCE
            && Instant::now() + LONGEST_PAUSE < self.operation.answer_by()
    }

    /// The claim, as soon as CDI has made it.
    async fn made(&self, began: Instant) -> Result<Owned<Claim>, Error> {
        loop {
            match self.read().await {
                Err(unclaimed @ Error::Unclaimed { .. }) if self.binds_soon(began) => {
                    self.operation.report(&unclaimed);
                }
                read => return read,
            }
            self.operation.wait_for(WaitCause::Expansion, tokio::time::sleep(FIRST_PAUSE)).await?;
        }
    }

    fn wanted(&self, layout: Layout) -> Wanted {
        let first_disk = layout.first_disk(&self.volume);
        Wanted { disk: self.request.required, limit: self.request.limit, layout, first_disk }
    }

    fn cannot(&self, refusal: CannotExpand) -> Error {
        Error::CannotExpand { volume: self.name.clone(), refusal }
    }

    fn fail_if_failing(&self, cause: &Cause, began: Instant) -> Result<(), Error> {
        match cause.failure() {
            Some(reason) if began.elapsed() >= FAILING_PATIENCE => {
                Err(self.cannot(CannotExpand::Failing { reason: reason.to_owned() }))
            }
            _ => Ok(()),
        }
    }

    /// Reads the claim. While CDI has not made it, its reason is the answer; csi-resizer asks again.
    async fn read(&self) -> Result<Owned<Claim>, Error> {
        if let Some(claim) = self.operation.wait(self.infra.claim(self.name)).await?? {
            return self.admit(claim);
        }
        let volume = self.operation.wait(self.infra.data_volume(self.name)).await??;
        let volume = volume.ok_or(infra::Foreign)?;
        usable::check(&volume, self.name)?;
        Err(Error::Unclaimed { class: volume.storage_class.clone(), progress: volume.progress() })
    }

    fn admit(&self, claim: Claim) -> Result<Owned<Claim>, Error> {
        let claim = self.infra.guard().admit(claim).inspect_err(|_| usable::audit(self.name, "expand"))?;
        moved::check(self.name, &claim)?;
        if claim.deleting() { Err(Error::Deleting(self.name.clone())) } else { Ok(claim) }
    }

    /// Sets the claim's request. The inner error is one after which the claim has to be read again.
    async fn patch(
        &self,
        claim: &Claim,
        to: u64,
        first_request: Option<u64>,
    ) -> Result<Result<Claim, infra::Error>, Error> {
        let ops = || {
            let mut ops = resize_ops(claim, to);
            ops.extend(first_request.into_iter().flat_map(|request| recording(claim, request)));
            ops
        };
        match self.operation.change(|| self.infra.patch_claim(self.name, ops())).await? {
            Ok(patched) => {
                tracing::info!(volume = %self.name, bytes = to, "changed the size that the infra claim requests");
                Ok(Ok(patched))
            }
            Err(error) if error.is_quota() => Err(Error::ExpansionQuota(error)),
            Err(error) if refuses_expansion(&error) => Err(Error::RefusedExpansion(error)),
            Err(error)
                if error.is_content_refusal()
                    || matches!(error.class(), Class::Invalid | Class::Conflict | Class::NotFound) =>
            {
                Ok(Err(error))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Records the claim's first request in its annotations.
fn recording(claim: &Claim, request: u64) -> Vec<PatchOp> {
    let request = request.to_string();
    if claim.metadata.annotations.is_empty() {
        let unchanged = PatchOp::test(RESOURCE_VERSION, claim.metadata.resource_version.as_str());
        let all = serde_json::json!({ CREATED_REQUEST_ANNOTATION: request });
        vec![unchanged, PatchOp::add(ANNOTATIONS, all)]
    } else {
        vec![PatchOp::add(annotation_path(CREATED_REQUEST_ANNOTATION), request)]
    }
}
