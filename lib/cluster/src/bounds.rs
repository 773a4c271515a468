//! How much of an answer is read. An API server is not trusted with our memory: the guest's is run by the guest's own
//! administrators, who may answer with a body, or a line of a watch, that never ends.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Uri};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use kube::client::Body;
use tower::BoxError;

/// Longest answer, and longest line of a watch, that is read.
///
/// The largest object of an API server has 9 MiB: etcd takes requests of 1.5 MiB (`--max-request-bytes`), and Go's JSON
/// encoder writes each `<`, `>` and `&` of a text as six characters. One page of a list may be longer than this: it is
/// requested again with fewer objects.
pub const MAX_ANSWER: usize = 10 * 1024 * 1024;

/// By how much a page that is too long is made smaller: from 100 objects it takes two more requests to come to one,
/// which always fits.
const SMALLER_BY: u32 = 10;

/// An answer, or a line of a watch, is longer than [`MAX_ANSWER`]. The rest of it is not read, and the connection is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is longer than {} MiB, which no object of an API server is; the rest is not read", MAX_ANSWER >> 20)]
pub struct TooLong;

/// The body of an answer, which fails as soon as it is too long.
pub(crate) struct Bounded {
    body: Body,
    /// What has come of the whole, or of the present line.
    length: usize,
    /// Whether each line is bounded, and not the whole.
    is_watch: bool,
}

impl Bounded {
    /// A body that is bounded as a whole.
    pub(crate) fn whole(body: impl Into<Body>) -> Self {
        Self { body: body.into(), length: 0, is_watch: false }
    }

    /// The body of a watch, which may go on for ever: each of its lines is bounded.
    pub(crate) fn lines(body: Body) -> Self {
        Self { body, length: 0, is_watch: true }
    }

    /// Reads the body to its end.
    pub(crate) async fn read(self) -> Result<Vec<u8>, BoxError> {
        Ok(self.collect().await?.to_bytes().into())
    }

    fn count(&mut self, data: &[u8]) -> Result<(), TooLong> {
        let mut lines = data.split(|byte| self.is_watch && *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        self.length += first.len();
        let mut is_long = self.length > MAX_ANSWER;
        for line in lines {
            self.length = line.len();
            is_long |= self.length > MAX_ANSWER;
        }
        if is_long { Err(TooLong) } else { Ok(()) }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let counted = frame.map_err(BoxError::from).and_then(|frame| {
            self.count(frame.data_ref().map(Bytes::as_ref).unwrap_or_default())?;
            Ok(frame)
        });
        if counted.is_err() {
            // The rest is of no use: this closes the connection.
            self.body = Body::empty();
        }
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The same page of a list with fewer objects. `None` = it has one object only, or the request sets no limit: then its
/// caller takes the answer for the whole list.
///
/// A caller that reads page by page follows `continue`, whatever a page contains. The token says where the next page
/// begins and nothing of the limit (k8s.io/apiserver, `storage/continue.go`).
pub(crate) fn smaller_page(request: &Request<Vec<u8>>) -> Option<Request<Vec<u8>>> {
    let (path, query) = (request.uri().path(), request.uri().query()?);
    let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit="))?;
    let smaller = limit.parse::<u32>().ok().filter(|objects| *objects > 1)?.div_ceil(SMALLER_BY);
    let pair = |pair: &str| match pair.strip_prefix("limit=") {
        Some(_) => format!("limit={smaller}"),
        None => pair.to_owned(),
    };
    let query: Vec<_> = query.split('&').map(pair).collect();
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(format!("{path}?{}", query.join("&")).parse().ok()?);
    let mut request = request.clone();
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::StreamBody;
    use kube::Client;
    use rstest::rstest;

    const CHUNK: usize = 64 * 1024;

    /// A body as a client gets it, of these chunks.
    async fn body_of(chunks: Vec<&'static [u8]>) -> Body {
        let service = tower::service_fn(move |_: Request<Body>| {
            let frames = chunks
                .clone()
                .into_iter()
                .map(|chunk| Ok::<_, BoxError>(Frame::data(Bytes::from_static(chunk))));
            let response = http::Response::new(StreamBody::new(stream::iter(frames)));
            std::future::ready(Ok::<_, BoxError>(response))
        });
        let request = Request::get("/").body(Body::empty()).unwrap();
        Client::new(service, "default").send(request).await.unwrap().into_body()
    }

    fn chunk(end: u8) -> &'static [u8] {
        let mut chunk = vec![b'x'; CHUNK];
        chunk[CHUNK - 1] = end;
        chunk.leak()
    }

    #[rstest]
    #[case::an_answer(false, MAX_ANSWER / CHUNK, b'x', false)]
    #[case::a_long_answer(false, MAX_ANSWER / CHUNK + 1, b'x', true)]
    #[case::a_long_answer_of_many_lines(false, MAX_ANSWER / CHUNK + 1, b'\n', true)]
    #[case::a_watch_line(true, MAX_ANSWER / CHUNK, b'x', false)]
    #[case::a_long_watch_line(true, MAX_ANSWER / CHUNK + 1, b'x', true)]
    #[case::a_long_watch_of_short_lines(true, 3 * MAX_ANSWER / CHUNK, b'\n', false)]
    #[tokio::test]
    async fn what_is_too_long_is_an_error(
        #[case] is_watch: bool,
        #[case] chunks: usize,
        #[case] end: u8,
        #[case] is_long: bool,
    ) {
        let body = body_of(vec![chunk(end); chunks]).await;
        let bounded = if is_watch { Bounded::lines(body) } else { Bounded::whole(body) };
        let read = bounded.read().await;
        assert_eq!(read.is_err(), is_long);
        if let Err(error) = read {
            assert!(error.is::<TooLong>(), "{error}");
        }
    }

    #[test]
    fn lines_are_counted_across_and_within_chunks() {
        let mut lines = Bounded::lines(Body::empty());
        let mut half = vec![b'x'; MAX_ANSWER / 2 + 1];
        assert!(lines.count(&half).is_ok());
        half[10] = b'\n';
        assert!(lines.count(&half).is_ok(), "the line ended");
        assert!(lines.count(b"\n").is_ok());
        assert!(lines.count(&half[11..]).is_ok());
        assert!(lines.count(&half[11..]).is_ok());
        assert!(lines.count(&half[11..]).is_err(), "the third half in one line");
    }

    #[rstest]
    #[case("/api/v1/services?&limit=100&continue=abc", Some("/api/v1/services?&limit=10&continue=abc"))]
    #[case("/api/v1/services?limit=10", Some("/api/v1/services?limit=1"))]
    #[case("/api/v1/services?limit=500", Some("/api/v1/services?limit=50"))]
    #[case("/api/v1/services?limit=2", Some("/api/v1/services?limit=1"))]
    #[case::one_object("/api/v1/services?limit=1", None)]
    #[case::the_whole_list("/api/v1/services?labelSelector=a%3Dlimit", None)]
    #[case::no_query("/api/v1/services", None)]
    #[case::odd("/api/v1/services?limit=many", None)]
    fn a_page_is_made_smaller(#[case] uri: &str, #[case] smaller: Option<&str>) {
        let request = Request::get(uri).header("accept", "a").body(vec![1]).unwrap();
        let made = smaller_page(&request);
        assert_eq!(made.as_ref().map(|made| made.uri().to_string()).as_deref(), smaller);
        if let Some(made) = made {
            assert_eq!((made.headers(), made.body()), (request.headers(), request.body()));
        }
    }
}
