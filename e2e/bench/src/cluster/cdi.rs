//! CDI in the infra cluster: its objects, the real cdi-apiserver and cdi-controller, unpatched.
//!
//! Both insist on port 8443 of every address, on `/tmp/ready` and on `/var/run/cdi`, as if each had a pod to itself. So
//! each has a network and a mount namespace of its own. There is no cdi-operator: this does its part once. What CDI's
//! pods (importers) would do is `simulator`'s.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ApiServer, kubevirt,
    objects::{self, endpoint_slice},
    pki::write_private,
    wait::{self, BOOT_DEADLINE, Poll},
};
use crate::{
    artifact::Programs,
    report::Progress,
    sandbox::network::{self, Namespace},
    supervise::{Process, ProcessSpec, Supervisor},
};

/// CDI's own namespace; both programs assume it outside a pod.
const NAMESPACE: &str = "cdi";

/// cdi-apiserver's fixed port (`cmd/cdi-apiserver`, `defaultPort`).
const API_PORT: u16 = 8443;

/// Where cdi-controller reads the keys of clone tokens (`pkg/controller`, `TokenKeyDir`); in a pod, a mounted Secret.
const TOKEN_KEYS: &str = "/var/run/cdi/token/keys";

/// The Secret that cdi-apiserver makes and cdi-controller's pod mounts at [`TOKEN_KEYS`].
const TOKEN_SECRET: &str = "cdi-api-signing-key";

/// cdi-controller's leader-election lease (`cmd/cdi-controller`).
const LEADER_LEASE: &str = "cdi-controller-leader-election-helper";

/// The aggregated API of upload tokens; available when cdi-apiserver serves.
const UPLOAD_API: &str = "v1beta1.upload.cdi.kubevirt.io";

/// Installs CDI and waits until cdi-apiserver answers, cdi-controller leads and its configuration is set.
pub async fn start(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
    progress: &dyn Progress,
) -> Result<()> {
    let objects = objects::generate(programs, "cdi-objects", infra).await?;
    infra.apply(&objects.definitions).await?;
    infra.established(&objects.definitions).await?;
    infra.apply(&objects.parts).await?;
    // Without a status subresource, as CDI defines it: both programs refuse work until an operator deployed them.
    let cdi = json!({
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "CDI",
        "metadata": {"name": "cdi"},
        "spec": {},
        "status": {"phase": "Deployed"},
    });
    infra.apply(&[cdi]).await.context("create the CDI resource")?;
    progress.step("CDI's objects are in; starting cdi-apiserver and cdi-controller");

    let api = start_api(supervisor, programs, infra).await?;
    wait::alive(&api, mount_token_keys(infra)).await?;
    let controller = start_controller(supervisor, programs, infra).await?;
    infra.apply(&[endpoint_slice(NAMESPACE, "cdi-api", network::CDI_API, API_PORT)]).await?;
    infra.apply(&objects.registrations).await?;
    wait::alive(&api, kubevirt::available(infra, UPLOAD_API)).await?;
    wait::alive(&controller, kubevirt::leads(infra, NAMESPACE, LEADER_LEASE)).await?;
    wait::alive(&controller, honor_wait_for_first_consumer(infra)).await?;
    progress.step("CDI is up: cdi-apiserver serves, cdi-controller leads");
    Ok(())
}

async fn start_api(supervisor: &Supervisor, programs: &Programs, infra: &ApiServer) -> Result<Process> {
    let names = [format!("cdi-api.{NAMESPACE}.svc"), network::CDI_API.to_string()];
    infra.authority().server("cdi-api", &names)?.write(infra.folder(), "cdi-api")?;
    let namespace = namespace("cdi-api", network::CDI_API).await?;
    let file = |name: &str| infra.folder().join(name).display().to_string();
    let env = [("CERT_FILE", file("cdi-api.crt")), ("KEY_FILE", file("cdi-api.key"))];
    launch(supervisor, programs, infra, "cdi-apiserver", "cdi-apiserver", &namespace, &env).await
}

async fn start_controller(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
) -> Result<Process> {
    let namespace = namespace("cdi-control", network::CDI_CONTROLLER).await?;
    // Required, and never pulled: they only name themselves in the pods that cdi-controller makes.
    let image = |name: &str| format!("bench.local/{name}:v1.65.0");
    let env = [
        ("IMPORTER_IMAGE", image("cdi-importer")),
        ("CLONER_IMAGE", image("cdi-cloner")),
        ("UPLOADSERVER_IMAGE", image("cdi-uploadserver")),
        ("OVIRT_POPULATOR_IMAGE", image("ovirt-populator")),
        ("UPLOADPROXY_SERVICE", "cdi-uploadproxy".to_owned()),
    ];
    launch(supervisor, programs, infra, "cdi-controller", "cdi-sa", &namespace, &env).await
}

async fn launch(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
    program: &str,
    account: &str,
    namespace: &Namespace,
    env: &[(&str, String)],
) -> Result<Process> {
    let kubeconfig = infra.write_service_account(NAMESPACE, account).await?;
    supervisor.start(&ProcessSpec {
        name: program.to_owned(),
        wrapper: namespace.wrapper(),
        program: programs.path(program)?.to_owned(),
        args: vec![format!("-kubeconfig={}", kubeconfig.display()), "-v=1".to_owned()],
        env: env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..ProcessSpec::default()
    })
}

async fn namespace(name: &'static str, address: Ipv4Addr) -> Result<Namespace> {
    tokio::task::spawn_blocking(move || network::add_namespace(name, address))
        .await
        .context("make a namespace")?
}

/// Does kubelet's part for cdi-controller's pod: the Secret's keys as files. The sandbox's `/var/run` is its own.
async fn mount_token_keys(infra: &ApiServer) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(infra.client.clone(), NAMESPACE);
    let what = format!("cdi-apiserver to make the Secret {NAMESPACE}/{TOKEN_SECRET}");
    let data = wait::object(&secrets, TOKEN_SECRET, &what, BOOT_DEADLINE, |secret| {
        match secret.and_then(|secret| secret.data) {
            Some(data) => Poll::Ready(data),
            None => Poll::NotYet("it does not exist".to_owned()),
        }
    })
    .await?;
    fs::create_dir_all(TOKEN_KEYS).with_context(|| format!("create {TOKEN_KEYS}"))?;
    for (name, bytes) in data {
        let text =
            String::from_utf8(bytes.0).with_context(|| format!("{name} of {TOKEN_SECRET} is no text"))?;
        write_private(&Path::new(TOKEN_KEYS).join(name), &text)?;
    }
    Ok(())
}

/// Sets the gate that cdi-operator turns on by default: a `WaitForFirstConsumer` volume waits for its pod and is not
/// bound by CDI's own.
async fn honor_wait_for_first_consumer(infra: &ApiServer) -> Result<()> {
    let kind: Value = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDIConfig"});
    let configs: Api<DynamicObject> = infra.api_for(&kind).await?;
    wait::object(&configs, "config", "cdi-controller to make its CDIConfig", BOOT_DEADLINE, |config| {
        match config {
            Some(_) => Poll::Ready(()),
            None => Poll::NotYet("it does not exist".to_owned()),
        }
    })
    .await?;
    let gate = json!({"spec": {"featureGates": ["HonorWaitForFirstConsumer"]}});
    configs
        .patch("config", &PatchParams::default(), &Patch::Merge(&gate))
        .await
        .context("set CDI's feature gate")?;
    Ok(())
}
