//! What each call comes to: reads the request, injects faults, lets `plan` decide, changes the pool.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Mutex, PoisonError},
};

use csi_proto::v1::{self as csi, volume_content_source};
use futures::StreamExt;
use jiff::Timestamp;
use tonic::Status;

use super::{
    fault::{self, Fault, Operation},
    parameters,
    plan::{self, Content, Refusal, Step},
    pool::{self, Pool, Snapshot, Source, Volume},
};
use crate::{
    cluster::storage_classes::CLASS_PARAMETER,
    simulator::fault_plan::{FaultPlan, Pending, Verdict, verdict},
};

/// The plugin.
pub(super) struct Plugin {
    pool: Pool,
    faults: FaultPlan<Fault>,
    /// Calls that a fault holds up, by operation and name.
    pending: Pending<(Operation, String)>,
    /// How often a snapshot that a fault keeps unready was asked for.
    asked: Mutex<BTreeMap<String, u32>>,
    /// Who changes the pool: one call at a time, and each takes milliseconds.
    turn: tokio::sync::Mutex<()>,
}

impl Plugin {
    pub(super) fn new(pool: Pool, faults: FaultPlan<Fault>) -> Self {
        Self {
            pool,
            faults,
            pending: Pending::default(),
            asked: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Waits as long as the faults hold the operation up, and fails if they refuse it. A caller that hangs up and comes again
    /// has not waited in vain.
    async fn pass(&self, of: Operation, name: &str, volume: &Volume) -> Result<(), Refusal> {
        let key = (of, name.to_owned());
        let mut changes = pin!(self.faults.changes());
        loop {
            let holds = fault::holds(&self.faults.active(), of, volume);
            match verdict(self.pending.waited(key.clone()), holds) {
                Verdict::Go => break,
                Verdict::Stuck => drop(changes.next().await),
                Verdict::Wait(left) => drop(tokio::time::timeout(left, changes.next()).await),
            }
        }
        self.pending.retain(|held| *held != key);
        fault::refusal(&self.faults.active(), of, volume).map_or(Ok(()), Err)
    }

    pub(super) async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Failure> {
        let handle = named("volume", &request.name)?;
        let source = request.volume_content_source.clone().and_then(|source| source.r#type);
        let source = source.map(|source| match source {
            volume_content_source::Type::Snapshot(from) => Source::Snapshot(from.snapshot_id),
            volume_content_source::Type::Volume(from) => Source::Volume(from.volume_id),
        });
        let wanted = parameters::volume(&request.volume_capabilities, &request.parameters)?;
        let wanted = Volume { source, ..wanted };
        self.pass(Operation::Create, handle, &wanted).await?;
        if wanted.source.is_some() {
            self.pass(Operation::Clone, handle, &wanted).await?;
        }
        let _turn = self.turn.lock().await;
        let content = self.content(wanted.source.as_ref()).await?;
        let present = self.pool.volume(handle).await?;
        let volume = match plan::create(present, wanted, content, request.capacity_range.as_ref())? {
            Step::Done(volume) => volume,
            Step::Make(volume) => {
                self.room(handle, &volume).await?;
                self.pool.create(handle, &volume).await?;
                volume
            }
        };
        Ok(csi::Volume {
            capacity_bytes: signed(volume.bytes),
            volume_id: handle.to_owned(),
            content_source: request.volume_content_source,
            ..Default::default()
        })
    }

    pub(super) async fn delete(&self, handle: &str) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        if pool::is_name(handle) {
            self.pool.delete(handle).await?;
        }
        Ok(())
    }

    pub(super) async fn has_mode(
        &self,
        handle: &str,
        capabilities: &[csi::VolumeCapability],
    ) -> Result<bool, Failure> {
        let volume = self.volume(handle).await?;
        Ok(parameters::is_block(capabilities)? == volume.block)
    }

    async fn content(&self, source: Option<&Source>) -> Result<Option<Content>, Failure> {
        let Some(source) = source else { return Ok(None) };
        let (what, name) = plan::source_name(source);
        let found = match source {
            _ if !pool::is_name(name) => None,
            Source::Snapshot(id) => self.pool.snapshot(id).await?.as_ref().map(Content::from),
            Source::Volume(handle) => self.pool.volume(handle).await?.as_ref().map(Content::from),
        };
        Ok(Some(found.ok_or_else(|| Refusal::not_found(what, name))?))
    }

    /// Whether the volume's class has room for it.
    async fn room(&self, handle: &str, volume: &Volume) -> Result<(), Failure> {
        let Some(capacity) = fault::capacity(&self.faults.active(), &volume.class) else { return Ok(()) };
        let used = plan::used(&self.pool.volumes().await?, &volume.class, handle);
        Ok(plan::room(Some(capacity), used, volume.bytes)?)
    }

    pub(super) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, Failure> {
        let handle = request.volume_id.as_str();
        let present = self.volume(handle).await?;
        self.pass(Operation::Expand, handle, &present).await?;
        let _turn = self.turn.lock().await;
        let present = self.volume(handle).await?;
        let volume = match plan::expand(present, request.capacity_range.as_ref())? {
            Step::Done(volume) => volume,
            Step::Make(volume) => {
                self.room(handle, &volume).await?;
                self.pool.expand(handle, &volume).await?;
                volume
            }
        };
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: signed(volume.bytes),
            node_expansion_required: volume.node_expansion,
        })
    }

    pub(super) async fn volume(&self, handle: &str) -> Result<Volume, Failure> {
        let found = if pool::is_name(handle) { self.pool.volume(handle).await? } else { None };
        Ok(found.ok_or_else(|| Refusal::not_found("volume", handle))?)
    }

    pub(super) async fn snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::Snapshot, Failure> {
        let id = named("snapshot", &request.name)?;
        let handle = named("volume", &request.source_volume_id)?;
        let volume = self.pool.volume(handle).await?;
        if let Some(volume) = &volume {
            self.pass(Operation::Snapshot, id, volume).await?;
        }
        let _turn = self.turn.lock().await;
        let volume = self.pool.volume(handle).await?;
        let present = self.pool.snapshot(id).await?;
        let now = Timestamp::now().as_second();
        let snapshot = match plan::snapshot(present, handle, volume.as_ref(), now)? {
            Step::Done(snapshot) => snapshot,
            Step::Make(snapshot) => {
                self.pool.take(id, &snapshot).await?;
                snapshot
            }
        };
        let unready = volume.map_or(0, |volume| fault::unready_calls(&self.faults.active(), &volume));
        Ok(on_wire(id, &snapshot, self.count(id) >= unready))
    }

    /// How often the snapshot was asked for before.
    fn count(&self, id: &str) -> u32 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let times = asked.entry(id.to_owned()).or_default();
        let before = *times;
        *times = before.saturating_add(1);
        before
    }

    pub(super) async fn delete_snapshot(&self, id: &str) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        if pool::is_name(id) {
            self.pool.delete_snapshot(id).await?;
        }
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    pub(super) async fn list(
        &self,
        request: csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, Failure> {
        let (id, source) = (&request.snapshot_id, &request.source_volume_id);
        let mut all = self.pool.snapshots().await?;
        all.retain(|(found, snapshot)| {
            (id.is_empty() || id == found) && (source.is_empty() || *source == snapshot.volume)
        });
        let (taken, next_token) = plan::page(&all, &request.starting_token, request.max_entries)?;
        let entries = taken.iter().map(|(id, snapshot)| csi::list_snapshots_response::Entry {
            snapshot: Some(on_wire(id, snapshot, true)),
        });
        Ok(csi::ListSnapshotsResponse { entries: entries.collect(), next_token })
    }

    pub(super) async fn capacity(
        &self,
        request: csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, Failure> {
        let class = request.parameters.get(CLASS_PARAMETER).map(String::as_str).unwrap_or_default();
        let free = match fault::capacity(&self.faults.active(), class) {
            Some(capacity) => capacity.saturating_sub(plan::used(&self.pool.volumes().await?, class, "")),
            None => pool::POOL_BYTES,
        };
        Ok(csi::GetCapacityResponse { available_capacity: signed(free), ..Default::default() })
    }
}

/// Why a call fails: what `plan` or a fault says, or the machine.
pub(super) enum Failure {
    Refused(Refusal),
    Broken(anyhow::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(Refusal { code, message }) => Self::new(code, message),
            Failure::Broken(error) => Self::internal(format!("{error:#}")),
        }
    }
}

fn named<'a>(what: &str, name: &'a str) -> Result<&'a str, Refusal> {
    if pool::is_name(name) {
        Ok(name)
    } else {
        Err(Refusal::invalid(format!("{name:?} can't name a {what}")))
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn on_wire(id: &str, snapshot: &Snapshot, ready_to_use: bool) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: signed(snapshot.bytes),
        snapshot_id: id.to_owned(),
        source_volume_id: snapshot.volume.clone(),
        creation_time: Some(prost_types::Timestamp { seconds: snapshot.created, nanos: 0 }),
        ready_to_use,
        ..Default::default()
    }
}
