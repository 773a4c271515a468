//! The one way to watch: with a backoff that ends only when the API server has answered, and past objects that can't be
//! read.

use std::{fmt::Debug, pin::Pin, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::{
    Resource,
    api::{Api, ObjectMeta},
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::{
    call::is_watch_answered,
    unreadable::{Readable, Reader},
};

/// Watches `api` without end. Objects that can't be read are reported to `reader` and come as they are.
pub(crate) fn watch<K>(
    api: Api<Readable<K>>,
    config: watcher::Config,
    reader: Reader,
) -> impl Stream<Item = watcher::Result<Event<Readable<K>>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    paced(watcher(api, config)).inspect(move |event| {
        if let Ok(Event::Apply(object) | Event::InitApply(object)) = event
            && let Err(unreadable) = &object.0
        {
            reader.report(&K::plural(&()), unreadable);
        }
    })
}

/// As [`watch`], with the object that `last` gives in the place of one that can't be read: what was known of it before.
/// If nothing was known, there is no event.
pub(crate) fn watch_known<K>(
    api: Api<Readable<K>>,
    config: watcher::Config,
    reader: Reader,
    last: impl Fn(&ObjectMeta) -> Option<K> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch(api, config, reader).filter_map(move |event| {
        let known = match event {
            Ok(event) => known(event, &last).map(Ok),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(known)
    })
}

fn known<K: Resource>(
    event: Event<Readable<K>>,
    last: &impl Fn(&ObjectMeta) -> Option<K>,
) -> Option<Event<K>> {
    let read = |object: Readable<K>| match object.0 {
        Ok(object) => Some(object),
        // Another object of the same name says nothing about this one.
        Err(odd) => last(&odd.metadata).filter(|last| last.meta().uid == odd.metadata.uid),
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(read(object)?),
        // What is known already is no change.
        Event::Apply(object) => Event::Apply(object.0.ok()?),
        Event::Delete(object) => Event::Delete(read(object)?),
    })
}

/// Pauses after each error, longer after each in a row. kube's own adapter ends the row at any event, also at the
/// `Init` before each try to list, so that its pause never grows while lists fail.
fn paced<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let events: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(events);
    let begin = (events, DefaultBackoff::default(), None::<Duration>);
    stream::unfold(begin, async |(mut events, mut backoff, pause)| {
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        let event = events.next().await?;
        let pause = match &event {
            Ok(event) => {
                if is_watch_answered(event) {
                    backoff.reset();
                }
                None
            }
            Err(_) => backoff.next(),
        };
        Some((event, (events, backoff, pause)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{FakeApi, failure};
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use tokio::time::{Instant, timeout};

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_while_lists_fail() {
        let api = FakeApi::default();
        let (code, body) = failure(500, "InternalError", &json!({}));
        api.answer("GET /api/v1/configmaps", code, body);
        let api_of = Api::<Readable<ConfigMap>>::all(api.client());
        let mut events = std::pin::pin!(watch(api_of, watcher::Config::default(), Reader::default()));
        let hour = async { while events.next().await.is_some() {} };
        drop(timeout(Duration::from_hours(1), hour).await);
        let lists = api.made("GET").len();
        assert!((60..250).contains(&lists), "{lists} lists in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_row_of_failures() {
        let fails = || Err(watcher::Error::NoResourceVersion);
        let script =
            vec![fails(), fails(), fails(), fails(), fails(), Ok(Event::Init), Ok(Event::InitDone), fails()];
        let mut script = std::pin::pin!(paced::<ConfigMap>(stream::iter(script)));
        while !matches!(script.next().await, Some(Ok(Event::InitDone))) {}
        drop(script.next().await);
        let began = Instant::now();
        assert!(script.next().await.is_none());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    fn odd(name: &str, uid: &str) -> Readable<ConfigMap> {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}, "data": 7})).unwrap()
    }

    fn good(name: &str, uid: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}})).unwrap()
    }

    #[test]
    fn what_was_known_of_an_odd_object_stays() {
        let last = |meta: &ObjectMeta| Some(good(meta.name.as_deref()?, "u"));
        let nothing = |_: &ObjectMeta| None;
        let is = |event| matches!(event, Some(Event::InitApply(_)));
        assert!(is(known(Event::InitApply(odd("a", "u")), &last)), "a list does not lose it");
        assert!(!is(known(Event::InitApply(odd("a", "u2")), &last)), "another object of the name");
        assert!(known(Event::InitApply(odd("a", "u")), &nothing).is_none());
        assert!(known(Event::Apply(odd("a", "u")), &last).is_none(), "no change");
        assert!(matches!(known(Event::Delete(odd("a", "u")), &last), Some(Event::Delete(_))), "gone is gone");
        assert!(known(Event::Delete(odd("a", "u")), &nothing).is_none());
    }
}
