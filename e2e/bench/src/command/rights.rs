//! After a full run: was any account of the driver or of the cloud controller manager refused a right, and does each of the
//! driver's use what it is granted?

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::goal::Plan;
use crate::{
    artifact::Programs,
    audit::{
        self, Call, Calls,
        rights::{Grant, granted, unused},
    },
    bring_up::{CloudProvider, Installation},
    paths::Run,
    scenario::HCP_NAMESPACE,
};

/// Its name among the end-to-end tests.
pub const TEST: &str = "rights::a_full_run_is_refused_nothing_and_uses_what_is_granted";

/// Rights that a run may do without, most of them of the upstream roles of the sidecars: account, resource, verbs, and what
/// needs them. Using them is fine.
const OPTIONAL: &[(&str, &str, &[&str], &str)] = &[
    (
        "kubevirt-csi",
        "virtualmachineinstances/removevolume",
        &["update"],
        "disks in a VMI and not in its VM, which KubeVirt by default unplugs by itself",
    ),
    (ATTACHER, "csinodes", LISTS, OLDER_SERVERS),
    (ATTACHER, "persistentvolumes", LISTS, OLDER_SERVERS),
    (ATTACHER, "volumeattachments", LISTS, OLDER_SERVERS),
    (PROVISIONER, "persistentvolumeclaims", LISTS, OLDER_SERVERS),
    (PROVISIONER, "persistentvolumes", LISTS, OLDER_SERVERS),
    (PROVISIONER, "storageclasses", LISTS, OLDER_SERVERS),
    (PROVISIONER, "volumeattachments", LISTS, OLDER_SERVERS),
    (PROVISIONER, "csinodes", &["get", "list", "watch"], "topology"),
    (PROVISIONER, "nodes", &["get", "list", "watch"], "topology"),
    (PROVISIONER, "events", &["list", "watch", "update"], "nothing known; upstream grants it"),
    (PROVISIONER, "persistentvolumeclaims", &["update"], "clones"),
    (RESIZER, "persistentvolumes", LISTS, OLDER_SERVERS),
    (RESIZER, "persistentvolumeclaims", LISTS, OLDER_SERVERS),
    (RESIZER, "events", &["list", "watch", "update"], "nothing known; upstream grants it"),
    (
        PROVISIONER,
        "volumesnapshots",
        &["list", "watch", "update"],
        "restores, during which it keeps the snapshot",
    ),
    (PROVISIONER, "volumesnapshotcontents", LISTS, "restores"),
    (SNAPSHOTTER, "volumesnapshotclasses", LISTS, OLDER_SERVERS),
    (SNAPSHOTTER, "volumesnapshotcontents", LISTS, OLDER_SERVERS),
    (SNAPSHOTTER, "volumesnapshotcontents", &["update", "patch"], "one of both"),
    (SNAPSHOTTER, "volumesnapshotcontents/status", &["update", "patch"], "one of both"),
    (SNAPSHOTTER, "events", &["list", "watch", "update", "patch"], "nothing known; upstream grants it"),
];

const ATTACHER: &str = "kubevirt-csi-attacher-sa";
const PROVISIONER: &str = "kubevirt-csi-provisioner-sa";
const RESIZER: &str = "kubevirt-csi-resizer-sa";
const SNAPSHOTTER: &str = "kubevirt-csi-snapshotter-sa";
const LISTS: &[&str] = &["get", "list"];
const OLDER_SERVERS: &str = "API servers without streaming lists, where a watch begins with a list";

/// Denials that are known: account, verb, resource. csi-attacher reports who leads by an event, which its upstream role does
/// not allow; it goes on without.
const KNOWN_DENIALS: &[(&str, &str, &str)] = &[(ATTACHER, "create", "events")];

/// The account of the cloud controller manager in both clusters, and where its installation has it.
const PROVIDER: &str = "cloud-controller-manager";
const PROVIDER_NAMESPACES: [(&str, &str); 2] = [("infra", HCP_NAMESPACE), ("tenant", "kube-system")];

/// Denials of the cloud controller manager that are known: cluster, verb, resource, and why. A right that a test takes away from an
/// account of its own is not listed.
const KNOWN_OF_PROVIDER: &[(&str, &str, &str, &str)] = &[
    (
        "infra",
        "get",
        "nodes",
        "zone and region without a cluster-wide right, as the base and HyperShift have it",
    ),
    (
        "infra",
        "get",
        "configmaps",
        "an owner that the operator names has to be granted; a test leaves it out",
    ),
    ("infra", "update", "endpointslices", "of the rights to write endpoints, which a test takes away"),
    ("tenant", "list", "configmaps", "the published authorities; a test takes that right away"),
];

/// [`check`] of the run in a folder, with the programs of its plan.
pub async fn check_earlier(folder: PathBuf) -> Result<()> {
    let programs = Plan::read(&folder)?.artifacts.programs;
    check(&Run::open(folder)?, &programs).await
}

/// Holds the audit logs of `run` against the installed manifests.
///
/// # Errors
/// With every denial, every right that was not used and has no feature to come, and every such feature that came.
pub async fn check(run: &Run, programs: &Programs) -> Result<()> {
    let installation = Installation::render(programs).await?;
    let provider = CloudProvider::render(programs).await?;
    let mut wrong = Vec::new();
    let halves =
        [("infra", &installation.infra, &provider.infra), ("tenant", &installation.tenant, &provider.tenant)];
    for (cluster, driver, provider) in halves {
        let file = run.logs().join(format!("{cluster}-audit.log"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let (grants, all) = (granted(driver), audit::parse(&text)?);
        wrong.extend(refused_to_provider(cluster, &granted(provider), &all));
        let calls = all.filter(|call| is_ours(&call.user, &grants));
        wrong.extend(judge(cluster, &grants, &calls));
    }
    if !wrong.is_empty() {
        bail!("rights of our accounts:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// What the cloud controller manager did beyond the rights of its base, and what its installation was refused.
fn refused_to_provider(cluster: &str, grants: &BTreeSet<Grant>, calls: &Calls) -> BTreeSet<String> {
    let known = |call: &Call| {
        KNOWN_OF_PROVIDER
            .iter()
            .any(|(at, verb, resource, _)| *at == cluster && call.verb == *verb && call.resource == *resource)
    };
    let installed = PROVIDER_NAMESPACES
        .map(|(at, namespace)| (at, format!("system:serviceaccount:{namespace}:{PROVIDER}")));
    // In a namespace of its own a test may take away what the base gives.
    let is_taken_away = |call: &Call| {
        let is_installed = installed.iter().any(|(at, user)| *at == cluster && call.user == *user);
        !is_installed && grants.iter().any(|grant| grant.covers(call))
    };
    let is_providers = |call: &Call| {
        call.user.starts_with("system:serviceaccount:") && call.user.rsplit(':').next() == Some(PROVIDER)
    };
    let denied = calls.as_slice().iter().filter(|call| call.denied && is_providers(call));
    denied
        .filter(|call| !known(call) && !is_taken_away(call))
        .map(|call| {
            format!("{cluster}: {} was refused to {} {} {}", call.user, call.verb, call.resource, call.name)
        })
        .collect()
}

fn is_ours(user: &str, grants: &BTreeSet<Grant>) -> bool {
    let mut parts = user.split(':').skip(2);
    let account = parts.nth(1);
    user.starts_with("system:serviceaccount:") && grants.iter().any(|grant| Some(&*grant.account) == account)
}

fn judge(cluster: &str, grants: &BTreeSet<Grant>, calls: &Calls) -> Vec<String> {
    let left = unused(grants, calls);
    for grant in &left {
        if let Some(why) = optional(grant) {
            println!("not used by {}: {} {}: for {why}", grant.account, grant.verb, grant.resource);
        }
    }
    let denied = calls.clone().denied();
    let denied = denied.as_slice().iter().filter(|call| !is_known(call)).map(|call| {
        format!("{cluster}: {} was refused to {} {} {}", call.user, call.verb, call.resource, call.name)
    });
    let not_used = left.iter().filter(|grant| optional(grant).is_none()).map(|grant| {
        format!("{cluster}: {} never used its right to {} {}", grant.account, grant.verb, grant.resource)
    });
    let all: BTreeSet<String> = denied.chain(not_used).collect();
    all.into_iter().collect()
}

/// What needs a right that a run may do without.
fn optional(grant: &Grant) -> Option<&'static str> {
    let listed = OPTIONAL.iter().find(|(account, resource, verbs, _)| {
        grant.account == *account && grant.resource == *resource && verbs.contains(&&*grant.verb)
    });
    listed.map(|(.., why)| *why)
}

fn is_known(call: &Call) -> bool {
    KNOWN_DENIALS.iter().any(|(account, verb, resource)| {
        call.user.rsplit(':').next() == Some(*account) && call.verb == *verb && call.resource == *resource
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn denied(id: &str, account: &str, verb: &str, resource: &str) -> String {
        json!({
            "auditID": id, "requestURI": "/", "verb": verb, "stage": "ResponseComplete",
            "user": {"username": format!("system:serviceaccount:{account}")},
            "requestReceivedTimestamp": "2026-11-01T00:00:00Z",
            "objectRef": {"resource": resource},
            "responseStatus": {"code": 403},
            "annotations": {"authorization.k8s.io/decision": "forbid"},
        })
        .to_string()
            + "\n"
    }

    #[test]
    fn a_provider_may_be_refused_only_what_a_test_takes_away_and_what_is_known() {
        let grant = |resource: &str| Grant {
            account: PROVIDER.to_owned(),
            group: String::new(),
            resource: resource.to_owned(),
            verb: "list".to_owned(),
        };
        let grants = BTreeSet::from([grant("services"), grant("events")]);
        let text = [
            denied("1", "of-a-test:cloud-controller-manager", "list", "events"),
            denied("2", "of-a-test:cloud-controller-manager", "list", "pods"),
            denied("3", "hcp-guest:cloud-controller-manager", "list", "services"),
            denied("4", "hcp-guest:cloud-controller-manager", "get", "nodes"),
            denied("5", "hcp-guest:another", "list", "pods"),
        ];
        let calls = audit::parse(&text.concat()).expect("audit lines");
        let wrong = refused_to_provider("infra", &grants, &calls);
        let wrong: Vec<_> = wrong.iter().map(|told| told.trim_end()).collect();
        assert_eq!(
            wrong,
            [
                "infra: system:serviceaccount:hcp-guest:cloud-controller-manager was refused to list services",
                "infra: system:serviceaccount:of-a-test:cloud-controller-manager was refused to list pods",
            ]
        );
        // What is known of infra is not known of the guest.
        assert_eq!(refused_to_provider("tenant", &grants, &calls).len(), 2);
    }
}
