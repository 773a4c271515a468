//! Who issued a bearer token, as the token itself says. Nothing is verified: this serves to recognise which tokens may
//! be shown to an API server, never to believe one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// Issuer of the tokens that are kept in Secrets (Kubernetes, `pkg/serviceaccount`, `LegacyIssuer`): the same in every
/// cluster, and another one than that of the same cluster's tokens for pods.
const SECRETS_ISSUER: &str = "kubernetes/serviceaccount";

/// The issuer of a JSON Web Token (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// Claim `iss`.
    issuer: String,
    /// Header `kid`: API servers derive it from the public key. Many clusters have the same issuer, because it is an
    /// installer's default; no two have the same key.
    key: String,
    /// Claim `aud`.
    audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl TokenIssuer {
    /// The issuer that a token names. `None` = it is not a JSON Web Token, or names no issuer or no key.
    pub fn of(token: &str) -> Option<Self> {
        let parts: Vec<&str> = token.trim().split('.').collect();
        let [header, claims, _signature] = parts.as_slice() else { return None };
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok();
        let header: Header = serde_json::from_slice(&decoded(header)?).ok()?;
        let claims: Claims = serde_json::from_slice(&decoded(claims)?).ok()?;
        let audiences = match claims.aud {
            Audiences::One(audience) => vec![audience],
            Audiences::Several(audiences) => audiences,
        };
        let found = Self { issuer: claims.iss, key: header.kid, audiences };
        (!found.issuer.is_empty() && !found.key.is_empty()).then_some(found)
    }

    /// The claim `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether the other token is from the same issuer, signed by the same key, and for an audience of this one. A token
    /// of a Secret names neither the cluster's issuer nor an audience, so that the key alone decides.
    pub fn is_of(&self, other: &Self) -> bool {
        let meets = self.audiences.iter().any(|audience| other.audiences.contains(audience));
        let is_same = self.issuer == other.issuer && (meets || self.audiences.is_empty());
        self.key == other.key && (is_same || self.issuer == SECRETS_ISSUER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn token(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2lnbmF0dXJl", part(header), part(claims))
    }

    fn issuer(kid: &str, iss: &str, aud: &Value) -> TokenIssuer {
        TokenIssuer::of(&token(&json!({"alg": "RS256", "kid": kid}), &json!({"iss": iss, "aud": aud})))
            .unwrap()
    }

    #[rstest]
    #[case::same("k", "i", json!(["api", "other"]), true)]
    #[case::one_audience("k", "i", json!("api"), true)]
    #[case::another_cluster_with_the_default_issuer("k2", "i", json!(["api"]), false)]
    #[case::another_issuer("k", "i2", json!(["api"]), false)]
    #[case::another_audience("k", "i", json!(["vault"]), false)]
    #[case::no_audience("k", "i", json!([]), false)]
    fn a_token_of_the_same_cluster_is_recognised(
        #[case] kid: &str,
        #[case] iss: &str,
        #[case] aud: Value,
        #[case] same: bool,
    ) {
        assert_eq!(issuer("k", "i", &json!(["api"])).is_of(&issuer(kid, iss, &aud)), same);
    }

    #[test]
    fn of_a_token_of_a_secret_the_key_decides() {
        let claims = json!({"iss": "kubernetes/serviceaccount", "sub": "x"});
        let own = TokenIssuer::of(&token(&json!({"kid": "k"}), &claims)).unwrap();
        assert_eq!(own.issuer(), "kubernetes/serviceaccount");
        assert!(own.is_of(&own) && own.is_of(&issuer("k", "i", &json!(["api"]))));
        assert!(!own.is_of(&issuer("k2", "kubernetes/serviceaccount", &json!([]))));
    }

    #[rstest]
    #[case::opaque("reader")]
    #[case::empty("")]
    #[case::two_parts("e30.e30")]
    #[case::four_parts("e30.e30.e30.e30")]
    #[case::no_base64("§.§.§")]
    #[case::no_json("YQ.YQ.YQ")]
    #[case::no_issuer(&token(&json!({"kid": "k"}), &json!({"aud": "api"})))]
    #[case::empty_issuer(&token(&json!({"kid": "k"}), &json!({"iss": "", "aud": "api"})))]
    #[case::no_key(&token(&json!({}), &json!({"iss": "i", "aud": "api"})))]
    #[case::odd_issuer(&token(&json!({"kid": "k"}), &json!({"iss": 7})))]
    fn what_names_no_issuer_has_none(#[case] token: &str) {
        assert_eq!(TokenIssuer::of(token), None);
    }
}
