//! What KubeVirt's and CDI's operators would create, from the programs that ask the operators' own packages, and the
//! `EndpointSlice`s that stand for their pods.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::ApiServer;
use crate::artifact::Programs;

/// The objects of one operator, by what must come first.
pub struct OperatorObjects {
    /// Namespaces and CRDs.
    pub definitions: Vec<Value>,
    /// Rights, Services and the rest.
    pub parts: Vec<Value>,
    /// What makes the API server call the operator's API program.
    pub registrations: Vec<Value>,
}

/// Runs `program` (`kubevirt-objects` or `cdi-objects`) for the cluster's CA.
pub async fn generate(programs: &Programs, program: &str, api: &ApiServer) -> Result<OperatorObjects> {
    let output = Command::new(programs.path(program)?)
        .arg("-ca")
        .arg(api.folder().join("ca.crt"))
        .output()
        .await
        .with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let list: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("read the output of {program}"))?;
    let items = list["items"].as_array().with_context(|| format!("the output of {program} is no list"))?;
    Ok(sort(items))
}

fn sort(items: &[Value]) -> OperatorObjects {
    let mut sorted =
        OperatorObjects { definitions: Vec::new(), parts: Vec::new(), registrations: Vec::new() };
    for item in items {
        let target = match item["kind"].as_str().unwrap_or_default() {
            "Namespace" | "CustomResourceDefinition" => &mut sorted.definitions,
            "APIService" | "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
                &mut sorted.registrations
            }
            _ => &mut sorted.parts,
        };
        target.push(item.clone());
    }
    // Neighbours of one kind are applied in parallel.
    sorted.parts.sort_by(|a, b| a["kind"].as_str().cmp(&b["kind"].as_str()));
    sorted
}

/// The slice that makes `service`, a Service without selector, lead to one process of the bench.
pub fn endpoint_slice(namespace: &str, service: &str, address: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-bench"),
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": super::FIELD_MANAGER},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        // The Services' port has no name; the API server matches it with the empty one.
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_sorted_by_what_must_come_first() {
        let kinds = ["APIService", "Role", "Namespace", "ClusterRole", "CustomResourceDefinition", "Role"];
        let sorted = sort(&kinds.map(|kind| json!({"kind": kind})));
        let of = |objects: &[Value]| {
            objects.iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(&sorted.definitions), ["Namespace", "CustomResourceDefinition"]);
        assert_eq!(of(&sorted.parts), ["ClusterRole", "Role", "Role"]);
        assert_eq!(of(&sorted.registrations), ["APIService"]);
    }
}
