//! Kubeconfig files with everything inline, so that they can be handed to a process, a pod or a VM as they are.

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::pki::Identity;

/// How a kubeconfig's user proves who it is.
#[derive(Clone, Copy, Debug)]
pub enum Credentials<'a> {
    /// A client certificate.
    Certificate(&'a Identity),
    /// A bearer token.
    Token(&'a str),
}

/// One cluster as one user sees it; cluster, user and context bear the same `name`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The context's name.
    pub name: &'a str,
    /// The API server, `https://address:port`.
    pub server: &'a str,
    /// The CA of its certificate, PEM.
    pub ca_pem: &'a str,
    /// The user.
    pub credentials: Credentials<'a>,
    /// The namespace that commands use when they name none.
    pub namespace: &'a str,
}

/// The kubeconfig with one context per entry, the first being the current one; YAML.
pub fn render(entries: &[Entry<'_>]) -> Result<String> {
    let current = entries.first().context("a kubeconfig needs a context")?;
    let clusters = entries.iter().map(|entry| {
        let cluster = json!({"server": entry.server, "certificate-authority-data": base64(entry.ca_pem)});
        json!({"name": entry.name, "cluster": cluster})
    });
    let users = entries.iter().map(|entry| json!({"name": entry.name, "user": user(entry.credentials)}));
    let contexts = entries.iter().map(|entry| {
        let context = json!({"cluster": entry.name, "user": entry.name, "namespace": entry.namespace});
        json!({"name": entry.name, "context": context})
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": current.name,
        "clusters": clusters.collect::<Vec<_>>(),
        "users": users.collect::<Vec<_>>(),
        "contexts": contexts.collect::<Vec<_>>(),
    });
    serde_saphyr::to_string(&config).context("write a kubeconfig")
}

fn user(credentials: Credentials<'_>) -> Value {
    match credentials {
        Credentials::Certificate(identity) => json!({
            "client-certificate-data": base64(&identity.certificate),
            "client-key-data": base64(&identity.key),
        }),
        Credentials::Token(token) => json!({"token": token}),
    }
}

/// `ByteString` serializes as the Kubernetes API carries bytes: in base64.
fn base64(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn a_kubeconfig_reads_back_with_every_context() {
        let identity = Identity { certificate: "CERT".to_owned(), key: "KEY".to_owned() };
        let infra = Entry {
            name: "infra",
            server: "https://10.76.0.1:6443",
            ca_pem: "CA",
            credentials: Credentials::Certificate(&identity),
            namespace: "hcp-guest",
        };
        let tenant =
            Entry { name: "tenant", credentials: Credentials::Token("t"), namespace: "default", ..infra };
        let text = render(&[infra, tenant]).unwrap();
        let read = Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("infra"));
        let names: Vec<_> = read.contexts.iter().map(|context| context.name.as_str()).collect();
        assert_eq!(names, ["infra", "tenant"]);
        let user = read.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_certificate_data.as_deref(), Some("Q0VSVA=="));
        assert!(read.auth_infos[1].auth_info.as_ref().unwrap().token.is_some());
        assert!(render(&[]).is_err());
    }
}
