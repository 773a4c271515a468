//! Child processes: an argument array, `LC_ALL=C`, no input, the least rights, a time limit, and their output in the result.

use std::{
    io::{self, Read},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    error::{Error, Result},
    filesystem::Tool,
    linux::confinement::Confinement,
};

/// blkid reads a few MiB.
pub const PROBE_LIMIT: Duration = Duration::from_mins(1);
/// mkfs without discard and with lazy tables writes some hundred MiB at most.
pub const FORMAT_LIMIT: Duration = Duration::from_mins(15);
/// A full e2fsck of many TiB takes long, and one that is always killed early never completes.
pub const CHECK_LIMIT: Duration = Duration::from_hours(2);
/// Growing writes the tables of the new groups.
pub const GROW_LIMIT: Duration = Duration::from_mins(30);

/// Longest output of a program in an error text, in characters; gRPC statuses travel in a header.
const SPOKEN_CHARS: usize = 1500;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// How it ended, as text.
    pub status: String,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Ended {
    /// Its output, standard error first, on one line and of bounded length.
    pub fn spoken(&self) -> String {
        let all = format!("{} {}", self.errors, self.output);
        let line = all.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(SPOKEN_CHARS).collect()
    }
}

/// A child process that does not outlive the one who waits for it: if that thread panics, or was never started, the child
/// is killed, and waited for, before anything learns of it. It could write to the disk after the volume's lock is gone.
struct Waited(Child);

impl Waited {
    /// Reads all that it prints, then waits for its end, also when a read fails.
    fn output(&mut self) -> io::Result<Output> {
        let (out, errors) = (self.0.stdout.take(), self.0.stderr.take());
        // Both at once: a program that fills one pipe waits until it is read.
        let (stdout, stderr) = thread::scope(|scope| {
            let errors = scope.spawn(|| read_all(errors));
            (read_all(out), errors.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked"))))
        });
        let status = self.0.wait()?;
        Ok(Output { status, stdout: stdout?, stderr: stderr? })
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        // Nothing happens to one that was waited for: the standard library keeps its status, and does not signal its
        // number, which may be another process's.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn read_all(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// What the thread that starts a program and waits for it reports.
enum Report {
    /// It runs, with this number.
    Started(u32),
    /// It could not be started, or not be confined.
    NotStarted(io::Error),
    /// It ended.
    Ended(io::Result<Output>),
}

/// Starts a program in the calling thread, which is confined for it.
fn start(mut command: Command, confinement: Confinement) -> io::Result<Waited> {
    confinement.enter()?;
    let child = Waited(command.spawn()?);
    confinement.bound(&child.0)?;
    Ok(child)
}

/// Runs a program to its end, on the disk called `name`.
///
/// After `limit` it is killed. A program that even then does not end (its disk hangs in the kernel) is waited for
/// without limit: it may still write, so the caller must keep the volume's lock.
pub fn run(tool: &Tool, name: &str, limit: Duration) -> Result<Ended> {
    let cannot_start = |source: io::Error| Error::Act { action: format!("run {}", tool.program), source };
    let mut command = Command::new(tool.program);
    command.args(&tool.arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let confinement = Confinement::of(tool.program);
    let (sender, receiver) = channel::<Report>();
    let waiter = thread::Builder::new().name(format!("wait-{}", tool.program)).spawn(move || {
        // If this panics, the child is killed first, and then the receiver learns of it: the sender is dropped last. The
        // receiver waits until it has the answer.
        let sender = sender;
        match start(command, confinement) {
            Err(error) => drop(sender.send(Report::NotStarted(error))),
            Ok(mut child) => {
                drop(sender.send(Report::Started(child.0.id())));
                drop(sender.send(Report::Ended(child.output())));
            }
        }
    });
    waiter.map_err(cannot_start)?;
    let lost = || Error::JobLost;
    let pid = match receiver.recv().map_err(|_| lost())? {
        Report::Started(pid) => pid,
        Report::NotStarted(error) => return Err(cannot_start(error)),
        Report::Ended(_) => return Err(lost()),
    };
    let answer = match receiver.recv_timeout(limit) {
        Ok(Report::Ended(answer)) => answer,
        Ok(Report::Started(_) | Report::NotStarted(_)) | Err(RecvTimeoutError::Disconnected) => {
            return Err(lost());
        }
        Err(RecvTimeoutError::Timeout) => {
            tracing::warn!(
                tool = tool.program,
                disk = name,
                limit_s = limit.as_secs(),
                "killing a program that takes too long"
            );
            // ESRCH: it ended just now.
            i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).ok()).ok();
            drop(receiver.recv().map_err(|_| lost())?);
            return Err(Error::ToolTimedOut { tool: tool.program, name: name.to_owned(), limit });
        }
    };
    let output = answer.map_err(Error::observe(format!("wait for {}", tool.program)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ended = Ended {
        code: output.status.code(),
        status: output.status.to_string(),
        output: text(&output.stdout),
        errors: text(&output.stderr),
    };
    tracing::debug!(
        tool = tool.program,
        disk = name,
        status = ended.status,
        said = ended.spoken(),
        "a program ended"
    );
    Ok(ended)
}

/// Runs a program that must end with 0.
pub fn run_successfully(tool: &Tool, name: &str, limit: Duration) -> Result<()> {
    let ended = run(tool, name, limit)?;
    if ended.code == Some(0) {
        return Ok(());
    }
    Err(Error::ToolFailed {
        tool: tool.program,
        name: name.to_owned(),
        status: ended.status.clone(),
        stderr: ended.spoken(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tool {
        Tool { program: "sh", arguments: vec!["-c".into(), script.into()] }
    }

    #[test]
    fn a_failing_program_brings_its_words() {
        let error =
            run_successfully(&shell("echo out; echo  'no such' disk >&2; exit 3"), "sda", FORMAT_LIMIT);
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "sh on sda failed with exit status: 3: no such disk out");
    }

    #[test]
    fn a_program_speaks_plain_english_and_gets_no_input() {
        let ended = run(&shell("echo $LC_ALL; cat"), "sda", FORMAT_LIMIT).unwrap();
        assert_eq!((ended.code, ended.output.as_str()), (Some(0), "C\n"));
    }

    #[test]
    fn a_program_has_bounded_memory_and_leaves_no_image_of_it() {
        // The limits are set just after the start.
        let script =
            "until [ \"$(ulimit -v)\" != unlimited ] && [ \"$(ulimit -c)\" = 0 ]; do :; done; ulimit -v";
        let ended = run(&shell(script), "sda", FORMAT_LIMIT).unwrap();
        let kib: u64 = ended.output.trim().parse().unwrap();
        assert_eq!(kib << 10, Confinement::of("sh").memory());
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed_and_reaped() {
        let limit = Duration::from_millis(50);
        let error = run(&shell("exec sleep 600"), "sda", limit).unwrap_err();
        assert!(matches!(error, Error::ToolTimedOut { tool: "sh", .. }), "{error:?}");
    }

    #[test]
    fn a_program_is_killed_when_the_one_who_waits_for_it_panics() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, None).unwrap();
        let waiter = thread::spawn(move || {
            let _child = Waited(child);
            panic!("on purpose");
        });
        assert!(waiter.join().is_err());
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH), "it was reaped");
    }

    #[test]
    fn both_outputs_are_read_however_long_they_are() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789 >&2; i=$((i+1)); done; echo end";
        let ended = run(&shell(script), "sda", FORMAT_LIMIT).unwrap();
        assert_eq!((ended.output.as_str(), ended.errors.len()), ("end\n", 3000 * 41));
    }

    #[test]
    fn a_missing_program_is_named() {
        let tool = Tool { program: "mkfs.none", arguments: Vec::new() };
        assert!(run(&tool, "sda", PROBE_LIMIT).unwrap_err().chain().starts_with("cannot run mkfs.none: "));
    }
}
