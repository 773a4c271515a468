//! Reports once, at the start, which rights on the infra cluster are missing, and lets the waits use rights that were
//! granted beyond the needed ones. It decides nothing about the needed rights: each call finds out by itself what it
//! may do.

use infra::{Infra, REQUIRED_RIGHTS};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serving::Tasks;

/// Asks while the driver already serves, so that an infra cluster that does not answer delays nothing.
pub fn report(infra: Infra, registry: &mut Registry, tasks: &Tasks) {
    let missing = Gauge::<i64>::default();
    registry.register(
        "kubevirt_csi_missing_rights",
        "Required rights on the infra cluster that were missing at the start",
        missing.clone(),
    );
    tasks.spawn_until_done("the report of missing rights", async move {
        let rights = match infra.rights().await {
            Ok(rights) => rights,
            Err(error) => {
                tracing::info!(%error, "could not read our rights on the infra cluster");
                return;
            }
        };
        if !rights.complete() {
            tracing::info!(
                "the infra cluster can not list all our rights; what is missing shows when it is used"
            );
            return;
        }
        infra.use_granted(&rights);
        let mut count = 0;
        for right in rights.missing(&REQUIRED_RIGHTS) {
            count += 1;
            tracing::warn!(
                verb = right.verb,
                resource = right.resource,
                group = right.group,
                namespace = infra.namespace(),
                "a right is missing, which is needed for: {}; grant it in the Role of our service account",
                right.purpose
            );
        }
        missing.set(count);
    });
}
