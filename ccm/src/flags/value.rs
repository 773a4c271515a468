//! How pflag reads a command line and its values, as far as clap does it in another way.

use std::ffi::OsString;
use std::time::Duration;

use jiff::SignedDuration;

/// The spellings of Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// A duration of Go (`1h0m0s`, `1.5s`, `0`), not negative.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration: SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration; write for example 15s or 1m30s"))?;
    Duration::try_from(duration).map_err(|_| format!("{text:?} is negative"))
}

/// A list of names; one empty name is how an empty list is written.
///
/// # Errors
/// One of several names is empty.
pub fn names(list: &[String]) -> Result<Vec<String>, EmptyName> {
    let names: Vec<_> = list.iter().map(|name| name.trim().to_owned()).collect();
    match list {
        [only] if only.is_empty() => Ok(Vec::new()),
        _ if names.iter().any(String::is_empty) => Err(EmptyName),
        _ => Ok(names),
    }
}

/// A list has a name that is empty.
#[derive(Debug, thiserror::Error)]
#[error("an empty name stands in the list")]
pub struct EmptyName;

/// Writes the names of long flags with dashes, as the framework's normalizer does: `--cloud_config` → `--cloud-config`.
pub fn with_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_operands = false;
    let normalize = |argument: OsString| {
        only_operands |= argument == "--";
        match argument.to_str() {
            Some(text) if text.starts_with("--") && !only_operands => {
                let (name, value) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
                let name = name.replace('_', "-");
                value.map_or(name.clone(), |value| format!("{name}={value}")).into()
            }
            _ => argument,
        }
    };
    arguments.into_iter().map(normalize).collect()
}
