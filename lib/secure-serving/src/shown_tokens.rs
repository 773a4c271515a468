//! Which tokens are shown to the API server that reviews them. A token is a credential wherever it is valid, and a
//! `TokenReview` carries it in full, so a token is only shown to the cluster that issued it, or to one that the operator
//! named for it.

use std::sync::{Mutex, PoisonError};

use cluster::{ApiServer, TokenIssuer};

/// How much of a foreign token's issuer is logged, in bytes.
const MOST_OF_ISSUER: usize = 200;
/// How many reasons are remembered as logged; further ones are not logged.
const MOST_LOGGED: usize = 16;

/// Which tokens may be reviewed.
#[derive(Clone, Debug)]
pub enum ShownTokens {
    /// All: the operator chose the API server that reviews.
    All,
    /// Those of the issuer whose token we have for this API server. Without such a token, none.
    IssuedThere(ApiServer),
}

/// Why a token is not shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum NotShown {
    /// Our own credentials have no token to compare with.
    #[error("our own credentials for that cluster are no token, so its issuer is not known")]
    OwnIssuerUnknown,
    /// The token is opaque.
    #[error("the token names no issuer")]
    NoIssuer,
    /// Another cluster, or another key or audience.
    #[error("the token's issuer {0:?}, its key or its audience is not that of our own token")]
    OtherIssuer(String),
}

/// Decides, and logs each reason once.
pub(crate) struct Gate {
    shown: ShownTokens,
    cluster: &'static str,
    logged: Mutex<Vec<NotShown>>,
}

impl Gate {
    pub(crate) fn new(shown: ShownTokens, cluster: &'static str) -> Self {
        Self { shown, cluster, logged: Mutex::default() }
    }

    /// Whether the token may be shown.
    pub(crate) async fn admits(&self, token: &str) -> bool {
        let own = match &self.shown {
            ShownTokens::All => return true,
            ShownTokens::IssuedThere(server) => server.token_issuer().await,
        };
        match judge(own.as_ref(), token) {
            Ok(()) => true,
            Err(why) => {
                self.log(why);
                false
            }
        }
    }

    fn log(&self, why: NotShown) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < MOST_LOGGED && !logged.contains(&why) {
            tracing::warn!(
                "a request to the HTTPS endpoint was refused and its token not shown to the {} cluster: {why}. Name the \
                 cluster that issues the clients' tokens by --authentication-kubeconfig, or use a client certificate",
                self.cluster
            );
            logged.push(why);
        }
    }
}

fn judge(own: Option<&TokenIssuer>, token: &str) -> Result<(), NotShown> {
    let own = own.ok_or(NotShown::OwnIssuerUnknown)?;
    let shown = TokenIssuer::of(token).ok_or(NotShown::NoIssuer)?;
    if own.is_of(&shown) {
        return Ok(());
    }
    let issuer = shown.issuer();
    Err(NotShown::OtherIssuer(issuer[..issuer.floor_char_boundary(MOST_OF_ISSUER)].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// `{"kid":"k"}` or `{"kid":"l"}`, then `{"iss":"i","aud":["api"]}`.
    const OWN: &str = "eyJraWQiOiJrIn0.eyJpc3MiOiJpIiwiYXVkIjpbImFwaSJdfQ.c2ln";
    const SAME: &str = "eyJraWQiOiJrIn0.eyJpc3MiOiJpIiwiYXVkIjpbImFwaSJdfQ.b3RoZXI";
    const OTHER_KEY: &str = "eyJraWQiOiJsIn0.eyJpc3MiOiJpIiwiYXVkIjpbImFwaSJdfQ.c2ln";

    #[rstest]
    #[case::same_issuer(Some(OWN), SAME, Ok(()))]
    #[case::infra_with_the_same_issuer(Some(OWN), OTHER_KEY, Err(NotShown::OtherIssuer("i".into())))]
    #[case::opaque(Some(OWN), "reader", Err(NotShown::NoIssuer))]
    #[case::our_certificate(None, SAME, Err(NotShown::OwnIssuerUnknown))]
    fn only_tokens_of_the_reviewer_s_own_issuer_are_shown(
        #[case] own: Option<&str>,
        #[case] token: &str,
        #[case] wanted: Result<(), NotShown>,
    ) {
        assert_eq!(judge(own.and_then(TokenIssuer::of).as_ref(), token), wanted);
    }

    #[test]
    fn a_scanner_does_not_flood_the_log() {
        let gate = Gate::new(ShownTokens::All, "guest");
        for number in 0..100 {
            gate.log(NotShown::OtherIssuer(number.to_string()));
        }
        assert_eq!(gate.logged.lock().unwrap().len(), MOST_LOGGED);
    }
}
