//! What an API server, or the network to it, may do to a call: the faults that each kind of call must survive.

use fault_proxy::{Action, Reply};

use crate::rows::{
    Row::{self, Kind, Like},
    chosen,
};

/// The faults, each with a name; `words` is the API server's message in an injected answer.
pub fn api_faults(words: &str) -> Vec<(&'static str, Action)> {
    api_faults_of(words, &[])
}

/// The same, for a program or a call to which the faults in `same` are like others; each says which and why.
pub fn api_faults_of(words: &str, same: &[(&str, &'static str)]) -> Vec<(&'static str, Action)> {
    let row = |(row, fault): (Row, (&'static str, Action))| {
        let like = same.iter().find(|(name, _)| *name == fault.0);
        (like.map_or(row, |(_, why)| Like(why)), fault)
    };
    chosen(faults(words).into_iter().map(row))
}

/// All of them. A fault is of a kind of its own where `lib/cluster` or a caller does something else about it: 401 renews the
/// credentials, 429 is a pause, a 404 without details must not count as proof of absence, after a lost reply the work is done.
fn faults(words: &str) -> [(Row, (&'static str, Action)); 11] {
    let answer = |code| Action::Answer(Reply::kubernetes(code, words));
    [
        (Kind, ("401", answer(401))),
        (Kind, ("403", answer(403))),
        (Kind, ("404", answer(404))),
        (Kind, ("409", answer(409))),
        (Kind, ("422", answer(422))),
        (Kind, ("429", Action::Answer(Reply::kubernetes(429, words).retry_after(1)))),
        (Kind, ("500", answer(500))),
        (Like("500: the server is in trouble, and does not say for how long"), ("503", answer(503))),
        (Kind, ("hang", Action::Hang)),
        (
            Like("lost: the connection ends without an answer; and hang: the call is not carried out"),
            ("cut", Action::Cut),
        ),
        (Kind, ("lost", Action::LoseReply)),
    ]
}
