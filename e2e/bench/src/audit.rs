//! Reads an API server's audit log: which user called what, how it was answered, and what was denied.
//!
//! [`parse`] and everything on [`Calls`] are pure. [`AuditLog`] is the file; a [`Mark`] is a place in it, so that a test
//! can count the calls between two moments.

pub mod rights;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde::Deserialize;

use crate::cluster::{
    ApiServer,
    wait::{self, Poll},
};

/// How long a mark's own line may take to appear in the log.
const MARK_DEADLINE: Duration = Duration::from_secs(10);

/// HTTP 403.
const FORBIDDEN: u16 = 403;

/// One call, as the API server logged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The caller: the impersonated user if there is one, else the authenticated one.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path that is no resource, the
    /// HTTP method in lower case.
    pub verb: String,
    /// `persistentvolumeclaims`, `virtualmachines/addvolume`; for a path that is no resource, the path.
    pub resource: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Namespace; empty for a cluster-wide call.
    pub namespace: String,
    /// The object's name; empty for lists and creates by generated name.
    pub name: String,
    /// HTTP status of the answer; `None` for a watch that goes on.
    pub code: Option<u16>,
    /// Whether authorization refused it (a 403 by admission is no denial of a right).
    pub denied: bool,
    /// When the server received it.
    pub at: Timestamp,
    /// The client's program.
    pub user_agent: String,
}

/// What calls are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKind {
    /// As [`Call::verb`].
    pub verb: String,
    /// As [`Call::resource`].
    pub resource: String,
    /// As [`Call::code`].
    pub code: Option<u16>,
}

/// Calls in the order in which they were received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls(Vec<Call>);

impl Calls {
    /// All of them.
    pub fn as_slice(&self) -> &[Call] {
        &self.0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of one user, `system:serviceaccount:<namespace>:<name>` for a service account.
    #[must_use]
    pub fn of_user(self, user: &str) -> Self {
        self.filter(|call| call.user == user)
    }

    /// Those received in `from..until`.
    #[must_use]
    pub fn between(self, from: Timestamp, until: Timestamp) -> Self {
        self.filter(|call| (from..until).contains(&call.at))
    }

    /// Those that authorization refused.
    #[must_use]
    pub fn denied(self) -> Self {
        self.filter(|call| call.denied)
    }

    /// Those that `keep` keeps.
    #[must_use]
    pub fn filter(mut self, keep: impl FnMut(&Call) -> bool) -> Self {
        self.0.retain(keep);
        self
    }

    /// How often each kind of call was made.
    pub fn by_kind(&self) -> BTreeMap<CallKind, usize> {
        let mut counts = BTreeMap::new();
        for call in &self.0 {
            let kind = CallKind { verb: call.verb.clone(), resource: call.resource.clone(), code: call.code };
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match self.code {
            Some(code) => write!(f, " → {code}"),
            None => write!(f, " (going on)"),
        }
    }
}

/// One line of the log; `audit.k8s.io/v1` `Event`, the fields that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(rename = "auditID")]
    audit_id: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    impersonated_user: Option<User>,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
    stage: String,
    request_received_timestamp: Timestamp,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    api_group: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

/// Reads log lines. A call has up to two: `ResponseStarted` for a watch, `ResponseComplete` (or `Panic`) at its end;
/// they become one [`Call`]. An unfinished last line is left out.
///
/// # Errors
/// With the number of a line that is no audit event.
pub fn parse(text: &str) -> Result<Calls> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut calls: Vec<Call> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for (number, line) in complete.lines().enumerate() {
        let event: Event =
            serde_json::from_str(line).with_context(|| format!("read audit line {}", number + 1))?;
        let id = event.audit_id.clone();
        let call = Call::from(event);
        if let Some(&earlier) = index.get(&id) {
            calls[earlier] = call;
        } else {
            index.insert(id, calls.len());
            calls.push(call);
        }
    }
    calls.sort_by_key(|call| call.at);
    Ok(Calls(calls))
}

impl From<Event> for Call {
    fn from(event: Event) -> Self {
        let ended = event.stage != "ResponseStarted";
        let code = event.response_status.map(|status| status.code).filter(|_| ended);
        let forbidden =
            event.annotations.get("authorization.k8s.io/decision").is_some_and(|word| word == "forbid");
        let object = event.object_ref.unwrap_or_default();
        let resource = match (object.resource.as_str(), object.subresource.as_str()) {
            ("", _) => event.request_uri.split('?').next().unwrap_or_default().to_owned(),
            (resource, "") => resource.to_owned(),
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        Self {
            user: event.impersonated_user.unwrap_or(event.user).username,
            verb: event.verb,
            resource,
            group: object.api_group,
            namespace: object.namespace,
            name: object.name,
            code,
            denied: forbidden && code == Some(FORBIDDEN),
            at: event.request_received_timestamp,
            user_agent: event.user_agent,
        }
    }
}

/// A cluster's audit log.
#[derive(Clone)]
pub struct AuditLog {
    path: PathBuf,
    client: Client,
}

/// A place in an audit log: every call that was answered before the mark was made is in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Mark {
    /// The log's beginning.
    pub const START: Self = Self(0);
}

impl AuditLog {
    /// The log of `api`.
    pub fn of(api: &ApiServer) -> Self {
        Self { path: api.audit_log.clone(), client: api.client.clone() }
    }

    /// The log in the file `path` of the cluster that `client` reaches; for callers that did not start it.
    pub fn at(path: PathBuf, client: Client) -> Self {
        Self { path, client }
    }

    /// Marks this moment. The server writes a call's line after its answer, so the end of the file is no mark: this makes
    /// a call of its own, which nobody else makes, and waits for its line.
    pub async fn mark(&self) -> Result<Mark> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("audit-mark-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let from = std::fs::metadata(&self.path)
            .with_context(|| format!("read the size of {}", self.path.display()))?
            .len();
        let configs: Api<ConfigMap> = Api::namespaced(self.client.clone(), "default");
        configs.get_opt(&name).await.context("make the call that marks the audit log")?;
        wait::until("a mark in the audit log", MARK_DEADLINE, || async {
            let text = self.read(from, u64::MAX)?;
            Ok(match text.find(&name).and_then(|at| Some(at + text[at..].find('\n')?)) {
                Some(end) => Poll::Ready(Mark(from + u64::try_from(end).context("a log of 16 EiB")? + 1)),
                None => Poll::NotYet(format!("{} bytes without it", text.len())),
            })
        })
        .await
    }

    /// The calls since `mark`, but those that make marks.
    pub async fn since(&self, mark: Mark) -> Result<Calls> {
        let end = self.mark().await?;
        self.between(mark, end)
    }

    /// The calls between two marks, but those that make marks.
    pub fn between(&self, from: Mark, until: Mark) -> Result<Calls> {
        let calls = parse(&self.read(from.0, until.0)?)?;
        Ok(calls.filter(|call| !call.name.starts_with("audit-mark-")))
    }

    fn read(&self, from: u64, until: u64) -> Result<String> {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(until.saturating_sub(from)).read_to_end(&mut bytes)?;
            // A line that is being written may end inside a character; `parse` leaves such a line out.
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().with_context(|| format!("read {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests;
