//! What proves that an object does not exist. A 404 alone does not: a proxy's page, or an API group that is not served,
//! is a 404 as well, and an object that is taken for absent may be deleted, created again or detached.

use std::fmt::Debug;

use kube::{Api, Resource, core::Status};
use serde::de::DeserializeOwned;

/// The reason of a `Status` about an object that does not exist (`k8s.io/apimachinery`, `meta/v1`,
/// `StatusReasonNotFound`).
const NOT_FOUND: &str = "NotFound";
/// The HTTP code that goes with it.
const CODE: u16 = 404;

/// Whether the answer `code` with the body `status` reports that this very object does not exist. `resource` is the
/// plural, with its subresource if the call has one.
///
/// An API server names the resource as `kind` in the details. KubeVirt's virt-api, which serves the subresources,
/// writes the singular (`virtualmachine`).
pub(crate) fn proves_absence(code: u16, status: &Status, resource: &str, name: &str) -> bool {
    let Some(details) = &status.details else { return false };
    let plural = resource.split('/').next().unwrap_or(resource);
    let is_ours = details.kind == plural || plural.strip_suffix('s') == Some(&details.kind);
    code == CODE && status.reason == NOT_FOUND && is_ours && details.name == name
}

/// Whether the API server reports that the `K` of this name does not exist.
pub fn is_absent<K: Resource<DynamicType = ()>>(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    proves_absence(status.code, status, &K::plural(&()), name)
}

/// Gets an object; `None` only when the API server reports that this very object does not exist.
///
/// Use it instead of [`Api::get_opt`], which takes every 404 for absence.
///
/// # Errors
/// The call failed: nothing is known of the object.
pub async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_absent::<K>(&error, name) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The HTTP status code of an API server's refusal.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({"code": 404, "reason": "NotFound", "details": {"name": "w1", "kind": "nodes"}}), true)]
    #[case::singular(json!({"code": 404, "reason": "NotFound", "details": {"name": "w1", "kind": "node"}}), true)]
    #[case::another_object(json!({"code": 404, "reason": "NotFound", "details": {"name": "w2", "kind": "nodes"}}), false)]
    #[case::another_kind(json!({"code": 404, "reason": "NotFound", "details": {"name": "w1", "kind": "pods"}}), false)]
    #[case::no_reason(json!({"code": 404, "details": {"name": "w1", "kind": "nodes"}}), false)]
    #[case::a_page(json!({"code": 404, "message": "404 page not found"}), false)]
    #[case::empty_details(json!({"code": 404, "reason": "NotFound", "details": {}}), false)]
    #[case::forbidden(json!({"code": 403, "reason": "Forbidden", "details": {"name": "w1", "kind": "nodes"}}), false)]
    #[case::gone(json!({"code": 410, "reason": "Expired", "details": {"name": "w1", "kind": "nodes"}}), false)]
    #[case::failed(json!({"code": 500, "reason": "NotFound", "details": {"name": "w1", "kind": "nodes"}}), false)]
    fn only_the_api_server_s_answer_about_the_object_proves_its_absence(
        #[case] answer: Value,
        #[case] proved: bool,
    ) {
        let status: Status = serde_json::from_value(answer).unwrap();
        assert_eq!(is_absent::<Node>(&kube::Error::Api(status.boxed()), "w1"), proved);
    }

    #[test]
    fn a_subresource_s_answer_is_about_its_object() {
        let answer = json!({"reason": "NotFound", "details": {"name": "vm1", "kind": "virtualmachine"}});
        let status: Status = serde_json::from_value(answer).unwrap();
        assert!(proves_absence(404, &status, "virtualmachines/addvolume", "vm1"));
    }
}
