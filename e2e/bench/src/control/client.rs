//! The asking side: a blocking-free client that tests hold for as long as they need what it was given.

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::Mutex,
};

use super::{
    protocol::{Answer, CommandOutput, PartStatus, Request, socket},
    turns::Lock,
};
use crate::bring_up::Fault;

/// A connection to the bench; see the module for what ends with it.
#[derive(Debug)]
pub struct Client {
    stream: Mutex<BufReader<UnixStream>>,
}

impl Client {
    /// Connects to the bench of this sandbox.
    ///
    /// # Errors
    /// When there is none: the message names the command that starts one.
    pub async fn connect() -> Result<Self> {
        let path = socket();
        let stream = UnixStream::connect(&path).await.with_context(|| {
            format!(
                "no bench listens at {}; run the tests with `make test`, or in `bench shell`",
                path.display()
            )
        })?;
        Ok(Self { stream: Mutex::new(BufReader::new(stream)) })
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, request: &Request) -> Result<Answer> {
        let mut stream = self.stream.lock().await;
        let line = serde_json::to_string(request)? + "\n";
        stream.get_mut().write_all(line.as_bytes()).await.context("ask the bench")?;
        let mut answer = String::new();
        if stream.read_line(&mut answer).await.context("the bench's answer")? == 0 {
            bail!("the bench closed the connection");
        }
        match serde_json::from_str(&answer).context("the bench's answer")? {
            Answer::Failed(why) => bail!("the bench could not: {why}"),
            answer => Ok(answer),
        }
    }

    /// Waits for the bench. Of those that wait the one with the lowest `place` is preferred. The value is the name of the worker that
    /// this client has alone, for [`Lock::OneWorker`].
    pub async fn lock(&self, lock: Lock, place: u32) -> Result<Option<String>> {
        match self.ask(&Request::Lock { lock, place }).await? {
            Answer::Turn { worker } => Ok(worker),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }

    /// Makes a simulator inject a fault until this client is dropped.
    pub async fn fault(&self, fault: Fault) -> Result<()> {
        self.ask(&Request::Fault(fault)).await.map(drop)
    }

    /// Runs a command in a worker, whatever its exit code.
    pub async fn run(&self, worker: &str, argv: &[&str]) -> Result<CommandOutput> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        match self.ask(&Request::Run { worker: worker.to_owned(), argv, stdin: None }).await? {
            Answer::Output(output) => Ok(output),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }

    /// Names of the disks plugged into a virtual machine.
    pub async fn plugged(&self, machine: &str) -> Result<Vec<String>> {
        self.names(&Request::Plugged { machine: machine.to_owned() }).await
    }

    /// The workers' names.
    pub async fn workers(&self) -> Result<Vec<String>> {
        self.names(&Request::Workers).await
    }

    /// Everything that runs.
    pub async fn status(&self) -> Result<Vec<PartStatus>> {
        match self.ask(&Request::Status).await? {
            Answer::Status(parts) => Ok(parts),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }

    async fn names(&self, request: &Request) -> Result<Vec<String>> {
        match self.ask(request).await? {
            Answer::Names(names) => Ok(names),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }
}
