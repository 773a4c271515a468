//! With the rights that installers give today: what a missing right switches off is logged once, and the rest works.

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until, until_gone};
use fault_proxy::Matcher;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, Place, foreign_slice, merge, mirror_name},
};

tests! {
    Services:
        the_rights_that_installers_give_suffice;
}

/// The Role of both.
const ROLE: &str = "kccm";
/// HTTP: the user has no right.
const FORBIDDEN: u16 = 403;

/// The controller that writes the endpoints of `HyperShift`'s guests.
const ITS_MANAGER: &str = "control-plane-operator.hypershift.openshift.io";

/// How one installer installs the cloud controller manager today.
struct Installer {
    name: &'static str,
    /// The rules of the role, as far as they concern this namespace.
    rules: Value,
    /// Arguments beside those of every test.
    arguments: &'static [&'static str],
    /// The section `loadBalancer` of the cloud-config.
    load_balancer: Value,
}

/// kubevirt/cloud-provider-kubevirt (`config/rbac`), and `HyperShift` (control-plane-operator, component `kubevirt-cloud-controller-manager`).
fn installers() -> [Installer; 2] {
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let read = ["get", "list", "watch"];
    let update = ["get", "list", "watch", "update"];
    let reference = Installer {
        name: "reference",
        rules: json!([
            rule("kubevirt.io", "virtualmachines", &read),
            rule("kubevirt.io", "virtualmachineinstances", &update),
            rule("", "pods", &read),
            rule("", "services", &["*"]),
        ]),
        arguments: &[ALONE],
        load_balancer: json!({}),
    };
    let hypershift = Installer {
        name: "hypershift",
        rules: json!([
            rule("kubevirt.io", "virtualmachines", &read),
            rule("kubevirt.io", "virtualmachineinstances", &update),
            rule("", "services", &["*"]),
        ]),
        arguments: &[
            ALONE,
            "--tls-min-version=VersionTLS12",
            "--tls-cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        ],
        load_balancer: json!({"enabled": true, "creationPollInterval": 0, "selectorless": true}),
    };
    [reference, hypershift]
}

/// A load balancer's life with each one's rights, arguments and configuration. Nothing is refused but the watch of infra's events,
/// and that once. Where another controller writes the endpoints there is no selector, and what it wrote stays as it is.
async fn the_rights_that_installers_give_suffice(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let roles: Api<Role> = Api::namespaced(fixture.infra.clone(), &place.namespace);
    let slices: Api<EndpointSlice> = Api::namespaced(fixture.infra.clone(), &place.namespace);
    for Installer { name: whose, rules, arguments, load_balancer } in installers() {
        let selectorless = load_balancer["selectorless"] == true;
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
        let proxies = place.proxies().await?;
        let provider = place.provider_behind_with(&proxies, whose, arguments, load_balancer).await?;
        let service = place.create(whose, json!({})).await?;
        place.served(whose).await?;
        let its_own = foreign_slice(whose, &mirror_name(&service), ITS_MANAGER, &json!({}))?;
        let its_own = slices.create(&PostParams::default(), &its_own).await?;
        merge(&place.guests, whose, json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
        let is_local = |now: &Value| now["spec"]["externalTrafficPolicy"] == "Local";
        let mirror = place.mirror(&mirror_name(&service), "the policy", is_local).await?;
        let selector = mirror["spec"].get("selector");
        ensure!(
            selector.is_none() == selectorless,
            "{whose}: expected a selector: {}, saw {selector:?}",
            !selectorless
        );
        let unchanged = slices.get(whose).await?.metadata.resource_version;
        ensure!(
            unchanged == its_own.metadata.resource_version,
            "{whose}: expected the other controller's endpoints unchanged, saw another version"
        );
        place.guests.delete(whose, &DeleteParams::default()).await?;
        until_gone(&place.guests, whose, "the guest's Service", Deadline::Reaction).await?;

        let refused = |entry: &&fault_proxy::Entry| entry.landed == Some(FORBIDDEN);
        let of_infra = proxies.infra.faults().calls(&Matcher::default());
        let resources: Vec<_> = of_infra.iter().filter(refused).map(|entry| &entry.call.resource).collect();
        ensure!(
            resources == ["events"],
            "{whose}: expected infra to refuse one watch of events, saw {resources:?}"
        );
        let of_guest = proxies.guest.faults().calls(&Matcher::default());
        ensure!(
            !of_guest.iter().any(|entry| refused(&entry)),
            "{whose}: expected no refusal of the guest, saw {of_guest:?}"
        );
        let log = provider.process.log_tail(usize::MAX);
        let said = log.lines().filter(|line| line.contains("no right to watch events")).count();
        ensure!(said == 1, "{whose}: expected the missing right to be logged once, saw {said} times");
    }
    Ok(())
}
