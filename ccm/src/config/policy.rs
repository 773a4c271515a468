//! Which requests of a guest may reach the infra cluster, by its operator's policy in the cloud-config. Pure.
//!
//! Without a policy everything reaches infra, as with the upstream cloud provider, except new `externalIPs`: they would
//! catch traffic of the infra cluster itself (CVE-2020-8554). Each refused request is reported, so that the guest's
//! users can read why; the rest of the Service is served.

pub(super) mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Annotations that ask an infra load balancer for addresses, as `loadBalancerIP` does: `MetalLB`, kube-vip, Cilium.
const ADDRESS_ANNOTATIONS: [&str; 5] = [
    "io.cilium/lb-ipam-ips",
    "kube-vip.io/loadbalancerIPs",
    "lbipam.cilium.io/ips",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
];
/// kubectl's record of what the guest's user applied; in infra it would only be a copy that goes out of date.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How many of the annotations that do not reach infra are reported: a user who removes these is told the next.
pub(crate) const MOST_REPORTED: usize = 32;
/// At the end of a pattern: any rest of an annotation's key.
const ANY_REST: char = '*';

/// The operator's policy: the section `loadBalancer.policy` of the cloud-config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestPolicy {
    /// `annotations`.
    pub annotations: AnnotationPolicy,
    /// `externalIPs`: only addresses in these networks reach infra, also where infra has others already. `None` = infra
    /// keeps those that it has, and gets no new ones.
    pub external_ips: Option<Networks>,
    /// `loadBalancerIPs`: addresses that the guest may ask for, by the field or by an annotation. `None` = any.
    pub load_balancer_ips: Option<Networks>,
    /// `maxLoadBalancers`: how many infra Services this guest may have. `None` = any number.
    pub max_load_balancers: Option<u32>,
    /// `maxPorts`: how many ports they may have in all. `None` = any number.
    pub max_ports: Option<u32>,
    /// `maxSourceRanges`: how many source ranges they may have in all. `None` = any number.
    pub max_source_ranges: Option<u32>,
    /// `denyFields`: these fields of the guest's Services do not reach infra.
    pub deny_fields: BTreeSet<Field>,
}

/// A field that some load balancers of infra refuse, or take for more than the guest means by it. The upstream cloud
/// provider passes none of them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `sessionAffinity` and `sessionAffinityConfig`: load balancers of AWS refuse `ClientIP`.
    SessionAffinity,
    /// `appProtocol` of ports: Azure probes `/` over HTTP where it is `http`.
    AppProtocol,
    /// `ipFamilyPolicy`: a load balancer whose pool has one family may give no address to a Service of two.
    IpFamilyPolicy,
}

impl Field {
    /// All of them.
    const ALL: [Self; 3] = [Self::SessionAffinity, Self::AppProtocol, Self::IpFamilyPolicy];

    /// Its name in a Service.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionAffinity => "sessionAffinity",
            Self::AppProtocol => "appProtocol",
            Self::IpFamilyPolicy => "ipFamilyPolicy",
        }
    }
}

impl FromStr for Field {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let found = Self::ALL.into_iter().find(|field| field.name() == text);
        found.ok_or_else(|| PolicyError::Field(text.to_owned()))
    }
}

/// Which annotations reach infra, and which the operator adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnotationPolicy {
    /// `allow`: only these reach infra. `None` = all.
    pub allow: Option<Vec<KeyPattern>>,
    /// `deny`: these do not reach infra, even where `allow` names them.
    pub deny: Vec<KeyPattern>,
    /// `values`: these annotations reach infra with these values only.
    pub values: BTreeMap<String, Choice>,
    /// `defaults`: added where the guest sets none that may reach infra.
    pub defaults: BTreeMap<String, String>,
    /// `overrides`: always set, whatever the guest sets.
    pub overrides: BTreeMap<String, String>,
}

/// A key of an annotation, or all keys with one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPattern {
    /// This key.
    Exact(String),
    /// All keys with this prefix.
    Prefix(String),
}

/// The values that an annotation may have: literal values, and networks, which allow their addresses. If a value is a
/// list separated by commas, each item must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    words: Vec<String>,
    networks: Networks,
}

/// Networks in CIDR notation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// Why a policy is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is not a pattern.
    #[error("{0:?} is no key of an annotation; a {ANY_REST} may stand at the end only")]
    Pattern(String),
    /// The text is not a network.
    #[error("{0:?} is no network; write for example 192.0.2.0/24 or 2001:db8::/64")]
    Network(String),
    /// The text is not a field that can be denied.
    #[error("{0:?} is no field that can be denied; these can: sessionAffinity, appProtocol, ipFamilyPolicy")]
    Field(String),
}

/// A request of the guest that does not reach infra.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// Annotations that are not allowed.
    #[error("annotations {} are not passed to the infra cluster: its operator does not allow them", .0.join(", "))]
    Annotations(Vec<String>),
    /// Annotations for which the operator sets the value.
    #[error("annotations {} are set by the infra cluster's operator, and your values are ignored", .0.join(", "))]
    Overridden(Vec<String>),
    /// A value that is not allowed.
    #[error("annotation {key} is not passed to the infra cluster: its value is {value:?}, allowed {allowed}")]
    Value {
        /// The annotation.
        key: String,
        /// The value that the guest asked for.
        value: String,
        /// The values that the operator allows.
        allowed: String,
    },
    /// An address that is not allowed.
    #[error("loadBalancerIP {address:?} is not passed to the infra cluster: allowed {allowed}")]
    LoadBalancerIp {
        /// The address that the guest asked for.
        address: String,
        /// The networks that the operator allows.
        allowed: Networks,
    },
    /// External addresses that are not allowed.
    #[error(
        "externalIPs {} are not passed to the infra cluster, whose own traffic they would catch: allowed {allowed}",
        .addresses.join(", ")
    )]
    ExternalIps {
        /// The addresses that the guest asked for.
        addresses: Vec<String>,
        /// The networks that the operator allows.
        allowed: Networks,
    },
    /// Fields that are not allowed.
    #[error("{} is not passed to the infra cluster: its operator does not allow it", .0.join(", "))]
    Fields(Vec<&'static str>),
}

impl GuestPolicy {
    /// The annotations that reach infra, of those that the guest `asked` for.
    pub fn annotations(
        &self,
        asked: BTreeMap<String, String>,
        withheld: &mut Vec<Withheld>,
    ) -> BTreeMap<String, String> {
        let policy = &self.annotations;
        let (mut passed, mut refused, mut overridden) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (key, value) in asked {
            if policy.overrides.get(&key).is_some_and(|own| *own != value) {
                overridden.push(key);
            } else if !policy.passes(&key) {
                refused.push(key);
            } else if let Some(allowed) = self.forbids(&key, &value) {
                withheld.push(Withheld::Value { key, value, allowed });
            } else {
                passed.insert(key, value);
            }
        }
        refused.truncate(MOST_REPORTED);
        if !refused.is_empty() {
            withheld.push(Withheld::Annotations(refused));
        }
        if !overridden.is_empty() {
            withheld.push(Withheld::Overridden(overridden));
        }
        for (key, value) in &policy.defaults {
            passed.entry(key.clone()).or_insert_with(|| value.clone());
        }
        passed.extend(policy.overrides.clone());
        passed
    }

    /// Whether the guest's annotation reaches infra, with the guest's value.
    pub fn passes(&self, key: &str, value: &str) -> bool {
        !self.annotations.overrides.contains_key(key)
            && self.annotations.passes(key)
            && self.forbids(key, value).is_none()
    }

    /// If this value is not allowed: the values that would be.
    fn forbids(&self, key: &str, value: &str) -> Option<String> {
        if let Some(choice) = self.annotations.values.get(key) {
            return (!choice.allows(value)).then(|| choice.to_string());
        }
        let networks = self.load_balancer_ips.as_ref().filter(|_| ADDRESS_ANNOTATIONS.contains(&key))?;
        (!items(value).all(|item| networks.allow(item))).then(|| networks.to_string())
    }

    /// `loadBalancerIP` as it reaches infra; empty = none.
    pub fn load_balancer_ip<'a>(&self, asked: &'a str, withheld: &mut Vec<Withheld>) -> &'a str {
        match &self.load_balancer_ips {
            Some(allowed) if !asked.is_empty() && !allowed.allow(asked) => {
                let (address, allowed) = (asked.to_owned(), allowed.clone());
                withheld.push(Withheld::LoadBalancerIp { address, allowed });
                ""
            }
            _ => asked,
        }
    }

    /// The `externalIPs` that reach infra, which has `present` already. Without a policy these stay as long as the
    /// guest asks for them: the upstream cloud provider passed them on, and an upgrade from it must not take anything
    /// away.
    pub fn external_ips(
        &self,
        asked: &[String],
        present: &[String],
        withheld: &mut Vec<Withheld>,
    ) -> Vec<String> {
        let allows = |ip: &String| match &self.external_ips {
            Some(networks) => networks.allow(ip),
            None => present.contains(ip),
        };
        let (passed, addresses): (Vec<_>, Vec<_>) = asked.iter().cloned().partition(allows);
        if !addresses.is_empty() {
            let allowed = self.external_ips.clone().unwrap_or_default();
            withheld.push(Withheld::ExternalIps { addresses, allowed });
        }
        passed
    }
}

impl AnnotationPolicy {
    /// Keeps what is read of a Service's annotations: those that may reach infra, and the first few keys of the others,
    /// which are reported. The annotations of one object may take 256 KiB (k8s.io/apimachinery,
    /// `TotalAnnotationSizeLimitB`).
    pub(crate) fn keep_read(&self, annotations: &mut BTreeMap<String, String>) {
        annotations.remove(LAST_APPLIED);
        let mut reported = 0;
        annotations.retain(|key, value| {
            if self.passes(key) || self.overrides.contains_key(key) {
                return true;
            }
            *value = String::new();
            reported += 1;
            reported <= MOST_REPORTED
        });
    }

    fn passes(&self, key: &str) -> bool {
        let named = |patterns: &[KeyPattern]| patterns.iter().any(|pattern| pattern.fits(key));
        !named(&self.deny) && self.allow.as_deref().is_none_or(named)
    }
}

impl KeyPattern {
    fn fits(&self, key: &str) -> bool {
        match self {
            Self::Exact(exact) => key == exact,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for KeyPattern {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (start, is_prefix) = text.strip_suffix(ANY_REST).map_or((text, false), |start| (start, true));
        if start.contains(ANY_REST) || (start.is_empty() && !is_prefix) {
            return Err(PolicyError::Pattern(text.to_owned()));
        }
        Ok(if is_prefix { Self::Prefix(start.to_owned()) } else { Self::Exact(start.to_owned()) })
    }
}

impl Choice {
    /// Reads the values in the form in which the operator writes them.
    pub fn new(values: Vec<String>) -> Self {
        let networks = values.iter().filter_map(|value| value.parse().ok()).collect();
        Self { words: values, networks: Networks(networks) }
    }

    fn allows(&self, value: &str) -> bool {
        let known = |item: &str| self.words.iter().any(|word| word == item) || self.networks.allow(item);
        known(value) || items(value).all(known)
    }
}

impl Display for Choice {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        list(formatter, &self.words)
    }
}

impl Networks {
    /// Reads networks in CIDR notation.
    ///
    /// # Errors
    /// A text is not a network.
    pub fn parse(texts: &[String]) -> Result<Self, PolicyError> {
        let networks = texts.iter().map(|text| text.parse().map_err(|_| PolicyError::Network(text.clone())));
        networks.collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of the networks contains the address. A text that is not an address is not allowed.
    fn allow(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<IpAddr>() else { return false };
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Display for Networks {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        list(formatter, &self.0)
    }
}

fn list<T: Display>(formatter: &mut Formatter<'_>, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return formatter.write_str("are none");
    }
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    write!(formatter, "are {}", items.join(", "))
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

impl Withheld {
    /// The `reason` of the event that reports it, and the label of the metric that counts it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Annotations(_) | Self::Overridden(_) | Self::Value { .. } => "AnnotationsRefused",
            Self::LoadBalancerIp { .. } => "LoadBalancerIPRefused",
            Self::ExternalIps { .. } => "ExternalIPsRefused",
            Self::Fields(_) => "FieldsRefused",
        }
    }
}

#[cfg(test)]
mod tests;
