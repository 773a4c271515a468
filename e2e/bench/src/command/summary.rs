//! The tables at the end of a run: where the time went; what ran, what was skipped and why.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use crate::report::{Figures, PartTime, Table, Timings, human};

/// The group of the end-to-end tests in the timings.
pub const TESTS: &str = "tests";

/// Prints each part but the single tests, the sum of each group, and how long all of it took.
pub fn print_parts(timings: &Timings, all: Duration) -> Result<()> {
    let parts = timings.read()?;
    let mut table = Table::new(["group", "part", "time", "result"]);
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for part in &parts {
        *sums.entry(part.group.clone()).or_default() += part.seconds;
        if part.group != TESTS {
            table.row([part.group.clone(), part.name.clone(), seconds(part.seconds), part.result.clone()]);
        }
    }
    for (group, sum) in sums {
        table.row([group, "(sum of its parts)".to_owned(), seconds(sum)]);
    }
    table.row(["all".to_owned(), "(from begin to end)".to_owned(), human(all)]);
    println!("\nWhere the time went\n\n{table}");
    Ok(())
}

/// Prints what the tests measured, if they did.
pub fn print_figures(figures: &Figures) -> Result<()> {
    let table = figures.table()?;
    if !table.is_empty() {
        println!("\nFigures\n\n{table}");
    }
    Ok(())
}

/// Prints each end-to-end test, the longest first, and the closing line.
pub fn print_tests(timings: &Timings, code: u8) -> Result<()> {
    let parts = timings.read()?;
    let mut tests: Vec<&PartTime> = parts.iter().filter(|part| part.group == TESTS).collect();
    tests.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    let mut table = Table::new(["end-to-end test", "result", "time"]);
    for test in &tests {
        table.row([test.name.clone(), test.result.clone(), seconds(test.seconds)]);
    }
    println!("\nWhat ran on the bench\n\n{table}");
    let count = |wanted: &str| tests.iter().filter(|test| test.result.starts_with(wanted)).count();
    if code != 0 {
        println!("the run failed with code {code}");
    }
    println!("{} passed, {} failed, {} skipped", count("ok"), count("failed"), count("skipped"));
    Ok(())
}

fn seconds(seconds: f64) -> String {
    human(Duration::from_secs_f64(seconds.max(0.0)))
}
