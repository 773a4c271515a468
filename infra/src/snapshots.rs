//! Calls on `VolumeSnapshots`: get, create, delete; and list, where that is granted.

use cluster::Error;
use kubevirt::ObjectName;

use crate::{
    guest_guard::Owned,
    infra::Infra,
    reader::VOLUME_SNAPSHOTS,
    volume_snapshot::{NewVolumeSnapshot, VolumeSnapshot},
};

impl Infra {
    /// Gets a `VolumeSnapshot`, ours or a foreign one: the caller lets the guard check it.
    pub async fn volume_snapshot(&self, name: &ObjectName) -> Result<Option<VolumeSnapshot>, Error> {
        self.shared.reader.find(VOLUME_SNAPSHOTS, name).await
    }

    /// Lists all `VolumeSnapshots` of the namespace, ours and foreign ones, without those that can't be read.
    /// `HyperShift` does not grant it (403).
    pub async fn volume_snapshots(&self) -> Result<Vec<VolumeSnapshot>, Error> {
        Ok(self.shared.reader.list(VOLUME_SNAPSHOTS).await?.items)
    }

    /// Creates a `VolumeSnapshot` with our labels; 409 if the name is taken.
    pub async fn create_volume_snapshot(&self, new: &NewVolumeSnapshot) -> Result<VolumeSnapshot, Error> {
        let body = new.body(self.namespace(), self.shared.guard.labels());
        self.create(VOLUME_SNAPSHOTS, &new.name, body).await
    }

    /// Deletes exactly this `VolumeSnapshot`, which was read under `name`: 409 if another one has taken the name since.
    pub async fn delete_volume_snapshot(
        &self,
        name: &ObjectName,
        snapshot: &Owned<VolumeSnapshot>,
    ) -> Result<(), Error> {
        self.delete(VOLUME_SNAPSHOTS, name, &snapshot.metadata).await
    }
}
