//! The calls of the endpoint controller. Each is one request.

use k8s_openapi::api::core::v1::Endpoints;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::client::Client;
use kube::core::Request;
use serde_json::Value;

use crate::{
    access::InfraCluster,
    call::{CallError, call},
    infra::{
        mirrors::InfraService,
        slices::{InfraSlice, WireSlice},
    },
    unreadable::{Readable, Reader},
    wire::{endpoint_slice::SERVICE_LABEL, metadata::FIELD_MANAGER},
};

/// Calls on infra's slices.
pub(crate) struct SliceCalls {
    infra: Client,
    slices: Api<WireSlice>,
    listed: Api<Readable<WireSlice>>,
    reader: Reader,
    services: Api<InfraService>,
    endpoints: Api<Endpoints>,
    /// Requests that carry whole objects.
    whole: Request,
}

/// The result of a call that another writer may have preceded.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// Done.
    Done(T),
    /// The object has changed since it was read.
    Changed,
}

impl SliceCalls {
    pub(crate) fn new(infra: &InfraCluster) -> Self {
        let (client, namespace) = (&infra.client, &infra.namespace);
        Self {
            infra: client.clone(),
            slices: Api::namespaced(client.clone(), namespace),
            listed: Api::namespaced(client.clone(), namespace),
            reader: infra.reader.clone(),
            services: Api::namespaced(client.clone(), namespace),
            endpoints: Api::namespaced(client.clone(), namespace),
            whole: Request::new(WireSlice::url_path(&(), Some(namespace))),
        }
    }

    /// Reads the Service. `None` = it does not exist.
    pub(crate) async fn service(&self, name: &str) -> Result<Option<InfraService>, CallError> {
        call(|| format!("get service {name}"), cluster::get(&self.services, name)).await
    }

    /// Reads all slices of a Service, without those that can't be read.
    pub(crate) async fn slices_of(&self, service: &str) -> Result<Vec<InfraSlice>, CallError> {
        let of_service = ListParams::default().labels(&format!("{SERVICE_LABEL}={service}"));
        let what = || format!("list endpointslices of service {service}");
        let listed = call(what, self.listed.list(&of_service)).await?.items;
        Ok(self.reader.readable(listed).into_iter().map(InfraSlice::from).collect())
    }

    /// Reads one slice, whoever writes it.
    pub(crate) async fn slice(&self, name: &str) -> Result<Option<InfraSlice>, CallError> {
        let what = || format!("get endpointslice {name}");
        Ok(call(what, cluster::get(&self.slices, name)).await?.map(InfraSlice::from))
    }

    pub(crate) async fn create(&self, name: &str, object: &Value) -> Result<Answer<InfraSlice>, CallError> {
        let request = self.whole.create(&post(), object.to_string().into_bytes());
        self.write(format!("create endpointslice {name}"), request.map_err(kube::Error::BuildRequest)).await
    }

    pub(crate) async fn replace(&self, name: &str, object: &Value) -> Result<Answer<InfraSlice>, CallError> {
        let request = self.whole.replace(name, &post(), object.to_string().into_bytes());
        self.write(format!("replace endpointslice {name}"), request.map_err(kube::Error::BuildRequest)).await
    }

    async fn write(
        &self,
        what: String,
        request: Result<http::Request<Vec<u8>>, kube::Error>,
    ) -> Result<Answer<InfraSlice>, CallError> {
        let made = async { self.infra.request::<WireSlice>(request?).await };
        match call(|| what, made).await {
            Ok(slice) => Ok(Answer::Done(slice.into())),
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(Answer::Changed),
            Err(error) => Err(error),
        }
    }

    /// Deletes a slice if it still has this UID. A slice that does not exist counts as deleted.
    pub(crate) async fn delete(&self, name: &str, uid: &str) -> Result<Answer<()>, CallError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match call(|| format!("delete endpointslice {name}"), self.slices.delete(name, &params)).await {
            Ok(_) => Ok(Answer::Done(())),
            Err(error) if error.is_not_found() => Ok(Answer::Done(())),
            Err(error) if error.is_conflict() => Ok(Answer::Changed),
            Err(error) => Err(error),
        }
    }

    /// Deletes the Endpoints of a Service, if there are any.
    pub(crate) async fn remove_endpoints(&self, service: &str) -> Result<Answer<()>, CallError> {
        let params = DeleteParams::default();
        let deleted = self.endpoints.delete(service, &params);
        match call(|| format!("delete endpoints {service}"), deleted).await {
            Ok(_) => Ok(Answer::Done(())),
            Err(error) if error.is_not_found() => Ok(Answer::Done(())),
            Err(error) => Err(error),
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
