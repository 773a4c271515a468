//! The inside of a running worker, through QEMU's guest agent over virtio-serial: run a program, write a file, set the
//! clock. The agent answers one command at a time and in order.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use qapi::{
    ExecuteError,
    futures::{QapiService, QgaStreamTokio},
    qga::{self, GuestExecCaptureOutput, QgaCommand},
};
use tokio::{io::WriteHalf, net::UnixStream, task::JoinHandle};

/// One agent command answers at once; the guest may be busy booting or starting pods on an emulated processor.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// The agent doesn't announce that a program has ended; it is asked this soon, then twice as late up to the most.
const FIRST_ASK: Duration = Duration::from_millis(5);
const LAST_ASK: Duration = Duration::from_millis(100);

/// Bytes of a file per message. Bigger messages only make the agent's JSON parser work longer at a stretch.
const CHUNK: usize = 1 << 20;

/// Where the worker's programs are.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

type Service = QapiService<QgaStreamTokio<WriteHalf<UnixStream>>>;

/// The worker's inside.
pub struct Guest {
    service: Arc<Service>,
    reader: JoinHandle<()>,
}

/// What a program in the guest left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it, as shells say.
    pub code: i64,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_string()
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("closed", &self.reader.is_finished()).finish_non_exhaustive()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Guest {
    /// Connects to the agent's socket and waits until the agent in the guest answers. Bytes wait in the socket until
    /// the agent opens its port, so one question is enough however long the boot takes.
    pub(super) async fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connect to the guest agent's socket")?;
        let (service, events) = QgaStreamTokio::open(stream).into_parts();
        let guest = Self { service: Arc::new(service), reader: events.spawn_tokio() };
        guest.answers(limit).await?;
        Ok(guest)
    }

    /// Waits until the agent answers, after each boot of the guest.
    pub(super) async fn answers(&self, limit: Duration) -> Result<()> {
        let id = i64::from(std::process::id());
        let synced = tokio::time::timeout(limit, self.execute(qga::guest_sync { id }))
            .await
            .with_context(|| format!("the guest agent did not answer within {} s", limit.as_secs()))??;
        ensure!(synced == id, "the guest agent answered another question");
        Ok(())
    }

    /// Runs a program and waits for its end; `argv[0]` is searched in the worker's PATH. Output beyond 16 MiB is an
    /// error. There is no time limit: put one around the call where the program may hang.
    pub async fn run(&self, argv: &[&str], stdin: Option<&[u8]>) -> Result<Output> {
        let capture = Some(GuestExecCaptureOutput::flag(true));
        let pid = self.exec(argv, stdin, capture).await?;
        let mut wait = FIRST_ASK;
        let ended = loop {
            let status = self.execute(qga::guest_exec_status { pid }).await?;
            if status.exited {
                break status;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_ASK);
        };
        let cut = ended.out_truncated == Some(true) || ended.err_truncated == Some(true);
        ensure!(!cut, "{} printed more than the guest agent keeps", argv.join(" "));
        let code = match (ended.exitcode, ended.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => bail!("the guest agent does not say how {} ended", argv.join(" ")),
        };
        let (stdout, stderr) = (ended.out_data.unwrap_or_default(), ended.err_data.unwrap_or_default());
        Ok(Output { code, stdout, stderr })
    }

    /// Like [`Guest::run`], but any exit code except 0 is an error that quotes standard error.
    pub async fn check(&self, argv: &[&str], stdin: Option<&[u8]>) -> Result<Output> {
        let output = self.run(argv, stdin).await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.code == 0,
            "in the guest, {} ended with {}: {}",
            argv.join(" "),
            output.code,
            stderr.trim()
        );
        Ok(output)
    }

    /// Starts a program in a session of its own, with its output appended to `log_path`; returns its process id.
    pub async fn spawn(&self, argv: &[&str], log_path: &str) -> Result<i64> {
        let script = r#"exec setsid "$@" >>"$0" 2>&1 </dev/null"#;
        let words: Vec<&str> = ["/bin/sh", "-c", script, log_path].iter().chain(argv).copied().collect();
        self.exec(&words, None, None).await
    }

    /// Writes a file by its absolute path, its parents included; `mode` in octal digits' value (`0o600`). The file appears whole or not at all.
    pub async fn write_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let part = format!("{path}.part");
        let begin = r#"mkdir -p "${1%/*}" && umask 077 && cat >"$1""#;
        let mut chunks = bytes.chunks(CHUNK);
        let first = chunks.next().unwrap_or_default();
        self.check(&["/bin/sh", "-c", begin, "sh", &part], Some(first)).await?;
        for chunk in chunks {
            self.check(&["/bin/sh", "-c", r#"cat >>"$1""#, "sh", &part], Some(chunk)).await?;
        }
        let end = r#"chmod "$3" "$1" && mv "$1" "$2""#;
        self.check(&["/bin/sh", "-c", end, "sh", &part, path, &format!("{mode:o}")], None).await?;
        Ok(())
    }

    /// Reads a file of at most 16 MiB.
    pub async fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.check(&["cat", path], None).await?.stdout)
    }

    /// What the kernel calls this boot; two guests restored from one saved state have the same.
    pub async fn boot_id(&self) -> Result<String> {
        Ok(self.check(&["cat", "/proc/sys/kernel/random/boot_id"], None).await?.text())
    }

    /// Sets the guest's clock.
    pub async fn set_time(&self, time: SystemTime) -> Result<()> {
        let since = time.duration_since(UNIX_EPOCH).context("a time before 1970")?;
        let time = Some(i64::try_from(since.as_nanos()).context("a time beyond 2262")?);
        self.execute(qga::guest_set_time { time }).await?;
        Ok(())
    }

    async fn exec(
        &self,
        argv: &[&str],
        stdin: Option<&[u8]>,
        capture_output: Option<GuestExecCaptureOutput>,
    ) -> Result<i64> {
        let (program, rest) = argv.split_first().context("an empty command")?;
        let command = qga::guest_exec {
            path: (*program).to_string(),
            arg: Some(rest.iter().map(|arg| (*arg).to_string()).collect()),
            env: Some(vec![PATH.into(), "HOME=/root".into()]),
            input_data: stdin.map(<[u8]>::to_vec),
            capture_output,
        };
        Ok(self.execute(command).await.with_context(|| format!("start {program} in the guest"))?.pid)
    }

    /// One agent command. It runs in a task of its own, so that a caller that gives up doesn't leave the next one with
    /// the wrong answer: the protocol matches answers by their order.
    async fn execute<C>(&self, command: C) -> Result<C::Ok>
    where
        C: QgaCommand + Send + 'static,
        C::Ok: Send + 'static,
    {
        let service = Arc::clone(&self.service);
        let answer = tokio::spawn(async move { service.execute(command).await });
        let answer = tokio::time::timeout(ANSWER_LIMIT, answer)
            .await
            .with_context(|| format!("the guest agent does not answer {}", C::NAME))?
            .context("the command's task ended")?;
        match answer {
            Ok(value) => Ok(value),
            Err(ExecuteError::Qapi(refusal)) => bail!("the guest agent refuses {}: {refusal}", C::NAME),
            Err(ExecuteError::Io(error)) => {
                Err(error).with_context(|| format!("send {} to the guest", C::NAME))
            }
        }
    }
}
