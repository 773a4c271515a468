//! What a request is about, read from its method and URL.

use http::{Method, Request};

/// What a call is about, as Kubernetes authorizes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `other`.
    pub verb: &'static str,
    /// The plural of the resource, with its subresource; `none` where the URL has no resource.
    pub resource: String,
    /// The object, where the URL names one.
    pub name: Option<String>,
    /// The HTTP method.
    pub method: Method,
}

impl Call {
    /// Reads method and URL.
    pub fn of<B>(request: &Request<B>) -> Self {
        let mut parts = request.uri().path().split('/').filter(|part| !part.is_empty());
        // /api/v1/…, /apis/<group>/<version>/…; what is neither has no resource.
        let prefix = match parts.next() {
            Some("api") => parts.next().is_some(),
            Some("apis") => parts.next().is_some() && parts.next().is_some(),
            _ => false,
        };
        let parts: Vec<&str> = if prefix { parts.collect() } else { Vec::new() };
        let parts = match parts.as_slice() {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            parts => parts,
        };
        let watch =
            request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let (resource, name) = match parts {
            [] => ("none".to_owned(), None),
            [resource] => ((*resource).to_owned(), None),
            [resource, name] => ((*resource).to_owned(), Some((*name).to_owned())),
            [resource, name, subresource, ..] => {
                (format!("{resource}/{subresource}"), Some((*name).to_owned()))
            }
        };
        let method = request.method();
        let verb = match (method, &name) {
            _ if watch => "watch",
            (&Method::GET, Some(_)) => "get",
            (&Method::GET, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, Some(_)) => "delete",
            _ => "other",
        };
        Self { verb, resource, name, method: method.clone() }
    }

    /// Whether it changes nothing, so that it may be repeated.
    pub(crate) fn is_read(&self) -> bool {
        self.method == Method::GET
    }

    /// Whether it may change something. A review is a question that is asked by POST.
    pub(crate) fn is_change(&self) -> bool {
        !self.is_read() && !self.resource.ends_with("reviews")
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.verb == "watch"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("GET", "/api/v1/nodes/n", "get", "nodes", Some("n"))]
    #[case("GET", "/api/v1/namespaces/hcp/services?limit=5", "list", "services", None)]
    #[case("GET", "/api/v1/services?&watch=true&resourceVersion=4", "watch", "services", None)]
    #[case("POST", "/api/v1/namespaces/hcp/services", "create", "services", None)]
    #[case("PATCH", "/api/v1/namespaces/a/services/b/status", "patch", "services/status", Some("b"))]
    #[case(
        "PUT",
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/l",
        "update",
        "leases",
        Some("l")
    )]
    #[case(
        "DELETE",
        "/apis/kubevirt.io/v1/namespaces/a/virtualmachines/b",
        "delete",
        "virtualmachines",
        Some("b")
    )]
    #[case("GET", "/api/v1/namespaces/hcp", "get", "namespaces", Some("hcp"))]
    #[case("GET", "/version", "list", "none", None)]
    fn a_call_is_what_kubernetes_authorizes(
        #[case] method: &str,
        #[case] uri: &str,
        #[case] verb: &str,
        #[case] resource: &str,
        #[case] name: Option<&str>,
    ) {
        let call = Call::of(&Request::builder().method(method).uri(uri).body(()).unwrap());
        assert_eq!((call.verb, call.resource.as_str(), call.name.as_deref()), (verb, resource, name));
    }

    #[rstest]
    #[case("POST", "/api/v1/namespaces/hcp/services", true)]
    #[case("PUT", "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachines/b/addvolume", true)]
    #[case("PATCH", "/api/v1/namespaces/hcp/persistentvolumeclaims/a", true)]
    #[case("DELETE", "/api/v1/namespaces/hcp/services/a", true)]
    #[case("GET", "/api/v1/namespaces/hcp/services", false)]
    #[case("GET", "/api/v1/namespaces/hcp/services?watch=true", false)]
    #[case("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", false)]
    #[case("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", false)]
    fn a_review_changes_nothing(#[case] method: &str, #[case] uri: &str, #[case] changes: bool) {
        let call = Call::of(&Request::builder().method(method).uri(uri).body(()).unwrap());
        assert_eq!(call.is_change(), changes);
    }
}
