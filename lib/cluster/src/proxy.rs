//! Through which proxy an API server is reached: the `proxy-url` of a kubeconfig, else the proxy variables of the
//! environment, by the rules of Go's clients (`golang.org/x/net/http/httpproxy`), so that a pod's settings mean the
//! same here as for its neighbours.
//!
//! kube's own feature is not used: it compares `NO_PROXY` with the proxy's address instead of the server's (kube 5.0.0,
//! `config/file_loader.rs`).

use std::net::IpAddr;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use ipnet::IpNet;

/// A proxy to connect through.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub scheme: Scheme,
    pub uri: Uri,
    /// `Proxy-Authorization`, where the URL has a user.
    pub basic: Option<HeaderValue>,
    /// User and password for SOCKS.
    pub user: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
    Socks5,
}

/// A proxy's URL can't be used. The text does not show the URL, because it may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is not the URL of a proxy; write http://, https:// or socks5://, host and port")]
pub struct ProxyError {
    /// The setting that has the URL.
    pub setting: &'static str,
}

/// The proxy variables of the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    http: Option<String>,
    https: Option<String>,
    excluded: NoProxy,
}

impl Variables {
    /// Reads each variable in upper case, else in lower case.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let excluded = NoProxy::parse(&read("NO_PROXY").unwrap_or_default());
        Self { http: read("HTTP_PROXY"), https: read("HTTPS_PROXY"), excluded }
    }

    pub(crate) fn of_the_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// The proxy for `server`; `proxy_url` comes from its kubeconfig.
    pub(crate) fn proxy_for(
        &self,
        server: &Uri,
        proxy_url: Option<&str>,
    ) -> Result<Option<Proxy>, ProxyError> {
        if let Some(url) = proxy_url.filter(|url| !url.is_empty()) {
            return Proxy::parse(url, "proxy-url of the kubeconfig").map(Some);
        }
        let (url, setting) = if server.scheme_str() == Some("http") {
            (&self.http, "HTTP_PROXY")
        } else {
            (&self.https, "HTTPS_PROXY")
        };
        match url {
            Some(url) if !self.excluded.contains(server) => Proxy::parse(url, setting).map(Some),
            _ => Ok(None),
        }
    }
}

impl Proxy {
    fn parse(url: &str, setting: &'static str) -> Result<Self, ProxyError> {
        let unusable = || ProxyError { setting };
        let matcher = Matcher::builder().all(url).build();
        let any = Uri::from_static("https://server");
        let proxy = matcher.intercept(&any).ok_or_else(unusable)?;
        let scheme = match proxy.uri().scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some("socks5" | "socks5h") => Scheme::Socks5,
            _ => return Err(unusable()),
        };
        let user = proxy.raw_auth().map(|(user, password)| (user.to_owned(), password.to_owned()));
        Ok(Self { scheme, uri: proxy.uri().clone(), basic: proxy.basic_auth().cloned(), user })
    }
}

/// The servers that are reached without a proxy (`NO_PROXY`).
#[derive(Clone, Debug, Default)]
struct NoProxy {
    all: bool,
    networks: Vec<IpNet>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    domains: Vec<Domain>,
}

#[derive(Clone, Debug)]
struct Domain {
    /// With a leading dot.
    suffix: String,
    /// Whether the name without the dot counts too.
    itself: bool,
    port: Option<u16>,
}

impl NoProxy {
    fn parse(text: &str) -> Self {
        let mut excluded = Self::default();
        for entry in text.split(',').map(|entry| entry.trim().to_ascii_lowercase()) {
            if entry == "*" {
                excluded.all = true;
            } else if let Ok(network) = entry.parse() {
                excluded.networks.push(network);
            } else {
                let (host, port) = split_port(&entry);
                let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
                if let Ok(address) = unbracketed(host).parse() {
                    excluded.addresses.push((address, port));
                } else if !host.is_empty() {
                    let itself = !host.starts_with('.');
                    let suffix = if itself { format!(".{host}") } else { host.to_owned() };
                    excluded.domains.push(Domain { suffix, itself, port });
                }
            }
        }
        excluded
    }

    fn contains(&self, server: &Uri) -> bool {
        let Some(host) = server.host() else { return false };
        let host = unbracketed(host).to_ascii_lowercase();
        let default_port = if server.scheme_str() == Some("http") { 80 } else { 443 };
        let port = server.port_u16().unwrap_or(default_port);
        let port_matches = |wanted: Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        if self.all || host == "localhost" {
            return true;
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return address.is_loopback()
                || self.networks.iter().any(|network| network.contains(&address))
                || self.addresses.iter().any(|(one, port)| *one == address && port_matches(*port));
        }
        self.domains.iter().any(|domain| {
            let named = domain.itself && host == domain.suffix[1..];
            (named || host.ends_with(&domain.suffix)) && port_matches(domain.port)
        })
    }
}

/// Host and port of an entry; an IPv6 address without brackets has no port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.parse().map_or((entry, None), |port| (host, Some(port)))
        }
        _ => (entry, None),
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let pairs: Vec<(String, String)> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Variables::read(|name| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
    }

    fn is_proxied(no_proxy: &str, server: &str) -> bool {
        let variables = variables(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)]);
        variables.proxy_for(&server.parse().unwrap(), None).unwrap().is_some()
    }

    #[rstest]
    #[case::nothing_excluded("", "https://10.76.0.1", true)]
    #[case::exact("10.76.0.1", "https://10.76.0.1", false)]
    #[case::the_proxy_itself("proxy", "https://10.76.0.1", true)]
    #[case::cidr("10.76.0.0/16", "https://10.76.0.1:6443", false)]
    #[case::other_cidr("10.77.0.0/16", "https://10.76.0.1:6443", true)]
    #[case::star("*", "https://10.76.0.1", false)]
    #[case::star_in_a_list("a.example, *", "https://api.example.com", false)]
    #[case::port("10.76.0.1:6443", "https://10.76.0.1:6443", false)]
    #[case::other_port("10.76.0.1:6443", "https://10.76.0.1", true)]
    #[case::default_port("10.76.0.1:443", "https://10.76.0.1", false)]
    #[case::ipv6("fd00::1", "https://[fd00::1]:6443", false)]
    #[case::ipv6_port("[fd00::1]:6443", "https://[fd00::1]:6443", false)]
    #[case::ipv6_cidr("fd00::/8", "https://[fd00::1]:6443", false)]
    #[case::name("api.example.com", "https://api.example.com:6443", false)]
    #[case::domain("example.com", "https://api.example.com", false)]
    #[case::domain_itself("example.com", "https://example.com", false)]
    #[case::suffix(".example.com", "https://api.example.com", false)]
    #[case::suffix_is_not_the_domain(".example.com", "https://example.com", true)]
    #[case::wildcard_suffix("*.example.com", "https://api.example.com", false)]
    #[case::part_of_a_label("ample.com", "https://example.com", true)]
    #[case::case("Example.COM", "https://API.example.com", false)]
    #[case::cluster_suffix(".svc,.cluster.local", "https://kubernetes.default.svc", false)]
    #[case::localhost("", "https://localhost:6443", false)]
    #[case::loopback("", "https://127.0.0.1:6443", false)]
    #[case::broken_entries(",:,:80,[", "https://10.76.0.1", true)]
    fn no_proxy_has_go_s_meaning(#[case] no_proxy: &str, #[case] server: &str, #[case] proxied: bool) {
        assert_eq!(is_proxied(no_proxy, server), proxied);
    }

    #[rstest]
    #[case::upper_case(&[("HTTPS_PROXY", "http://a:1")], Some("http://a:1/"))]
    #[case::lower_case(&[("https_proxy", "http://a:1")], Some("http://a:1/"))]
    #[case::upper_case_first(&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")], Some("http://a:1/"))]
    #[case::empty_upper_case(&[("HTTPS_PROXY", ""), ("https_proxy", "http://b:1")], Some("http://b:1/"))]
    #[case::without_scheme(&[("HTTPS_PROXY", "a:1")], Some("http://a:1/"))]
    #[case::lower_case_exclusion(&[("https_proxy", "http://a:1"), ("no_proxy", "10.0.0.0/8")], None)]
    #[case::of_other_scheme(&[("HTTP_PROXY", "http://a:1")], None)]
    #[case::not_of_go(&[("ALL_PROXY", "http://a:1")], None)]
    fn variables_are_read_as_go_reads_them(
        #[case] environment: &[(&str, &str)],
        #[case] wanted: Option<&str>,
    ) {
        let proxy = variables(environment).proxy_for(&"https://10.76.0.1".parse().unwrap(), None).unwrap();
        assert_eq!(proxy.map(|proxy| proxy.uri.to_string()).as_deref(), wanted);
    }

    #[test]
    fn the_kubeconfig_s_proxy_wins_and_knows_no_exclusion() {
        let variables = variables(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "*")]);
        let server = "https://10.76.0.1".parse().unwrap();
        let proxy = variables.proxy_for(&server, Some("socks5://u:p%40@b:1080")).unwrap().unwrap();
        assert_eq!((proxy.scheme, proxy.uri.to_string().as_str()), (Scheme::Socks5, "socks5://b:1080/"));
        assert_eq!(proxy.user, Some(("u".into(), "p@".into())));
        assert!(variables.proxy_for(&server, Some("")).unwrap().is_none());
    }

    #[rstest]
    #[case("ftp://a:1")]
    #[case("socks4://a:1")]
    #[case("http://s3cr3t@")]
    fn a_url_that_is_no_proxy_s_is_named_by_its_setting(#[case] url: &str) {
        let variables = variables(&[("HTTPS_PROXY", url)]);
        let error = variables.proxy_for(&"https://10.76.0.1".parse().unwrap(), None).err().unwrap();
        assert!(error.to_string().contains("HTTPS_PROXY"));
        assert!(!error.to_string().contains("s3cr3t"));
    }
}
