//! Which rights our credentials have in a namespace, so that a program can report at its start which are missing.

use http::{Request, header};
use k8s_openapi::api::authorization::v1::SubjectRulesReviewStatus;
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
