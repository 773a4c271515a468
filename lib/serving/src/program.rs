//! The life of a program, from the runtime to the exit code.

use std::{error::Error, future::Future, process::ExitCode};

use crate::shutdown::{DRAIN_BOUND, Shutdown};

type BoxError = Box<dyn Error + Send + Sync>;

/// Runs a program on one thread: `start` spawns its parts and its other tasks, then the program goes on until a signal
/// or a failed task stops it.
///
/// # Errors
/// `start` failed, a task failed, panicked or ended too early, or the program did not drain in time.
pub fn run<F, E>(start: impl FnOnce(Shutdown) -> F) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    // One thread for everything that waits; blocking work has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        start(shutdown.clone()).await.map_err(Into::into)?;
        Ok(shutdown.drained(DRAIN_BOUND).await?)
    });
    // A system call that hangs must not hold up the end of the process.
    runtime.shutdown_background();
    ended
}

/// The exit code of the program `name`; an error is written to stderr, because the log may not be set up yet.
pub fn exit_code(name: &str, ended: Result<(), impl Into<BoxError>>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", crate::chain(&*error.into()));
            ExitCode::FAILURE
        }
    }
}
