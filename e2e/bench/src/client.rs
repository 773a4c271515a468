//! A user of load balancers: sends requests from the clients' network; the pods answer with the client that they saw.
//!
//! A thread of its own is in that network and sends every request, each over a connection of its own.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, UdpSocket},
    runtime,
    sync::{mpsc, oneshot},
};

use crate::sandbox::network::{clients, second};

/// How long a user waits for an answer: longer than it takes until TCP sends a lost first packet again (1 s, RFC 6298).
const PATIENCE: Duration = Duration::from_secs(3);

/// Longest answer over UDP.
const LONGEST: usize = 512;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP.
    Tcp,
    /// One datagram.
    Udp,
}

/// Where to send a request, and from which address.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The client's address, one of `sandbox::network::clients`, of the same family as the load balancer's.
    pub from: IpAddr,
    /// The load balancer's.
    pub to: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// What a pod of the image `ANSWERER` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The address from which the request came.
    pub client: IpAddr,
    /// Its pod's name.
    pub pod: String,
}

/// The user. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Client {
    questions: mpsc::UnboundedSender<(Question, oneshot::Sender<Result<Answer>>)>,
}

impl Client {
    /// Starts the thread; it ends with the last clone.
    pub async fn start() -> Result<Self> {
        let (questions, asked) = mpsc::unbounded_channel();
        let (entered, entering) = oneshot::channel();
        thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || match enter() {
                Ok(runtime) => {
                    entered.send(Ok(())).ok();
                    runtime.block_on(answer_all(asked));
                }
                Err(error) => drop(entered.send(Err(error))),
            })
            .context("start the client's thread")?;
        entering.await.context("the client's thread has ended")??;
        Ok(Self { questions })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When no answer comes in time, or the connection is refused or broken.
    pub async fn ask(&self, question: Question) -> Result<Answer> {
        let (tell, told) = oneshot::channel();
        self.questions.send((question, tell)).map_err(|_| anyhow!("the client's thread has ended"))?;
        told.await.context("the client's thread has ended")?
    }

    /// Sends a request to an address over HTTP from a client's first address of its family.
    pub async fn get(&self, address: impl Into<IpAddr>, port: u16) -> Result<Answer> {
        let to = SocketAddr::new(address.into(), port);
        let from = if to.is_ipv4() { clients::CLIENT.into() } else { second(clients::CLIENT).into() };
        self.ask(Question { from, to, protocol: Protocol::Tcp }).await
    }
}

fn enter() -> Result<runtime::Runtime> {
    clients::enter()?;
    // On this one thread: others would not be in its network.
    runtime::Builder::new_current_thread().enable_all().build().context("make the client's runtime")
}

async fn answer_all(mut asked: mpsc::UnboundedReceiver<(Question, oneshot::Sender<Result<Answer>>)>) {
    while let Some((question, tell)) = asked.recv().await {
        tokio::spawn(async move {
            let answer = match tokio::time::timeout(PATIENCE, question.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(anyhow!("no answer within {} s", PATIENCE.as_secs())),
            };
            // The caller may have stopped waiting.
            tell.send(answer.with_context(|| format!("ask {}", question.to))).ok();
        });
    }
}

impl Question {
    async fn ask(self) -> Result<Answer> {
        let text = match self.protocol {
            Protocol::Tcp => self.over_http().await?,
            Protocol::Udp => self.over_udp().await?,
        };
        read(&text).with_context(|| format!("not an answer: {text:?}"))
    }

    async fn over_http(self) -> Result<String> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(self.source()).context("take the client's address")?;
        let stream = socket.connect(self.to).await.context("connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get("/").header(header::HOST, self.to.to_string());
        let request = request.header(header::CONNECTION, "close").body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await.context("send the request")?;
            ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
            let body = response.into_body().collect().await.context("read the answer")?.to_bytes();
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        let (answer, ended) = tokio::join!(exchange, connection);
        let answer = answer?;
        ended.context("end the connection")?;
        Ok(answer)
    }

    async fn over_udp(self) -> Result<String> {
        let socket = UdpSocket::bind(self.source()).await.context("take the client's address")?;
        socket.connect(self.to).await.context("connect")?;
        socket.send(b"?").await.context("send the request")?;
        let mut answer = [0; LONGEST];
        let length = socket.recv(&mut answer).await.context("receive the answer")?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn source(self) -> SocketAddr {
        SocketAddr::new(self.from, 0)
    }
}

fn read(text: &str) -> Option<Answer> {
    let (client, pod) = text.trim_end().split_once(' ')?;
    Some(Answer { client: client.parse().ok()?, pod: pod.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_clients_address_and_the_pods_name() {
        for client in ["10.78.0.50", "fd00:10:78::50"] {
            let answer = Answer { client: client.parse().unwrap(), pod: "web-1".to_owned() };
            assert_eq!(read(&format!("{client} web-1\n")), Some(answer));
        }
        assert_eq!(read("404 page not found"), None);
    }
}
