//! What an API server, or the network to it, may do to a call: the faults that each kind of call must survive.

use fault_proxy::{Action, Reply};

/// The faults, each with a name; `words` is the API server's message in an injected answer.
pub fn api_faults(words: &str) -> Vec<(&'static str, Action)> {
    let answer = |code| Action::Answer(Reply::kubernetes(code, words));
    vec![
        ("401", answer(401)),
        ("403", answer(403)),
        ("404", answer(404)),
        ("409", answer(409)),
        ("422", answer(422)),
        ("429", Action::Answer(Reply::kubernetes(429, words).retry_after(1))),
        ("500", answer(500)),
        ("503", answer(503)),
        ("hang", Action::Hang),
        ("cut", Action::Cut),
        ("lost", Action::LoseReply),
    ]
}
