//! One call through the engine, whatever protocol carries it.

use std::time::Duration;

use anyhow::Result;
use http::Response;

use super::{call::Call, faults::Faults, reply::Reply, rule::Action};

/// How a call ends for its caller.
#[derive(Debug)]
pub(super) enum End<B> {
    /// With the real server's answer.
    Server(Response<B>),
    /// With an answer in its place.
    Made(Reply),
    /// With the end of the connection.
    Cut,
}

/// Carries `call` through the faults; `forward` takes it to the real server. A failure there is a cut for the caller.
pub(super) async fn exchange<B, F>(faults: &Faults, call: Call, forward: F) -> End<B>
where
    F: Future<Output = Result<Response<B>>>,
{
    let (place, fault) = faults.begin(call);
    let forward = async {
        match forward.await {
            Ok(response) => {
                faults.landed(place, response.status().as_u16());
                End::Server(response)
            }
            Err(error) => {
                tracing::debug!("the real server did not answer: {error:#}");
                End::Cut
            }
        }
    };
    let Some((action, live)) = fault else { return forward.await };
    match action {
        Action::Answer(reply) => {
            live.catch();
            End::Made(reply)
        }
        Action::Hang => {
            live.catch();
            live.lifted().await;
            End::Cut
        }
        Action::Cut => {
            live.catch();
            End::Cut
        }
        Action::LoseReply => {
            if matches!(forward.await, End::Server(_)) {
                live.catch();
            }
            End::Cut
        }
        Action::Delay(milliseconds) => {
            live.catch();
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            forward.await
        }
        Action::FreezeBefore => {
            live.catch();
            live.lifted().await;
            forward.await
        }
        Action::FreezeAfter => {
            let end = forward.await;
            if matches!(end, End::Server(_)) {
                live.catch();
                live.lifted().await;
            }
            end
        }
    }
}
