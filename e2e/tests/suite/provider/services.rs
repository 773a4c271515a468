//! The guest's Services and their mirrors: creates them and waits for their state.

use anyhow::Result;
use bench::scenario::{Deadline, until};
use k8s_openapi::api::{
    core::v1::{Event, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::Place;

impl Place {
    /// Creates a guest Service; `spec` replaces fields.
    pub async fn create(&self, name: &str, spec: Value) -> Result<Service> {
        self.create_annotated(name, &json!({"metadata": {}}), spec).await
    }

    /// Creates a guest Service with the metadata of `object` besides its name; `spec` replaces fields.
    pub async fn create_annotated(&self, name: &str, object: &Value, spec: Value) -> Result<Service> {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        object["spec"] =
            json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        Ok(self.guests.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// Waits until the guest shows this address; `None` = none.
    pub async fn shows(&self, name: &str, address: Option<&str>) -> Result<()> {
        until(&format!("the address {address:?} of {name}"), Deadline::Reaction, async || {
            let shown = self.address(name).await?;
            Ok(if shown.as_deref() == address { Ok(()) } else { Err(format!("it shows {shown:?}")) })
        })
        .await
    }

    /// Waits until the guest shows some address.
    pub async fn served(&self, name: &str) -> Result<String> {
        until(&format!("an address of {name}"), Deadline::Reaction, async || {
            Ok(self.address(name).await?.ok_or_else(|| "it shows none".to_owned()))
        })
        .await
    }

    async fn address(&self, name: &str) -> Result<Option<String>> {
        Ok(self.addresses(name).await?.into_iter().next())
    }

    /// All addresses that the guest shows.
    pub async fn addresses(&self, name: &str) -> Result<Vec<String>> {
        let status = self.guests.get(name).await?.status.unwrap_or_default();
        let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
        Ok(ingress.into_iter().filter_map(|one| one.ip).collect())
    }

    /// Waits until the infra Service is as `wanted`.
    pub async fn mirror(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("{what} in infra"), Deadline::Reaction, async || {
            let Some(mirror) = self.mirrors.get_opt(name).await? else { return Ok(Err("absent".to_owned())) };
            let mirror = serde_json::to_value(mirror)?;
            Ok(if wanted(&mirror) { Ok(mirror) } else { Err(mirror["spec"].to_string()) })
        })
        .await
    }

    /// Waits until a condition of the guest Service has this status and reason.
    pub async fn condition(&self, name: &str, kind: &str, wanted: (&str, &str)) -> Result<()> {
        until(&format!("the condition {kind} of {name} to be {wanted:?}"), Deadline::Reaction, async || {
            let status = self.guests.get(name).await?.status.unwrap_or_default();
            let all = status.conditions.unwrap_or_default();
            let found = all.iter().find(|condition| condition.type_ == kind);
            let found = found.map(|condition| (condition.status.as_str(), condition.reason.as_str()));
            Ok(if found == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) })
        })
        .await
    }

    /// Waits until the guest Service has an event of this reason whose note has `words`.
    pub async fn has_event(&self, name: &str, reason: &str, words: &str) -> Result<()> {
        let events: Api<Event> = Api::namespaced(self.guest.clone(), &self.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        until(&format!("an event {reason} with {words:?}"), Deadline::Reaction, async || {
            let all = events.list(&about).await?.items;
            let said: Vec<_> = all
                .into_iter()
                .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
                .collect();
            let found = said.iter().any(|(said, note)| said == reason && note.contains(words));
            Ok(if found { Ok(()) } else { Err(format!("{said:?}")) })
        })
        .await
    }
}

/// The name of a guest Service's mirror, by the rule of kubevirt/cloud-provider-kubevirt.
pub fn mirror_name(service: &Service) -> String {
    let uid = service.uid().unwrap_or_default().replace('-', "");
    format!("a{uid}").chars().take(32).collect()
}

/// Patches a Service.
pub async fn merge(api: &Api<Service>, name: &str, patch: Value) -> Result<()> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// A slice of an infra Service as another controller writes it.
pub fn foreign_slice(name: &str, service: &str, manager: &str, labels: &Value) -> Result<EndpointSlice> {
    let mut labels = labels.clone();
    labels["kubernetes.io/service-name"] = json!(service);
    labels["endpointslice.kubernetes.io/managed-by"] = json!(manager);
    let slice = json!({"metadata": {"name": name, "labels": labels}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["198.18.9.9"]}], "ports": [{"name": "http", "port": 9}]});
    Ok(serde_json::from_value(slice)?)
}
