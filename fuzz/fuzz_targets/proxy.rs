//! The proxy variables and `proxy-url`: a line for each of the variables, the URL and the server. The file of the crate is
//! compiled here, because nobody else needs what it has.
#![no_main]

use fuzz::text;
use http::Uri;
use libfuzzer_sys::fuzz_target;

#[path = "../../lib/cluster/src/proxy.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of another crate")]
mod proxy;

use proxy::Variables;

const PASSWORD: &str = "s3cr3t";

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (proxy, no_proxy, proxy_url, server) = (next(), next(), next(), next());
    let named = server.parse().ok().filter(|server: &Uri| server.host().is_some_and(|host| !host.is_empty()));
    let server = named.unwrap_or_else(|| Uri::from_static("https://10.76.0.1:6443"));
    let chosen = |no_proxy: &str, proxy_url: Option<&str>| {
        let value = |name: &str| match name {
            "HTTPS_PROXY" | "HTTP_PROXY" => Some(proxy.to_owned()),
            "NO_PROXY" => Some(no_proxy.to_owned()),
            _ => None,
        };
        let chosen = Variables::read(value).proxy_for(&server, proxy_url);
        if let Err(error) = &chosen {
            assert!(!error.to_string().contains(PASSWORD), "{error}");
        }
        chosen
    };
    // A kubeconfig's URL knows no exclusion.
    let by_kubeconfig = chosen("*", Some(proxy_url));
    assert!(proxy_url.is_empty() || !matches!(by_kubeconfig, Ok(None)));
    let is_direct = |no_proxy: &str| matches!(chosen(no_proxy, None), Ok(None));
    assert!(is_direct("*"));
    assert!(is_direct(&format!("{no_proxy},*")));
    // More entries exclude more.
    if is_direct(no_proxy) {
        assert!(is_direct(&format!("{no_proxy},a.example")) && is_direct(&format!("a.example,{no_proxy}")));
    }
    // A server that is named is excluded.
    if let Some(host) =
        server.host().filter(|host| !host.contains(['*', ',', ' ', ':', '/']) || host.starts_with('['))
    {
        assert!(
            is_direct(host) || host.starts_with('.') || host.ends_with(']') && !is_address(host),
            "{host:?}"
        );
    }
});

fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
}
