//! Replies of the node plugin that kubelet never gets: it calls again, and the work is done once.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use fault_proxy::{Action, Matcher, Rule};

use crate::{
    controller_process::{Controller, filesystem},
    fixture::Fixture,
    node_socket::NodeSocket,
};

tests! {
    OneWorker:
        lost_replies_are_asked_for_again;
}

/// The replies of NodeStageVolume and NodePublishVolume, then of their opposites, are lost once each.
async fn lost_replies_are_asked_for_again(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), filesystem("ext4")).await?;
    controller.publish(&volume, fixture.worker()?).await?;
    let front = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (node, proxy) = NodeSocket::behind_proxy(&fixture, fixture.worker()?, front).await?;
    let lose_reply =
        |method: &str| proxy.faults().add(Rule::once(Matcher::of_method(method), Action::LoseReply));
    let capability = filesystem("ext4");
    let identity =
        format!("blkid -c /dev/null -o value -s UUID $(findmnt -n -o SOURCE {})", node.staging(&volume));
    let mounts = |path: &str| format!("grep -c ' {path} ' /proc/self/mountinfo || true");

    let fault = lose_reply("NodeStageVolume");
    node.stage(&volume, &capability).await.err().context("the lost reply of NodeStage was answered")?;
    ensure!(fault.count() == 1, "expected one lost reply, saw {}", fault.count());
    let made = node.run(&["sh", "-c", &identity]).await?;
    node.stage(&volume, &capability).await.context("NodeStage again")?;
    let again = node.run(&["sh", "-c", &identity]).await?;
    ensure!(
        !made.trim().is_empty() && made == again,
        "expected the same filesystem, saw {made:?}, then {again:?}"
    );

    let fault = lose_reply("NodePublishVolume");
    node.publish(&volume, &capability).await.err().context("the lost reply of NodePublish was answered")?;
    ensure!(fault.count() == 1, "expected one lost reply, saw {}", fault.count());
    let target = node.publish(&volume, &capability).await.context("NodePublish again")?;
    for path in [&node.staging(&volume), &target] {
        let count = node.run(&["sh", "-c", &mounts(path)]).await?;
        ensure!(count.trim() == "1", "expected one mount of {path}, saw {count}");
    }

    let fault = [lose_reply("NodeUnpublishVolume"), lose_reply("NodeUnstageVolume")];
    node.unpublish(&volume).await.err().context("the lost reply of NodeUnpublish was answered")?;
    node.unpublish(&volume).await.context("NodeUnpublish again")?;
    node.unstage(&volume).await.err().context("the lost reply of NodeUnstage was answered")?;
    node.unstage(&volume).await.context("NodeUnstage again")?;
    ensure!(
        fault.iter().all(|guard| guard.count() == 1),
        "expected one lost reply of each call, saw another count"
    );
    for path in [&node.staging(&volume), &target] {
        let count = node.run(&["sh", "-c", &mounts(path)]).await?;
        ensure!(count.trim() == "0", "expected no mount of {path}, saw {count}");
    }
    controller.discard(&volume, fixture.worker()?).await
}
