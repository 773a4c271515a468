//! Inside the sandbox: brings the bench up, reaches the goal, takes it down.

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

use super::{
    demo,
    goal::{Goal, Plan},
};
use crate::{
    bring_up::{self, Bench},
    control,
    paths::{self, Run},
    report::{Console, Progress, Table, Timings, mebibytes},
};

/// How long parts may take to end on SIGTERM. Their namespaces end right after, so this is only for tidy logs.
const GRACE: Duration = Duration::from_secs(3);

/// Brings up the bench that the plan in `run` asks for, and reaches its goal; the value is the exit code.
pub async fn run(run: PathBuf, console: &Console) -> Result<u8> {
    let run = Run::open(run)?;
    log_to(&run)?;
    let plan = Plan::read(run.root())?;
    let timings = Timings::of_run(&run);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = async {
        let booting = bring_up::bring_up(run.clone(), plan.artifacts, plan.options, console, &timings);
        let bench = Box::pin(booting).await?;
        // The server ends with this process.
        let server = tokio::spawn(control::serve(bench.clone()));
        let code = tokio::select! {
            code = Box::pin(reach(&bench, plan.goal, console)) => code,
            error = bench.control_plane_fails() => Err(error),
        };
        server.abort();
        bench.supervisor.stop_all(GRACE).await;
        code
    };
    tokio::select! {
        code = work => code.with_context(|| format!("the logs are in {}", run.logs().display())),
        _ = terminate.recv() => Ok(INTERRUPTED),
        _ = interrupt.recv() => Ok(INTERRUPTED),
    }
}

/// What the bench itself and its simulators have to say goes to a file beside the parts' logs.
fn log_to(run: &Run) -> Result<()> {
    let path = run.logs().join("bench.log");
    let file = File::options().create(true).append(true).open(&path);
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn")),
        )
        .with_writer(Mutex::new(file.with_context(|| format!("open {}", path.display()))?))
        .init();
    Ok(())
}

/// Exit code of an interrupted bench (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

async fn reach(bench: &Arc<Bench>, goal: Goal, console: &Console) -> Result<u8> {
    match goal {
        Goal::Demo => Box::pin(demo::show(bench, console)).await.map(|()| 0),
        Goal::Command(argv) => command(bench, &argv).await,
        Goal::Serve => {
            console.step("serving; `bench shell` opens a shell, `bench down` ends it");
            std::future::pending().await
        }
    }
}

async fn command(bench: &Bench, argv: &[String]) -> Result<u8> {
    let (program, arguments) = argv.split_first().context("no command")?;
    let status = Command::new(program)
        .args(arguments)
        .current_dir(paths::repository())
        .env("KUBECONFIG", paths::kubeconfig())
        .env(control::RUN_VARIABLE, bench.run.root())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("run {program}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Prints the parts that run, asked of the bench of this sandbox; `quiet` only asks.
pub async fn status(quiet: bool) -> Result<u8> {
    let asked = async {
        let client = control::Client::connect().await?;
        anyhow::Ok((client.status().await?, client.workers().await?))
    };
    let (parts, workers) = match asked.await {
        Ok(answers) => answers,
        Err(_) if quiet => return Ok(1),
        Err(error) => return Err(error),
    };
    if !quiet {
        let mut table = Table::new(["part", "pid inside", "resident"]);
        for part in parts {
            table.row([part.name, part.pid.to_string(), mebibytes(part.rss_kib)]);
        }
        println!("workers: {}\n\n{table}", workers.join(", "));
    }
    Ok(0)
}

/// Runs a command in a worker, through the bench of this sandbox; the value is its exit code.
pub async fn worker(name: &str, argv: &[String]) -> Result<u8> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = control::Client::connect().await?.run(name, &argv).await?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    Ok(u8::try_from(output.code).unwrap_or(1))
}
