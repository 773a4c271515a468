//! Exactly the rights that `HyperShift` gives, and few calls: read from the audit log of the infra API server.

use anyhow::{Result, ensure};
use bench::audit::{AuditLog, CallKind, Mark};

use crate::{
    controller_process::{Controller, block},
    fixture::Fixture,
};

tests! {
    Workers:
        a_volumes_life_needs_few_calls_and_no_other_right;
}

/// Infra calls of kubevirt/csi-driver for a lone volume's life if infra needs no time: create 2, publish 8, unpublish 6,
/// delete 2. Where infra needs time, both drivers read the instance again until it shows the change; how often depends on
/// the machine, so reads after the first are reported but not counted.
const UPSTREAM_CALLS: usize = 18;

/// The controller's user in infra.
pub const CONTROLLER_USER: &str = "system:serviceaccount:hcp-guest:kubevirt-csi";

/// A volume is created, published, unpublished and deleted; nothing is denied, now or earlier in this run, and it takes no
/// more calls than kubevirt/csi-driver.
async fn a_volumes_life_needs_few_calls_and_no_other_right(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let log = AuditLog::at(fixture.run.join("logs").join("infra-audit.log"), fixture.infra.clone());
    let mut lines = Vec::new();
    let mut total = 0;

    let mark = log.mark().await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    let mark = count(&log, mark, "create", &mut lines, &mut total).await?;
    // Its image exists when infra provisioned it: publish then meets a volume that only needs plugging.
    fixture.image_of(&volume.volume_id).await?;
    controller.publish(&volume, &machine).await?;
    let mark = count(&log, mark, "publish", &mut lines, &mut total).await?;
    controller.unpublish(&volume, &machine).await?;
    let mark = count(&log, mark, "unpublish", &mut lines, &mut total).await?;
    controller.delete(&volume).await?;
    count(&log, mark, "delete", &mut lines, &mut total).await?;
    println!("infra calls of a lone volume: {total}\n  {}", lines.join("\n  "));
    ensure!(total <= UPSTREAM_CALLS, "expected at most {UPSTREAM_CALLS} infra calls, saw {total}: {lines:?}");

    let all = log.since(Mark::START).await?;
    let denied = all.of_user(CONTROLLER_USER).denied();
    ensure!(denied.is_empty(), "expected no denied call, saw {:?}", denied.by_kind());
    fixture.delete_machine(&machine).await
}

/// Notes the controller's calls since `mark`; the next mark.
async fn count(
    log: &AuditLog,
    mark: Mark,
    rpc: &str,
    lines: &mut Vec<String>,
    total: &mut usize,
) -> Result<Mark> {
    let next = log.mark().await?;
    let calls = log.between(mark, next)?.of_user(CONTROLLER_USER);
    let kinds = calls.by_kind();
    let looks: usize = kinds.iter().filter(|(kind, _)| is_look(kind)).map(|(_, count)| count).sum();
    let waiting = looks.saturating_sub(1);
    *total += calls.len() - waiting;
    let calls: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count}× {kind}")).collect();
    lines.push(format!(
        "{rpc}: {} and {waiting} looks while waiting ({})",
        calls.len() - waiting,
        calls.join(", ")
    ));
    Ok(next)
}

/// A read of one instance.
fn is_look(kind: &CallKind) -> bool {
    kind.verb == "get" && kind.resource == "virtualmachineinstances"
}
