//! Calls on `DataVolumes`: get, create, delete, and never list.

use cluster::Error;
use kubevirt::ObjectName;

use crate::{
    data_volume::{DataVolume, NewDataVolume},
    guest_guard::Owned,
    infra::Infra,
    reader::DATA_VOLUMES,
};

impl Infra {
    /// Gets a `DataVolume`, ours or a foreign one: the caller lets the guard check it.
    pub async fn data_volume(&self, name: &ObjectName) -> Result<Option<DataVolume>, Error> {
        self.shared.reader.find(DATA_VOLUMES, name).await
    }

    /// Creates a `DataVolume` with our labels; 409 if the name is taken.
    pub async fn create_data_volume(&self, new: &NewDataVolume) -> Result<DataVolume, Error> {
        let body = new.body(self.namespace(), self.shared.guard.labels());
        self.create(DATA_VOLUMES, &new.name, body).await
    }

    /// Deletes exactly this `DataVolume`, which was read under `name`: 409 if another one has taken the name since.
    pub async fn delete_data_volume(
        &self,
        name: &ObjectName,
        volume: &Owned<DataVolume>,
    ) -> Result<(), Error> {
        self.delete(DATA_VOLUMES, name, &volume.metadata).await
    }
}
