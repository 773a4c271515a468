//! Keeps virt-controller from writing one VirtualMachine, by an admission policy of the infra API server: requests for the VM
//! stay pending. KubeVirt itself is not changed, and continues when the policy is gone.

use anyhow::{Result, bail};
use bench::scenario::{Deadline, HCP_NAMESPACE, until, virtual_machines};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{fixture::Fixture, refusing_policy::RefusingPolicy};

/// virt-controller's user.
const VIRT_CONTROLLER: &str = "system:serviceaccount:kubevirt:kubevirt-controller";

/// The message with which the API server refuses it meanwhile.
const REASON: &str = "held back by a test";

/// Makes the policy and waits until it is in force: virt-controller can't write the machine's spec until it is released.
pub async fn hold_requests<'a>(fixture: &'a Fixture, machine: &str) -> Result<RefusingPolicy<'a>> {
    let rule = json!({
        "apiGroups": ["kubevirt.io"], "apiVersions": ["*"], "operations": ["UPDATE"],
        "resources": ["virtualmachines", "virtualmachines/status"],
    });
    let conditions = json!([
        {"name": "who", "expression": format!("request.userInfo.username == '{VIRT_CONTROLLER}'")},
        {"name": "which", "expression": format!("request.name == '{machine}'")},
    ]);
    let policy = RefusingPolicy::of(fixture, rule, conditions, REASON).await?;
    policy.once_in_force(in_force(fixture, machine).await).await
}

/// Waits until a write as virt-controller is refused; the write is a dry run.
async fn in_force(fixture: &Fixture, machine: &str) -> Result<()> {
    let machines = virtual_machines(&fixture.infra_as(VIRT_CONTROLLER).await?, HCP_NAMESPACE);
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let touch = json!({"metadata": {"annotations": {"bench.local/probe": fixture.word}}});
    until("the policy to be in force", Deadline::Reaction, async || {
        match machines.patch(machine, &dry_run, &Patch::Merge(&touch)).await {
            Ok(_) => Ok(Err("virt-controller may write".to_owned())),
            Err(kube::Error::Api(status)) if status.message.contains(REASON) => Ok(Ok(())),
            Err(error) => bail!("{error}"),
        }
    })
    .await
}
