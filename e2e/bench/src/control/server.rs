//! The answering side, a task of the running bench.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{
    protocol::{Answer, CommandOutput, PartStatus, Request, socket},
    turns::{Limits, Lock, Turn, Turns},
};
use crate::{
    bring_up::{Bench, FaultGuard},
    supervise::ProcessStatus,
    vm::Disk,
};

/// Answers until the task is dropped.
///
/// # Errors
/// When the socket can't be bound.
pub async fn serve(bench: Arc<Bench>) -> Result<()> {
    let path = socket();
    let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = bench.workers().len().min(processors).max(1);
    let turns = Turns::new(Limits { workers, sharing: (processors / 2).max(1) });
    loop {
        let (stream, _) = listener.accept().await.context("accept on the control socket")?;
        let connection = Connection {
            bench: bench.clone(),
            turns: turns.clone(),
            turn: None,
            faults: Vec::new(),
            disks: Vec::new(),
        };
        tokio::spawn(connection.serve(stream));
    }
}

/// One connection and what it was given.
struct Connection {
    bench: Arc<Bench>,
    turns: Turns,
    /// Held for its Drop.
    turn: Option<Turn>,
    faults: Vec<FaultGuard>,
    /// Its own disks: machine and name.
    disks: Vec<(String, String)>,
}

impl Connection {
    async fn serve(mut self, stream: UnixStream) {
        self.answer_all(stream).await;
        for (machine, name) in std::mem::take(&mut self.disks) {
            if let Err(error) = self.unplug(&machine, &name).await {
                tracing::warn!(machine, name, error = format!("{error:#}"), "a test's disk stays plugged");
            }
        }
    }

    async fn answer_all(&mut self, stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        // A read error is a closed connection: what it held is dropped either way.
        while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            let answer = match serde_json::from_str(&line) {
                Ok(request) => {
                    self.answer(request).await.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")))
                }
                Err(error) => Answer::Failed(format!("not a request: {error}")),
            };
            line.clear();
            let text = serde_json::to_string(&answer).expect("an answer is plain data") + "\n";
            if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Result<Answer> {
        match request {
            Request::Status => return Ok(Answer::Status(self.status())),
            Request::Lock { lock, place } => {
                let worker = self.take_turn(lock, place).await;
                let named = worker.and_then(|index| self.bench.workers().into_iter().nth(index));
                return Ok(Answer::Turn { worker: named.map(|worker| worker.name) });
            }
            Request::Fault(fault) => self.faults.push(self.bench.faults.inject(fault)),
            Request::Run { worker, argv, stdin } => return self.run(&worker, &argv, stdin.as_deref()).await,
            Request::Spawn { worker, argv, log } => {
                let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
                let machine = self.bench.machine(&worker)?;
                machine.guest().context("no guest agent")?.spawn(&argv, &log).await?;
            }
            Request::PlugDisk { machine, disk } => self.plug(machine, disk).await?,
            Request::UnplugDisk { machine, name } => self.unplug(&machine, &name).await?,
            Request::Reset { worker } => self.bench.reset_worker(&worker).await?,
            Request::SetDiskFaults { machine, name, faults } => {
                self.bench.machine(&machine)?.set_disk_faults(&name, &faults).await?;
            }
            Request::Plugged { machine } => {
                return Ok(Answer::Names(self.bench.machine(&machine)?.plugged()));
            }
            Request::Workers => {
                return Ok(Answer::Names(
                    self.bench.workers().into_iter().map(|worker| worker.name).collect(),
                ));
            }
        }
        Ok(Answer::Done)
    }

    async fn plug(&mut self, machine: String, disk: Disk) -> Result<()> {
        let disk = Disk { by_test: true, ..disk };
        self.bench.machine(&machine)?.plug(&disk).await?;
        self.disks.push((machine, disk.name));
        Ok(())
    }

    async fn unplug(&mut self, machine: &str, name: &str) -> Result<()> {
        self.bench.machine(machine)?.unplug(name).await?;
        self.disks.retain(|(of, known)| of != machine || known != name);
        Ok(())
    }

    /// The value is the worker that is this connection's alone, counted from zero.
    async fn take_turn(&mut self, lock: Lock, place: u32) -> Option<usize> {
        // The old turn first: a connection that asks twice must not wait for itself.
        self.turn = None;
        self.turn.insert(self.turns.take(lock, place).await).worker()
    }

    async fn run(&self, worker: &str, argv: &[String], stdin: Option<&str>) -> Result<Answer> {
        let machine = self.bench.machine(worker)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let output = machine.guest().context("no guest agent")?.run(&argv, stdin.map(str::as_bytes)).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer::Output(CommandOutput {
            code: output.code,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }))
    }

    fn status(&self) -> Vec<PartStatus> {
        let part =
            |part: ProcessStatus| Some(PartStatus { name: part.name, pid: part.pid, rss_kib: part.rss_kib? });
        self.bench.supervisor.list().into_iter().filter_map(part).collect()
    }
}
