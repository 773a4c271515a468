//! Calls on `DataVolumes`: get, create, delete, and never list.

use cluster::{Error, WhenPaused};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kubevirt::ObjectName;

use crate::{
    data_volume::{DataVolume, NewDataVolume},
    guest_guard::Owned,
    infra::Infra,
    reader::{DATA_VOLUMES, accepting_all},
};

impl Infra {
    /// Gets a `DataVolume`, ours or a foreign one: the caller lets the guard check it.
    pub async fn data_volume(&self, name: &ObjectName) -> Result<Option<DataVolume>, Error> {
        self.shared.reader.find(DATA_VOLUMES, name).await
    }

    /// Creates a `DataVolume` with our labels; 409 if the name is taken.
    pub async fn create_data_volume(&self, new: &NewDataVolume) -> Result<DataVolume, Error> {
        let reader = &self.shared.reader;
        let body = new.body(&reader.namespace, self.shared.guard.labels());
        let request = reader.requests(DATA_VOLUMES).create(&PostParams::default(), body);
        let created = reader.server.read(accepting_all(request), WhenPaused::Fail).await;
        created.map_err(|error: Error| error.about(new.name.as_str()))
    }

    /// Deletes exactly this `DataVolume`, which was read under `name`: 409 if another one has taken the name since.
    pub async fn delete_data_volume(
        &self,
        name: &ObjectName,
        volume: &Owned<DataVolume>,
    ) -> Result<(), Error> {
        let this = Preconditions { uid: Some(volume.metadata.uid.clone()), resource_version: None };
        let params = DeleteParams::default().preconditions(this);
        let reader = &self.shared.reader;
        let request = accepting_all(reader.requests(DATA_VOLUMES).delete(name.as_str(), &params));
        reader.server.exchange(request, WhenPaused::Fail).await.map(drop)
    }
}
