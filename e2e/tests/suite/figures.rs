//! How fast, and with how many infra calls: measured, told in the run's table, and held to what does not depend on the machine.

mod already_ready;
mod many_claims;
mod many_volumes;

use std::time::Duration;

pub use already_ready::answers_soon_after_ready;
pub use many_claims::thirty_claims_with_pods;
pub use many_volumes::fifty_volumes_beside_the_bare_burst;

/// The value below which `share` of the (sorted) samples lie, nearest rank.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among some dozen samples"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
