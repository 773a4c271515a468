//! Server-side apply of untyped objects, and waiting for the CRDs among them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition;
use kube::{
    Api, Client, Error,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{self, Scope},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    ApiServer,
    wait::{self, Poll},
};

/// The field manager of everything that the bench applies.
pub const FIELD_MANAGER: &str = "bench";

/// Applies in flight: enough that round trips do not add up, few enough for a server on two cores.
const PARALLEL: usize = 8;

/// A CRD's kind can be discovered shortly after it is established.
const DISCOVERY_DEADLINE: Duration = Duration::from_secs(15);

/// How long the CRDs of KubeVirt and CDI together may take on a loaded machine.
const ESTABLISHED_DEADLINE: Duration = Duration::from_mins(2);

impl ApiServer {
    /// Applies `objects` (a `List` stands for its items), taking over fields of other managers. Neighbours of one kind
    /// go in parallel, kinds strictly in the order given.
    ///
    /// # Errors
    /// With the object's kind and name when the server refuses one; those before it are applied.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        let objects: Vec<&Value> = objects.iter().flat_map(flatten).collect();
        for group in objects.chunk_by(|a, b| a["kind"] == b["kind"] && a["apiVersion"] == b["apiVersion"]) {
            let (resource, scope) = self.kind_of(group[0]).await?;
            stream::iter(group)
                .map(|object| apply_one(&self.client, object, &resource, &scope))
                .buffer_unordered(PARALLEL)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    /// Waits until every CRD among `objects` is established, so that its objects can be created.
    pub async fn established(&self, objects: &[Value]) -> Result<()> {
        let definitions =
            objects.iter().flat_map(flatten).filter(|object| object["kind"] == "CustomResourceDefinition");
        for name in definitions.filter_map(|object| object["metadata"]["name"].as_str()) {
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            wait::until(&format!("the CRD {name} to be established"), ESTABLISHED_DEADLINE, || async {
                let request = http::Request::get(&path).body(Vec::new()).context("make a request")?;
                let crd: Definition = self.client.request(request).await.context("read a CRD")?;
                Ok(crd.established())
            })
            .await?;
        }
        Ok(())
    }

    /// The dynamic API for an object's kind and namespace.
    pub async fn api_for(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let (resource, scope) = self.kind_of(object).await?;
        dynamic_api(&self.client, object, &resource, &scope)
    }

    async fn kind_of(&self, object: &Value) -> Result<(ApiResource, Scope)> {
        let text = |field: &str| {
            object[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {object}"))
        };
        let key = (text("apiVersion")?, text("kind")?);
        if let Some(known) = self.kinds().lock().await.get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = key.0.split_once('/').unwrap_or(("", &key.0));
        let gvk = GroupVersionKind::gvk(group, version, &key.1);
        let what = format!("{} {} to be discoverable in the {} cluster", key.0, key.1, self.name);
        let found = wait::until(&what, DISCOVERY_DEADLINE, || async {
            Ok(match discovery::pinned_kind(&self.client, &gvk).await {
                Ok((resource, capabilities)) => Poll::Ready((resource, capabilities.scope)),
                Err(Error::Discovery(error)) => Poll::NotYet(error.to_string()),
                Err(Error::Api(status)) if status.is_not_found() => Poll::NotYet(status.to_string()),
                Err(error) => return Err(error).context("discover a kind"),
            })
        })
        .await?;
        self.kinds().lock().await.insert(key, found.clone());
        Ok(found)
    }
}

async fn apply_one(client: &Client, object: &Value, resource: &ApiResource, scope: &Scope) -> Result<()> {
    let name =
        object["metadata"]["name"].as_str().with_context(|| format!("no metadata.name in {object}"))?;
    dynamic_api(client, object, resource, scope)?
        .patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))
        .await
        .with_context(|| format!("apply {} {name}", resource.kind))?;
    Ok(())
}

fn dynamic_api(
    client: &Client,
    object: &Value,
    resource: &ApiResource,
    scope: &Scope,
) -> Result<Api<DynamicObject>> {
    if *scope == Scope::Cluster {
        return Ok(Api::all_with(client.clone(), resource));
    }
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Ok(Api::namespaced_with(client.clone(), namespace, resource)),
        None => bail!("the {} {} names no namespace", resource.kind, object["metadata"]["name"]),
    }
}

fn flatten(object: &Value) -> Vec<&Value> {
    match object["items"].as_array() {
        Some(items) if object["kind"] == "List" => items.iter().collect(),
        _ => vec![object],
    }
}

/// A CRD's status alone: KubeVirt's schemas are megabytes, and nobody here wants them.
#[derive(Deserialize)]
struct Definition {
    status: Option<DefinitionStatus>,
}

#[derive(Deserialize)]
struct DefinitionStatus {
    conditions: Option<Vec<CustomResourceDefinitionCondition>>,
}

impl Definition {
    fn established(self) -> Poll<()> {
        let conditions = self.status.and_then(|status| status.conditions).unwrap_or_default();
        match conditions.into_iter().find(|condition| condition.type_ == "Established") {
            Some(condition) if condition.status == "True" => Poll::Ready(()),
            Some(condition) => Poll::NotYet(condition.message.unwrap_or_default()),
            None => Poll::NotYet("the API server has not set a condition".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_its_items_and_an_object_is_itself() {
        let list = json!({"kind": "List", "items": [{"kind": "A"}, {"kind": "B"}]});
        assert_eq!(flatten(&list).len(), 2);
        assert_eq!(flatten(&json!({"kind": "ConfigMap", "items": []})).len(), 1);
    }
}
