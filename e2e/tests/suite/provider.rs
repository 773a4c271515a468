//! A cloud controller manager process of the test's own, with an infra namespace of its own in which a load balancer serves, and
//! with the accounts and rights of `deploy/cloud-controller-manager`.

mod account;
mod credentials;
mod left_overs;
mod services;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::{
    cluster::ApiServer,
    command::goal::Plan,
    paths::RUNTIME,
    scenario::HCP_NAMESPACE,
    simulator::{Running, fault_plan::FaultPlan, infra_load_balancer},
    supervise::{Process, ProcessSpec, Supervisor},
};
use fault_proxy::KubeProxy;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::Fixture;
use account::{ACCOUNT, GUEST_ACCOUNT_NAMESPACE, apply};
pub use account::{Access, access, administrator, kubectl_with};
use left_overs::remove_left;
pub use left_overs::remove_left_everywhere;
pub use services::{foreign_slice, merge, mirror_name};

/// The guest cluster's name.
pub const CLUSTER: &str = "guest";
/// Without leader election: only the test of the election waits for a lease.
pub const ALONE: &str = "--leader-elect=false";
/// How long a provider may take to end: kubelet's `terminationGracePeriodSeconds`, if a pod sets none.
const STOP: Duration = Duration::from_secs(30);
/// The networks of the bench's VMs. Their interfaces are bridged, so what they report counts only in here.
const WORKERS_NETWORKS: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];
/// The program.
const PROGRAM: &str = "kubevirt-cloud-controller-manager";

/// A place for providers: namespaces in both clusters, the load balancer, and credentials.
pub struct Place {
    /// The guest's namespace.
    pub namespace: String,
    infra_namespace: String,
    /// The faults of the load balancer.
    pub faults: FaultPlan<infra_load_balancer::Fault>,
    /// The guest's Services.
    pub guests: Api<Service>,
    /// The infra namespace's Services.
    pub mirrors: Api<Service>,
    /// The guest cluster's administrator.
    pub guest: Client,
    /// The credentials of a provider in infra.
    pub infra_access: Kubeconfig,
    /// Its account in the guest.
    pub guest_access: Kubeconfig,
    /// The arguments with which kubectl is the guest cluster's administrator.
    guest_kubectl: Vec<String>,
    logs: PathBuf,
    program: PathBuf,
    load_balancer: Arc<Running>,
}

/// What stands between a provider and the API servers.
pub struct Proxies {
    /// Before infra's.
    pub infra: KubeProxy,
    /// Before the guest's.
    pub guest: KubeProxy,
}

/// A running provider; killed when dropped.
pub struct Provider {
    /// Its process.
    pub process: Process,
}

impl Provider {
    /// Ends it as kubelet does; it must end by itself, and without an error.
    pub async fn stop(self) -> Result<()> {
        let ended = self.process.stop(STOP).await;
        ensure!(ended.success(), "expected {} to end well, saw {ended}", self.process.name());
        Ok(())
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGKILL);
    }
}

impl Place {
    /// Makes it, with an infra namespace of its own, in which there is no VM.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        remove_left(&fixture.guest).await?;
        let namespace = fixture.guest_namespace().await?;
        let namespaces: Api<Namespace> = Api::all(fixture.infra.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        apply(fixture, "tenant/base", &administrator("tenant"), None).await?;
        apply(fixture, "infra/base", &administrator("infra"), Some(&namespace)).await?;
        Self::with_infra(fixture, namespace.clone(), namespace).await
    }

    /// The same, whose providers are the program as it is shipped: for figures. The others have what is built for tests.
    pub async fn of_shipped(fixture: &Fixture) -> Result<Self> {
        let program = Plan::read(&fixture.run)?.artifacts.programs.path(PROGRAM)?.to_owned();
        Ok(Self { program, ..Self::new(fixture).await? })
    }

    /// Makes it over the infra namespace of the workers' VMs, where the accounts and rights are installed. No other test has
    /// load balancers at the same time.
    pub async fn over_workers(fixture: &Fixture) -> Result<Self> {
        remove_left_everywhere(fixture).await?;
        Self::with_infra(fixture, fixture.guest_namespace().await?, HCP_NAMESPACE.to_owned()).await
    }

    /// Over the same infra namespace, for another guest cluster, in which it makes the namespace, the account and its rights.
    pub async fn in_another_guest(&self, fixture: &Fixture, guest: &ApiServer) -> Result<Self> {
        let guest_kubectl = vec![format!("--kubeconfig={}", guest.admin_kubeconfig.display())];
        let namespaces: Api<Namespace> = Api::all(guest.client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": self.namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        apply(fixture, "tenant/base", &guest_kubectl, None).await?;
        let access = guest.service_account_kubeconfig(GUEST_ACCOUNT_NAMESPACE, ACCOUNT).await?;
        Ok(Self {
            guests: Api::namespaced(guest.client.clone(), &self.namespace),
            mirrors: self.mirrors.clone(),
            guest: guest.client.clone(),
            infra_access: self.infra_access.clone(),
            guest_access: Kubeconfig::from_yaml(&access)?,
            guest_kubectl,
            logs: self.logs.clone(),
            program: self.program.clone(),
            namespace: self.namespace.clone(),
            infra_namespace: self.infra_namespace.clone(),
            faults: self.faults.clone(),
            load_balancer: Arc::clone(&self.load_balancer),
        })
    }

    async fn with_infra(fixture: &Fixture, namespace: String, infra_namespace: String) -> Result<Self> {
        let faults = FaultPlan::default();
        let running = infra_load_balancer::start(fixture.infra.clone(), &infra_namespace, faults.clone());
        Ok(Self {
            guests: Api::namespaced(fixture.guest.clone(), &namespace),
            mirrors: Api::namespaced(fixture.infra.clone(), &infra_namespace),
            guest: fixture.guest.clone(),
            infra_access: access(&fixture.infra, "infra", (&infra_namespace, ACCOUNT), None).await?,
            guest_access: access(&fixture.guest, "tenant", (GUEST_ACCOUNT_NAMESPACE, ACCOUNT), None).await?,
            guest_kubectl: administrator("tenant"),
            logs: fixture.run.join("logs"),
            program: program()?,
            namespace,
            infra_namespace,
            faults,
            load_balancer: Arc::new(running),
        })
    }

    /// Starts a provider for the guest cluster `cluster`.
    pub async fn provider(&self, suffix: &str, cluster: &str, more: &[&str]) -> Result<Provider> {
        self.provider_with(suffix, cluster, more, json!({})).await
    }

    /// The same, with more keys in the cloud-config's section `loadBalancer`.
    pub async fn provider_with(
        &self,
        suffix: &str,
        cluster: &str,
        more: &[&str],
        load_balancer: Value,
    ) -> Result<Provider> {
        self.configured(suffix, cluster, &keys_with(&load_balancer), more).await
    }

    /// The same, with these keys and no others in the cloud-config.
    pub async fn configured(
        &self,
        suffix: &str,
        cluster: &str,
        keys: &Value,
        more: &[&str],
    ) -> Result<Provider> {
        let access = (&self.infra_access, &self.guest_access);
        self.start(self.arguments(access, suffix, cluster, keys).await?, more)
    }

    /// The same, which reaches both clusters through fault proxies.
    pub async fn provider_behind(&self, proxies: &Proxies, suffix: &str, more: &[&str]) -> Result<Provider> {
        self.provider_behind_with(proxies, suffix, more, json!({})).await
    }

    /// The same, with more keys in the cloud-config's section `loadBalancer`.
    pub async fn provider_behind_with(
        &self,
        proxies: &Proxies,
        suffix: &str,
        more: &[&str],
        load_balancer: Value,
    ) -> Result<Provider> {
        let access = (proxies.infra.kubeconfig(), proxies.guest.kubeconfig());
        self.start(self.arguments(access, suffix, CLUSTER, &keys_with(&load_balancer)).await?, more)
    }

    /// The same, with these credentials in infra and in the guest.
    pub async fn provider_as(&self, suffix: &str, access: &Access, more: &[&str]) -> Result<Provider> {
        self.configured_as(suffix, access, &usual_keys(), more).await
    }

    /// The same, with these keys and no others in the cloud-config.
    pub async fn configured_as(
        &self,
        suffix: &str,
        access: &Access,
        keys: &Value,
        more: &[&str],
    ) -> Result<Provider> {
        let access = (&access.infra, &access.guest);
        self.start(self.arguments(access, suffix, CLUSTER, keys).await?, more)
    }

    /// A file of a provider.
    fn file(&self, suffix: &str, what: &str) -> PathBuf {
        PathBuf::from(RUNTIME).join(format!("{}.{what}", self.name(suffix)))
    }

    fn name(&self, suffix: &str) -> String {
        format!("ccm-{}-{suffix}", self.namespace)
    }

    /// Fault proxies before both API servers, for the accounts of a provider.
    pub async fn proxies(&self) -> Result<Proxies> {
        Ok(Proxies {
            infra: KubeProxy::start(&self.infra_access).await?,
            guest: KubeProxy::start(&self.guest_access).await?,
        })
    }

    fn start(&self, (name, mut args): (String, Vec<String>), more: &[&str]) -> Result<Provider> {
        args.extend(more.iter().map(|&argument| argument.to_owned()));
        let spec = ProcessSpec { name, program: self.program.clone(), args, ..ProcessSpec::default() };
        Ok(Provider { process: Supervisor::new(self.logs.clone()).start(&spec)? })
    }

    /// Runs the provider's program to its end.
    pub async fn run(&self, suffix: &str, cluster: &str, more: &[&str]) -> Result<std::process::Output> {
        let access = (&self.infra_access, &self.guest_access);
        let (_, mut args) = self.arguments(access, suffix, cluster, &usual_keys()).await?;
        args.extend(more.iter().map(|&argument| argument.to_owned()));
        Ok(tokio::process::Command::new(&self.program).args(args).output().await?)
    }

    /// The name of a provider, and its arguments, whose files are written.
    async fn arguments(
        &self,
        (infra, guest): (&Kubeconfig, &Kubeconfig),
        suffix: &str,
        cluster: &str,
        keys: &Value,
    ) -> Result<(String, Vec<String>)> {
        let (name, file) = (self.name(suffix), |what: &str| self.file(suffix, what));
        tokio::fs::write(file("infra"), serde_json::to_vec(infra)?).await?;
        tokio::fs::write(file("guest"), serde_json::to_vec(guest)?).await?;
        let mut config = keys.clone();
        config["kubeconfig"] = json!(file("infra"));
        config["namespace"] = json!(self.infra_namespace);
        let writes_endpoints = ["endpoints", "enableEPSController"]
            .iter()
            .any(|key| config["loadBalancer"].get(key).is_some_and(|value| !value.is_null()));
        let within = &mut config["instancesV2"]["nodeAddresses"]["within"];
        if writes_endpoints && within.is_null() {
            *within = json!(WORKERS_NETWORKS);
        }
        tokio::fs::write(file("config"), serde_json::to_vec(&config)?).await?;
        let args = vec![
            "--cloud-provider=kubevirt".to_owned(),
            format!("--cloud-config={}", file("config").display()),
            format!("--kubeconfig={}", file("guest").display()),
            "--authentication-skip-lookup".to_owned(),
            format!("--cluster-name={cluster}"),
            "--secure-port=0".to_owned(),
            "--v=4".to_owned(),
        ];
        Ok((name, args))
    }

    /// Gives both accounts what `deploy/cloud-controller-manager` has in this folder of both halves.
    pub async fn grant(&self, fixture: &Fixture, part: &str) -> Result<()> {
        apply(fixture, &format!("tenant/{part}"), &self.guest_kubectl, None).await?;
        apply(fixture, &format!("infra/{part}"), &administrator("infra"), Some(&self.infra_namespace)).await
    }
}

/// The keys of a cloud-config that most tests have: a late address is reported after five seconds, and Nodes are left alone.
/// The namespace of a provider has no VMs, so it would delete the Node of a worker that is not Ready for a moment.
fn usual_keys() -> Value {
    json!({"loadBalancer": {"creationPollTimeout": 5}, "instancesV2": {"enabled": false}})
}

/// These, with more in the section `loadBalancer`.
fn keys_with(load_balancer: &Value) -> Value {
    let mut keys = usual_keys();
    for (key, value) in load_balancer.as_object().into_iter().flatten() {
        keys["loadBalancer"][key] = value.clone();
    }
    keys
}

/// `make bench`, or `cargo build --workspace --bins`, puts it beside the tests.
fn program() -> Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let folder = tests.parent().and_then(|deps| deps.parent()).context("no target directory")?;
    let program = folder.join(PROGRAM);
    if !program.exists() {
        bail!("expected the program {}, saw none; run make bench", program.display());
    }
    Ok(program)
}
