//! What every long-running program of this project shows and obeys, and nothing about its domain:
//!
//! - [`admin`]: the opt-in HTTP endpoint with `/livez`, `/readyz` and `/metrics`;
//! - [`telemetry`]: logs, their format and how klog's verbosity maps to levels;
//! - [`endpoint`] and [`grpc`]: the socket of a gRPC program, and serving on it until the stop;
//! - [`rpc`]: one span, one log line and three metrics per RPC;
//! - [`go_flags`]: what Go's flag packages accept on a command line and clap does not;
//! - [`go_yaml`]: configuration files in which Go's parser reads a plain scalar as the text that stands there;
//! - [`metrics_page`]: the answer of `/metrics`;
//! - [`process`]: what the process uses of the machine, and its version;
//! - [`program`]: runs a program from its first line to its exit code;
//! - [`shutdown`]: one signal drains, a second one aborts;
//! - [`tasks`]: the owner of all long-lived tasks: one that panics or ends early ends the program.

pub mod admin;
mod chain;
mod cut;
pub mod endpoint;
pub mod go_flags;
pub mod go_yaml;
pub mod grpc;
pub mod metrics_page;
pub mod process;
pub mod program;
pub mod readiness;
pub mod rpc;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use admin::{Admin, Wedged};
pub use chain::chain;
pub use cut::{MAX_TEXT, cut};
pub use endpoint::{Endpoint, EndpointError, Listener};
pub use process::ProcessMetrics;
pub use readiness::{Condition, Readiness};
pub use rpc::{FindMethod, RpcLayer, RpcMethod};
pub use shutdown::{Shutdown, ShutdownError};
pub use tasks::{TaskError, Tasks};
pub use telemetry::{LogFormat, Telemetry, TelemetryError};
