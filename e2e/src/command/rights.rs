//! After a full run: was any account of the driver refused a right, and does each use what it is granted?

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::{
    artifact::Programs,
    audit::{
        self, Call, Calls,
        rights::{Grant, granted, unused},
    },
    bring_up::Installation,
    paths::Run,
};

/// Its name among the end-to-end tests.
pub const TEST: &str = "rights::a_full_run_is_refused_nothing_and_uses_what_is_granted";

/// Rights that this version does not use: account, resource, verbs, and what will need them. What is listed and used is
/// told too, so that the list stays true.
const FOR_LATER: &[(&str, &str, &[&str], &str)] = &[
    ("kubevirt-csi", "volumesnapshots", &["get", "create", "delete"], "snapshots; HyperShift grants it"),
    (
        "kubevirt-csi",
        "virtualmachineinstances/addvolume",
        &["update"],
        "nothing: KubeVirt refuses it on an instance that a VM owns; HyperShift grants it",
    ),
    (
        "kubevirt-csi",
        "virtualmachineinstances/removevolume",
        &["update"],
        "volumes that very old drivers plugged into the instance; HyperShift grants it",
    ),
];

/// Rights of the upstream roles of the sidecars that a run may do without; using them is fine.
const OF_SIDECARS: &[(&str, &str, &[&str], &str)] = &[
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
];

const ATTACHER: &str = "kubevirt-csi-attacher-sa";
const PROVISIONER: &str = "kubevirt-csi-provisioner-sa";
const LISTS: &[&str] = &["get", "list"];
const OLDER_SERVERS: &str = "API servers without streaming lists, where a watch begins with a list";

/// Denials that are known: account, verb, resource. csi-attacher reports who leads by an event, which its upstream role does
/// not allow; it goes on without.
const KNOWN_DENIALS: &[(&str, &str, &str)] = &[(ATTACHER, "create", "events")];

/// Holds the audit logs of `run` against the installed manifests.
///
/// # Errors
/// With every denial, every right that was not used and has no feature to come, and every such feature that came.
pub async fn check(run: &Run, programs: &Programs) -> Result<()> {
    let installation = Installation::render(programs).await?;
    let mut wrong = Vec::new();
    for (cluster, objects) in [("infra", &installation.infra), ("tenant", &installation.tenant)] {
        let file = run.logs().join(format!("{cluster}-audit.log"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let grants = granted(objects);
        let calls = audit::parse(&text)?.filter(|call| is_ours(&call.user, &grants));
        wrong.extend(judge(cluster, &grants, &calls));
    }
    if !wrong.is_empty() {
        bail!("rights of the driver's accounts:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn is_ours(user: &str, grants: &BTreeSet<Grant>) -> bool {
    let mut parts = user.split(':').skip(2);
    let account = parts.nth(1);
    user.starts_with("system:serviceaccount:") && grants.iter().any(|grant| Some(&*grant.account) == account)
}

fn judge(cluster: &str, grants: &BTreeSet<Grant>, calls: &Calls) -> Vec<String> {
    let left = unused(grants, calls);
    for grant in &left {
        if let Some(why) = for_later(grant).or_else(|| of_sidecars(grant)) {
            println!("not used by {}: {} {}: for {why}", grant.account, grant.verb, grant.resource);
        }
    }
    let denied = calls.clone().denied();
    let denied = denied.as_slice().iter().filter(|call| !is_known(call)).map(|call| {
        format!("{cluster}: {} was refused to {} {} {}", call.user, call.verb, call.resource, call.name)
    });
    let named = |grant: &Grant| for_later(grant).is_some() || of_sidecars(grant).is_some();
    let not_used = left.iter().filter(|grant| !named(grant)).map(|grant| {
        format!("{cluster}: {} never used its right to {} {}", grant.account, grant.verb, grant.resource)
    });
    let came = grants.difference(&left).filter(|grant| for_later(grant).is_some()).map(|grant| {
        format!(
            "{cluster}: {} does {} {} by now: take it off the list",
            grant.account, grant.verb, grant.resource
        )
    });
    let all: BTreeSet<String> = denied.chain(not_used).chain(came).collect();
    all.into_iter().collect()
}

/// What a right waits for that this version does not use.
fn for_later(grant: &Grant) -> Option<&'static str> {
    reason(FOR_LATER, grant)
}

fn of_sidecars(grant: &Grant) -> Option<&'static str> {
    reason(OF_SIDECARS, grant)
}

fn reason(list: &'static [(&str, &str, &[&str], &'static str)], grant: &Grant) -> Option<&'static str> {
    let listed = list.iter().find(|(account, resource, verbs, _)| {
        grant.account == *account && grant.resource == *resource && verbs.contains(&&*grant.verb)
    });
    listed.map(|(.., why)| *why)
}

fn is_known(call: &Call) -> bool {
    KNOWN_DENIALS.iter().any(|(account, verb, resource)| {
        call.user.rsplit(':').next() == Some(*account) && call.verb == *verb && call.resource == *resource
    })
}
