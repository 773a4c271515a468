//! Who may read what: asked of the guest cluster (`TokenReview`, `SubjectAccessReview`), kept for a short time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Answers that are kept; above it the oldest go.
const CACHE_SIZE: usize = 256;
/// Who shows no token (Kubernetes, "Anonymous requests").
const ANONYMOUS: &str = "system:anonymous";
/// The group of those.
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// How long answers hold.
#[derive(Clone, Copy, Debug)]
pub struct ReviewTimes {
    /// Who a token is.
    pub token: Duration,
    /// A yes.
    pub allowed: Duration,
    /// A no.
    pub denied: Duration,
}

/// What a request may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Allowed,
    /// The token is nobody's.
    Unauthenticated,
    /// Not this one.
    Forbidden,
    /// The guest cluster did not say.
    Unknown,
}

/// Asks, and remembers.
pub struct Reviews {
    authentication: Client,
    authorization: Client,
    always_allowed: Vec<String>,
    times: ReviewTimes,
    tokens: Cache<[u8; 32], Option<User>>,
    accesses: Cache<(User, String, String), bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct User {
    name: String,
    groups: Vec<String>,
    uid: String,
}

impl Reviews {
    /// Reviews of tokens by one cluster and of accesses by another, which are mostly the same. `always_allowed` paths are
    /// free; one that ends in `*` stands for all that begin with it.
    pub fn new(
        authentication: Client,
        authorization: Client,
        always_allowed: Vec<String>,
        times: ReviewTimes,
    ) -> Self {
        let (tokens, accesses) = (Cache::default(), Cache::default());
        Self { authentication, authorization, always_allowed, times, tokens, accesses }
    }

    pub(super) async fn judge(&self, path: &str, method: &str, token: Option<&str>) -> Verdict {
        let free = |allowed: &String| match allowed.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => allowed == path,
        };
        if self.always_allowed.iter().any(free) {
            return Verdict::Allowed;
        }
        let user = match token {
            None => User {
                name: ANONYMOUS.to_owned(),
                groups: vec![UNAUTHENTICATED.to_owned()],
                uid: String::new(),
            },
            Some(token) => match self.user(token).await {
                Ok(Some(user)) => user,
                Ok(None) => return Verdict::Unauthenticated,
                Err(error) => return unknown(&error),
            },
        };
        match self.may(user, path, &method.to_lowercase()).await {
            Ok(true) => Verdict::Allowed,
            Ok(false) => Verdict::Forbidden,
            Err(error) => unknown(&error),
        }
    }

    async fn user(&self, token: &str) -> Result<Option<User>, kube::Error> {
        // The cache must not hold what opens doors elsewhere.
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.authentication.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(User::from);
        self.tokens.put(key, user.clone(), self.times.token);
        Ok(user)
    }

    async fn may(&self, user: User, path: &str, verb: &str) -> Result<bool, kube::Error> {
        let key = (user, path.to_owned(), verb.to_owned());
        if let Some(known) = self.accesses.get(&key) {
            return Ok(known);
        }
        let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some(verb.to_owned()) };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(key.0.name.clone()),
                groups: Some(key.0.groups.clone()),
                uid: Some(key.0.uid.clone()),
                non_resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.authorization.clone());
        let status = api.create(&PostParams::default(), &review).await?.status;
        let allowed = status.is_some_and(|status| status.allowed);
        let holds = if allowed { self.times.allowed } else { self.times.denied };
        self.accesses.put(key, allowed, holds);
        Ok(allowed)
    }
}

fn unknown(error: &kube::Error) -> Verdict {
    tracing::warn!(error = crate::access::chain(error), "the guest cluster did not review a request");
    Verdict::Unknown
}

impl From<UserInfo> for User {
    fn from(user: UserInfo) -> Self {
        Self {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
        }
    }
}

/// Answers with an end, at most [`CACHE_SIZE`].
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
