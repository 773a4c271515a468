//! Raw requests to an [`ApiServer`], for callers that know paths and bodies themselves (`kube::core::Request` makes
//! them).

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
    /// Makes a call and returns the body of its answer.
    ///
    /// # Errors
    /// The answer is not a success, or there is none.
    pub async fn exchange(
        &self,
        request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<Vec<u8>, Error> {
        let call = Call::of(&request);
        // On the heap: the client's future has some 20 KiB, which would be part of the future of every caller.
        let response = Box::pin(self.send(request, when_paused)).await.map_err(|failed| failed.error)?;
        response.into_body().read().await.map_err(|error| Error::of(&call, Failure::of_body(error)))
    }

    /// Makes a call and reads its answer as `T`.
    ///
    /// # Errors
    /// The answer is not a success or not a `T`, or there is none.
    pub async fn read<T: DeserializeOwned>(
        &self,
        request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<T, Error> {
        let call = Call::of(&request);
        let body = self.exchange(request, when_paused).await?;
        serde_json::from_slice(&body).map_err(|error| Error::of(&call, Failure::Unreadable(Arc::new(error))))
    }

    /// Gets the object that `request` names; `None` only when the API server reports that this very object does not
    /// exist.
    ///
    /// # Errors
    /// The answer is neither a success nor a proof of absence, or there is none: nothing is known of the object.
    pub async fn find<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<Option<T>, Error> {
        match self.read(request, WhenPaused::Wait).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a watch and returns its events as they come; its end is not an error.
    ///
    /// # Errors
    /// The watch could not be opened.
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
