//! One API server, and the safe way to call it.
//!
//! This crate alone makes Kubernetes clients, reads credentials, waits for `Retry-After`, classifies answers and proves
//! that an object does not exist. It knows no object: paths and types are its callers'. Typed [`kube::Api`]s (over
//! [`ApiServer::client`]) and raw requests ([`ApiServer::exchange`]) take the same way through [`ApiServer`].
//!
//! What an API server answers is bounded ([`MAX_ANSWER`]), its texts are cut, and an object that can't be read hides no
//! other ([`Readable`]). The rate of changes may be bounded too ([`WriteRate`]).
//!
//! Credentials change while a program runs. [`Followed`] takes up changed files, also for other crates.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod absence;
mod bounds;
mod call;
mod client;
mod connection;
mod credentials;
mod error;
mod exchange;
mod files;
mod metrics;
mod pace;
mod proxy;
mod rights;
mod route;
mod server;
mod server_certificate;
mod token_issuer;
mod typed;
mod unreadable;
mod write_rate;

pub use absence::{get, is_absent, status_code};
pub use bounds::{MAX_ANSWER, TooLong};
pub use call::Call;
pub use credentials::{CredentialsError, Source};
pub use error::{Class, Error, Failure};
pub use files::{Contents, Followed, FromFiles};
pub use metrics::{Meter, Outcome, Unmetered};
pub use pace::MAX_RETRY_AFTER;
pub use rights::{Right, Rights, is_granted};
pub use server::{ApiServer, CALL_DEADLINE, WhenPaused};
pub use token_issuer::TokenIssuer;
pub use unreadable::{CountSkipped, Readable, Reader, Unreadable};
pub use write_rate::WriteRate;

pub use serving::chain;
