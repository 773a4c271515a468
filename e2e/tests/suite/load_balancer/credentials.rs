//! Credentials that change under a running cloud controller manager.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    fixture::Fixture,
    provider::{ALONE, Place, mirror_name},
};

tests! {
    Services:
        changed_credentials_are_taken_up_without_a_restart;
}

/// The tokens of both clusters end while it runs, and others replace them: it continues with those, without a restart, and
/// does the work that arrived meanwhile.
async fn changed_credentials_are_taken_up_without_a_restart(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let [first, second] = ["first", "second"].map(|which| format!("{}-{which}", fixture.word));
    let access = place.access_bound_to(&fixture.infra, &first).await?;
    let provider = place.provider_as("a", &access, &[ALONE]).await?;
    place.create("before", json!({})).await?;
    place.served("before").await?;

    place.end_access(&fixture.infra, &first, access).await?;
    let meanwhile = mirror_name(&place.create("meanwhile", json!({})).await?);
    let refused = place.mirrors.get_opt(&meanwhile).await?;
    ensure!(refused.is_none(), "expected no mirror while the credentials are invalid, saw one");
    let access = place.access_bound_to(&fixture.infra, &second).await?;
    place.replace_access("a", &access).await?;
    place.served("meanwhile").await?;
    place.create("after", json!({})).await?;
    place.served("after").await?;
    ensure!(provider.process.ended().is_none(), "expected the process to live on, saw it ended");
    place.end_access(&fixture.infra, &second, access).await
}
