use super::*;

const DRIVER: &str = "system:serviceaccount:hcp-guest:kubevirt-csi";

/// A log line as kube-apiserver 1.36 writes it, with the parts that differ between calls.
fn line(id: &str, stage: &str, second: u8, rest: &str) -> String {
    format!(
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"{id}","stage":"{stage}","requestReceivedTimestamp":"2026-11-21T10:00:{second:02}.123456Z","stageTimestamp":"2026-11-21T10:00:{second:02}.2Z","userAgent":"driver/1",{rest}}}"#
    ) + "\n"
}

fn addvolume(id: &str, second: u8, code: u16, decision: &str) -> String {
    let rest = format!(
        r#""requestURI":"/apis/subresources.kubevirt.io/v1/namespaces/hcp-guest/virtualmachines/w1/addvolume","verb":"update","user":{{"username":"{DRIVER}","groups":["system:serviceaccounts"]}},"objectRef":{{"resource":"virtualmachines","namespace":"hcp-guest","name":"w1","apiGroup":"subresources.kubevirt.io","apiVersion":"v1","subresource":"addvolume"}},"responseStatus":{{"metadata":{{}},"code":{code}}},"annotations":{{"authorization.k8s.io/decision":"{decision}","authorization.k8s.io/reason":""}}"#
    );
    line(id, "ResponseComplete", second, &rest)
}

fn watch(id: &str, stage: &str, second: u8) -> String {
    let rest = format!(
        r#""requestURI":"/api/v1/namespaces/hcp-guest/persistentvolumeclaims?watch=true","verb":"watch","user":{{"username":"{DRIVER}"}},"objectRef":{{"resource":"persistentvolumeclaims","namespace":"hcp-guest","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"annotations":{{"authorization.k8s.io/decision":"allow"}}"#
    );
    line(id, stage, second, &rest)
}

#[test]
fn a_call_has_its_user_resource_subresource_and_code() {
    let calls = parse(&addvolume("a", 1, 202, "allow")).unwrap();
    let call = &calls.as_slice()[0];
    assert_eq!(call.user, DRIVER);
    assert_eq!((call.verb.as_str(), call.resource.as_str()), ("update", "virtualmachines/addvolume"));
    assert_eq!((call.namespace.as_str(), call.name.as_str()), ("hcp-guest", "w1"));
    assert_eq!(call.group, "subresources.kubevirt.io");
    assert_eq!(call.code, Some(202));
    assert!(!call.denied);
}

#[test]
fn a_watch_counts_once_and_has_a_code_when_it_ends() {
    let started = watch("w", "ResponseStarted", 1);
    assert_eq!(parse(&started).unwrap().as_slice()[0].code, None);
    let both = parse(&(started + &watch("w", "ResponseComplete", 1))).unwrap();
    assert_eq!(both.len(), 1);
    assert_eq!(both.as_slice()[0].code, Some(200));
}

#[test]
fn a_denial_is_by_authorization() {
    let text = addvolume("a", 1, 403, "forbid")
        + &addvolume("b", 2, 403, "allow")
        + &addvolume("c", 3, 202, "allow");
    let denied = parse(&text).unwrap().denied();
    assert_eq!(denied.len(), 1);
    assert_eq!(denied.as_slice()[0].code, Some(403));
}

#[test]
fn calls_are_counted_by_kind_within_a_window() {
    let text =
        addvolume("b", 5, 202, "allow") + &addvolume("a", 1, 422, "allow") + &addvolume("c", 6, 202, "allow");
    let calls = parse(&text).unwrap();
    assert_eq!(calls.as_slice()[0].code, Some(422), "ordered by time");
    let from = "2026-11-21T10:00:05Z".parse().unwrap();
    let until = "2026-11-21T10:00:06Z".parse().unwrap();
    assert_eq!(calls.clone().between(from, until).len(), 1);
    let counts: Vec<_> = calls.by_kind().into_iter().map(|(kind, n)| format!("{kind}: {n}")).collect();
    assert_eq!(
        counts,
        ["update virtualmachines/addvolume → 202: 2", "update virtualmachines/addvolume → 422: 1"]
    );
    assert!(calls.of_user("someone").is_empty());
}

#[test]
fn an_impersonator_is_counted_as_whom_it_plays() {
    let rest = r#""requestURI":"/version","verb":"get","user":{"username":"admin"},"impersonatedUser":{"username":"alice"},"responseStatus":{"code":200}"#;
    let calls = parse(&line("a", "ResponseComplete", 1, rest)).unwrap();
    assert_eq!(calls.as_slice()[0].user, "alice");
    assert_eq!(calls.as_slice()[0].resource, "/version");
}

#[test]
fn an_unfinished_line_waits_and_a_broken_one_is_an_error() {
    let whole = addvolume("a", 1, 202, "allow");
    assert_eq!(parse(&(whole.clone() + &whole[..20])).unwrap().len(), 1);
    assert!(parse("").unwrap().is_empty());
    assert!(parse("{}\n").unwrap_err().to_string().contains("line 1"));
}
