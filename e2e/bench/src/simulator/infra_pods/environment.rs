//! A container's environment and arguments as a kubelet computes them. Pure.
//!
//! Rules: `makeEnvironmentVariables` of `pkg/kubelet/kubelet_pods.go`, `k8s.io/kubernetes/third_party/forked/golang/expansion`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use kube::ResourceExt;

use super::sources::{Data, Sources};

/// A container's command line and environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    /// What comes after the program.
    pub args: Vec<String>,
    /// The whole environment, in the order of definition.
    pub env: Vec<(String, String)>,
}

/// Computes the invocation. `platform` are the variables that kubelet and runtime add by themselves, `path` is the image's
/// `PATH`; the pod's own win.
///
/// # Errors
/// When something that is referred to and not optional does not exist; the text is kubelet's.
pub(super) fn invocation(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    platform: &[(String, String)],
    path: &str,
) -> Result<Invocation> {
    let mut known: BTreeMap<String, String> = platform.iter().cloned().collect();
    let mut order: Vec<String> = platform.iter().map(|(name, _)| name.clone()).collect();
    let mut define = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if known.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    define(&mut known, "PATH".into(), path.into());
    define(&mut known, "HOSTNAME".into(), pod.name_any());
    for (name, value) in env_from(container, sources)? {
        define(&mut known, name, value);
    }
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            (Some(value), _) => Some(expand(value, &known)),
            (None, Some(from)) => value_from(pod, from, sources)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            define(&mut known, env.name.clone(), value);
        }
    }
    // The first item of `command` is the program, whatever path it has in the image; its other items come first.
    let words = container.command.iter().flatten().skip(1).chain(container.args.iter().flatten());
    let args = words.map(|word| expand(word, &known)).collect();
    let env =
        order.into_iter().filter_map(|name| known.get(&name).cloned().map(|value| (name, value))).collect();
    Ok(Invocation { args, env })
}

/// Replaces `$(NAME)` where NAME is known; `$$` is one `$`, and everything else stays as it is.
pub(super) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = reference {
            let unknown = || format!("$({name})");
            result.push_str(&known.get(name).cloned().unwrap_or_else(unknown));
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

fn env_from(container: &Container, sources: &Sources) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(map) = &from.config_map_ref {
            ("configmap", &map.name, map.optional, sources.config_maps.get(&map.name))
        } else if let Some(secret) = &from.secret_ref {
            ("secret", &secret.name, secret.optional, sources.secrets.get(&secret.name))
        } else {
            continue;
        };
        let Some(data) = data else {
            if optional == Some(true) {
                continue;
            }
            bail!("{kind} \"{name}\" not found");
        };
        for (key, value) in data {
            all.push((format!("{prefix}{key}"), text(value, key)?));
        }
    }
    Ok(all)
}

fn value_from(pod: &Pod, from: &EnvVarSource, sources: &Sources) -> Result<Option<String>> {
    if let Some(key) = &from.config_map_key_ref {
        return keyed("configmap", &key.name, &key.key, key.optional, &sources.config_maps);
    }
    if let Some(key) = &from.secret_key_ref {
        return keyed("secret", &key.name, &key.key, key.optional, &sources.secrets);
    }
    match &from.field_ref {
        Some(field) => pod_field(pod, &field.field_path).map(Some),
        None => bail!("this kubelet knows no such source of an environment variable"),
    }
}

fn keyed(
    kind: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    all: &BTreeMap<String, Data>,
) -> Result<Option<String>> {
    let found = all.get(name);
    match found.and_then(|data| data.get(key)) {
        Some(value) => text(value, key).map(Some),
        None if optional == Some(true) => Ok(None),
        None if found.is_none() => bail!("{kind} \"{name}\" not found"),
        None => bail!("couldn't find key {key} in {kind} \"{name}\""),
    }
}

/// A field of the pod by the downward API's path.
///
/// # Errors
/// When this kubelet does not know the path.
pub(super) fn pod_field(pod: &Pod, path: &str) -> Result<String> {
    let spec = pod.spec.as_ref();
    let of_map = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" => pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
        "status.hostIP" => pod.status.as_ref().and_then(|status| status.host_ip.clone()).unwrap_or_default(),
        _ => {
            if let Some(key) = subscript("metadata.labels['") {
                of_map(pod.labels(), key)
            } else if let Some(key) = subscript("metadata.annotations['") {
                of_map(pod.annotations(), key)
            } else {
                bail!("this kubelet does not know the field path {path}")
            }
        }
    })
}

fn text(value: &[u8], key: &str) -> Result<String> {
    String::from_utf8(value.to_vec()).with_context(|| format!("the value of {key} is no text"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(container: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "x"}},
            "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [container]},
        }))
        .expect("a pod")
    }

    fn invoke(container: &Value, sources: &Sources) -> Result<Invocation> {
        let pod = pod(container);
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        let platform = [("KUBERNETES_SERVICE_HOST".into(), "10.76.0.1".into())];
        invocation(&pod, container, sources, &platform, "/bin")
    }

    fn value<'a>(invocation: &'a Invocation, name: &str) -> Option<&'a str> {
        invocation.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn expansion_follows_the_kubelet() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("EMPTY".to_owned(), String::new())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn arguments_see_every_variable_and_variables_the_earlier_ones() {
        let container = json!({"name": "c", "command": ["/bin/x", "--a=$(B)"], "args": ["$(C)", "$(D)"], "env": [
            {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C", "value": "$(D)"}, {"name": "D"},
        ]});
        let invocation = invoke(&container, &Sources::default()).expect("an invocation");
        assert_eq!(invocation.args, ["--a=12", "$(D)", ""]);
        assert_eq!(value(&invocation, "KUBERNETES_SERVICE_HOST"), Some("10.76.0.1"));
        assert_eq!(value(&invocation, "HOSTNAME"), Some("p"));
    }

    #[test]
    fn fields_and_keys() {
        let from = |from: Value| json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]});
        let mut sources = Sources::default();
        sources.config_maps.insert("cm".into(), Data::from([("k".into(), b"v".to_vec())]));
        sources.secrets.insert("s".into(), Data::from([("k".into(), vec![0xff])]));
        let of = |source: Value| invoke(&from(source), &sources).map(|i| value(&i, "X").map(str::to_owned));
        let field =
            |path: &str| of(json!({"fieldRef": {"fieldPath": path}})).expect("a field").expect("a value");
        assert_eq!(field("metadata.namespace"), "ns");
        assert_eq!(field("metadata.labels['app']"), "x");
        assert_eq!(field("spec.serviceAccountName"), "sa");
        let key = |name: &str, key: &str, optional: bool| {
            of(json!({"configMapKeyRef": {"name": name, "key": key, "optional": optional}}))
        };
        assert_eq!(key("cm", "k", false).expect("a key").as_deref(), Some("v"));
        assert_eq!(key("cm", "other", true).expect("optional"), None);
        assert_eq!(key("none", "k", true).expect("optional"), None);
        assert_eq!(
            key("none", "k", false).expect_err("required").to_string(),
            "configmap \"none\" not found"
        );
        let missing = key("cm", "other", false).expect_err("required").to_string();
        assert_eq!(missing, "couldn't find key other in configmap \"cm\"");
        let binary = of(json!({"secretKeyRef": {"name": "s", "key": "k"}})).expect_err("no text");
        assert_eq!(binary.to_string(), "the value of k is no text");
        assert!(of(json!({"fieldRef": {"fieldPath": "spec.nothing"}})).is_err());
    }

    #[test]
    fn whole_objects_with_a_prefix() {
        let mut sources = Sources::default();
        sources.config_maps.insert("cm".into(), Data::from([("k".into(), b"v".to_vec())]));
        let from = |name: &str, optional: bool| json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": name, "optional": optional}}]});
        assert_eq!(value(&invoke(&from("cm", false), &sources).expect("one"), "P_k"), Some("v"));
        assert!(invoke(&from("none", true), &sources).is_ok());
        assert!(invoke(&from("none", false), &sources).is_err());
    }
}
