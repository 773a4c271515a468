//! With the rights that installers give today: what a missing right switches off is said once, and the rest works.

use anyhow::{Result, ensure};
use bench::fault_proxy::Matcher;
use bench::scenario::{Deadline, until, until_gone};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::provider::{Place, mirror_name};
use super::{ALONE, merge};
use crate::fixture::Fixture;

/// The Role of both.
const ROLE: &str = "kccm";
/// The answer to who may not.
const FORBIDDEN: u16 = 403;

/// The rules of the reference's role (`config/rbac`) and of `HyperShift`'s (control-plane-operator, component
/// `kubevirt-cloud-controller-manager`), as far as they concern this namespace.
fn rules() -> [(&'static str, Value); 2] {
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let read = ["get", "list", "watch"];
    let update = ["get", "list", "watch", "update"];
    let reference = json!([
        rule("kubevirt.io", "virtualmachines", &read),
        rule("kubevirt.io", "virtualmachineinstances", &update),
        rule("", "pods", &read),
        rule("", "services", &["*"]),
    ]);
    let hypershift = json!([
        rule("kubevirt.io", "virtualmachines", &read),
        rule("kubevirt.io", "virtualmachineinstances", &update),
        rule("", "services", &["*"]),
    ]);
    [("reference", reference), ("hypershift", hypershift)]
}

/// A load balancer's life with each set of rights. Nothing is refused but the watch of infra's events, and that once.
pub async fn installers(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let roles: Api<Role> = Api::namespaced(fixture.infra.clone(), &place.namespace);
    for (whose, rules) in rules() {
        roles.patch(ROLE, &PatchParams::default(), &Patch::Merge(json!({"rules": rules}))).await?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(place.infra_access.clone(), &options).await?;
        let events: Api<Event> = Api::namespaced(Client::try_from(config)?, &place.namespace);
        until("the narrower rights", Deadline::Reaction, async || {
            match events.list(&ListParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Ok(())),
                answer => Ok(Err(format!("{answer:?}"))),
            }
        })
        .await?;
        let between = place.between().await?;
        let provider = place.provider_behind(&between, whose, &[ALONE]).await?;
        let service = place.create(whose, json!({})).await?;
        place.served(whose).await?;
        merge(&place.guests, whose, json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
        let is_local = |now: &Value| now["spec"]["externalTrafficPolicy"] == "Local";
        place.mirror(&mirror_name(&service), "the policy", is_local).await?;
        place.guests.delete(whose, &DeleteParams::default()).await?;
        until_gone(&place.guests, whose, "the guest's Service", Deadline::Reaction).await?;

        let refused = |entry: &&bench::fault_proxy::Entry| entry.landed == Some(FORBIDDEN);
        let of_infra = between.infra.faults().calls(&Matcher::default());
        let resources: Vec<_> = of_infra.iter().filter(refused).map(|entry| &entry.call.resource).collect();
        ensure!(resources == ["events"], "{whose}: infra refused {resources:?}");
        let of_guest = between.guest.faults().calls(&Matcher::default());
        ensure!(!of_guest.iter().any(|entry| refused(&entry)), "{whose}: the guest refused {of_guest:?}");
        let log = provider.process.log_tail(usize::MAX);
        let said = log.lines().filter(|line| line.contains("no right to watch events")).count();
        ensure!(said == 1, "{whose}: it was said {said} times");
    }
    Ok(())
}
