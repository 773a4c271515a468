//! A front proxy: it has authenticated the user and names it in headers. The headers count if the authority for front
//! proxies verifies the proxy's certificate and its name is allowed; headers of any other client are ignored.

use std::{borrow::Cow, collections::BTreeMap};

use axum::http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use tokio_rustls::rustls::pki_types::UnixTime;

use crate::{
    certificate::{Authority, Presented, Unproved},
    user::User,
};

/// Which front proxies are trusted, and which headers they send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontProxyRules {
    /// Common names of front proxies; empty = every verified one.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that has a value counts.
    pub username_headers: Vec<String>,
    /// Headers with the user's uid; the first that has a value counts.
    pub uid_headers: Vec<String>,
    /// Headers with the user's groups; all count.
    pub group_headers: Vec<String>,
    /// Prefixes of headers; the rest of such a header's name is the key of a further attribute.
    pub extra_headers_prefixes: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct FrontProxy {
    pub authority: Authority,
    pub rules: FrontProxyRules,
}

impl FrontProxy {
    /// The user that the headers name; `None` if they name none.
    pub(crate) fn user(
        &self,
        presented: &Presented,
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<Option<User>, Unproved> {
        let name = self.authority.verify(presented, now)?.common_name;
        let allowed = &self.rules.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&name) {
            return Err(Unproved::NotAllowed(name));
        }
        self.rules.user(headers)
    }
}

impl FrontProxyRules {
    fn user(&self, headers: &HeaderMap) -> Result<Option<User>, Unproved> {
        let name = first(headers, &self.username_headers)?;
        if name.is_empty() {
            return Ok(None);
        }
        let groups = self.group_headers.iter().flat_map(|group| headers.get_all(group)).map(text);
        let groups: Vec<_> = groups.collect::<Result<_, _>>()?;
        Ok(Some(User {
            name: name.to_owned(),
            uid: first(headers, &self.uid_headers)?.to_owned(),
            groups: groups.into_iter().filter(|group| !group.is_empty()).map(str::to_owned).collect(),
            extra: self.extra(headers)?,
        }))
    }

    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, Unproved> {
        let mut extra: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for prefix in &self.extra_headers_prefixes {
            let prefix = prefix.to_lowercase();
            for (name, value) in headers {
                // `HeaderName` is in lower case.
                let Some(key) = name.as_str().strip_prefix(&prefix) else { continue };
                // A key that is escaped wrongly is used as it is.
                let decoded = percent_decode_str(key).decode_utf8().unwrap_or(Cow::Borrowed(key));
                extra.entry(decoded.into_owned()).or_default().push(text(value)?.to_owned());
            }
        }
        Ok(extra)
    }
}

/// The first of these headers that has a value; if a header occurs more than once, the first one.
fn first<'a>(headers: &'a HeaderMap, names: &[String]) -> Result<&'a str, Unproved> {
    for name in names {
        let value = headers.get(name).map_or(Ok(""), text)?;
        if !value.is_empty() {
            return Ok(value);
        }
    }
    Ok("")
}

fn text(value: &HeaderValue) -> Result<&str, Unproved> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| Unproved::Header)
}
