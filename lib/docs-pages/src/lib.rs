//! The pages of `docs/reference`: a test of each program renders them from what the program registers and compares them
//! with the files. This crate is for tests, so an error is a panic with its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use clap::Command;
use prometheus_client::{encoding::text::encode, registry::Registry};

/// The environment variable that makes the tests write the pages instead of comparing them.
const REWRITE_ENV: &str = "UPDATE_DOCS";
/// The label of a histogram's bucket. Nobody selects by it, so it is not documented.
const BUCKET: &str = "le";

/// Writing to a `String` can't fail.
const TO_STRING: &str = "writes to a String";

/// One metric of an exposition.
#[derive(Debug, Default)]
pub struct Metric {
    /// `counter`, `gauge`, `histogram` and so on.
    pub kind: String,
    /// The help text, without the full stop at its end.
    pub help: String,
    /// Its labels, each with the values that the exposition has.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

/// The samples of a registry now, as text.
///
/// # Panics
/// The registry can't be encoded.
pub fn exposition(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("encodes");
    text
}

/// Reads an exposition in the `OpenMetrics` text format, as `prometheus-client` writes it. A metric's labels are known
/// only if it has a sample.
///
/// # Panics
/// The text is not an exposition.
pub fn metrics(exposition: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().help = String::from(help.trim_end_matches('.'));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name.to_owned()).or_default().kind = String::from(kind);
        } else if let Some((sample, rest)) = line.split_once('{') {
            let named = metrics.iter_mut().filter(|(name, _)| sample.starts_with(name.as_str()));
            let (_, metric) =
                named.max_by_key(|(name, _)| name.len()).expect("a sample has its metric before it");
            let labels = rest.split_once('}').expect("labels end").0;
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once("=\"").expect("a label has a value");
                if key != BUCKET {
                    let values = metric.labels.entry(key.to_owned()).or_default();
                    values.insert(value.trim_end_matches('"').to_owned());
                }
            }
        }
    }
    metrics
}

/// The flags of a program as a table, hidden ones left out.
///
/// # Panics
/// A flag has no long name.
pub fn flags_table(command: &Command) -> String {
    let mut table = String::from("| flag | default | meaning |\n|---|---|---|\n");
    let shown = |flag: &&clap::Arg| !flag.is_hide_set() && flag.get_action().takes_values();
    for flag in command.get_arguments().filter(shown) {
        let name = flag.get_long().expect("each flag has a long name");
        let values: Vec<_> =
            flag.get_value_names().into_iter().flatten().map(clap::builder::Str::as_str).collect();
        let default: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = default.join(",");
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let env = flag.get_env().map(|env| format!(". Environment: `{}`", env.to_string_lossy()));
        let env = env.unwrap_or_default();
        writeln!(table, "| `--{name}={}` | {default} | {help}{env} |", values.join(",")).expect(TO_STRING);
    }
    table
}

/// The name by which a query finds the samples of a metric: `OpenMetrics` adds an ending to some kinds. A histogram keeps its
/// name, because it has samples with three endings.
pub fn sample_name(name: &str, kind: &str) -> String {
    match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    }
}

/// Metrics as a table, by the names of their samples.
///
/// # Panics
/// Never: it writes to a `String`.
pub fn metrics_table(metrics: &BTreeMap<String, Metric>) -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for (name, Metric { kind, help, labels }) in metrics {
        let labels: Vec<_> = labels.keys().map(|label| format!("`{label}`")).collect();
        let sample = sample_name(name, kind);
        writeln!(table, "| `{sample}` | {kind} | {} | {help} |", labels.join(", ")).expect(TO_STRING);
    }
    table
}

/// Compares a page with the file of that name, or writes the file where `UPDATE_DOCS` is set; `package` is the crate
/// whose test this is.
///
/// # Panics
/// The file differs, or can't be written.
pub fn compare(file: &str, wanted: &str, package: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(file);
    if std::env::var_os(REWRITE_ENV).is_some() {
        std::fs::write(&path, wanted).expect("writes the page");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not up to date; run {REWRITE_ENV}=1 cargo test -p {package}",
        path.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_names_of_samples() {
        let exposition = "# HELP a_calls Calls.\n# TYPE a_calls counter\n# HELP b Build.\n# TYPE b info\n\
            # HELP c Time.\n# TYPE c histogram\n# HELP d Now.\n# TYPE d gauge\n";
        let table = metrics_table(&metrics(exposition));
        for row in ["| `a_calls_total` |", "| `b_info` |", "| `c` |", "| `d` |"] {
            assert!(table.contains(row), "{row}: {table}");
        }
    }

    #[test]
    fn samples_belong_to_the_longest_name_and_bounds_are_no_labels() {
        let exposition = "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total{code=\"200\",verb=\"get\"} 1\n\
            # HELP a_calls_seconds Time.\n# TYPE a_calls_seconds histogram\na_calls_seconds_bucket{verb=\"put\",le=\"1\"} 1\n";
        let read = metrics(exposition);
        let labels = |name: &str| read[name].labels.keys().cloned().collect::<Vec<_>>();
        assert_eq!(labels("a_calls"), ["code", "verb"]);
        assert_eq!(labels("a_calls_seconds"), ["verb"]);
        assert_eq!((read["a_calls"].kind.as_str(), read["a_calls"].help.as_str()), ("counter", "Calls"));
        assert!(read["a_calls_seconds"].labels["verb"].contains("put"));
    }
}
