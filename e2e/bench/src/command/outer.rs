//! Outside the sandbox: builds with the machine's network, then enters the sandbox and waits for its end.
//!
//! The sandbox must be entered by a process without other threads ([`sandbox::enter`]), so the runtime that builds is
//! dropped first.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use super::{
    checks::{Beside, Checks},
    conformance,
    goal::{Goal, Plan},
    inside, rights, summary,
};
use crate::{
    artifact::{self, Artifacts},
    bring_up::Options,
    paths,
    report::{Console, Figures, Progress, Timings},
    sandbox::{self, Claim},
};

/// Builds, enters the sandbox, reaches `goal`; the value is the exit code.
pub fn reach(goal: Goal, options: Options, console: &Console) -> Result<u8> {
    let claim = Claim::new()?;
    let timings = Timings::of_run(claim.run());
    let artifacts = build(console, &timings)?;
    let code = enter(claim, &Plan { goal, options, artifacts })?;
    summary::print_parts(&timings, console.elapsed())?;
    Ok(code)
}

/// Which of the end-to-end tests to run.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Those that are long by nature too, and all rows of each matrix.
    pub all: bool,
    /// Only those whose name contains this.
    pub filter: Option<String>,
}

/// The unit tests beside the builds, the end-to-end tests on a bench with the other quick checks beside them, then the table of all.
pub fn test(wanted: Wanted, options: Options, console: &Console) -> Result<u8> {
    let claim = Claim::new()?;
    let timings = Timings::of_run(claim.run());
    runtime()?.block_on(artifact::ensure_host_tools(console))?;
    let suite =
        runtime()?.block_on(timings.measure_async("build", "end-to-end tests", artifact::suite(console)))?;

    console.step("beside the builds: format, unit and property tests");
    let checks = Checks::start(claim.run(), Beside::Builds)?;
    let artifacts = build(console, &timings)?;
    console.step("waiting for the unit tests");
    checks.finish().context("the end-to-end tests were not begun")?;
    console.step("beside what follows: clippy, docs, licences");
    let checks = Checks::start(claim.run(), Beside::Tests)?;
    let full = wanted.filter.is_none();
    let (run, programs) = (claim.run().clone(), artifacts.programs.clone());
    let goal = Goal::Command(arguments(&suite, wanted));
    let mut code = enter(claim, &Plan { goal, options, artifacts })?;
    if code == inside::INTERRUPTED {
        return Ok(code);
    }
    if let Err(error) = checks.finish() {
        eprintln!("{error:#}");
        code = 1;
    }
    if full && code == 0 {
        let check = || runtime()?.block_on(rights::check(&run, &programs));
        if let Err(error) = timings.measure(summary::TESTS, rights::TEST, check) {
            eprintln!("{error:#}");
            code = 1;
        }
    }
    summary::print_parts(&timings, console.elapsed())?;
    summary::print_figures(&Figures::of_run(&run))?;
    summary::print_tests(&timings, code)?;
    Ok(code)
}

/// Kubernetes' own tests of a CSI driver on a bench, then their table. `focus` chooses among them.
pub fn conformance(focus: Option<String>, options: Options, console: &Console) -> Result<u8> {
    let claim = Claim::new()?;
    let timings = Timings::of_run(claim.run());
    runtime()?.block_on(artifact::ensure_host_tools(console))?;
    let suite =
        runtime()?.block_on(timings.measure_async("build", "end-to-end tests", artifact::suite(console)))?;
    let artifacts = build(console, &timings)?;
    let run = claim.run().clone();
    let focus = focus.map(|focus| format!("{}={focus}", conformance::FOCUS));
    let test = ["--ignored", "--exact", conformance::TEST].map(str::to_owned);
    let argv = std::iter::once("env".to_owned())
        .chain(focus)
        .chain([suite.display().to_string()])
        .chain(test)
        .collect();
    let code = enter(claim, &Plan { goal: Goal::Command(argv), options, artifacts })?;
    summary::print_parts(&timings, console.elapsed())?;
    println!("\nKubernetes' tests of storage\n\n{}", conformance::tables(run.root())?);
    Ok(code)
}

/// The command that runs the tests: libtest's command line.
fn arguments(suite: &Path, wanted: Wanted) -> Vec<String> {
    let long = wanted.all.then(|| "--include-ignored".to_owned());
    [suite.display().to_string()].into_iter().chain(long).chain(wanted.filter).collect()
}

/// Enters the sandbox with a plan made before; used by `bench up`, which builds where it can be watched.
pub fn serve(plan: &Plan) -> Result<u8> {
    enter(Claim::new()?, plan)
}

/// Builds everything, and notes where the time went.
pub fn build(console: &Console, timings: &Timings) -> Result<Artifacts> {
    let artifacts = runtime()?.block_on(artifact::build(console))?;
    for (stage, duration) in &artifacts.stages {
        timings.add("build", stage, *duration, "ok")?;
    }
    Ok(artifacts)
}

/// Dropped before the sandbox is entered.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn enter(claim: Claim, plan: &Plan) -> Result<u8> {
    let run = claim.run().root().to_path_buf();
    plan.write(&run)?;
    let program = paths::program()?;
    sandbox::enter(claim, &[program.into(), "inside".into(), run.into()])
}
