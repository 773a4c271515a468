//! A Lease as the API server returns it. Whoever may write it can set times that our types can't represent, for example
//! in the year 9999. No decision needs the times, so such a time is left out.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The times of a spec.
const TIMES: [&str; 2] = ["acquireTime", "renewTime"];

/// A Lease without the times that can't be read, and without `managedFields`, which have times too. An API server keeps
/// the `managedFields` that a write leaves out.
#[derive(Clone, Debug, Deserialize, Serialize, Resource)]
#[serde(try_from = "Value", into = "Lease")]
#[resource(inherit = "Lease")]
pub(crate) struct WireLease {
    /// Name and version.
    pub metadata: ObjectMeta,
    /// The holder, its duration and the times that can be read.
    pub spec: Option<LeaseSpec>,
}

impl TryFrom<Value> for WireLease {
    type Error = serde_json::Error;

    fn try_from(mut lease: Value) -> Result<Self, serde_json::Error> {
        if let Some(metadata) = lease.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        if let Some(spec) = lease.get_mut("spec").and_then(Value::as_object_mut) {
            spec.retain(|key, value| {
                !TIMES.contains(&key.as_str()) || MicroTime::deserialize(&*value).is_ok()
            });
        }
        let Lease { metadata, spec } = serde_json::from_value(lease)?;
        Ok(Self { metadata, spec })
    }
}

impl From<WireLease> for Lease {
    fn from(lease: WireLease) -> Self {
        Self { metadata: lease.metadata, spec: lease.spec }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case::ordinary(json!("2026-11-30T06:00:00.000000Z"), true)]
    #[case::null(json!(null), false)]
    #[case::absurd(json!("9999-12-31T23:59:59.999999Z"), false)]
    #[case::no_time(json!("soon"), false)]
    #[case::number(json!(7), false)]
    fn a_lease_is_read_whatever_its_times_are(#[case] time: Value, #[case] is_kept: bool) {
        let written = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "a", "resourceVersion": "7", "managedFields": [{"manager": "x", "time": time}]},
            "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": time, "acquireTime": time}});
        let lease: WireLease = serde_json::from_value(written).unwrap();
        let spec = lease.spec.clone().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("other"), Some(15)));
        assert_eq!((spec.renew_time.is_some(), spec.acquire_time.is_some()), (is_kept, is_kept));
        let sent = serde_json::to_value(lease).unwrap();
        assert_eq!((&sent["kind"], &sent["metadata"]["resourceVersion"]), (&json!("Lease"), &json!("7")));
    }
}
