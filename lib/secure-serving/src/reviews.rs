//! Who may read what. A certificate proves the user, or an API server authenticates the token (`TokenReview`); then an
//! API server authorizes the user (`SubjectAccessReview`). Answers are cached for a short time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use cluster::chain;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{
    Client,
    api::{Api, PostParams},
};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    certificate::Presented,
    shown_tokens::{Gate, ShownTokens},
    trust::Trust,
    user::User,
};

/// How many answers are cached; above that the oldest are dropped.
const CACHE_SIZE: usize = 256;
/// How many requests are reviewed at the same time; others wait. Anybody who reaches the port can send requests, and each
/// may cost two calls.
const MOST_REVIEWED: usize = 8;
/// The answer about a longer path, in bytes, is not cached (apiserver library, `shouldCache` of the webhook authorizer).
const MOST_CACHED_PATH: usize = 10_000;
/// The scheme in front of a token.
/// A user of more bytes is not kept in a cache: the API server that reviews may be the tenant's, and names the groups.
const MOST_CACHED_USER: usize = 16 * 1024;
const BEARER: &str = "bearer";

/// How long answers are cached.
#[derive(Clone, Copy, Debug)]
pub struct ReviewTimes {
    /// The user of a token.
    pub token: Duration,
    /// An access that is allowed.
    pub allowed: Duration,
    /// An access that is denied.
    pub denied: Duration,
}

/// The decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It may go on.
    Allowed,
    /// The credentials prove no user.
    Unauthenticated,
    /// The user may not make this request.
    Forbidden,
    /// The API server did not answer.
    Unknown,
}

/// Makes reviews and caches the answers.
pub(crate) struct Reviews {
    trust: Trust,
    cluster: &'static str,
    authentication: Client,
    authorization: Client,
    shown_tokens: Gate,
    /// A request holds one while it is reviewed.
    slots: Semaphore,
    always_allowed: Vec<String>,
    times: ReviewTimes,
    tokens: Cache<[u8; 32], Option<User>>,
    accesses: Cache<(User, String, String), bool>,
}

/// A request, with the parts that decide about it.
pub(crate) struct Asked<'a> {
    pub path: &'a str,
    pub method: &'a str,
    pub headers: &'a HeaderMap,
    pub presented: &'a Presented,
}

impl Reviews {
    /// `trust` verifies certificates. One API server reviews tokens and one reviews accesses; they are usually the
    /// same. `always_allowed` paths need no review; a path that ends in `*` stands for all paths with that prefix.
    pub(crate) fn new(
        trust: Trust,
        cluster: &'static str,
        (authentication, shown_tokens): (Client, ShownTokens),
        authorization: Client,
        always_allowed: Vec<String>,
        times: ReviewTimes,
    ) -> Self {
        Self {
            trust,
            cluster,
            authentication,
            authorization,
            shown_tokens: Gate::new(shown_tokens, cluster),
            slots: Semaphore::new(MOST_REVIEWED),
            always_allowed,
            times,
            tokens: Cache::default(),
            accesses: Cache::default(),
        }
    }

    /// The name of the cluster that reviews.
    pub(crate) fn cluster(&self) -> &'static str {
        self.cluster
    }

    pub(crate) async fn judge(&self, asked: &Asked<'_>) -> Access {
        let free = |allowed: &String| match allowed.strip_suffix('*') {
            Some(prefix) => asked.path.starts_with(prefix),
            None => allowed == asked.path,
        };
        if self.always_allowed.iter().any(free) {
            return Access::Allowed;
        }
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let user = match self.user(asked).await {
            Ok(Some(user)) => user,
            Ok(None) => return Access::Unauthenticated,
            Err(error) => return self.unknown(&error),
        };
        match self.may(user, asked.path, &asked.method.to_lowercase()).await {
            Ok(true) => Access::Allowed,
            Ok(false) => Access::Forbidden,
            Err(error) => self.unknown(&error),
        }
    }

    /// The user that certificates prove, otherwise the user of the token. If a certificate proves no user, a token
    /// still counts, but without a token the client is not anonymous (apiserver library,
    /// `DelegatingAuthenticatorConfig`).
    async fn user(&self, asked: &Asked<'_>) -> Result<Option<User>, kube::Error> {
        let proved = self.trust.user(asked.presented, asked.headers);
        if let Err(error) = &proved {
            tracing::debug!(error = chain(error), "a client certificate proved nobody");
        }
        let user = match (proved, bearer(asked.headers)) {
            (Ok(Some(user)), _) => Some(user),
            (_, Some(token)) => self.owner(token).await?,
            (Ok(None), None) => Some(User::anonymous()),
            (Err(_), None) => None,
        };
        Ok(user.map(User::authenticated))
    }

    /// The user of a token.
    async fn owner(&self, token: &str) -> Result<Option<User>, kube::Error> {
        // The cache must not contain tokens, which are valid elsewhere too.
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        if !self.shown_tokens.admits(token).await {
            return Ok(None);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.authentication.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(User::from);
        if user.as_ref().is_none_or(|user| user.size() <= MOST_CACHED_USER) {
            self.tokens.put(key, user.clone(), self.times.token);
        }
        Ok(user)
    }

    async fn may(&self, user: User, path: &str, verb: &str) -> Result<bool, kube::Error> {
        let key = (user, path.to_owned(), verb.to_owned());
        let is_cached = path.len() <= MOST_CACHED_PATH && key.0.size() <= MOST_CACHED_USER;
        if let Some(known) = is_cached.then(|| self.accesses.get(&key)).flatten() {
            return Ok(known);
        }
        let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some(verb.to_owned()) };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(key.0.name.clone()),
                groups: Some(key.0.groups.clone()),
                uid: Some(key.0.uid.clone()),
                extra: Some(key.0.extra.clone()),
                non_resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.authorization.clone());
        let status = api.create(&PostParams::default(), &review).await?.status;
        let allowed = status.is_some_and(|status| status.allowed);
        let holds = if allowed { self.times.allowed } else { self.times.denied };
        if is_cached {
            self.accesses.put(key, allowed, holds);
        }
        Ok(allowed)
    }

    fn unknown(&self, error: &kube::Error) -> Access {
        tracing::warn!(error = chain(error), "the {} cluster did not review a request", self.cluster);
        Access::Unknown
    }
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = rest.split(' ').next().filter(|token| !token.is_empty())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(token)
}

/// Answers that expire, at most [`CACHE_SIZE`].
struct Cache<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, holds: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        kept.retain(|_, (_, until)| *until > now);
        if kept.len() >= CACHE_SIZE {
            let oldest = kept.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            oldest.map(|key| kept.remove(&key));
        }
        kept.insert(key, (value, now + holds));
    }
}
