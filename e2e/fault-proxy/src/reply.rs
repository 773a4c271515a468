//! An answer that a proxy gives in the server's place.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Media type of gRPC over HTTP/2.
const GRPC: &str = "application/grpc";
/// gRPC's status and message, as headers of an answer without a body ("Trailers-Only", gRPC over HTTP/2 specification).
const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
/// A piece of an answer without end.
const PIECE: &[u8] = &[b'x'; 64 * 1024];

/// The body of an answer that was made.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// An answer in the server's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A Kubernetes `Status`, as an API server writes it.
    Kubernetes {
        /// HTTP code.
        code: u16,
        /// CamelCase reason.
        reason: String,
        /// Text for people.
        message: String,
        /// `Retry-After` in seconds.
        retry_after: Option<u32>,
    },
    /// Plain text, as a load balancer writes it.
    Text {
        /// HTTP code.
        code: u16,
        /// The body.
        text: String,
    },
    /// JSON that begins so and never ends: the rest is as much of the letter x as the caller reads.
    Endless {
        /// How it begins, for example with an open text of an object.
        begin: String,
    },
    /// A gRPC status.
    Grpc {
        /// gRPC code.
        code: u16,
        /// gRPC message; ASCII without `%`, which needs no escape.
        message: String,
    },
}

impl Reply {
    /// A `Status` with the reason that goes with its code (`k8s.io/apimachinery`, `meta/v1`).
    pub fn kubernetes(code: u16, message: &str) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            _ => "",
        };
        Self::Kubernetes { code, reason: reason.to_owned(), message: message.to_owned(), retry_after: None }
    }

    /// A gRPC status.
    pub fn grpc(code: u16, message: &str) -> Self {
        Self::Grpc { code, message: message.to_owned() }
    }

    /// The same, asking for a pause.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        match self {
            Self::Kubernetes { code, reason, message, .. } => {
                Self::Kubernetes { code, reason, message, retry_after: Some(seconds) }
            }
            other => other,
        }
    }

    /// On the wire.
    pub(super) fn response(&self) -> Result<Response<Body>, http::Error> {
        match self {
            Self::Kubernetes { code, reason, message, retry_after } => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "code": code, "reason": reason, "message": message,
                });
                let response =
                    Response::builder().status(*code).header(header::CONTENT_TYPE, "application/json");
                let response = match retry_after {
                    Some(seconds) => response.header(header::RETRY_AFTER, *seconds),
                    None => response,
                };
                response.body(Full::from(status.to_string()).boxed())
            }
            Self::Text { code, text } => Response::builder()
                .status(*code)
                .header(header::CONTENT_TYPE, "text/plain")
                .body(Full::from(text.clone()).boxed()),
            Self::Endless { begin } => Response::builder()
                .header(header::CONTENT_TYPE, "application/json")
                .body(Endless(Some(begin.clone().into())).boxed()),
            Self::Grpc { code, message } => Response::builder()
                .status(StatusCode::OK)
                .header(header::CONTENT_TYPE, GRPC)
                .header(GRPC_STATUS, *code)
                .header(GRPC_MESSAGE, message)
                .body(Full::default().boxed()),
        }
    }
}

/// A body without end; what it begins with, until that is sent.
struct Endless(Option<Bytes>);

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.0.take().unwrap_or(Bytes::from_static(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}
