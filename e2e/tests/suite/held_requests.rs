//! Keeps virt-controller from writing one VirtualMachine, by an admission policy of the infra API server: requests for the VM
//! stay pending. KubeVirt itself is not changed, and continues when the policy is gone.

use anyhow::{Result, bail};
use bench::scenario::{Deadline, HCP_NAMESPACE, until, virtual_machines};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::fixture::Fixture;

/// virt-controller's user.
const VIRT_CONTROLLER: &str = "system:serviceaccount:kubevirt:kubevirt-controller";

/// The message with which the API server refuses it meanwhile.
const REASON: &str = "held back by a test";

/// virt-controller can't write the machine's spec until it is released.
pub struct HeldRequests<'a> {
    fixture: &'a Fixture,
    machine: &'a str,
}

impl<'a> HeldRequests<'a> {
    /// Makes the policy and waits until it is in force.
    pub async fn of(fixture: &'a Fixture, machine: &'a str) -> Result<Self> {
        let name = &fixture.word;
        let policy = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["kubevirt.io"], "apiVersions": ["*"], "operations": ["UPDATE"],
                    "resources": ["virtualmachines", "virtualmachines/status"],
                }]},
                "matchConditions": [
                    {"name": "who", "expression": format!("request.userInfo.username == '{VIRT_CONTROLLER}'")},
                    {"name": "which", "expression": format!("request.name == '{machine}'")},
                ],
                "validations": [{"expression": "false", "message": REASON}],
            },
        }))?;
        let binding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }))?;
        policies(fixture).create(&PostParams::default(), &policy).await?;
        bindings(fixture).create(&PostParams::default(), &binding).await?;
        let held = Self { fixture, machine };
        match held.in_force().await {
            Ok(()) => Ok(held),
            Err(error) => {
                held.release().await?;
                Err(error)
            }
        }
    }

    /// Removes the policy.
    pub async fn release(self) -> Result<()> {
        let name = &self.fixture.word;
        bindings(self.fixture).delete(name, &DeleteParams::default()).await?;
        policies(self.fixture).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a write as virt-controller is refused; the write is a dry run.
    async fn in_force(&self) -> Result<()> {
        let machines = virtual_machines(&self.fixture.infra_as(VIRT_CONTROLLER).await?, HCP_NAMESPACE);
        let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
        let touch = json!({"metadata": {"annotations": {"bench.local/probe": self.fixture.word}}});
        until("the policy to be in force", Deadline::Reaction, async || {
            match machines.patch(self.machine, &dry_run, &Patch::Merge(&touch)).await {
                Ok(_) => Ok(Err("virt-controller may write".to_owned())),
                Err(kube::Error::Api(status)) if status.message.contains(REASON) => Ok(Ok(())),
                Err(error) => bail!("{error}"),
            }
        })
        .await
    }
}

fn policies(fixture: &Fixture) -> Api<ValidatingAdmissionPolicy> {
    Api::all(fixture.infra.clone())
}

fn bindings(fixture: &Fixture) -> Api<ValidatingAdmissionPolicyBinding> {
    Api::all(fixture.infra.clone())
}
