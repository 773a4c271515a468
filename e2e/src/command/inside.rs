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

use super::goal::{Goal, Plan};
use crate::{
    bring_up::{self, Bench},
    control,
    paths::{self, Run},
    report::{Console, Progress, Table, Timings, human, mebibytes},
    scenario::{HCP_NAMESPACE, STORAGE_CLASS, SixSteps, Step},
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
const INTERRUPTED: u8 = 130;

async fn reach(bench: &Arc<Bench>, goal: Goal, console: &Console) -> Result<u8> {
    match goal {
        Goal::Demo => Box::pin(demo(bench, console)).await.map(|()| 0),
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

/// Shows the six steps as they come, then the chain.
async fn demo(bench: &Arc<Bench>, console: &Console) -> Result<()> {
    let workers = bench.workers();
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    let flow = SixSteps {
        infra: bench.clusters.infra.client.clone(),
        guest: bench.clusters.tenant.client.clone(),
        namespace: "default",
        name: "demo",
        storage_class: STORAGE_CLASS,
        first_worker: &first.name,
        second_worker: &last.name,
    };
    println!("\nOne guest PVC reaches one pod (seconds since the claim was created)\n");
    let steps = flow.run(&|step, detail, at| println!("  {:>6}  {:<52}  {detail}", human(at), title(step)));
    let chain = Box::pin(steps).await?;
    println!("\nThe chain, while the first pod ran\n\n{chain}");
    println!("Memory of each part\n\n{}", memory(bench));
    console.step(&format!("every step was seen; logs: {}", bench.run.logs().display()));
    let bench = paths::program()?;
    let bench = bench.strip_prefix(paths::repository()).unwrap_or(&bench).display();
    println!(
        "To look around: `{bench} up` brings a bench up that stays, `{bench} shell` opens a shell in it, where\n\
         `kubectl --context infra -n {HCP_NAMESPACE} get vmi,dv,pvc` and `kubectl --context tenant get pods,pvc,pv,volumeattachments`\n\
         work; `{bench} worker worker-1 -- lsblk` looks into a worker, `{bench} logs` lists the logs, `{bench} down` ends it."
    );
    Ok(())
}

fn title(step: Step) -> &'static str {
    match step {
        Step::GuestClaim => "1  a PersistentVolumeClaim in the guest",
        Step::DataVolume => "2  a DataVolume in infra mirrors it",
        Step::InfraVolume => "3  infra storage provisioned a PersistentVolume",
        Step::Hotplug => "4  the disk is plugged into the worker's VM, Ready",
        Step::GuestVolume => "5  the guest's PersistentVolume is bound",
        Step::FirstPod => "6  a pod in the VM wrote a file",
        Step::Unplugged => "   the pod is gone, the disk unplugged",
        Step::SecondPod => "   a new pod read the file",
        Step::Deleted => "   the claim is deleted, infra is clean",
    }
}

fn memory(bench: &Bench) -> Table {
    let mut table = Table::new(["part", "resident"]);
    let mut total = 0;
    for part in bench.supervisor.list() {
        let rss = part.rss_kib.unwrap_or_default();
        total += rss;
        table.row([part.name, mebibytes(rss)]);
    }
    table.row(["all".to_owned(), mebibytes(total)]);
    table
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
