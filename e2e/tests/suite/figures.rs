//! How fast, and with how many infra calls: measured, reported in the run's table, and limited where the limit does not depend on
//! the machine.

pub mod already_ready;
pub mod hostile_guest;
pub mod many_claims;
pub mod many_volumes;

use std::time::Duration;

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
