//! Tokens that end with a Secret: credentials that a test can end.

use anyhow::{Context, Result};
use bench::scenario::{Deadline, until};
use k8s_openapi::api::{authentication::v1::BoundObjectReference, core::v1::Secret};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

/// HTTP: the credentials are unknown.
const UNAUTHORIZED: u16 = 401;

/// Creates the Secret that a token can be bound to.
pub async fn anchor(secrets: &Api<Secret>, name: &str) -> Result<BoundObjectReference> {
    let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    let secret = secrets.create(&PostParams::default(), &object).await?;
    Ok(BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(secret.uid().context("a Secret without a uid")?),
    })
}

/// Deletes the Secret and waits until the API server refuses the token, which it remembers for some seconds.
pub async fn end(secrets: &Api<Secret>, name: &str, kubeconfig: Kubeconfig) -> Result<()> {
    secrets.delete(name, &DeleteParams::default()).await?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    until("the API server to refuse the token", Deadline::Reaction, async || {
        Ok(match client.apiserver_version().await {
            Err(kube::Error::Api(status)) if status.code == UNAUTHORIZED => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
    })
    .await
}
