//! How the process ends when one of its tasks does: a real process, with its exit code and what it writes to stderr.
//!
//! Without a test harness, because the program under test is this file, started again with [`CASE`] in its environment.

use std::{
    convert::Infallible,
    env,
    future::pending,
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serving::{
    Shutdown, Tasks,
    program::{exit_code, run},
};

/// The environment variable that names what the started process does.
const CASE: &str = "SUPERVISED_CASE";
/// What the part of the program writes when it has drained.
const DRAINED: &str = "the other part has drained";
/// No case takes longer: each ends as soon as its task does.
const PATIENCE: Duration = Duration::from_secs(20);

/// A case and what its process must do: its exit is a success, and these texts are in its stderr.
const CASES: [(&str, bool, &[&str]); 4] = [
    ("panics", false, &["program: the poller panicked: no slot 3\n", DRAINED]),
    (
        "ends",
        false,
        &["program: the watch of Nodes ended although the program was not told to stop\n", DRAINED],
    ),
    ("part panics", false, &["program: the HTTPS endpoint panicked: no port\n", DRAINED]),
    // The program is stopped; a task that waits for ever does not delay the end.
    ("hangs", true, &[DRAINED]),
];

fn main() -> ExitCode {
    if let Ok(case) = env::var(CASE) {
        return exit_code("program", run(|shutdown| program(case, shutdown)));
    }
    for (case, succeeds, texts) in CASES {
        let began = Instant::now();
        let Output { status, stderr, .. } = process(case);
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.success(), succeeds, "{case}: {status}\n{stderr}");
        assert!(status.code().is_some(), "{case}: an exit, not a signal");
        for text in texts {
            assert!(stderr.contains(text), "{case}: {text:?} is not in\n{stderr}");
        }
        assert!(began.elapsed() < PATIENCE, "{case}");
        println!("{case}: ok");
    }
    ExitCode::SUCCESS
}

fn process(case: &str) -> Output {
    let this = env::current_exe().expect("has a path");
    let mut command = Command::new(this);
    command.env(CASE, case).stdout(Stdio::null()).stderr(Stdio::piped());
    command.output().expect("runs")
}

/// A program of one part and a few tasks.
#[expect(clippy::unused_async, reason = "a program starts with an async function")]
async fn program(case: String, shutdown: Shutdown) -> Result<(), Infallible> {
    let stop = shutdown.stopping();
    shutdown.spawn("the socket", async move {
        stop.cancelled().await;
        eprintln!("{DRAINED}");
        Ok::<(), Infallible>(())
    });
    let tasks: &Tasks = shutdown.tasks();
    tasks.spawn("the watch of VMs", pending());
    match &*case {
        "panics" => tasks.spawn_until_done("the poller", async { panic!("no slot {}", 3) }),
        "ends" => tasks.spawn("the watch of Nodes", async {}),
        "part panics" => {
            shutdown.spawn::<_, Infallible>("the HTTPS endpoint", async { panic!("no port") });
        }
        _ => kill(Pid::this(), Signal::SIGTERM).expect("signals itself"),
    }
    Ok(())
}
