//! Which granted rights were used, read from manifests and audit logs. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Call, Calls};

/// One right that the manifests grant to an account: one verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The account's name.
    pub account: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Resource, with its subresource.
    pub resource: String,
    /// Verb.
    pub verb: String,
}

impl Grant {
    /// Whether this account's call is one that is granted, in whatever namespace the account is.
    pub fn covers(&self, call: &Call) -> bool {
        self.group == call.group
            && self.resource == call.resource
            && self.verb == call.verb
            && call.user.starts_with("system:serviceaccount:")
            && call.user.rsplit(':').next() == Some(&self.account)
    }
}

/// Every right that the roles in `objects` give to service accounts through the bindings beside them.
pub fn granted(objects: &[Value]) -> BTreeSet<Grant> {
    let mut all = BTreeSet::new();
    for binding in objects.iter().filter(|object| kind(object).ends_with("RoleBinding")) {
        let role = objects.iter().find(|object| {
            object["kind"] == binding["roleRef"]["kind"]
                && object["metadata"]["name"] == binding["roleRef"]["name"]
        });
        for subject in list(&binding["subjects"]).filter(|subject| subject["kind"] == "ServiceAccount") {
            for rule in role.into_iter().flat_map(|role| list(&role["rules"])) {
                all.extend(grants(&subject["name"], rule));
            }
        }
    }
    all
}

/// Those of `grants` that no call of `calls` used. A call that authorization refused used nothing.
pub fn unused(grants: &BTreeSet<Grant>, calls: &Calls) -> BTreeSet<Grant> {
    let used = |grant: &&Grant| calls.as_slice().iter().any(|call| !call.denied && grant.covers(call));
    grants.iter().filter(|grant| !used(grant)).cloned().collect()
}

fn grants(account: &Value, rule: &Value) -> Vec<Grant> {
    let mut all = Vec::new();
    for group in list(&rule["apiGroups"]) {
        for resource in list(&rule["resources"]) {
            for verb in list(&rule["verbs"]) {
                let [account, group, resource, verb] =
                    [account, group, resource, verb].map(|text| text.as_str().unwrap_or_default().to_owned());
                all.push(Grant { account, group, resource, verb });
            }
        }
    }
    all
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::parse;

    #[test]
    fn a_right_is_used_by_a_call_of_its_account_that_was_not_refused() {
        let objects = [
            json!({"kind": "Role", "metadata": {"name": "r"}, "rules": [
                {"apiGroups": ["kubevirt.io"], "resources": ["virtualmachines"], "verbs": ["get", "list"]},
                {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["patch"]},
            ]}),
            json!({"kind": "RoleBinding", "roleRef": {"kind": "Role", "name": "r"},
                   "subjects": [{"kind": "ServiceAccount", "name": "a"}]}),
            json!({"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": []}),
        ];
        let all = granted(&objects);
        assert_eq!(all.len(), 3);
        let line = |id: &str, user: &str, verb: &str, decision: &str, code: u16| {
            json!({
                "auditID": id, "requestURI": "/", "verb": verb, "stage": "ResponseComplete",
                "user": {"username": user}, "requestReceivedTimestamp": "2026-11-01T00:00:00Z",
                "objectRef": {"resource": "virtualmachines", "apiGroup": "kubevirt.io"},
                "responseStatus": {"code": code},
                "annotations": {"authorization.k8s.io/decision": decision},
            })
            .to_string()
                + "\n"
        };
        let text = line("1", "system:serviceaccount:n:a", "get", "allow", 200)
            + &line("2", "system:serviceaccount:n:b", "list", "allow", 200)
            + &line("3", "system:serviceaccount:n:a", "list", "forbid", 403);
        let left = unused(&all, &parse(&text).expect("audit lines"));
        let left: Vec<_> = left.iter().map(|grant| (&*grant.resource, &*grant.verb)).collect();
        assert_eq!(left, [("persistentvolumeclaims", "patch"), ("virtualmachines", "list")]);
    }
}
