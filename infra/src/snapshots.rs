//! Calls on `VolumeSnapshots`: get, create, delete; and list, where that is granted.

use cluster::{Error, WhenPaused};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kubevirt::ObjectName;

use crate::{
    guest_guard::Owned,
    infra::Infra,
    reader::{VOLUME_SNAPSHOTS, accepting_all},
    volume_snapshot::{NewVolumeSnapshot, VolumeSnapshot},
};

impl Infra {
    /// Gets a `VolumeSnapshot`, ours or a foreign one: the caller lets the guard check it.
    pub async fn volume_snapshot(&self, name: &ObjectName) -> Result<Option<VolumeSnapshot>, Error> {
        self.shared.reader.find(VOLUME_SNAPSHOTS, name).await
    }

    /// Lists all `VolumeSnapshots` of the namespace, ours and foreign ones. `HyperShift` does not grant it (403).
    pub async fn volume_snapshots(&self) -> Result<Vec<VolumeSnapshot>, Error> {
        self.shared.reader.list(VOLUME_SNAPSHOTS).await
    }

    /// Creates a `VolumeSnapshot` with our labels; 409 if the name is taken.
    pub async fn create_volume_snapshot(&self, new: &NewVolumeSnapshot) -> Result<VolumeSnapshot, Error> {
        let reader = &self.shared.reader;
        let body = new.body(&reader.namespace, self.shared.guard.labels());
        let request = reader.requests(VOLUME_SNAPSHOTS).create(&PostParams::default(), body);
        let created = reader.server.read(accepting_all(request), WhenPaused::Fail).await;
        created.map_err(|error: Error| error.about(new.name.as_str()))
    }

    /// Deletes exactly this `VolumeSnapshot`, which was read under `name`: 409 if another one has taken the name since.
    pub async fn delete_volume_snapshot(
        &self,
        name: &ObjectName,
        snapshot: &Owned<VolumeSnapshot>,
    ) -> Result<(), Error> {
        let this = Preconditions { uid: Some(snapshot.metadata.uid.clone()), resource_version: None };
        let params = DeleteParams::default().preconditions(this);
        let reader = &self.shared.reader;
        let request = accepting_all(reader.requests(VOLUME_SNAPSHOTS).delete(name.as_str(), &params));
        reader.server.exchange(request, WhenPaused::Fail).await.map(drop)
    }
}
