//! How a test is registered: each module has a list of its own, and a test is called by its module and its function.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::Result;
use bench::control::{Lock, RUN_VARIABLE};
use libtest_mimic::{Failed, Trial};

use crate::fixture::Fixture;

/// The group of the tests in the run's timings.
const GROUP: &str = "tests";

/// Makes `trials()` of a module from the names of its functions, grouped by what of the bench they have (`Lock`). A group whose
/// lock is followed by `long` is of the long list: its tests run only where all were asked for.
macro_rules! tests {
    ($($lock:ident $(, $long:ident)?: $($test:ident),+ $(,)?;)+) => {
        /// The tests of this module.
        pub fn trials() -> Vec<libtest_mimic::Trial> {
            let mut all = Vec::new();
            $(
                let group = vec![$($crate::trial::trial(
                    $crate::trial::name(module_path!(), stringify!($test)),
                    bench::control::Lock::$lock,
                    $test,
                )),+];
                $(let group = $crate::trial::$long(group);)?
                all.extend(group);
            )+
            all
        }
    };
}

/// Tests of the long list: libtest calls them ignored, and runs them with `--include-ignored`.
pub fn long(group: Vec<Trial>) -> Vec<Trial> {
    group.into_iter().map(|trial| trial.with_ignored_flag(true)).collect()
}

/// The reported name: the top module of the test, and its function. A module inside it does not show.
pub fn name(module: &str, function: &str) -> String {
    let top = module.split("::").nth(1).unwrap_or(module);
    format!("{top}::{function}")
}

/// A test that runs with a fixture. Its time and its result go into the run's table.
pub fn trial<F>(
    name: impl Into<String>,
    lock: Lock,
    body: impl FnOnce(Fixture) -> F + Send + 'static,
) -> Trial
where
    F: Future<Output = Result<()>>,
{
    static PLACES: AtomicU32 = AtomicU32::new(0);
    let (name, place) = (name.into(), PLACES.fetch_add(1, Ordering::Relaxed));
    Trial::test(name.clone(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let fixture = Fixture::new(&name, lock, place).await.map_err(|error| failed(&name, &error))?;
            let (timings, started) = (fixture.timings.clone(), Instant::now());
            let result = body(fixture).await;
            let word = if result.is_ok() { "ok" } else { "failed" };
            timings.add(GROUP, &name, started.elapsed(), word).map_err(|error| failed(&name, &error))?;
            result.map_err(|error| failed(&name, &error))
        })
    })
}

/// Prints the failure at once, because the harness prints it at the end of all tests only.
fn failed(name: &str, error: &anyhow::Error) -> Failed {
    let text = report(name, &format!("{error:#}"), std::env::var(RUN_VARIABLE).ok().as_deref());
    eprintln!("{text}");
    Failed::from(text)
}

/// One line with what was expected and seen, and where the logs are. More lines of the error, such as the end of a log, follow.
fn report(name: &str, error: &str, run: Option<&str>) -> String {
    let (first, rest) = error.split_once('\n').unwrap_or((error, ""));
    let logs = run.map_or_else(|| "none, because no bench runs".to_owned(), |run| format!("{run}/logs"));
    let more = if rest.is_empty() { String::new() } else { format!("\n{rest}") };
    format!("FAILED {name}: {first}; logs: {logs}{more}")
}
