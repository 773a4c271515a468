//! What a call is, as rules and journal see it: verb, resource, name. Pure.

use http::{Method, Uri};
use serde::{Deserialize, Serialize};

/// The verb of every gRPC call.
const GRPC_VERB: &str = "call";

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// As Kubernetes authorizes it (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`); `call` for
    /// gRPC; else the HTTP method in lower case.
    pub verb: String,
    /// Plural, with its subresource: `virtualmachines/addvolume`; a gRPC method: `CreateVolume`; else the path.
    pub resource: String,
    /// Name of the object, where the path has one.
    pub name: Option<String>,
}

impl Call {
    /// The call of an HTTP request to an API server (Kubernetes, "Kubernetes API Concepts", resource URIs).
    pub fn of_kubernetes(method: &Method, uri: &Uri) -> Self {
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["api", _version, rest @ ..] | ["apis", _, _version, rest @ ..] if !rest.is_empty() => rest,
            _ => {
                let verb = method.as_str().to_ascii_lowercase();
                return Self { verb, resource: uri.path().to_owned(), name: None };
            }
        };
        // `namespaces/x` alone is an object; followed by a plural it is where the object lives.
        let object = match rest {
            ["namespaces", _, object @ ..] if !object.is_empty() => object,
            object => object,
        };
        let (plural, name, subresource) = match object {
            [plural] => (*plural, None, &[][..]),
            [plural, name, subresource @ ..] => (*plural, Some((*name).to_owned()), subresource),
            [] => ("", None, &[][..]),
        };
        let watched = uri.query().is_some_and(|query| {
            query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1" | "watch=True"))
        });
        let verb = match (method.as_str(), &name) {
            ("GET", _) if watched => "watch",
            ("GET", Some(_)) => "get",
            ("GET", None) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            ("DELETE", None) => "deletecollection",
            (other, _) => other,
        };
        let resource =
            std::iter::once(plural).chain(subresource.iter().copied()).collect::<Vec<_>>().join("/");
        Self { verb: verb.to_owned(), resource, name }
    }

    /// The call of a gRPC request: its path is `/<service>/<method>`.
    pub fn of_grpc(uri: &Uri) -> Self {
        let method = uri.path().rsplit('/').next().unwrap_or_default();
        Self { verb: GRPC_VERB.to_owned(), resource: method.to_owned(), name: None }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.verb, self.resource, self.name.as_deref().unwrap_or("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::Call;

    #[test]
    fn a_path_is_read_as_the_api_server_reads_it() {
        let hotplug = "/apis/subresources.kubevirt.io/v1/namespaces/n/virtualmachines/vm1/addvolume";
        for (method, uri, told) in [
            ("GET", "/api/v1/namespaces/n/persistentvolumeclaims/pvc-1", "get persistentvolumeclaims pvc-1"),
            (
                "PATCH",
                "/api/v1/namespaces/n/persistentvolumeclaims/pvc-1",
                "patch persistentvolumeclaims pvc-1",
            ),
            ("GET", "/apis/kubevirt.io/v1/namespaces/n/virtualmachines?limit=100", "list virtualmachines -"),
            ("GET", "/apis/kubevirt.io/v1/virtualmachines?watch=true&x=y", "watch virtualmachines -"),
            ("POST", "/apis/cdi.kubevirt.io/v1beta1/namespaces/n/datavolumes", "create datavolumes -"),
            ("PUT", hotplug, "update virtualmachines/addvolume vm1"),
            ("GET", "/api/v1/namespaces/n", "get namespaces n"),
            ("DELETE", "/apis/storage.k8s.io/v1/volumeattachments/a", "delete volumeattachments a"),
            ("GET", "/livez", "get /livez -"),
        ] {
            let call = Call::of_kubernetes(&method.parse().unwrap(), &uri.parse().unwrap());
            assert_eq!(call.to_string(), told, "{method} {uri}");
        }
    }

    #[test]
    fn a_grpc_path_names_its_method() {
        let call = Call::of_grpc(&"/csi.v1.Controller/CreateVolume".parse().unwrap());
        assert_eq!(call.to_string(), "call CreateVolume -");
    }
}
