//! Recipes with requests to the driver: the sidecars pass on what the guest's objects say.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use bench::scenario::{HCP_NAMESPACE, data_volumes};
use csi_proto::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, ValidateVolumeCapabilitiesRequest, Volume, VolumeContentSource,
    controller_client::ControllerClient,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use kube::{ResourceExt, api::ListParams};
use tonic::{Code, Status, transport::Channel};

use super::{
    SERVED_WITHIN,
    other_volumes::{OtherVolumes, client},
};
use crate::{
    controller_process::{Controller, VOLUME_BYTES, block, node_id, timed},
    fixture::Fixture,
};

/// Deadline of a request.
pub const DEADLINE: Duration = Duration::from_mins(1);
/// A line that the tenant wants in the log.
const INJECTED: &str = "level=error msg=injected";
/// The longest text of an answer: it goes into an event and into the log.
const LONGEST_TEXT: usize = 4 * 1024;

/// The driver of the tenant.
struct Driver {
    client: ControllerClient<Channel>,
    own: Volume,
    machine: String,
    /// What was tried, and how it was answered.
    tried: Vec<(String, Result<(), Status>)>,
}

/// How a recipe's request may be answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    /// It must be refused.
    Refuse,
    /// Also OK: there is nothing to do, or it changes only what is the tenant's.
    Succeed,
}

impl Driver {
    fn note<T>(&mut self, what: String, may: May, answer: Result<T, Status>) -> Result<()> {
        let answer = answer.map(drop);
        if let Err(status) = &answer {
            let is_final = matches!(
                status.code(),
                Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists
            );
            ensure!(is_final, "{what}: expected a refusal that is not retried, saw {status:?}");
            let length = status.message().len();
            ensure!(length <= LONGEST_TEXT, "{what}: expected a text of {LONGEST_TEXT} bytes, saw {length}");
        }
        ensure!(may == May::Succeed || answer.is_err(), "{what}: expected a refusal, saw OK");
        self.tried.push((what, answer));
        Ok(())
    }

    async fn publish(
        &mut self,
        what: &str,
        may: May,
        volume: &str,
        node: &str,
        serial: Option<&str>,
    ) -> Result<()> {
        let mut volume_context = HashMap::new();
        if let Some(serial) = serial {
            volume_context.insert("serial".to_owned(), serial.to_owned());
        }
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(block()),
            volume_context,
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = self.client.controller_publish_volume(timed(request, DEADLINE)).await;
        self.note(format!("{what}: publish"), may, answer)
    }

    async fn unpublish(&mut self, what: &str, volume: &str, node: &str) -> Result<()> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: node.to_owned(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        let answer = self.client.controller_unpublish_volume(timed(request, DEADLINE)).await;
        self.note(format!("{what}: unpublish"), May::Succeed, answer)
    }

    /// Every request that takes a volume's id.
    async fn all_with(&mut self, what: &str, volume: &str, deletes: May) -> Result<()> {
        let (machine, node) = (self.machine.clone(), node_id(&self.machine));
        self.publish(what, May::Refuse, volume, &node, None).await?;
        self.unpublish(what, volume, &node).await?;
        self.unpublish(what, volume, "").await?;
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 2 * VOLUME_BYTES, limit_bytes: 0 }),
            volume_capability: Some(block()),
            ..ControllerExpandVolumeRequest::default()
        };
        let answer = self.client.controller_expand_volume(timed(request, DEADLINE)).await;
        self.note(format!("{what}: expand"), May::Refuse, answer)?;
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.to_owned(),
            volume_capabilities: vec![block()],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let answer = self.client.validate_volume_capabilities(timed(request, DEADLINE)).await;
        self.note(format!("{what}: validate"), May::Refuse, answer)?;
        let request = CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: format!("snapshot-{machine}"),
            ..CreateSnapshotRequest::default()
        };
        let answer = self.client.create_snapshot(timed(request, DEADLINE)).await;
        self.note(format!("{what}: take a snapshot"), May::Refuse, answer)?;
        let source = Type::Volume(VolumeSource { volume_id: volume.to_owned() });
        self.create(what, May::Refuse, &format!("pvc-{machine}-clone"), Some(source), &[]).await?;
        let request = DeleteVolumeRequest { volume_id: volume.to_owned(), ..DeleteVolumeRequest::default() };
        let answer = self.client.delete_volume(timed(request, DEADLINE)).await;
        self.note(format!("{what}: delete"), deletes, answer)
    }

    /// Every request that takes a snapshot's id.
    async fn all_with_snapshot(&mut self, what: &str, snapshot: &str, deletes: May) -> Result<()> {
        let source = Type::Snapshot(SnapshotSource { snapshot_id: snapshot.to_owned() });
        let name = format!("pvc-{}-restored", self.machine);
        self.create(what, May::Refuse, &name, Some(source), &[]).await?;
        let request =
            DeleteSnapshotRequest { snapshot_id: snapshot.to_owned(), ..DeleteSnapshotRequest::default() };
        let answer = self.client.delete_snapshot(timed(request, DEADLINE)).await;
        self.note(format!("{what}: delete the snapshot"), deletes, answer)
    }

    async fn create(
        &mut self,
        what: &str,
        may: May,
        name: &str,
        source: Option<Type>,
        parameters: &[(&str, &str)],
    ) -> Result<()> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: VOLUME_BYTES, limit_bytes: 0 }),
            volume_capabilities: vec![block()],
            parameters: parameters.iter().map(owned).collect(),
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..CreateVolumeRequest::default()
        };
        let answer = self.client.create_volume(timed(request, DEADLINE)).await;
        self.note(format!("{what}: create"), may, answer)
    }

    /// The text with which something was answered.
    fn text(&self, what: &str) -> Result<&str> {
        let answer = self.tried.iter().find(|(tried, _)| tried == what).map(|(_, answer)| answer);
        match answer.with_context(|| format!("{what} was not tried"))? {
            Ok(()) => Ok("OK"),
            Err(status) => Ok(status.message()),
        }
    }
}

/// Ids of which each is odd in another way.
fn odd_ids(machine: &str) -> Vec<(&'static str, String)> {
    vec![
        ("a path", "../secrets/x".to_owned()),
        ("a path after a prefix", format!("pvc-{machine}/../../persistentvolumeclaims/etcd")),
        ("a query", "pvc-x?dryRun=All&force=true#".to_owned()),
        ("escapes", "pvc-%2e%2e%2fx".to_owned()),
        ("lines", format!("pvc-x\n{INJECTED}\r\n{INJECTED}")),
        ("a zero byte", "pvc-x\0y".to_owned()),
        ("escapes of a terminal", "pvc-\u{1b}[2J\u{1b}]0;x\u{7}".to_owned()),
        ("capital letters", "PVC-X".to_owned()),
        ("another script", "pvc-пвц-\u{202e}x".to_owned()),
        ("a long one", format!("pvc-{}", "a".repeat(100_000))),
        ("a volume of nobody", "etcd-data".to_owned()),
    ]
}

/// Foreign volumes, VMs and snapshots, odd ids, odd parameters: each in each request that takes one.
pub async fn requests_for_volumes_reach_nobody_else(fixture: Fixture) -> Result<()> {
    let others = OtherVolumes::new(&fixture).await?;
    let ours = Controller::start(&fixture, "tenant").await?;
    let machine = format!("{}-own", fixture.word);
    fixture.empty_machine(&machine).await?;
    let own = ours.create(&format!("pvc-{machine}"), block()).await.context("the tenant's own volume")?;
    // Its claim is there, so each attach gets as far as it can.
    fixture.image_of(&own.volume_id).await?;
    let tried = Vec::new();
    let mut driver = Driver { client: client(&ours), own: own.clone(), machine: machine.clone(), tried };

    with_foreign_ids(&mut driver, &others).await?;
    others.ensure_unchanged().await.context("foreign ids")?;
    with_odd_ids(&mut driver, &others).await?;
    others.ensure_unchanged().await.context("odd ids")?;
    with_odd_parameters(&mut driver).await?;
    others.ensure_unchanged().await.context("odd parameters")?;

    let made: Vec<String> = data_volumes(&fixture.infra, HCP_NAMESPACE)
        .list(&ListParams::default().labels(crate::controller_process::INFRA_LABELS))
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .filter(|name| name.contains(&fixture.word))
        .collect();
    ensure!(made == [own.volume_id.clone()], "expected the tenant's own volume only, saw {made:?}");
    let log = std::fs::read_to_string(ours.process().log())?;
    let injected = log.lines().find(|line| line.starts_with(INJECTED) || line.contains('\u{1b}'));
    ensure!(injected.is_none(), "expected no line of the tenant's in the log, saw {injected:?}");
    ensure!(ours.is_alive(), "expected the driver to run, saw it ended");

    let began = std::time::Instant::now();
    ours.publish(&own, &machine).await.context("the tenant's own volume is attached")?;
    let took = began.elapsed();
    ensure!(took <= SERVED_WITHIN, "expected an attach within {SERVED_WITHIN:?}, saw {took:?}");
    println!("{} requests; attached after {took:?}", driver.tried.len());
    ours.discard(&own, &machine).await?;
    fixture.delete_machine(&machine).await?;
    others.end(&fixture).await
}

async fn with_foreign_ids(driver: &mut Driver, others: &OtherVolumes) -> Result<()> {
    let own = driver.own.volume_id.clone();
    let absent = format!("pvc-{}-absent", driver.machine);
    for (what, volume) in [("attached", &others.attached), ("free", &others.free)] {
        driver.all_with(what, &volume.volume_id, May::Refuse).await?;
        driver.unpublish(what, &volume.volume_id, &node_id(&others.machine)).await?;
        driver.publish(what, May::Refuse, &volume.volume_id, &node_id(&others.machine), None).await?;
    }
    driver.all_with("absent", &absent, May::Succeed).await?;
    // What cannot be seen must not be found out by comparing texts.
    for request in ["publish", "expand", "validate", "take a snapshot", "create"] {
        let of = |what: &str, id: &str| -> Result<String> {
            Ok(driver.text(&format!("{what}: {request}"))?.replace(id, "<id>"))
        };
        let (foreign, gone) = (of("free", &others.free.volume_id)?, of("absent", &absent)?);
        ensure!(
            foreign == gone,
            "{request}: expected one text for foreign and absent, saw {foreign:?}, {gone:?}"
        );
    }
    driver.all_with_snapshot("a foreign snapshot", &others.snapshot, May::Refuse).await?;
    driver.publish("a foreign VM", May::Refuse, &own, &node_id(&others.machine), None).await?;
    driver.unpublish("a foreign VM", &own, &node_id(&others.machine)).await?;
    let node = node_id(&driver.machine.clone());
    for volume in [&others.attached, &others.free] {
        let serial = volume.volume_context.get("serial").context("a volume without serial")?.clone();
        driver.publish("a foreign serial", May::Refuse, &own, &node, Some(&serial)).await?;
    }
    // A claim of the guest can be called so that the volume would have the name of a foreign one.
    driver.create("a foreign name", May::Refuse, &others.free.volume_id, None, &[]).await
}

async fn with_odd_ids(driver: &mut Driver, others: &OtherVolumes) -> Result<()> {
    let own = driver.own.volume_id.clone();
    let machine = driver.machine.clone();
    for (what, id) in odd_ids(&machine) {
        driver.all_with(what, &id, May::Succeed).await?;
        driver.all_with_snapshot(what, &id, May::Succeed).await?;
        driver.publish(&format!("node {what}"), May::Refuse, &own, &id, None).await?;
        driver
            .publish(&format!("node in {what}"), May::Refuse, &own, &format!("{HCP_NAMESPACE}/{id}"), None)
            .await?;
        driver.unpublish(&format!("node {what}"), &own, &id).await?;
        driver.publish(&format!("serial {what}"), May::Refuse, &own, &node_id(&machine), Some(&id)).await?;
    }
    let through = format!("{HCP_NAMESPACE}/x/../{}", others.machine);
    driver.publish("a way to a foreign VM", May::Refuse, &own, &through, None).await
}

async fn with_odd_parameters(driver: &mut Driver) -> Result<()> {
    let long = "x".repeat(5000);
    let lines = format!("x\n{INJECTED}");
    let parameters: [(May, &[(&str, &str)]); 9] = [
        // A class that infra does not have is found out later: the volume waits for it.
        (May::Succeed, &[("infraStorageClassName", &lines)]),
        (May::Succeed, &[("infraStorageClassName", "../../x?y#")]),
        (May::Succeed, &[("infraStorageClassName", "x\0y")]),
        (May::Refuse, &[("infraStorageClassName", &long)]),
        (May::Refuse, &[("bus", "scsi\n")]),
        (May::Refuse, &[("bus", "sata")]),
        // A key that the driver does not know has no effect.
        (May::Succeed, &[(&lines, "x")]),
        // The sidecars' own: the driver reads the filesystem of the capability, and this volume has none.
        (May::Succeed, &[("csi.storage.k8s.io/fstype", "ext4 -F /dev/sda")]),
        (May::Refuse, &[("cloneMethod", "; rm -rf /")]),
    ];
    for (number, (may, parameters)) in parameters.into_iter().enumerate() {
        let (what, name) = (format!("parameters {number}"), format!("pvc-{}-odd-{number}", driver.machine));
        driver.create(&what, may, &name, None, parameters).await?;
        let request = DeleteVolumeRequest { volume_id: name, ..DeleteVolumeRequest::default() };
        let answer = driver.client.delete_volume(timed(request, DEADLINE)).await;
        driver.note(format!("{what}: delete"), May::Succeed, answer)?;
    }
    Ok(())
}
