//! An API server with a few fixed answers. It keeps the requests, so that a test can check what was asked of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// A request that was made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Made {
    pub call: String,
    pub body: Value,
}

/// Answers by `METHOD path`. Any other request gets 404.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    answers: Arc<Mutex<HashMap<String, (u16, Value)>>>,
    /// Answers to calls with this text in their query.
    queries: Arc<Mutex<Vec<(String, String, Value)>>>,
    made: Arc<Mutex<Vec<Made>>>,
}

impl FakeApi {
    pub(crate) fn answer(&self, call: &str, code: u16, body: Value) -> &Self {
        self.answers.lock().unwrap().insert(call.to_owned(), (code, body));
        self
    }

    /// The answer with code 200 to this call if its query has the text.
    pub(crate) fn answer_query(&self, call: &str, query: &str, body: Value) -> &Self {
        self.queries.lock().unwrap().push((call.to_owned(), query.to_owned(), body));
        self
    }

    fn answer_of(&self, call: &str, query: &str) -> Option<(u16, Value)> {
        let queries = self.queries.lock().unwrap();
        let found = queries.iter().find(|(known, part, _)| known == call && query.contains(part));
        let answer = found.map(|(.., body)| (200, body.clone()));
        answer.or_else(|| self.answers.lock().unwrap().get(call).cloned())
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let call = format!("{} {}", parts.method, parts.uri.path());
                let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or(Value::Null);
                api.made.lock().unwrap().push(Made { call: call.clone(), body });
                let known = api.answer_of(&call, parts.uri.query().unwrap_or_default());
                let (code, body) = known.unwrap_or_else(|| absent(parts.uri.path()));
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, tower::BoxError>(Response::builder().status(code).body(body)?)
            }
        });
        Client::new(service, "default")
    }

    /// The requests with this method so far.
    pub(crate) fn made(&self, method: &str) -> Vec<Made> {
        let made = self.made.lock().unwrap();
        made.iter().filter(|made| made.call.starts_with(method)).cloned().collect()
    }
}

fn absent(path: &str) -> (u16, Value) {
    let mut parts = path.rsplit('/');
    let (name, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    failure(404, "NotFound", &json!({"name": name, "kind": kind}))
}

/// An answer with an error Status.
pub(crate) fn failure(code: u16, reason: &str, details: &Value) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": format!("{reason} of the test"), "code": code, "details": details});
    (code, status)
}
