//! A quota of the infra namespace for the time of a test.

use anyhow::Result;
use bench::scenario::{Deadline, HCP_NAMESPACE, until};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::fixture::Fixture;

/// Does `work` while a quota that has the test's name allows `most` of `counted`. It is removed whatever the result is, because every
/// later test makes objects there.
pub async fn under_quota<T>(
    fixture: &Fixture,
    counted: &str,
    most: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let quotas: Api<ResourceQuota> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let quota = json!({"metadata": {"name": fixture.word}, "spec": {"hard": {counted: most}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
    let done = async {
        until("the quota to be in force", Deadline::Reaction, async || {
            let status = quotas.get(&fixture.word).await?.status.unwrap_or_default();
            let is_counted = status.used.as_ref().is_some_and(|used| used.contains_key(counted));
            Ok(if is_counted { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await?;
        work.await
    };
    let done = Box::pin(done).await;
    quotas.delete(&fixture.word, &DeleteParams::default()).await?;
    done
}
