//! The pages of `docs/reference`: a test of each program writes them of what the program registers, and compares them. For
//! tests: what is wrong is a panic that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Set it to write pages instead of comparing them.
const REWRITE_ENV: &str = "UPDATE_DOCS";
/// A bucket's bound is no label to choose by.
const BUCKET: &str = "le";

/// What an exposition says of one metric.
#[derive(Debug, Default)]
pub struct Metric {
    /// `counter`, `gauge`, `histogram` and so on.
    pub kind: String,
    /// Without the full stop at its end.
    pub help: String,
    /// Its labels, each with the values that were seen.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

/// Reads an exposition in the `OpenMetrics` text format, as `prometheus-client` writes it.
///
/// # Panics
/// It is none.
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

/// Compares a page with the file of that name, or writes it; `package` is whose test does it.
///
/// # Panics
/// The file is another one, or can't be written.
pub fn compare(file: &str, wanted: &str, package: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(file);
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
