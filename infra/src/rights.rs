//! The rights in the infra namespace that we use.

use cluster::Right;

const fn right(
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    purpose: &'static str,
) -> Right {
    Right { group, resource, verb, purpose }
}

/// Every right that the controller needs. The roles of `HyperShift` and of the upstream manifests grant all of them.
pub const REQUIRED_RIGHTS: [Right; 15] = [
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
    right(
        "",
        "persistentvolumeclaims",
        "get",
        "arbitrating between two nodes that want one volume, expanding volumes",
    ),
    right(
        "",
        "persistentvolumeclaims",
        "patch",
        "arbitrating between two nodes that want one volume, expanding volumes",
    ),
    right(
        "snapshot.storage.k8s.io",
        "volumesnapshots",
        "get",
        "snapshots, restoring them, clones of attached volumes",
    ),
    right("snapshot.storage.k8s.io", "volumesnapshots", "create", "snapshots, clones of attached volumes"),
    right(
        "snapshot.storage.k8s.io",
        "volumesnapshots",
        "delete",
        "deleting snapshots, clones of attached volumes",
    ),
    right("authorization.k8s.io", "selfsubjectrulesreviews", "create", "telling which rights are missing"),
];

/// Never needed and never asked for. Where it is granted, an attach is answered as soon as the disk is there instead of
/// at the next poll.
pub const WATCH_INSTANCES: Right =
    right("kubevirt.io", "virtualmachineinstances", "watch", "answering as soon as a disk is ready");

/// Needed only for a disk that is in a VMI and not in its VM, which KubeVirt by default unplugs by itself. `HyperShift` and
/// the upstream manifests grant it.
pub const UNPLUG_FROM_VMI: Right = right(
    "subresources.kubevirt.io",
    "virtualmachineinstances/removevolume",
    "update",
    "detaching a disk that is in a VMI and not in its VM",
);

/// Never needed in Kubernetes, whose sidecars ask for one snapshot by its id. Without it, `ListSnapshots` of a volume or of
/// all volumes is refused.
pub const LIST_SNAPSHOTS: Right =
    right("snapshot.storage.k8s.io", "volumesnapshots", "list", "listing the snapshots of a volume, or all");

/// Needed only to delete a volume whose `DataVolume` was deleted by hand, without its claim. Nobody grants it by default;
/// without it the deletion fails and names the claim.
pub const DELETE_CLAIMS: Right =
    right("", "persistentvolumeclaims", "delete", "deleting a volume whose DataVolume is gone");

/// Never needed and never asked for. Where it is granted, an attach that waits reports the warnings about the infra claim,
/// or about the VMI, to the guest's user.
pub const LIST_EVENTS: Right =
    right("", "events", "list", "reporting why an infra claim is not bound, or a disk not attached");

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Rights;

    #[test]
    fn missing_rights_are_named() {
        let rights: Rights = serde_json::from_value(serde_json::json!({"status": {"incomplete": false, "resourceRules": [
            {"verbs": ["get", "create", "delete"], "apiGroups": ["cdi.kubevirt.io"], "resources": ["datavolumes"]},
            {"verbs": ["list", "get"], "apiGroups": ["kubevirt.io"], "resources": ["virtualmachines", "virtualmachineinstances"]},
            {"verbs": ["update"], "apiGroups": ["subresources.kubevirt.io"],
             "resources": ["virtualmachines/addvolume", "virtualmachines/removevolume"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["persistentvolumeclaims"]},
            {"verbs": ["get", "create", "delete"], "apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots"]},
            {"verbs": ["patch"], "apiGroups": [""], "resources": ["persistentvolumeclaims"], "resourceNames": ["one"]},
            {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["*"], "resourceNames": null}
        ]}}))
        .unwrap();
        let missing: Vec<_> = rights.missing(&REQUIRED_RIGHTS).map(|r| (r.resource, r.verb)).collect();
        assert_eq!(missing, [("persistentvolumeclaims", "patch")]);
        assert!(rights.complete());
    }
}
