//! Which rights our credentials have. [`ApiServer::rights`] reads those of a namespace at once, so that a program can
//! report at its start which are missing. [`is_granted`] asks for one right, where a decision depends on the answer.

use std::fmt;

use http::{Request, header};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectRulesReviewStatus,
};
use kube::{
    Client,
    api::{Api, PostParams},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::Error,
    server::{ApiServer, WhenPaused},
};

const RULES_REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

/// One right: a verb on a resource of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty = core.
    pub group: &'static str,
    /// Resource, with its subresource.
    pub resource: &'static str,
    /// Verb.
    pub verb: &'static str,
    /// What fails without it.
    pub purpose: &'static str,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

/// The rights of our credentials in a namespace, as the API server reviews them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rights {
    #[serde(default)]
    status: SubjectRulesReviewStatus,
}

impl ApiServer {
    /// Reads the rights that our credentials have in `namespace`.
    ///
    /// # Errors
    /// The call failed: nothing is known.
    #[expect(clippy::missing_panics_doc, reason = "the URL and the headers are constants")]
    pub async fn rights(&self, namespace: &str) -> Result<Rights, Error> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let request = Request::post(RULES_REVIEWS)
            .header(header::CONTENT_TYPE, "application/json")
            .body(review.to_string().into_bytes())
            .expect("a constant URL and constant headers are legal");
        self.read(request, WhenPaused::Fail).await
    }
}

impl Rights {
    /// Whether the review is complete. Some authorizers can't list their rules; then a missing right proves nothing.
    pub fn complete(&self) -> bool {
        !self.status.incomplete
    }

    /// Whether a rule for all names grants the right.
    pub fn allow(&self, right: &Right) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        let of =
            |list: &Option<Vec<String>>, wanted: &str| list.as_ref().is_some_and(|list| any(list, wanted));
        self.status.resource_rules.iter().any(|rule| {
            rule.resource_names.as_ref().is_none_or(Vec::is_empty)
                && any(&rule.verbs, right.verb)
                && of(&rule.api_groups, right.group)
                && of(&rule.resources, right.resource)
        })
    }

    /// The rights of `wanted` that are not granted.
    pub fn missing<'a>(&'a self, wanted: &'a [Right]) -> impl Iterator<Item = &'a Right> {
        wanted.iter().filter(|right| !self.allow(right))
    }
}

/// Asks whether our credentials have the right in `namespace`; `None` = in all namespaces.
///
/// This is the decision of the API server's authorizers. The list of [`Rights`] may be incomplete, and it has no rights
/// in all namespaces.
///
/// # Errors
/// The call failed: nothing is known.
pub async fn is_granted(
    client: &Client,
    namespace: Option<&str>,
    right: &Right,
) -> Result<bool, kube::Error> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (right.resource, None),
    };
    let attributes = ResourceAttributes {
        namespace: namespace.map(str::to_owned),
        verb: Some(right.verb.to_owned()),
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: subresource.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use kube::client::Body;
    use serde_json::Value;

    const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

    /// An API server that reviews with this status, if it is asked for `attributes`.
    fn reviewing(attributes: Value, status: Value) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (attributes, status) = (attributes.clone(), status.clone());
            async move {
                let (parts, body) = request.into_parts();
                let review: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap();
                assert_eq!((parts.method.as_str(), parts.uri.path()), ("POST", REVIEWS));
                assert_eq!(review["spec"], json!({"resourceAttributes": attributes}));
                let answer = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                    "metadata": {}, "spec": {}, "status": status});
                Ok::<_, kube::Error>(Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        Client::new(service, "default")
    }

    fn right(group: &'static str, resource: &'static str, verb: &'static str) -> Right {
        Right { group, resource, verb, purpose: "the test" }
    }

    #[tokio::test]
    async fn a_right_is_granted_only_where_the_review_allows_it() {
        let list = right("discovery.k8s.io", "endpointslices", "list");
        assert_eq!(list.to_string(), "list endpointslices");
        for (status, granted) in [
            (json!({"allowed": true}), true),
            (json!({"allowed": false}), false),
            (json!({"allowed": false, "evaluationError": "a webhook does not answer"}), false),
            (Value::Null, false),
        ] {
            let asked = json!({"group": "discovery.k8s.io", "resource": "endpointslices", "verb": "list",
                "namespace": "hcp"});
            let client = reviewing(asked, status.clone());
            assert_eq!(is_granted(&client, Some("hcp"), &list).await.unwrap(), granted, "{status}");
        }
    }

    #[tokio::test]
    async fn a_right_in_all_namespaces_names_none_and_a_subresource_is_named_apart() {
        let allowed = || json!({"allowed": true});
        let everywhere = reviewing(json!({"group": "", "resource": "nodes", "verb": "watch"}), allowed());
        assert!(is_granted(&everywhere, None, &right("", "nodes", "watch")).await.unwrap());
        let status = json!({"group": "", "resource": "services", "subresource": "status", "verb": "patch"});
        let status = reviewing(status, allowed());
        assert!(is_granted(&status, None, &right("", "services/status", "patch")).await.unwrap());
    }

    #[tokio::test]
    async fn without_an_answer_nothing_is_known() {
        let service = tower::service_fn(|_: Request<Body>| async {
            Err::<Response<Body>, _>(std::io::Error::other("gone"))
        });
        let client = Client::new(service, "default");
        assert!(is_granted(&client, None, &right("", "nodes", "watch")).await.is_err());
    }
}
