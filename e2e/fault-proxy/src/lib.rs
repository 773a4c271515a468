//! Fault proxies: programs under test reach an API server, or a CSI socket, through one, and a test decides what happens to
//! each call. It is how every fault test works; product code has no failpoints.
//!
//! One engine ([`Faults`]) with two fronts: [`KubeProxy`] stands before an API server (TLS, HTTP/1.1, watches and upgrades pass
//! through), [`GrpcProxy`] before a gRPC server on a unix socket or TCP (HTTP/2 with prior knowledge; bodies and trailers pass
//! through). A [`Call`] is what a rule selects, a [`Rule`] decides what happens to it; a rule lives as long as its [`Guard`].
//!
//! ```text
//!   program ──► front ──► engine: Call ─► Rules ─► Action ──► upstream connection ──► the real server
//! ```
//!
//! A proxy has one upstream connection for each connection of its client, so that the client sees a cut as a cut and nothing is repeated.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics there has failed"))]

mod call;
mod connection;
mod exchange;
mod faults;
mod front;
mod grpc_proxy;
mod kube_proxy;
mod reply;
mod rule;
mod upstream;

pub use call::Call;
pub use faults::{Away, Entry, Faults, Guard};
pub use grpc_proxy::{Address, GrpcProxy};
pub use kube_proxy::KubeProxy;
pub use reply::Reply;
pub use rule::{Action, Matcher, Rule};

#[cfg(test)]
mod tests;
