//! An API server that answers with too much, and a client that asks for too many changes.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    ApiServer, Call, Class, Failure, MAX_ANSWER, Meter, Outcome, Unmetered, WhenPaused, WriteRate,
};
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ListParams, PostParams, WatchParams},
    client::Body,
    core::WatchEvent,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::BoxError;

/// A piece of an answer that has no end.
const PIECE: &[u8] = &[b'x'; 64 * 1024];
/// What a client may take of an answer before it gives up: the bound, and what is under way then.
const TAKEN: usize = MAX_ANSWER + 4 * PIECE.len();

type Answer = UnsyncBoxBody<Bytes, BoxError>;

fn whole(text: impl Into<Bytes>) -> Answer {
    StreamBody::new(stream::iter([Ok::<_, BoxError>(Frame::data(text.into()))])).boxed_unsync()
}

/// `begin` and then pieces without end; `taken` counts their bytes.
fn endless(begin: &'static str, taken: Arc<AtomicUsize>) -> Answer {
    let pieces = stream::repeat_with(move || {
        taken.fetch_add(PIECE.len(), Ordering::Relaxed);
        Bytes::from_static(PIECE)
    });
    let begin = stream::iter([Bytes::from_static(begin.as_bytes())]);
    StreamBody::new(begin.chain(pieces).map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

/// Keeps how the calls ended.
#[derive(Clone, Default)]
struct Outcomes(Arc<Mutex<Vec<Outcome>>>);

impl Meter for Outcomes {
    fn called(&self, _: &Call, _: &str, outcome: Outcome, _: Duration) {
        self.0.lock().unwrap().push(outcome);
    }
}

fn server(
    meter: impl Meter,
    answer: impl Fn(&Request<Body>) -> (u16, Answer) + Send + Sync + 'static,
) -> ApiServer {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (code, body) = answer(&request);
        std::future::ready(Ok::<_, BoxError>(Response::builder().status(code).body(body).unwrap()))
    });
    ApiServer::over(Client::new(service, "default"), meter)
}

fn maps(api: &ApiServer) -> Api<ConfigMap> {
    Api::namespaced(api.client(), "default")
}

fn map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data}})
}

#[tokio::test]
async fn a_body_without_end_ends_its_call_and_no_other() {
    let (taken, outcomes) = (Arc::new(AtomicUsize::new(0)), Outcomes::default());
    let counted = Arc::clone(&taken);
    let api = server(outcomes.clone(), move |request| match request.uri().path() {
        path if path.ends_with("/good") => (200, whole(map("good", "v").to_string())),
        path if path.ends_with("/refused") => {
            (403, endless("{\"kind\": \"Status\", \"message\": \"", Arc::clone(&counted)))
        }
        _ => (200, endless("{\"data\": {\"k\": \"", Arc::clone(&counted))),
    });
    for name in ["odd", "refused"] {
        let error = maps(&api).get(name).await.unwrap_err();
        let text = cluster::chain(&error);
        assert!(text.contains("longer than 10 MiB"), "{name}: {text}");
        assert!(taken.swap(0, Ordering::Relaxed) <= TAKEN, "{name}");
        let request =
            Request::get(format!("/api/v1/namespaces/default/configmaps/{name}")).body(vec![]).unwrap();
        let error = api.find::<Value>(request).await.unwrap_err();
        assert!(matches!(*error.failure, Failure::TooLong(_)), "{name}: {error}");
        assert_eq!(error.class(), Class::Transport, "nothing is known of the object");
        assert!(taken.swap(0, Ordering::Relaxed) <= TAKEN, "{name}");
    }
    assert_eq!(*outcomes.0.lock().unwrap(), [Outcome::TooLong; 4]);
    maps(&api).get("good").await.expect("other calls go on");
}

#[tokio::test]
async fn a_watch_line_without_end_ends_its_watch_and_no_other() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    let api = server(Unmetered, move |request| {
        let event = |name: &str| format!("{}\n", json!({"type": "ADDED", "object": map(name, "v")}));
        if request.uri().query().is_some_and(|query| query.contains("odd")) {
            return (
                200,
                endless("{\"type\": \"ADDED\", \"object\": {\"data\": {\"k\": \"", Arc::clone(&counted)),
            );
        }
        // Each line is short, and all together are longer than one may be.
        let lines = stream::iter(0..200).map(move |number| {
            Ok(Frame::data(Bytes::from(event(&format!("{number}{}", "x".repeat(MAX_ANSWER / 100))))))
        });
        (200, StreamBody::new(lines).boxed_unsync())
    });
    let odd = WatchParams::default().labels("odd");
    let events = maps(&api).watch(&odd, "0").await.unwrap();
    let events: Vec<_> = events.collect().await;
    let [Err(error)] = events.as_slice() else { panic!("{} events", events.len()) };
    assert!(cluster::chain(error).contains("longer than 10 MiB"), "{}", cluster::chain(error));
    assert!(taken.load(Ordering::Relaxed) <= TAKEN);

    let events = maps(&api).watch(&WatchParams::default(), "0").await.unwrap();
    let events: Vec<_> = events.try_collect().await.expect("a watch may go on for ever");
    assert_eq!(events.iter().filter(|event| matches!(event, WatchEvent::Added(_))).count(), 200);

    let request = Request::get("/api/v1/configmaps?watch=true&labelSelector=odd").body(vec![]).unwrap();
    let events: Vec<_> = api.watch::<ConfigMap>(request).await.unwrap().collect().await;
    let [Err(error)] = events.as_slice() else { panic!("{} events", events.len()) };
    assert!(error.to_string().contains("longer than 10 MiB"), "{error}");
}

/// Answers pages of maps of 200 KiB each, as many as are asked for.
fn pages(request: &Request<Body>) -> (u16, Answer) {
    const ALL: usize = 70;
    let query = request.uri().query().unwrap_or_default();
    let of = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
    let (from, limit) = (of("continue=").unwrap_or(0), of("limit=").unwrap_or(ALL));
    let to = (from + limit).min(ALL);
    let next = if to < ALL { to.to_string() } else { String::new() };
    // Written as text: a serializer takes seconds for it without optimization.
    let data = "x".repeat(200 * 1024);
    let item =
        |number| format!("{{\"metadata\": {{\"name\": \"{number}\"}}, \"data\": {{\"k\": \"{data}\"}}}}");
    let items = (from..to).map(item).collect::<Vec<_>>().join(",");
    let begin = "\"apiVersion\": \"v1\", \"kind\": \"ConfigMapList\"";
    (200, whole(format!("{{{begin}, \"metadata\": {{\"continue\": \"{next}\"}}, \"items\": [{items}]}}")))
}

#[tokio::test]
async fn a_page_that_is_too_long_is_read_in_smaller_ones() {
    let api = server(Unmetered, pages);
    let (mut names, mut params) = (Vec::new(), ListParams::default().limit(60));
    loop {
        let page = maps(&api).list(&params).await.unwrap();
        names.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            break;
        }
    }
    assert_eq!(names, (0..70).map(|number| number.to_string()).collect::<Vec<_>>());
    let error = maps(&api).list(&ListParams::default()).await.unwrap_err();
    assert!(cluster::chain(&error).contains("longer than 10 MiB"), "a part is not taken for the whole");
}

#[tokio::test]
async fn a_text_of_megabytes_is_cut_and_the_refusal_stays_what_it_is() {
    let long = "y".repeat(3 << 20);
    let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": long,
        "details": {"name": "gone", "kind": "configmaps"}});
    let api = server(Unmetered, move |request| match request.uri().path() {
        path if path.ends_with("/page") => (502, whole("z".repeat(3 << 20))),
        path if path.ends_with("/odd") => (200, whole(json!({"metadata": long}).to_string())),
        _ => (404, whole(status.to_string())),
    });
    assert!(cluster::get(&maps(&api), "gone").await.unwrap().is_none(), "the absence is proved as before");
    for name in ["gone", "page", "odd"] {
        let error = maps(&api).get(name).await.unwrap_err();
        assert!(cluster::chain(&error).len() < 8 * 1024, "{name}");
        let request =
            Request::get(format!("/api/v1/namespaces/default/configmaps/{name}")).body(vec![]).unwrap();
        let error = api.read::<ConfigMap>(request, WhenPaused::Wait).await.unwrap_err();
        assert!(error.to_string().len() < 8 * 1024, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn changes_wait_for_the_rate_and_reads_do_not() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let api = server(Unmetered, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        (200, whole(map("a", "v").to_string()))
    });
    let api = api.with_write_rate(WriteRate::of_flags(10.0, 5));
    let began = Instant::now();
    let changes =
        (0..25).map(|_| async { maps(&api).create(&PostParams::default(), &ConfigMap::default()).await });
    let reads = (0..100).map(|_| async { maps(&api).get("a").await.map(|_| began.elapsed()) });
    let (changes, reads) = tokio::join!(join_all(changes), join_all(reads));
    assert!(changes.iter().all(Result::is_ok));
    assert!(reads.iter().all(|read| read.as_ref().is_ok_and(Duration::is_zero)), "{reads:?}");
    let seconds = began.elapsed().as_secs_f64();
    assert!((1.9..2.2).contains(&seconds), "20 changes after the burst took {seconds} s");
    assert_eq!(made.load(Ordering::Relaxed), 125);

    // Clones and typed clients share the rate.
    let clone = api.clone();
    clone.client().request::<Value>(Request::post("/api/v1/configmaps").body(vec![]).unwrap()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_must_be_read_again_first_does_not_wait_long() {
    let api = server(Unmetered, |_| (200, whole("{}")));
    let api = api.with_write_rate(WriteRate::of_flags(0.1, 1));
    let change = || Request::put("/api/v1/namespaces/default/configmaps/a").body(vec![]).unwrap();
    api.exchange(change(), WhenPaused::Fail).await.unwrap();
    let began = Instant::now();
    let error = api.exchange(change(), WhenPaused::Fail).await.unwrap_err();
    assert_eq!((error.class(), began.elapsed().as_secs()), (Class::Throttled, 1));
    assert!(error.to_string().contains("--kube-api-qps"), "{error}");
    api.exchange(change(), WhenPaused::Wait).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
}
