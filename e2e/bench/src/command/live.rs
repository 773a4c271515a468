//! A bench that stays: up, shell, status, logs, down.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::{
    goal::{Goal, Plan},
    outer,
};
use crate::{
    bring_up::Options,
    control,
    paths::{self, Run},
    report::{Console, Progress, Timings},
    sandbox::{self, RunningBench},
};

/// How long a bench may take to come up in the background: a first boot also makes the workers' saved state.
const UP_DEADLINE: Duration = Duration::from_mins(10);

/// How long a bench may take to end.
const DOWN_DEADLINE: Duration = Duration::from_secs(30);

/// How often both are checked.
const INTERVAL: Duration = Duration::from_millis(200);

/// The output of the bench in the background, in the cache folder.
const OUTPUT: &str = "up.log";

/// Brings a bench up in the background; returns when it serves.
pub fn up(options: Options, console: &Console) -> Result<u8> {
    let cache = paths::cache()?;
    let folder = cache.join("up");
    let artifacts = outer::build(console, &Timings::of_run(&Run::open(folder.clone())?))?;
    Plan { goal: Goal::Serve, options, artifacts }.write(&folder)?;
    let others = sandbox::find_running()?;
    let output = cache.join(OUTPUT);
    let log = File::create(&output).with_context(|| format!("create {}", output.display()))?;
    let mut command = Command::new(paths::program()?);
    // Not of the terminal's foreground group: an interruption there must not end the bench.
    let mut child = command
        .arg("serve")
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the bench in the background")?;
    console.step(&format!("booting in the background; its output: {}", output.display()));
    let started = Instant::now();
    while started.elapsed() < UP_DEADLINE {
        if let Some(status) = child.try_wait()? {
            bail!("the bench ended with {status}:\n{}", fs::read_to_string(&output)?);
        }
        let running = sandbox::find_running()?;
        let own =
            running.iter().find(|bench| !others.iter().any(|other| other.run.root() == bench.run.root()));
        if let Some(bench) = own
            && ask(bench, &["status-inside", "--quiet"])? == 0
        {
            console.step("the bench is up: `bench shell`, `bench status`, `bench logs`, `bench down`");
            return Ok(0);
        }
        std::thread::sleep(INTERVAL);
    }
    bail!("the bench did not come up within {} s: {}", UP_DEADLINE.as_secs(), output.display())
}

/// Opens a shell, or runs `argv`, inside the newest running bench.
pub fn shell(argv: &[String]) -> Result<u8> {
    let bench = newest()?;
    let argv: Vec<OsString> = if argv.is_empty() {
        vec![std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())]
    } else {
        argv.iter().map(OsString::from).collect()
    };
    let programs = Plan::read(bench.run.root())?.artifacts.programs;
    let kubectl = programs.path("kubectl")?.parent().context("kubectl has no folder")?;
    let mut path = kubectl.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let kubeconfig = paths::kubeconfig();
    let environment: [(&str, &OsStr); 3] = [
        ("KUBECONFIG", kubeconfig.as_os_str()),
        ("PATH", &path),
        (control::RUN_VARIABLE, bench.run.root().as_os_str()),
    ];
    bench.exec(&argv, &environment)
}

/// Runs a command in a worker of the newest running bench; exits with its code.
pub fn worker(name: &str, argv: &[String]) -> Result<u8> {
    let mut arguments = vec!["worker-inside", name, "--"];
    arguments.extend(argv.iter().map(String::as_str));
    ask(&newest()?, &arguments)
}

/// The parts of the newest running bench.
pub fn status() -> Result<u8> {
    let bench = newest()?;
    println!("run folder: {}", bench.run.root().display());
    ask(&bench, &["status-inside"])
}

/// Lists the logs of the newest bench, running or not, or prints one.
pub fn logs(part: Option<&str>, follow: bool) -> Result<u8> {
    let folder = sandbox::newest_run()?.context("no bench has run yet: `bench up` starts one")?.logs();
    let Some(part) = part else {
        let mut names: Vec<PathBuf> =
            fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        names.sort();
        println!("{}", folder.display());
        for name in names.iter().filter_map(|path| path.file_name()) {
            println!("  {}", name.display());
        }
        return Ok(0);
    };
    let file = folder.join(format!("{}.log", part.trim_end_matches(".log")));
    if !file.exists() {
        bail!("{} does not exist; `bench logs` lists the parts", file.display());
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", "+1"]).args(follow.then_some("-F")).arg(&file);
    Err(tail.exec()).context("run tail")
}

/// Ends every running bench of this user.
pub fn down(console: &Console) -> Result<u8> {
    let running = sandbox::find_running()?;
    if running.is_empty() {
        bail!("no bench is running");
    }
    for bench in &running {
        console.step(&format!("ending {}", bench.run.root().display()));
        kill(bench.init, Signal::SIGTERM).context("end the bench")?;
    }
    let started = Instant::now();
    while !sandbox::find_running()?.is_empty() {
        if started.elapsed() > DOWN_DEADLINE {
            bail!("a bench still runs after {} s", DOWN_DEADLINE.as_secs());
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(0)
}

/// Runs this program with `arguments` inside the bench.
fn ask(bench: &RunningBench, arguments: &[&str]) -> Result<u8> {
    let argv: Vec<OsString> = std::iter::once(paths::program()?.into_os_string())
        .chain(arguments.iter().map(OsString::from))
        .collect();
    bench.exec(&argv, &[])
}

fn newest() -> Result<RunningBench> {
    sandbox::find_running()?.pop().context("no bench is running: `bench up` starts one")
}
