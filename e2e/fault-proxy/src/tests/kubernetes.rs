//! Before an API server.

use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use http_body_util::BodyExt;
use kube::{Client, Config, client::Body, config::KubeConfigOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::servers::{RequestLog, https};
use crate::{Action, KubeProxy, Matcher, Reply, Rule, kube_proxy::upstream};

const PATH: &str = "/api/v1/namespaces/n/configmaps/a";
const SOON: Duration = Duration::from_secs(10);
/// Long enough for a call that is not held to end.
const A_WHILE: Duration = Duration::from_millis(100);

struct Fixture {
    proxy: KubeProxy,
    client: Client,
    asked: RequestLog,
}

impl Fixture {
    async fn new() -> Self {
        let (kubeconfig, asked) = https().await;
        let proxy = KubeProxy::start(&kubeconfig).await.unwrap();
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(proxy.kubeconfig().clone(), &options).await.unwrap();
        config.default_retry = false;
        Self { proxy, client: Client::try_from(config).unwrap(), asked }
    }

    async fn put(&self) -> Result<String, kube::Error> {
        let request = Request::put(PATH).body(Vec::from("body")).unwrap();
        self.client.request_text(request).await
    }
}

fn at() -> Matcher {
    Matcher::of("update", "configmaps").named("a")
}

#[tokio::test]
async fn a_call_passes_with_its_token_and_body() {
    let fixture = Fixture::new().await;
    for _ in 0..2 {
        assert_eq!(fixture.put().await.unwrap(), "got body");
    }
    assert_eq!(fixture.asked.all(), vec![format!("PUT {PATH} Bearer secret"); 2]);
    assert_eq!(fixture.proxy.faults().succeeded(&at()), 2);
}

#[tokio::test]
async fn an_answer_in_its_place_reaches_the_client_and_not_the_server() {
    let fixture = Fixture::new().await;
    let reply = Reply::kubernetes(429, "slow down").retry_after(7);
    let guard = fixture.proxy.faults().add(Rule::each(at(), Action::Answer(reply)));
    let request = Request::put(PATH).body(Body::from(Vec::new())).unwrap();
    let response = fixture.client.send(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    let body = response.into_body().collect_bytes().await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&status["reason"], &status["message"]), (&"TooManyRequests".into(), &"slow down".into()));
    assert_eq!((guard.count(), fixture.asked.all().len()), (1, 0));
    drop(guard);
    assert_eq!(fixture.put().await.unwrap(), "got body");
}

#[tokio::test]
async fn an_answer_without_end_goes_on_for_as_long_as_it_is_read() {
    const ENOUGH: usize = 8 << 20;
    let fixture = Fixture::new().await;
    let reply = Reply::Endless { begin: "{\"a\": \"".to_owned() };
    let _guard = fixture.proxy.faults().add(Rule::once(at(), Action::Answer(reply)));
    let request = Request::put(PATH).body(Body::from(Vec::new())).unwrap();
    let mut body = fixture.client.send(request).await.unwrap().into_body();
    let (mut read, mut begin) = (0, None);
    while read < ENOUGH {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        read += data.len();
        begin.get_or_insert(data);
    }
    assert!(begin.unwrap().starts_with(b"{\"a\": \""));
    drop(body);
    assert_eq!(fixture.put().await.unwrap(), "got body");
    assert_eq!(fixture.asked.all().len(), 1);
}

#[tokio::test]
async fn a_lost_reply_is_a_call_that_landed_and_a_cut_one_is_not() {
    let fixture = Fixture::new().await;
    for (action, landed) in [(Action::LoseReply, 1), (Action::Cut, 0)] {
        let before = fixture.asked.all().len();
        let guard = fixture.proxy.faults().add(Rule::once(at(), action.clone()));
        assert!(fixture.put().await.is_err(), "{action:?}");
        assert_eq!((fixture.asked.all().len() - before, guard.count()), (landed, 1), "{action:?}");
        assert_eq!(fixture.put().await.unwrap(), "got body");
    }
}

#[tokio::test]
async fn a_hung_call_ends_with_its_rule() {
    let fixture = Fixture::new().await;
    let guard = fixture.proxy.faults().add(Rule::each(at(), Action::Hang));
    let mut call = Box::pin(fixture.put());
    assert!(timeout(A_WHILE, &mut call).await.is_err());
    drop(guard);
    assert!(timeout(SOON, call).await.unwrap().is_err());
    assert!(fixture.asked.all().is_empty());
}

#[tokio::test]
async fn a_frozen_call_is_held_before_or_after_it_landed() {
    let fixture = Fixture::new().await;
    for (action, landed) in [(Action::FreezeBefore, 0), (Action::FreezeAfter, 1)] {
        let before = fixture.asked.all().len();
        let guard = fixture.proxy.faults().add(Rule::once(at(), action));
        let (answer, ()) = tokio::join!(fixture.put(), async {
            timeout(SOON, guard.caught(1)).await.unwrap();
            assert_eq!(fixture.asked.all().len() - before, landed);
            drop(guard);
        });
        assert_eq!(answer.unwrap(), "got body");
        assert_eq!(fixture.asked.all().len() - before, 1);
    }
}

#[tokio::test]
async fn a_call_whose_caller_is_gone_does_not_land_when_it_is_released() {
    let fixture = Fixture::new().await;
    let guard = fixture.proxy.faults().add(Rule::once(at(), Action::FreezeBefore));
    {
        let call = fixture.put();
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("a frozen call was answered"),
            () = guard.caught(1) => {}
        }
    }
    // The proxy sees the end of the connection before the next call of a new one is through.
    fixture.put().await.unwrap();
    drop(guard);
    fixture.put().await.unwrap();
    assert_eq!(fixture.asked.all().len(), 2);
}

#[tokio::test]
async fn a_delayed_call_lands_later() {
    let fixture = Fixture::new().await;
    let delay = u64::try_from(A_WHILE.as_millis()).unwrap();
    let guard = fixture.proxy.faults().add(Rule::once(at(), Action::Delay(delay)));
    let started = std::time::Instant::now();
    assert_eq!(fixture.put().await.unwrap(), "got body");
    assert!(started.elapsed() >= A_WHILE && guard.count() == 1);
}

#[tokio::test]
async fn a_server_that_is_away_serves_nobody_until_it_is_back() {
    let fixture = Fixture::new().await;
    fixture.put().await.unwrap();
    let away = fixture.proxy.faults().away();
    for _ in 0..3 {
        assert!(fixture.put().await.is_err());
    }
    assert_eq!(fixture.asked.all().len(), 1);
    drop(away);
    assert_eq!(fixture.put().await.unwrap(), "got body");
}

#[tokio::test]
async fn a_watch_passes_event_by_event() {
    let fixture = Fixture::new().await;
    let request = Request::get("/api/v1/pods?watch=true").body(Vec::new()).unwrap();
    let stream = fixture.client.request_stream(request).await.unwrap();
    let mut lines = std::pin::pin!(stream.lines());
    let event = timeout(SOON, lines.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event, "event");
    let away = fixture.proxy.faults().away();
    assert!(timeout(SOON, lines.try_next()).await.unwrap().is_err(), "the outage does not end the watch");
    drop(away);
}

#[tokio::test]
async fn an_upgraded_connection_passes_both_ways() {
    let fixture = Fixture::new().await;
    let cluster = fixture.proxy.kubeconfig().clusters[0].cluster.as_ref().unwrap();
    let mut stream = upstream(cluster).await.unwrap().connect().await.unwrap();
    let request = "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(String::from_utf8_lossy(&head).contains("101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"ping");
}
