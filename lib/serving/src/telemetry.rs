//! Logs: where they go, in which format, and from which level on. One call per process, before anything else.
//!
//! Logs go to stderr, as klog's do. `RUST_LOG` (the directives of `tracing_subscriber::EnvFilter`) wins over the
//! verbosity; without it the level comes from klog's number, which every upstream manifest passes.

use std::env;
use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt as log};

/// The environment variable with filter directives: the name that Rust programs share.
pub const FILTER_ENV: &str = "RUST_LOG";

/// klog's conventions (Kubernetes "Logging Conventions"): levels up to 3 for operators, 4 and 5 for debugging a
/// program, 6 and 7 for its API calls, from 8 on for their contents.
const DEBUG_OURS_FROM: u8 = 4;
const DEBUG_ALL_FROM: u8 = 6;
const TRACE_FROM: u8 = 8;

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What the log shows, and how.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The format of a line.
    pub format: LogFormat,
    /// klog's `--v`.
    pub verbosity: u8,
    /// Module paths of the program itself, which 4 and 5 set to debug.
    pub own_crates: &'static [&'static str],
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter directives are wrong.
    #[error("{FILTER_ENV}={text:?} is not understood; write for example info or info,controller=debug")]
    Filter {
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging is already set up in this process")]
    Twice(#[from] TryInitError),
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?} is unknown; write text or json")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Telemetry {
    /// Sets up logging for the whole process.
    pub fn install(&self) -> Result<(), TelemetryError> {
        let filter = match env::var(FILTER_ENV) {
            Ok(text) if !text.is_empty() => {
                EnvFilter::try_new(&text).map_err(|source| TelemetryError::Filter { text, source })?
            }
            _ => self.filter(),
        };
        let lines = log::layer().with_writer(std::io::stderr).with_ansi(false);
        let lines = match self.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
        Ok(())
    }

    fn filter(&self) -> EnvFilter {
        let everywhere = match self.verbosity {
            TRACE_FROM.. => LevelFilter::TRACE,
            DEBUG_ALL_FROM.. => LevelFilter::DEBUG,
            _ => LevelFilter::INFO,
        };
        let filter = EnvFilter::default().add_directive(everywhere.into());
        if !(DEBUG_OURS_FROM..DEBUG_ALL_FROM).contains(&self.verbosity) {
            return filter;
        }
        self.own_crates
            .iter()
            .filter_map(|name| format!("{name}=debug").parse::<Directive>().ok())
            .fold(filter, EnvFilter::add_directive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0, "info")]
    #[case(3, "info")]
    #[case(4, "controller=debug,node=debug,info")]
    #[case(5, "controller=debug,node=debug,info")]
    #[case(6, "debug")]
    #[case(8, "trace")]
    #[case(10, "trace")]
    fn maps_klog_verbosity_to_levels(#[case] verbosity: u8, #[case] directives: &str) {
        let telemetry = Telemetry { format: LogFormat::Text, verbosity, own_crates: &["controller", "node"] };
        let mut shown: Vec<String> = telemetry.filter().to_string().split(',').map(str::to_owned).collect();
        shown.sort();
        let mut wanted: Vec<&str> = directives.split(',').collect();
        wanted.sort_unstable();
        assert_eq!(shown, wanted);
    }

    #[test]
    fn a_log_format_is_read_as_it_is_shown() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().expect_err("unknown").contains("text or json"));
    }
}
