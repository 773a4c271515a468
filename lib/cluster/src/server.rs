//! The steps that each call takes: the pause that the API server asked for, newest credentials, deadline, count,
//! answer.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use http::{Request, Response};
use kube::{Client, client::Body};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    call::Call,
    connection::{Connection, Current},
    credentials::{CredentialsError, Source},
    error::{Class, Error, Failure},
    metrics::{Meter, Outcome},
    pace::Pace,
    token_issuer::TokenIssuer,
};

/// Longest time of one call, pauses included; for a watch, until it is open. A healthy API server needs far less for
/// any call that is made here, and external-attacher's RPC timeout, 15 s by default, must leave room for the answer
/// after a call without a reply.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// What a change does while the API server's pause lasts. (A read always waits.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenPaused {
    /// It is sent after the pause, or fails if the pause ends after its deadline.
    Wait,
    /// It fails at once, because its caller has to read again before it changes anything.
    Fail,
}

/// One API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    pace: Arc<Pace>,
}

struct Shared {
    connection: Connection,
    namespace: String,
    meter: Box<dyn Meter>,
}

/// A call that failed; `answer` is the API server's refusal, if there was one.
pub(crate) struct Failed {
    pub error: Error,
    pub answer: Option<Response<Body>>,
}

impl fmt::Debug for ApiServer {
    /// Never shows the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// The API server that `source` names. Makes no call: if it can't be reached, the first call shows it.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn open(source: Source, meter: impl Meter) -> Result<Self, CredentialsError> {
        let (connection, namespace) = Connection::open(source).await?;
        Ok(Self::new(connection, namespace, meter))
    }

    /// An API server behind a client that handles its own credentials, a test's client for example.
    pub fn over(client: Client, meter: impl Meter) -> Self {
        let namespace = client.default_namespace().to_owned();
        Self::new(Connection::fixed(client), namespace, meter)
    }

    fn new(connection: Connection, namespace: String, meter: impl Meter) -> Self {
        let shared = Shared { connection, namespace, meter: Box::new(meter) };
        Self { shared: Arc::new(shared), pace: Arc::default() }
    }

    /// The same server, for calls that do not wait when others have to: an API server gives leases, for example, a
    /// share of their own (API Priority and Fairness, level `leader-election`).
    #[must_use]
    pub fn with_own_pace(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), pace: Arc::default() }
    }

    /// The namespace that the credentials name.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// The issuer of the token that the credentials have now. `None` = they have none, or one that names no issuer.
    pub async fn token_issuer(&self) -> Option<TokenIssuer> {
        self.shared.connection.current().await.token_issuer
    }

    /// The answer that asked for a pause, until a call has succeeded after it. Reads wait without a report, so a caller
    /// whose own time ends in the meantime finds the cause here.
    pub fn asked_to_wait(&self) -> Option<Error> {
        self.pace.asked()
    }

    /// Makes a call. A read is repeated after a pause. Any call is repeated once after a 401 that new credentials may
    /// cure, because a 401 means that nothing was carried out. Otherwise a change is never repeated.
    pub(crate) async fn send(
        &self,
        request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<Response<Body>, Failed> {
        let call = Call::of(&request);
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut renewed = false;
        loop {
            self.wait_out_pause(&call, when_paused, deadline).await?;
            let current = self.shared.connection.current().await;
            let failed = match self.send_once(&call, request.clone(), &current, deadline).await {
                Ok(response) => {
                    self.pace.succeeded();
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            let (class, pause) = (failed.error.class(), failed.error.retry_after());
            if let Some(pause) = pause {
                self.pace.pause(pause, &failed.error);
            }
            // New credentials may cure the failure: a new token a 401, a new CA a broken connection.
            if !renewed && matches!(class, Class::Unauthorized | Class::Transport) {
                renewed = self.shared.connection.is_renewed(&current).await;
                if renewed && (call.is_read() || class == Class::Unauthorized) {
                    continue;
                }
            }
            if !call.is_read() || pause.is_none() {
                return Err(failed);
            }
        }
    }

    /// Waits for the end of the pause, or fails if this call can't wait that long.
    async fn wait_out_pause(
        &self,
        call: &Call,
        when_paused: WhenPaused,
        deadline: Instant,
    ) -> Result<(), Failed> {
        let Some(until) = self.pace.until() else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if until >= deadline || (when_paused == WhenPaused::Fail && !call.is_read()) {
            return Err(Failed { error: Error::of(call, Failure::Paused(left)), answer: None });
        }
        let began = Instant::now();
        sleep_until(until).await;
        self.shared.meter.paused(began.elapsed());
        Ok(())
    }

    async fn send_once(
        &self,
        call: &Call,
        request: Request<Vec<u8>>,
        current: &Current,
        deadline: Instant,
    ) -> Result<Response<Body>, Failed> {
        let began = Instant::now();
        let exchange = async {
            let (parts, body) = current.client.send(request.map(Body::from)).await?.into_parts();
            if call.is_watch() && parts.status.is_success() {
                return Ok((parts, Cow::Borrowed(&[][..]), Some(body)));
            }
            Ok::<_, kube::Error>((parts, Cow::Owned(body.collect_bytes().await?.to_vec()), None))
        };
        let failed = |failure| Failed { error: Error::of(call, failure), answer: None };
        let (outcome, result) = match timeout_at(deadline, exchange).await {
            Err(_) => (Outcome::Timeout, Err(failed(Failure::Timeout(CALL_DEADLINE)))),
            Ok(Err(error)) => (Outcome::Transport, Err(failed(Failure::Transport(Arc::new(error))))),
            Ok(Ok((parts, body, open))) => {
                let outcome = Outcome::Answered(parts.status.as_u16());
                let refusal = (!parts.status.is_success()).then(|| Failure::answer(call, &parts, &body));
                let answer = Response::from_parts(parts, open.unwrap_or_else(|| body.into_owned().into()));
                let result = match refusal {
                    None => Ok(answer),
                    Some(failure) => Err(Failed { answer: Some(answer), ..failed(failure) }),
                };
                (outcome, result)
            }
        };
        self.shared.meter.called(call, &current.host, outcome, began.elapsed());
        result
    }
}
