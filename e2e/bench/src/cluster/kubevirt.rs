//! KubeVirt in the infra cluster: its objects, the real virt-api and virt-controller as their service accounts.
//!
//! There is no virt-operator: this does its part once. There is no virt-handler: `simulator` stands for it.

use anyhow::{Context, Result};
use k8s_openapi::{
    api::coordination::v1::Lease, kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    ApiServer,
    objects::{self, endpoint_slice},
    wait::{self, BOOT_DEADLINE, Poll},
};
use crate::{
    artifact::Programs,
    report::Progress,
    sandbox::network,
    supervise::{Process, ProcessSpec, Supervisor},
};

/// KubeVirt's own namespace; virt-api and virt-controller assume it outside a pod.
pub const NAMESPACE: &str = "kubevirt";

/// The version whose programs and objects `e2e/go/kubevirt/go.mod` pins.
const VERSION: &str = "v1.9.0";

/// virt-api's port; its Service maps 443 to it.
const API_PORT: u16 = 8443;

/// virt-controller's port, on loopback: metrics and health.
const CONTROLLER_PORT: u16 = 8444;

/// The aggregated API with `addvolume` and `removevolume`.
const SUBRESOURCES: &str = "v1.subresources.kubevirt.io";

/// Installs KubeVirt with `gates` and waits until its aggregated API answers and virt-controller leads.
pub async fn start(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
    gates: &[String],
    progress: &dyn Progress,
) -> Result<()> {
    let objects = objects::generate(programs, "kubevirt-objects", infra).await?;
    infra.apply(&objects.definitions).await?;
    infra.established(&objects.definitions).await?;
    infra.apply(&objects.parts).await?;
    configure(infra, gates).await.context("create the KubeVirt resource")?;
    progress.step("KubeVirt's objects are in; starting virt-api and virt-controller");

    write_serving_certificate(infra)?;
    let api = start_api(supervisor, programs, infra).await?;
    let controller = start_controller(supervisor, programs, infra).await?;
    infra.apply(&[endpoint_slice(NAMESPACE, "virt-api", network::VIRT_API, API_PORT)]).await?;
    infra.apply(&objects.registrations).await?;
    wait::alive(&api, available(infra, SUBRESOURCES)).await?;
    wait::alive(&controller, leads(infra, NAMESPACE, "virt-controller")).await?;
    progress.step("KubeVirt is up: the aggregated API is available, virt-controller leads");
    Ok(())
}

/// Creates the KubeVirt resource and the status that virt-operator would write: without `defaultArchitecture` virt-api
/// refuses every VM ("unsupported architecture").
async fn configure(infra: &ApiServer, gates: &[String]) -> Result<()> {
    let resource = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": NAMESPACE},
        "spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}},
    });
    infra.apply(std::slice::from_ref(&resource)).await?;
    let status = json!({"status": {
        "phase": "Deployed",
        "defaultArchitecture": "amd64",
        "observedKubeVirtVersion": VERSION,
        "operatorVersion": VERSION,
        "targetKubeVirtVersion": VERSION,
    }});
    let api = infra.api_for(&resource).await?;
    api.patch_status("kubevirt", &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// One certificate serves virt-api (named as its Service) and virt-controller's metrics.
fn write_serving_certificate(infra: &ApiServer) -> Result<()> {
    let names = [format!("virt-api.{NAMESPACE}.svc"), network::VIRT_API.to_string(), "localhost".to_owned()];
    infra.authority().server("virt-api", &names)?.write(infra.folder(), "virt-api")?;
    // virt-api shows this one to virt-handler, for consoles; the bench has none, but virt-api reads the file.
    infra
        .authority()
        .user("kubevirt.io:system:client:virt-handler", &[])?
        .write(infra.folder(), "virt-handler-client")
}

async fn start_api(supervisor: &Supervisor, programs: &Programs, infra: &ApiServer) -> Result<Process> {
    let file = |name: &str| infra.folder().join(name).display().to_string();
    let kubeconfig = infra.write_service_account(NAMESPACE, "kubevirt-apiserver").await?;
    supervisor.start(&ProcessSpec {
        name: "virt-api".to_owned(),
        program: programs.path("virt-api")?.to_owned(),
        args: vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--listen={}", network::VIRT_API),
            format!("--port={API_PORT}"),
            "--subresources-only".to_owned(),
            format!("--tls-cert-file={}", file("virt-api.crt")),
            format!("--tls-key-file={}", file("virt-api.key")),
            format!("--handler-cert-file={}", file("virt-handler-client.crt")),
            format!("--handler-key-file={}", file("virt-handler-client.key")),
            "-v=2".to_owned(),
        ],
        ..ProcessSpec::default()
    })
}

async fn start_controller(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
) -> Result<Process> {
    let file = |name: &str| infra.folder().join(name).display().to_string();
    let kubeconfig = infra.write_service_account(NAMESPACE, "kubevirt-controller").await?;
    supervisor.start(&ProcessSpec {
        name: "virt-controller".to_owned(),
        program: programs.path("virt-controller")?.to_owned(),
        args: vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            // Nothing pulls these images: they only name themselves in the pods that virt-controller makes.
            format!("--launcher-image=bench.local/virt-launcher:{VERSION}"),
            format!("--exporter-image=bench.local/virt-exportserver:{VERSION}"),
            "--listen=127.0.0.1".to_owned(),
            format!("--port={CONTROLLER_PORT}"),
            format!("--prom-cert-file={}", file("virt-api.crt")),
            format!("--prom-key-file={}", file("virt-api.key")),
            "-v=3".to_owned(),
        ],
        ..ProcessSpec::default()
    })
}

/// Waits until the API server reports the aggregated API `name` as available.
pub(super) async fn available(infra: &ApiServer, name: &str) -> Result<()> {
    let services: Api<APIService> = Api::all(infra.client.clone());
    let what = format!("the aggregated API {name} to be available");
    wait::object(&services, name, &what, BOOT_DEADLINE, |service| {
        let conditions = service.and_then(|service| service.status?.conditions).unwrap_or_default();
        match conditions.into_iter().find(|condition| condition.type_ == "Available") {
            Some(condition) if condition.status == "True" => Poll::Ready(()),
            Some(condition) => Poll::NotYet(condition.message.unwrap_or(condition.status)),
            None => Poll::NotYet("the API server has not set a condition".to_owned()),
        }
    })
    .await
}

/// Waits until somebody holds the leader-election lease.
pub(super) async fn leads(infra: &ApiServer, namespace: &str, lease: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(infra.client.clone(), namespace);
    let what = format!("a leader of {namespace}/{lease}");
    wait::object(&leases, lease, &what, BOOT_DEADLINE, |lease| {
        match lease.and_then(|lease| lease.spec?.holder_identity) {
            Some(holder) if !holder.is_empty() => Poll::Ready(()),
            _ => Poll::NotYet("nobody holds the lease".to_owned()),
        }
    })
    .await
}
