//! Why a volume is not there yet. CDI reports some of it at the `DataVolume`; a claim through which CDI fills
//! the volume, and which was refused, shows only by its absence and in an event of the first claim.

use infra::{Claim, Infra, ObjectName};

use crate::controller_operation::ControllerOperation;

/// Begins the reason where a quota may be the cause, which nothing states.
const SECOND_CLAIM: &str = "CDI fills the volume through a second claim of the same size";

/// The reason as far as it shows; empty where the claim is bound or nothing more is known. A failed read tells nothing: the
/// reason is an addition to what the RPC reports.
pub(crate) async fn unbound(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    waits_for_consumer: bool,
) -> String {
    let Ok(Ok(Some(claim))) = operation.wait(infra.claim(volume)).await else { return String::new() };
    if claim.is_lost() {
        return "infra PVC Lost: its PersistentVolume is gone".to_owned();
    }
    if claim.is_bound() {
        return String::new();
    }
    let warnings = warnings_about(infra, operation, &claim.metadata.uid).await;
    if !warnings.is_empty() {
        return warnings.join("; ");
    }
    if waits_for_consumer { String::new() } else { second_claim(infra, operation, &claim).await }
}

/// The newest warnings about the object of this UID. A failed read tells nothing.
pub(crate) async fn warnings_about(infra: &Infra, operation: &ControllerOperation, uid: &str) -> Vec<String> {
    match operation.wait(infra.warnings_about(uid)).await {
        Ok(Ok(warnings)) => warnings,
        Ok(Err(error)) => {
            tracing::debug!(%error, uid, "the events of the object can not be read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// What the second claim shows: it is refused where a quota has room for one claim only.
async fn second_claim(infra: &Infra, operation: &ControllerOperation, claim: &Claim) -> String {
    let Some(name) = claim.second_claim() else { return String::new() };
    match operation.wait(infra.claim(&name)).await {
        Ok(Ok(None)) => format!(
            "{SECOND_CLAIM}, which it has not made ({name}): a ResourceQuota of the infra namespace must have room for both"
        ),
        Ok(Ok(Some(second))) if !second.is_bound() => {
            format!("{SECOND_CLAIM}, which has no volume yet (PVC {name} {})", second.status.phase)
        }
        Ok(_) | Err(_) => String::new(),
    }
}
