//! Credentials that change under a running cloud controller manager.

use anyhow::{Result, ensure};
use serde_json::json;

use super::ALONE;
use super::provider::{Place, mirror_name};
use crate::fixture::Fixture;

/// The tokens of both clusters end while it runs, and others come in their places: it goes on with those, without a restart, and
/// does what came meanwhile.
pub async fn change(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let [first, second] = ["first", "second"].map(|which| format!("{}-{which}", fixture.word));
    let access = place.access_bound_to(&fixture.infra, &first).await?;
    let provider = place.provider_as("a", &access, &[ALONE]).await?;
    place.create("before", json!({})).await?;
    place.served("before").await?;

    place.end_access(&fixture.infra, &first, access).await?;
    let meanwhile = mirror_name(&place.create("meanwhile", json!({})).await?);
    let refused = place.mirrors.get_opt(&meanwhile).await?;
    ensure!(refused.is_none(), "a mirror was made with credentials that have ended");
    let access = place.access_bound_to(&fixture.infra, &second).await?;
    place.replace_access("a", &access).await?;
    place.served("meanwhile").await?;
    place.create("after", json!({})).await?;
    place.served("after").await?;
    ensure!(provider.process.ended().is_none(), "the process was started anew");
    place.end_access(&fixture.infra, &second, access).await
}
