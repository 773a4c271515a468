//! What Go's `flag` package and klog accept on a command line, so that every manifest written for the reference works
//! unchanged: long flags with one dash, booleans with a value, and klog's own flags, which we take and ignore.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

/// One flag that klog registers (k8s.io/klog/v2 `InitFlags`), except `v`, which we obey.
struct KlogFlag {
    name: &'static str,
    /// Go lets a boolean stand without a value.
    boolean: bool,
}

const KLOG_FLAGS: [KlogFlag; 13] = [
    KlogFlag { name: "add_dir_header", boolean: true },
    KlogFlag { name: "alsologtostderr", boolean: true },
    KlogFlag { name: "legacy_stderr_threshold_behavior", boolean: true },
    KlogFlag { name: "log_backtrace_at", boolean: false },
    KlogFlag { name: "log_dir", boolean: false },
    KlogFlag { name: "log_file", boolean: false },
    KlogFlag { name: "log_file_max_size", boolean: false },
    KlogFlag { name: "logtostderr", boolean: true },
    KlogFlag { name: "one_output", boolean: true },
    KlogFlag { name: "skip_headers", boolean: true },
    KlogFlag { name: "skip_log_headers", boolean: true },
    KlogFlag { name: "stderrthreshold", boolean: false },
    KlogFlag { name: "vmodule", boolean: false },
];

/// The klog flags that were given, by name. They have no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KlogIgnored {
    /// Their names, in alphabetical order.
    pub given: Vec<&'static str>,
}

impl Args for KlogIgnored {
    fn augment_args(command: Command) -> Command {
        KLOG_FLAGS.iter().fold(command, |command, flag| {
            let arg = Arg::new(flag.name)
                .long(flag.name)
                .action(ArgAction::Append)
                .hide(true)
                .help("A klog flag, accepted without effect");
            command.arg(if flag.boolean { bare_or_equals(arg) } else { arg.num_args(1) })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KlogIgnored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = KLOG_FLAGS.iter().map(|flag| flag.name).filter(|name| matches.contains_id(name));
        Ok(Self { given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `--flag` means true, and a value needs the equals sign: Go reads `--flag false` as a flag and an argument.
fn bare_or_equals(arg: Arg) -> Arg {
    arg.num_args(0..=1).require_equals(true).default_missing_value("true")
}

/// The spellings of Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Gives every long flag that has one dash its second: `-endpoint=x` → `--endpoint=x`, `-v=5` → `--v=5`. What is no
/// flag stays. `-h` and `-V` are ours and stay too.
pub fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_operands = false;
    let widen = |argument: OsString| {
        only_operands |= argument == "--";
        let Some(name) = argument.to_str().and_then(|text| text.strip_prefix('-')) else { return argument };
        let is_long =
            name.starts_with(|first: char| first.is_ascii_alphabetic()) && !matches!(name, "h" | "V");
        if is_long && !only_operands { [OsStr::new("-"), &argument].into_iter().collect() } else { argument }
    };
    arguments.into_iter().map(widen).collect()
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
}
