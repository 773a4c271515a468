//! Creating and deleting objects in the infra namespace: the same calls for each kind.

use cluster::{Error, WhenPaused};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kubevirt::{Metadata, ObjectName};
use serde::de::DeserializeOwned;

use crate::{
    infra::Infra,
    reader::{Resource, accepting_all},
};

impl Infra {
    /// Creates an object; 409 if the name is taken.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        resource: Resource,
        name: &ObjectName,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let reader = &self.shared.reader;
        let request = reader.requests(resource).create(&PostParams::default(), body);
        let created = reader.server.read(accepting_all(request), WhenPaused::Fail).await;
        created.map_err(|error: Error| error.about(name.as_str()))
    }

    /// Deletes exactly the object with this metadata, which was read under `name`: 409 if another one has taken the name since.
    pub(crate) async fn delete(
        &self,
        resource: Resource,
        name: &ObjectName,
        read: &Metadata,
    ) -> Result<(), Error> {
        let this = Preconditions { uid: Some(read.uid.clone()), resource_version: None };
        let params = DeleteParams::default().preconditions(this);
        let reader = &self.shared.reader;
        let request = accepting_all(reader.requests(resource).delete(name.as_str(), &params));
        reader.server.exchange(request, WhenPaused::Fail).await.map(drop)
    }
}
