//! Logs: where they go, in which format, and from which level on. One call per process, before anything else.
//!
//! Each event is one line of bounded length, whatever texts of others it quotes. What a client got from an
//! API server is never logged as a whole, because it may hold tokens.
//!
//! Logs go to stderr, as klog's do. `RUST_LOG` (the directives of `tracing_subscriber::EnvFilter`) wins over the
//! verbosity; without it the level comes from klog's number, which every upstream manifest passes.

use std::env;
use std::fmt::{self, Write as _};
use std::io;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{
    Layer,
    filter::{FilterExt, filter_fn},
    fmt as log,
    fmt::MakeWriter,
};

use crate::{MAX_TEXT, cut};

/// The environment variable with filter directives: the name that Rust programs share.
pub const FILTER_ENV: &str = "RUST_LOG";

/// klog's conventions (Kubernetes "Logging Conventions"): levels up to 3 for operators, 4 and 5 for debugging a
/// program, 6 and 7 for its API calls, from 8 on for their contents.
const DEBUG_OURS_FROM: u8 = 4;
const DEBUG_ALL_FROM: u8 = 6;
const TRACE_FROM: u8 = 8;

/// The module of kube that logs answers which it can't read, whole: a token review with its token, a page of a list with
/// its megabytes. Our own errors report such an answer.
const LOGS_BODIES: &str = "kube_client::client";
/// Longest line of the log. A line has a few texts of others, each of which is cut to [`MAX_TEXT`] where it is a field.
const MAX_LINE: usize = 4 * MAX_TEXT;

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
        let writer = Lines { format: self.format, to: std::io::stderr };
        let lines = log::layer().with_writer(writer).with_ansi(false);
        let lines = match self.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        // Also where the operator sets the filter: the rest of the debug lines stays of use.
        let filter = filter.and(filter_fn(|event| event.target() != LOGS_BODIES));
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

/// Writes each event as one line of bounded length.
struct Lines<M> {
    format: LogFormat,
    to: M,
}

/// Writes the line of one event.
struct Line<W> {
    format: LogFormat,
    to: W,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Lines<M> {
    type Writer = Line<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { format: self.format, to: self.to.make_writer() }
    }
}

impl<W: io::Write> io::Write for Line<W> {
    /// `event` is the whole text of one event: the layer formats it before it writes.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.to.write_all(one_line(self.format, event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The event as one line. A text of others may have line breaks, which would look like lines of ours.
fn one_line(format: LogFormat, event: &[u8]) -> String {
    let event = String::from_utf8_lossy(event);
    let event = event.trim_end_matches('\n');
    let line = match format {
        LogFormat::Text => cut(event, MAX_LINE).chars().fold(String::new(), |mut line, c| {
            if c.is_control() && c != '\t' {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
            line
        }),
        LogFormat::Json if event.len() > MAX_LINE => match serde_json::from_str(event) {
            Ok(fields) => escape(&shorter(fields).to_string()),
            Err(_) => serde_json::Value::from(cut(event, MAX_LINE)).to_string(),
        },
        LogFormat::Json => escape(event),
    };
    line + "\n"
}

/// JSON leaves the control characters as they are that are not ASCII, and a terminal obeys them.
fn escape(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut line, c| {
        if c.is_control() {
            write!(line, "\\u{:04x}", u32::from(c)).expect("a string takes every text");
        } else {
            line.push(c);
        }
        line
    })
}

/// The fields with their texts cut.
fn shorter(fields: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match fields {
        Value::String(text) => Value::from(cut(&text, MAX_TEXT)),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, shorter(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

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

    /// What a subscriber of this format writes for one event with the text as its message and as a field.
    fn written(format: LogFormat, text: &str) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&written);
        let writer = Lines { format, to: move || Collected(Arc::clone(&to)) };
        let lines = log::layer().with_writer(writer).with_ansi(false).without_time();
        let lines = match format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        let shown = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(shown, || tracing::warn!(error = %text, "it failed: {text}"));
        String::from_utf8(written.lock().expect("no panic").clone()).expect("is text")
    }

    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[rstest]
    #[case(LogFormat::Text)]
    #[case(LogFormat::Json)]
    fn an_event_is_one_line_of_bounded_length(#[case] format: LogFormat) {
        for text in ["a\nINFO forged: line", "a\r\n\u{1b}[31mred", "\u{9b}x", &"é\n".repeat(1 << 20)] {
            let line = written(format, text);
            assert_eq!(line.matches(['\n', '\r', '\u{1b}', '\u{9b}']).count(), 1, "{}", cut(&line, 200));
            assert!(line.ends_with('\n') && line.len() < 4 * MAX_LINE, "{} bytes", line.len());
            if format == LogFormat::Json {
                let fields: serde_json::Value = serde_json::from_str(&line).expect("is JSON");
                assert_eq!(fields["level"], "WARN");
            }
        }
        assert!(written(format, "plain").contains("it failed: plain"));
    }
}
