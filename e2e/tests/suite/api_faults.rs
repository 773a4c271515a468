//! What an API server, or the network to it, may do to a call: the faults that each kind of call must survive.

use fault_proxy::{Action, Reply};

use crate::rows::{
    Row::{Kind, Like},
    chosen,
};

/// The faults, each with a name; `words` is the API server's message in an injected answer.
pub fn api_faults(words: &str) -> Vec<(&'static str, Action)> {
    let answer = |code| Action::Answer(Reply::kubernetes(code, words));
    chosen([
        (Kind, ("401", answer(401))),
        (Kind, ("403", answer(403))),
        (Kind, ("404", answer(404))),
        (Kind, ("409", answer(409))),
        (Kind, ("422", answer(422))),
        (Kind, ("429", Action::Answer(Reply::kubernetes(429, words).retry_after(1)))),
        (Kind, ("500", answer(500))),
        (Like("500: the server is in trouble, and does not say for how long"), ("503", answer(503))),
        (Kind, ("hang", Action::Hang)),
        (Kind, ("cut", Action::Cut)),
        (Kind, ("lost", Action::LoseReply)),
    ])
}
