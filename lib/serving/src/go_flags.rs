//! What Go's `flag` and `pflag` packages accept on a command line and clap does not, so that every manifest written for
//! the upstream programs works unchanged.

use std::{
    ffi::{OsStr, OsString},
    fmt::{self, Debug, Formatter},
    marker::PhantomData,
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use jiff::SignedDuration;

/// The spellings of Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// A duration as Go writes it (`1h0m0s`, `1.5s`, `0`), not negative.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration: SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration; write for example 15s or 1m30s"))?;
    Duration::try_from(duration).map_err(|_| format!("{text:?} is negative"))
}

/// Adds the second dash to each long flag that has only one, as Go's `flag` package reads it: `-endpoint=x` →
/// `--endpoint=x`, `-v=5` → `--v=5`. Other arguments stay as they are, also `-h` and `-V`, which only our programs
/// have.
pub fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    before_operands(arguments, |argument| {
        let Some(name) = argument.to_str().and_then(|text| text.strip_prefix('-')) else { return argument };
        let is_long =
            name.starts_with(|first: char| first.is_ascii_alphabetic()) && !matches!(name, "h" | "V");
        if is_long { [OsStr::new("-"), &argument].into_iter().collect() } else { argument }
    })
}

/// Replaces the underscores in the names of long flags by dashes, as the word-separator normalizer of
/// k8s.io/component-base does for `pflag`: `--cloud_config` → `--cloud-config`.
pub fn with_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    before_operands(arguments, |argument| match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let name = name.replace('_', "-");
            value.map_or(name.clone(), |value| format!("{name}={value}")).into()
        }
        _ => argument,
    })
}

/// Changes each argument up to `--`; what follows it are operands.
fn before_operands(
    arguments: impl IntoIterator<Item = OsString>,
    change: impl Fn(OsString) -> OsString,
) -> Vec<OsString> {
    let mut only_operands = false;
    let changed = arguments.into_iter().map(|argument| {
        only_operands |= argument == "--";
        if only_operands { argument } else { change(argument) }
    });
    changed.collect()
}

/// A list of flags that a program accepts without effect.
pub trait IgnoredList {
    /// Flags with a value.
    const WITH_VALUE: &'static [&'static str];
    /// Flags that may stand without a value.
    const BOOLEAN: &'static [&'static str];
}

/// The flags of a list that were given. Flatten it into a command line.
pub struct Ignored<L> {
    /// Their names, in alphabetical order.
    pub given: Vec<&'static str>,
    list: PhantomData<L>,
}

impl<L> Clone for Ignored<L> {
    fn clone(&self) -> Self {
        Self { given: self.given.clone(), list: PhantomData }
    }
}

impl<L> Debug for Ignored<L> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.given).finish()
    }
}

impl<L: IgnoredList> Args for Ignored<L> {
    fn augment_args(command: Command) -> Command {
        let with_value = L::WITH_VALUE.iter().map(|name| accepted(name).num_args(1));
        // Go reads `--flag false` as a flag and an operand.
        let boolean = L::BOOLEAN
            .iter()
            .map(|name| accepted(name).num_args(0..=1).require_equals(true).default_missing_value("true"));
        with_value.chain(boolean).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn accepted(name: &'static str) -> Arg {
    let help = "Accepted without effect";
    Arg::new(name).long(name).action(ArgAction::Append).allow_hyphen_values(true).hide(true).help(help)
}

impl<L: IgnoredList> FromArgMatches for Ignored<L> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let names = L::WITH_VALUE.iter().chain(L::BOOLEAN).copied();
        let mut given: Vec<_> = names.filter(|name| matches.contains_id(name)).collect();
        given.sort_unstable();
        Ok(Self { given, list: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("-endpoint=unix:/x", "--endpoint=unix:/x")]
    #[case("--endpoint=unix:/x", "--endpoint=unix:/x")]
    #[case("-v", "--v")]
    #[case("-v=5", "--v=5")]
    #[case("-h", "-h")]
    #[case("-V", "-V")]
    #[case("-5", "-5")]
    #[case("-", "-")]
    #[case("unix:/x", "unix:/x")]
    fn adds_the_second_dash_to_long_flags_only(#[case] given: &str, #[case] wanted: &str) {
        assert_eq!(with_two_dashes([OsString::from(given)]), [OsString::from(wanted)]);
    }

    #[rstest]
    #[case("--cloud_config=/a_b", "--cloud-config=/a_b")]
    #[case("--leader_elect", "--leader-elect")]
    #[case("-v_x", "-v_x")]
    #[case("a_b", "a_b")]
    fn underscores_in_the_names_of_long_flags_become_dashes(#[case] given: &str, #[case] wanted: &str) {
        assert_eq!(with_dashes([OsString::from(given)]), [OsString::from(wanted)]);
    }

    #[test]
    fn leaves_what_follows_two_dashes_alone() {
        let arguments = ["driver", "-v=1", "--", "-v=1"].map(OsString::from);
        assert_eq!(with_two_dashes(arguments), ["driver", "--v=1", "--", "-v=1"].map(OsString::from));
    }

    #[rstest]
    #[case("true", Some(true))]
    #[case("F", Some(false))]
    #[case("0", Some(false))]
    #[case("yes", None)]
    #[case("", None)]
    fn reads_booleans_as_go_does(#[case] text: &str, #[case] wanted: Option<bool>) {
        assert_eq!(parse_bool(text).ok(), wanted);
    }

    #[rstest]
    #[case("1m30s", Some(90))]
    #[case("0", Some(0))]
    #[case("-1s", None)]
    #[case("soon", None)]
    fn reads_durations_as_go_does(#[case] text: &str, #[case] seconds: Option<u64>) {
        assert_eq!(parse_duration(text).ok(), seconds.map(Duration::from_secs));
    }
}
