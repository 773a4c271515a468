//! The commands of `bench`: what a person types, and what the bench calls itself with inside the sandbox.
//!
//! `demo`, `test`, `run` and `up` share one way: build what is missing with the machine's network, enter the sandbox, bring
//! everything up, reach the goal, end. They differ in the goal only.

mod checks;
pub mod conformance;
mod demo;
pub mod goal;
mod inside;
mod live;
mod outer;
mod rights;
mod summary;

use std::{ffi::OsString, path::PathBuf};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use goal::{Goal, Plan};

use crate::{artifact, bring_up::Options, report::Console, simulator::infra_pods};

/// Memory below which one worker is started instead of two: both API servers, KubeVirt and one worker need about 4 GiB.
const TWO_WORKERS_MEMORY_KIB: u64 = 7 * 1024 * 1024;

/// Real clusters, real virtual machines, on one machine.
#[derive(Debug, Parser)]
#[command(name = "bench", version, about)]
pub struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows one guest PVC reaching one pod, step by step.
    Demo(Choices),
    /// Proves everything: the end-to-end tests on the bench, the quick checks beside them; prints a table.
    Test {
        #[command(flatten)]
        choices: Choices,
        /// Run what is long by nature too, and all rows of each matrix.
        #[arg(long)]
        all: bool,
        /// Run only the end-to-end tests whose name contains this.
        filter: Option<String>,
    },
    /// Runs Kubernetes' own tests of a CSI driver ("External Storage") on the bench; prints a table of them.
    Conformance {
        #[command(flatten)]
        choices: Choices,
        /// Only the tests whose name this regular expression finds.
        focus: Option<String>,
    },
    /// Brings a bench up, runs a command inside it, takes it down; exits with the command's code.
    Run {
        #[command(flatten)]
        choices: Choices,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, required = true)]
        argv: Vec<String>,
    },
    /// Brings a bench up and leaves it in the background.
    Up(Choices),
    /// Opens a shell in the running bench, where `kubectl --context infra|tenant` works; or runs a command there.
    Shell {
        /// Program and arguments instead of a shell.
        #[arg(trailing_var_arg = true)]
        argv: Vec<String>,
    },
    /// Runs a command in a worker of the running bench.
    Worker {
        /// The worker: `worker-1`.
        name: String,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Shows the parts of the running bench with their memory.
    Status,
    /// Lists the logs of the newest bench, or prints one.
    Logs {
        /// The part, as `status` names it.
        part: Option<String>,
        /// Goes on printing.
        #[arg(short, long)]
        follow: bool,
    },
    /// Takes the running bench down.
    Down,
    /// Installs the Debian packages that the bench, and the tests of real disks, need; needs root if any is missing.
    Tools,
    /// Holds the audit logs of an earlier full run against the rights that the manifests grant, as `test` does at its end.
    #[command(hide = true)]
    Rights {
        /// The run folder.
        folder: PathBuf,
    },
    /// The quick checks of `test`, a process of their own.
    #[command(hide = true)]
    Checks {
        /// Beside what they run.
        beside: checks::Beside,
        /// The run folder.
        folder: PathBuf,
    },
    /// Enters the sandbox with the plan in a folder.
    #[command(hide = true)]
    Serve {
        /// The folder.
        folder: PathBuf,
    },
    /// The first process of a container of an infra pod.
    #[command(hide = true)]
    ContainerInit {
        /// What the container is.
        plan: PathBuf,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        argv: Vec<OsString>,
    },
    /// The bench itself, inside the sandbox.
    #[command(hide = true)]
    Inside {
        /// The run folder.
        run: PathBuf,
    },
    /// A command in a worker, asked inside the sandbox.
    #[command(hide = true)]
    WorkerInside {
        name: String,
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// The parts with their memory, asked inside the sandbox.
    #[command(hide = true)]
    StatusInside {
        /// Only the exit code.
        #[arg(long)]
        quiet: bool,
    },
}

/// What a person may choose about a bench.
#[derive(Args, Debug)]
struct Choices {
    /// Number of workers; default 2, or 1 where the machine has less than 7 GiB.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    workers: Option<u8>,
    /// KubeVirt feature gates, such as HotplugVolumes.
    #[arg(long = "gate")]
    gates: Vec<String>,
    /// Boot the workers' kernel instead of restoring the saved state.
    #[arg(long)]
    cold_boot: bool,
}

impl From<Choices> for Options {
    fn from(choices: Choices) -> Self {
        let enough = memory_kib().is_none_or(|memory| memory >= TWO_WORKERS_MEMORY_KIB);
        Self {
            workers: choices.workers.unwrap_or(if enough { 2 } else { 1 }),
            gates: choices.gates,
            cold_boot: choices.cold_boot,
        }
    }
}

impl Bench {
    /// Does what was asked; the value is the exit code.
    pub fn execute(self) -> Result<u8> {
        let console = Console::new();
        match self.command {
            Command::Demo(choices) => outer::reach(Goal::Demo, choices.into(), &console),
            Command::Test { choices, all, filter } => {
                outer::test(outer::Wanted { all, filter }, choices.into(), &console)
            }
            Command::Rights { folder } => runtime()?.block_on(rights::check_earlier(folder)).map(|()| 0),
            Command::Checks { beside, folder } => checks::run(beside, folder),
            Command::Conformance { choices, focus } => outer::conformance(focus, choices.into(), &console),
            Command::Run { choices, argv } => outer::reach(Goal::Command(argv), choices.into(), &console),
            Command::Up(choices) => live::up(choices.into(), &console),
            Command::Tools => runtime()?.block_on(artifact::ensure_host_tools(&console)).map(|()| 0),
            Command::Serve { folder } => outer::serve(&Plan::read(&folder)?),
            Command::Shell { argv } => live::shell(&argv),
            Command::Worker { name, argv } => live::worker(&name, &argv),
            Command::Status => live::status(),
            Command::Logs { part, follow } => live::logs(part.as_deref(), follow),
            Command::Down => live::down(&console),
            Command::ContainerInit { plan, argv } => match infra_pods::root::enter(&plan, &argv)? {},
            Command::Inside { run } => runtime()?.block_on(inside::run(run, &console)),
            Command::WorkerInside { name, argv } => runtime()?.block_on(inside::worker(&name, &argv)),
            Command::StatusInside { quiet } => runtime()?.block_on(inside::status(quiet)),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// `MemTotal` of `/proc/meminfo`.
fn memory_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find(|line| line.starts_with("MemTotal:"))?.split_whitespace().nth(1)?.parse().ok()
}
