//! The steps that each call takes: the pause that the API server asked for, newest credentials, deadline, count,
//! answer.

use std::{fmt, sync::Arc, time::Duration};

use http::{Request, Response};
use kube::{Client, client::Body};
use tokio::time::{Instant, sleep_until, timeout_at};
use tower::BoxError;

use crate::{
    bounds::{Bounded, smaller_page},
    call::Call,
    connection::{Connection, Current},
    credentials::{CredentialsError, Source},
    error::{Class, Error, Failure},
    metrics::{Meter, Outcome},
    pace::Pace,
    token_issuer::TokenIssuer,
    write_rate::{LONGEST_WAIT, TokenBucket, WriteRate},
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
    /// Bounds the rate of changes. `None` = no bound.
    bucket: Option<Arc<TokenBucket>>,
}

struct Shared {
    connection: Connection,
    namespace: String,
    meter: Box<dyn Meter>,
}

/// A call that failed; `answer` is the API server's refusal, if there was one.
pub(crate) struct Failed {
    pub error: Error,
    pub answer: Option<Response<Bounded>>,
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
        Self { shared: Arc::new(shared), pace: Arc::default(), bucket: None }
    }

    /// The same server, for calls that do not wait when others have to: an API server gives leases, for example, a
    /// share of their own (API Priority and Fairness, level `leader-election`).
    #[must_use]
    pub fn with_own_pace(&self) -> Self {
        Self { pace: Arc::default(), ..self.clone() }
    }

    /// The same server, whose changes are sent at this rate at most. All clones share the rate.
    #[must_use]
    pub fn with_write_rate(&self, rate: WriteRate) -> Self {
        Self { bucket: rate.bucket().map(Arc::new), ..self.clone() }
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

    /// Makes a call. A read is repeated after a pause, and a page of a list that is too long with fewer objects. Any call
    /// is repeated once after a 401 that new credentials may cure, because a 401 means that nothing was carried out.
    /// Otherwise a change is never repeated.
    pub(crate) async fn send(
        &self,
        mut request: Request<Vec<u8>>,
        when_paused: WhenPaused,
    ) -> Result<Response<Bounded>, Failed> {
        let call = Call::of(&request);
        self.wait_for_token(&call, when_paused).await?;
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
            if matches!(*failed.error.failure, Failure::TooLong(_))
                && call.verb == "list"
                && let Some(smaller) = smaller_page(&request)
            {
                request = smaller;
                continue;
            }
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

    /// Waits until a change may be sent. The time does not count towards the deadline of the call, which has not begun.
    async fn wait_for_token(&self, call: &Call, when_paused: WhenPaused) -> Result<(), Failed> {
        let Some(bucket) = self.bucket.as_ref().filter(|_| call.is_change()) else { return Ok(()) };
        let began = Instant::now();
        let taken = match when_paused {
            WhenPaused::Wait => {
                let _: () = bucket.take().await;
                Ok(())
            }
            WhenPaused::Fail => timeout_at(began + LONGEST_WAIT, bucket.take()).await,
        };
        self.shared.meter.waited(call, &self.shared.connection.host(), began.elapsed());
        taken.map_err(|_| Failed { error: Error::of(call, Failure::RateLimited(LONGEST_WAIT)), answer: None })
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
    ) -> Result<Response<Bounded>, Failed> {
        let began = Instant::now();
        let exchange = async {
            let (parts, body) = current.client.send(request.map(Body::from)).await?.into_parts();
            if call.is_watch() && parts.status.is_success() {
                return Ok((parts, Err(Bounded::lines(body))));
            }
            Ok::<_, BoxError>((parts, Ok(Bounded::whole(body).read().await?)))
        };
        let failed = |failure| Failed { error: Error::of(call, failure), answer: None };
        let (outcome, result) = match timeout_at(deadline, exchange).await {
            Err(_) => (Outcome::Timeout, Err(failed(Failure::Timeout(CALL_DEADLINE)))),
            Ok(Err(error)) => (Outcome::of(&*error), Err(failed(Failure::of_body(error)))),
            Ok(Ok((parts, body))) => {
                let outcome = Outcome::Answered(parts.status.as_u16());
                let result = match body {
                    Err(watch) => Ok(Response::from_parts(parts, watch)),
                    Ok(body) if parts.status.is_success() => {
                        Ok(Response::from_parts(parts, Bounded::whole(body)))
                    }
                    Ok(body) => {
                        // What a caller gets of a refusal is cut as its error is.
                        let (failure, body) = Failure::answer(call, &parts, &body);
                        let answer = Some(Response::from_parts(parts, Bounded::whole(body)));
                        Err(Failed { answer, ..failed(failure) })
                    }
                };
                (outcome, result)
            }
        };
        self.shared.meter.called(call, &current.host, outcome, began.elapsed());
        result
    }
}
