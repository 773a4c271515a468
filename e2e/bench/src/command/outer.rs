//! Outside the sandbox: builds with the machine's network, then enters the sandbox and waits for its end.
//!
//! The sandbox must be entered by a process without other threads ([`sandbox::enter`]), so the runtime that builds is
//! dropped first.

use std::process::Command;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use super::{
    goal::{Goal, Plan},
    rights, summary,
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
    summary::print_parts(&timings)?;
    Ok(code)
}

/// The quick checks, then the end-to-end tests on a bench, then the table of both.
pub fn test(filter: Option<String>, options: Options, console: &Console) -> Result<u8> {
    let claim = Claim::new()?;
    let timings = Timings::of_run(claim.run());

    console.step("the quick checks: format, clippy, unit and property tests, docs, licences (make check)");
    timings.measure("checks", "make check", || run_to_success("make", &["--no-print-directory", "check"]))?;
    let artifacts = build(console, &timings)?;
    console.step("building the end-to-end tests");
    let compile =
        || run_to_success("cargo", &["test", "--locked", "--workspace", "--test", "suite", "--no-run"]);
    timings.measure("build", "end-to-end tests", compile)?;

    let mut argv: Vec<String> = ["cargo", "test", "--locked", "--offline", "--workspace", "--test", "suite"]
        .map(str::to_owned)
        .into();
    let full = filter.is_none();
    if let Some(filter) = filter {
        argv.extend(["--".to_owned(), filter]);
    }
    let (run, programs) = (claim.run().clone(), artifacts.programs.clone());
    let mut code = enter(claim, &Plan { goal: Goal::Command(argv), options, artifacts })?;
    if full && code == 0 {
        let check = || runtime()?.block_on(rights::check(&run, &programs));
        if let Err(error) = timings.measure(summary::TESTS, rights::TEST, check) {
            eprintln!("{error:#}");
            code = 1;
        }
    }
    summary::print_parts(&timings)?;
    summary::print_figures(&Figures::of_run(&run))?;
    summary::print_tests(&timings, code)?;
    Ok(code)
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

/// Runs a program in the repository; its output goes where ours goes.
fn run_to_success(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(paths::repository());
    let status = command.status().with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
