//! The section `loadBalancer.policy`: which requests of a guest may reach infra.

use std::collections::{BTreeMap, BTreeSet};

use super::{AnnotationPolicy, Choice, Field, GuestPolicy, KeyPattern, Networks, PolicyError};
use crate::config::{
    ConfigError,
    section::{Section, wrong},
};

/// The full name of the section.
const NAME: &str = "loadBalancer.policy";
/// The full name of its subsection.
const ANNOTATIONS: &str = "loadBalancer.policy.annotations";

/// Reads the section from `loadBalancer` and adds unknown keys to `unknown`.
pub(in crate::config) fn policy(
    load_balancer: &mut Section<'_>,
    unknown: &mut Vec<String>,
) -> Result<GuestPolicy, ConfigError> {
    let mut policy = load_balancer.section_of("policy", NAME)?;
    let mut annotations = policy.section_of("annotations", ANNOTATIONS)?;
    let read = GuestPolicy {
        annotations: AnnotationPolicy {
            allow: patterns(&mut annotations, "allow")?,
            deny: patterns(&mut annotations, "deny")?.unwrap_or_default(),
            values: choices(&mut annotations, "values")?,
            defaults: annotations.texts("defaults")?,
            overrides: annotations.texts("overrides")?,
        },
        external_ips: networks(&mut policy, "externalIPs")?,
        load_balancer_ips: networks(&mut policy, "loadBalancerIPs")?,
        max_load_balancers: count(&mut policy, "maxLoadBalancers")?,
        max_ports: count(&mut policy, "maxPorts")?,
        max_source_ranges: count(&mut policy, "maxSourceRanges")?,
        deny_fields: fields(&mut policy, "denyFields")?,
    };
    unknown.extend(policy.left().into_iter().chain(annotations.left()));
    Ok(read)
}

fn patterns(section: &mut Section<'_>, key: &str) -> Result<Option<Vec<KeyPattern>>, ConfigError> {
    let path = section.path(key);
    let Some(texts) = section.list_if_there(key)? else { return Ok(None) };
    let patterns: Result<_, PolicyError> = texts.iter().map(|text| text.parse()).collect();
    patterns.map(Some).map_err(|why| ConfigError::Policy { key: path, why })
}

fn networks(section: &mut Section<'_>, key: &str) -> Result<Option<Networks>, ConfigError> {
    let path = section.path(key);
    let Some(texts) = section.list_if_there(key)? else { return Ok(None) };
    Networks::parse(&texts).map(Some).map_err(|why| ConfigError::Policy { key: path, why })
}

fn fields(section: &mut Section<'_>, key: &str) -> Result<BTreeSet<Field>, ConfigError> {
    let path = section.path(key);
    let fields: Result<_, PolicyError> = section.list(key)?.iter().map(|text| text.parse()).collect();
    fields.map_err(|why| ConfigError::Policy { key: path, why })
}

fn choices(section: &mut Section<'_>, key: &str) -> Result<BTreeMap<String, Choice>, ConfigError> {
    let lists = section.lists(key)?;
    Ok(lists.into_iter().map(|(key, values)| (key, Choice::new(values))).collect())
}

fn count(section: &mut Section<'_>, key: &str) -> Result<Option<u32>, ConfigError> {
    let value = section.take(key);
    if value.is_null() {
        return Ok(None);
    }
    let count = value.as_str().and_then(|count| count.parse().ok());
    count.map(Some).ok_or_else(|| wrong(&section.path(key), "a whole number, 0 or more", &value))
}
