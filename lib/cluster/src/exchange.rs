//! Raw requests to an [`ApiServer`], of callers that know paths and bodies by themselves (`kube::core::Request` makes them).

use std::sync::Arc;

use futures::{Stream, StreamExt};
use http::Request;
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

use crate::{
    call::Call,
    error::{Class, Error, Failure},
    server::{ApiServer, WhenPaused},
};

impl ApiServer {
    /// Makes a call and gives the body of its answer.
    ///
    /// # Errors
    /// It was not answered with success.
    pub async fn exchange(
        &self,
        request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<Vec<u8>, Error> {
        let call = Call::of(&request);
        // On the heap: the client's future has some 20 KiB, and every caller's would hold it.
        let response = Box::pin(self.send(request, when_paused)).await.map_err(|failed| failed.error)?;
        match response.into_body().collect_bytes().await {
            Ok(body) => Ok(body.to_vec()),
            Err(error) => Err(Error::of(&call, Failure::Transport(Arc::new(error)))),
        }
    }

    /// Makes a call and reads its answer as `T`.
    ///
    /// # Errors
    /// It was not answered with success, or not with a `T`.
    pub async fn read<T: DeserializeOwned>(
        &self,
        request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<T, Error> {
        let call = Call::of(&request);
        let body = self.exchange(request, when_paused).await?;
        serde_json::from_slice(&body).map_err(|error| Error::of(&call, Failure::Unreadable(Arc::new(error))))
    }

    /// Gets the object that `request` names; `None` only when the API server says that this very object does not exist.
    ///
    /// # Errors
    /// It was not answered with success or a proof of absence: nothing is known of the object.
    pub async fn find<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<Option<T>, Error> {
        match self.read(request, WhenPaused::Wait).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a watch and gives its events as they come; its end is not an error.
    ///
    /// # Errors
    /// It was not opened.
    pub async fn watch<T>(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, Error>> + use<T>, Error>
    where
        T: Clone + DeserializeOwned,
    {
        let call = Call::of(&request);
        let events = self.client().request_events::<T>(request).await;
        let events = events.map_err(|error| Error::of(&call, Failure::of_kube(&call, error)))?;
        Ok(events.map(move |event| event.map_err(|error| Error::of(&call, Failure::of_kube(&call, error)))))
    }
}
