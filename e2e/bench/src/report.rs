//! What the bench prints: progress lines while it works, tables when it is done, and the seconds of each part.
//!
//! Everything goes to standard error except tables, which are the result of a command and go to standard output.

mod figures;
mod table;
mod timings;

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

pub use figures::{Figure, Figures};
pub use table::Table;
pub use timings::{PartTime, Timings};

/// Receives a line for each step of work that takes long.
pub trait Progress: Send + Sync {
    /// One line about what begins now or has been reached.
    fn step(&self, text: &str);
}

/// Progress lines on standard error, each with the seconds since the start.
#[derive(Debug)]
pub struct Console {
    started: Instant,
    last: Mutex<String>,
}

impl Console {
    /// A console whose clock starts now.
    pub fn new() -> Self {
        Self { started: Instant::now(), last: Mutex::default() }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Console {
    fn step(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != text {
            eprintln!("[{:7.1} s] {text}", self.started.elapsed().as_secs_f64());
            text.clone_into(&mut last);
        }
    }
}

/// Seconds with one decimal, or minutes where that reads better.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}

/// KiB as MiB with one decimal.
pub fn mebibytes(kib: u64) -> String {
    // A resident set below 2^53 KiB: the conversion to f64 is exact.
    #[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53 KiB")]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}
