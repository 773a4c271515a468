//! Which rights we have been given in the infra namespace, asked once at start so that what is missing is said plainly.

use serde::Deserialize;

use crate::object::null_as_default;

/// One right: a verb on a resource of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty = core.
    pub group: &'static str,
    /// Resource, with its subresource.
    pub resource: &'static str,
    /// Verb.
    pub verb: &'static str,
    /// What does not work without it.
    pub purpose: &'static str,
}

const fn right(
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    purpose: &'static str,
) -> Right {
    Right { group, resource, verb, purpose }
}

/// Every right that the controller uses; all are in the role that `HyperShift` and the reference's manifests give.
pub const REQUIRED_RIGHTS: [Right; 12] = [
    right("cdi.kubevirt.io", "datavolumes", "get", "everything"),
    right("cdi.kubevirt.io", "datavolumes", "create", "creating volumes"),
    right("cdi.kubevirt.io", "datavolumes", "delete", "deleting volumes"),
    right("kubevirt.io", "virtualmachines", "get", "attaching and detaching"),
    right(
        "kubevirt.io",
        "virtualmachines",
        "list",
        "attaching volumes of one node at a time, deleting volumes",
    ),
    right("kubevirt.io", "virtualmachineinstances", "get", "attaching and detaching"),
    right(
        "kubevirt.io",
        "virtualmachineinstances",
        "list",
        "attaching volumes of one node at a time, deleting volumes",
    ),
    right("subresources.kubevirt.io", "virtualmachines/addvolume", "update", "attaching"),
    right("subresources.kubevirt.io", "virtualmachines/removevolume", "update", "detaching"),
    right("", "persistentvolumeclaims", "get", "arbitrating between two nodes that want one volume"),
    right("", "persistentvolumeclaims", "patch", "arbitrating between two nodes that want one volume"),
    right("authorization.k8s.io", "selfsubjectrulesreviews", "create", "telling which rights are missing"),
];

/// Never needed and never asked for; where it is granted, an attached disk is answered at once instead of at the next look.
pub const WATCH_INSTANCES: Right =
    right("kubevirt.io", "virtualmachineinstances", "watch", "answering as soon as a disk is ready");

/// The rights in the infra namespace, as the API reviews them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rights {
    #[serde(default)]
    status: WireStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    #[serde(deserialize_with = "null_as_default")]
    resource_rules: Vec<WireRule>,
    incomplete: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireRule {
    #[serde(deserialize_with = "null_as_default")]
    verbs: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    api_groups: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    resources: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    resource_names: Vec<String>,
}

impl Rights {
    /// Whether the review is complete; some authorizers can't list their rules, then a missing right proves nothing.
    pub fn complete(&self) -> bool {
        !self.status.incomplete
    }

    /// Whether a rule for all names grants it.
    pub fn allow(&self, right: &Right) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        self.status.resource_rules.iter().any(|rule| {
            rule.resource_names.is_empty()
                && any(&rule.verbs, right.verb)
                && any(&rule.api_groups, right.group)
                && any(&rule.resources, right.resource)
        })
    }

    /// Those of `wanted` that are not granted.
    pub fn missing<'a>(&'a self, wanted: &'a [Right]) -> impl Iterator<Item = &'a Right> {
        wanted.iter().filter(|right| !self.allow(right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_named() {
        let rights: Rights = serde_json::from_value(serde_json::json!({"status": {"incomplete": false, "resourceRules": [
            {"verbs": ["get", "create", "delete"], "apiGroups": ["cdi.kubevirt.io"], "resources": ["datavolumes"]},
            {"verbs": ["list", "get"], "apiGroups": ["kubevirt.io"], "resources": ["virtualmachines", "virtualmachineinstances"]},
            {"verbs": ["update"], "apiGroups": ["subresources.kubevirt.io"],
             "resources": ["virtualmachines/addvolume", "virtualmachines/removevolume"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["persistentvolumeclaims"]},
            {"verbs": ["patch"], "apiGroups": [""], "resources": ["persistentvolumeclaims"], "resourceNames": ["one"]},
            {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["*"], "resourceNames": null}
        ]}}))
        .unwrap();
        let missing: Vec<_> = rights.missing(&REQUIRED_RIGHTS).map(|r| (r.resource, r.verb)).collect();
        assert_eq!(missing, [("persistentvolumeclaims", "patch")]);
        assert!(rights.complete());
    }
}
