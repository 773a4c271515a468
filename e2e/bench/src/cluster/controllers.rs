//! kube-controller-manager and kube-scheduler of a cluster.
//!
//! Neither serves anything (`--secure-port=0`): whether they work shows in the cluster. With
//! `--use-service-account-credentials` each controller acts as its own service account, so that real RBAC applies.

use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use super::{
    ApiServer,
    wait::{self, BOOT_DEADLINE},
};
use crate::{
    artifact::Programs,
    supervise::{Process, ProcessSpec, Supervisor},
};

/// Controllers of the infra cluster: what volumes, the objects of KubeVirt and CDI, our own Deployments, and Services with and
/// without a selector need.
///
/// Not among them: node lifecycle, taints and attach-detach, for the infra nodes are simulated and have no kubelet.
pub const INFRA_CONTROLLERS: &[&str] = &[
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "persistentvolume-binder-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
    "persistentvolume-expander-controller",
    "replicaset-controller",
    "deployment-controller",
    "disruption-controller",
    "resourcequota-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
];

/// Controllers of the guest cluster: all that are on by default, but those of features that no test here has and that
/// poll or sign.
pub const TENANT_CONTROLLERS: &[&str] = &[
    "*",
    "-node-ipam-controller",
    "-node-route-controller",
    "-service-lb-controller",
    "-horizontal-pod-autoscaler-controller",
    "-cronjob-controller",
    "-certificatesigningrequest-approving-controller",
    "-certificatesigningrequest-cleaner-controller",
    "-certificatesigningrequest-signing-controller",
];

/// Starts both and waits until the controller manager has made the first service account, without which no pod can be
/// created.
pub async fn start(
    supervisor: &Supervisor,
    programs: &Programs,
    api: &ApiServer,
    controllers: &[&str],
) -> Result<()> {
    let manager = controller_manager(supervisor, programs, api, controllers)?;
    let scheduler = scheduler(supervisor, programs, api)?;
    let accounts: Api<ServiceAccount> = Api::namespaced(api.client.clone(), "default");
    let what = format!("the first service account of the {} cluster", api.name);
    let first = wait::object(&accounts, "default", &what, BOOT_DEADLINE, |account| match account {
        Some(_) => wait::Poll::Ready(()),
        None => wait::Poll::NotYet("it does not exist".to_owned()),
    });
    wait::alive(&manager, wait::alive(&scheduler, first)).await
}

fn controller_manager(
    supervisor: &Supervisor,
    programs: &Programs,
    api: &ApiServer,
    controllers: &[&str],
) -> Result<Process> {
    let kubeconfig = kubeconfig(api, "kube-controller-manager")?;
    let mut args = common_args(&kubeconfig);
    args.extend([
        format!("--controllers={}", controllers.join(",")),
        "--use-service-account-credentials=true".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        format!("--service-account-private-key-file={}", api.folder().join("sa.key").display()),
        format!("--root-ca-file={}", api.folder().join("ca.crt").display()),
    ]);
    launch(supervisor, programs, api, "kube-controller-manager", args)
}

fn scheduler(supervisor: &Supervisor, programs: &Programs, api: &ApiServer) -> Result<Process> {
    let kubeconfig = kubeconfig(api, "kube-scheduler")?;
    launch(supervisor, programs, api, "kube-scheduler", common_args(&kubeconfig))
}

fn common_args(kubeconfig: &Path) -> Vec<String> {
    let kubeconfig = kubeconfig.display();
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// The kubeconfig of the user `system:<program>`, to which the default RBAC roles give the program's rights.
fn kubeconfig(api: &ApiServer, program: &str) -> Result<std::path::PathBuf> {
    let text = api.user_kubeconfig(&format!("system:{program}"), &[])?;
    api.write(&format!("{program}.kubeconfig"), &text)
}

fn launch(
    supervisor: &Supervisor,
    programs: &Programs,
    api: &ApiServer,
    program: &str,
    args: Vec<String>,
) -> Result<Process> {
    let spec = ProcessSpec {
        name: format!("{}-{program}", api.name),
        program: programs.path(program)?.to_owned(),
        args,
        ..ProcessSpec::default()
    };
    supervisor.start(&spec).with_context(|| format!("start the {} cluster's {program}", api.name))
}
