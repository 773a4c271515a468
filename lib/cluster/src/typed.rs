//! Typed APIs over an [`ApiServer`]: a client whose service is [`ApiServer::send`].

use std::sync::Arc;

use http::{Request, Response};
use kube::{Client, client::Body};
use tower::BoxError;

use crate::{
    bounds::Bounded,
    error::{Error, Failure},
    server::{ApiServer, Failed, WhenPaused},
};

impl ApiServer {
    /// A client for [`kube::Api`], whose calls take the same steps as all other calls. A change waits for the end of a
    /// pause.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| answer(server.clone(), request));
        Client::new(service, self.namespace())
    }
}

/// Passes an answer of the server on, whatever its code: kube turns it into an error of its own.
async fn answer(server: ApiServer, request: Request<Body>) -> Result<Response<Bounded>, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect_bytes().await?.to_vec();
    match server.send(Request::from_parts(parts, body), WhenPaused::Wait).await {
        Ok(response) | Err(Failed { answer: Some(response), .. }) => Ok(response),
        Err(Failed { error, answer: None }) => Err(boxed(error)),
    }
}

/// kube's own errors stay as they are, so that their text is not wrapped a second time.
fn boxed(error: Error) -> BoxError {
    match *error.failure {
        Failure::Transport(error) => match Arc::try_unwrap(error) {
            Ok(error) => error.into(),
            Err(shared) => Failure::Transport(shared).into(),
        },
        failure => failure.into(),
    }
}
