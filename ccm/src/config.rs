//! The cloud-config: the YAML file that `--cloud-config` names, with the keys and defaults of
//! kubevirt/cloud-provider-kubevirt (`pkg/provider/cloud.go`).
//!
//! A key that nobody knows is no error, because the reference drops it too, but it is told, so that a misspelt one
//! shows. A value of a wrong type is an error that names the key.

pub mod policy;
mod section;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::nodes::address::{AddressPolicy, PolicyError};
use policy::GuestPolicy;
use section::Section;

/// `loadBalancer.creationPollInterval` where it is absent or not positive (the reference's default).
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// `loadBalancer.creationPollTimeout` where it is absent or not positive (the reference's default).
const DEFAULT_POLL_TIMEOUT: Duration = Duration::from_mins(5);
/// `loadBalancer.sweepInterval` where it is absent: a left-over costs an address, and a look one call per left-over.
const DEFAULT_SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// Value of `loadBalancer.endpoints`.
const MANAGED: &str = "Managed";

/// What the cloud-config says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudConfig {
    /// `kubeconfig`: file with the infra cluster's credentials; `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `namespace`: infra namespace of this guest's VMs; empty = that of the credentials.
    pub namespace: String,
    /// `infraLabels`: labels of every infra Service of this guest, stronger than our own keys.
    pub infra_labels: BTreeMap<String, String>,
    /// `loadBalancer`.
    pub load_balancer: LoadBalancerConfig,
    /// `instancesV2`.
    pub instances: InstancesConfig,
}

/// The section `loadBalancer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerConfig {
    /// `enabled`: whether LoadBalancer Services are served at all.
    pub enabled: bool,
    /// `creationPollInterval`: accepted; nothing is polled here.
    pub poll_interval: Duration,
    /// `creationPollTimeout`: after this time without an address, the Service gets a warning event.
    pub poll_timeout: Duration,
    /// `selectorless`: infra Services have no selector, somebody else writes their endpoints.
    pub selectorless: bool,
    /// `enableEPSController`: endpoints of infra Services with policy Local are ours to write.
    pub endpoint_slices: bool,
    /// `policy`: what of the guest's wishes may reach infra. The reference does not have it.
    pub policy: GuestPolicy,
    /// `owner`: the infra object with which all infra Services of this guest go. The reference does not have it.
    pub owner: Option<OwnerChoice>,
    /// `sweepInterval`: how often left-overs are looked for; `None` = never. The reference does not have it.
    pub sweep_interval: Option<Duration>,
    /// `endpoints`: the reference does not have it.
    pub endpoints: ManagedEndpoints,
}

/// The section `loadBalancer.owner`: an object in the infra cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerChoice {
    /// `apiVersion`: group and version.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `name`; its namespace is that of the infra Services.
    pub name: String,
}

/// `loadBalancer.endpoints`: of which infra Services the endpoints are ours to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagedEndpoints {
    /// Absent: as the reference's keys say.
    #[default]
    AsReference,
    /// `Managed`: of all.
    All,
}

/// The section `instancesV2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancesConfig {
    /// `enabled`: whether Nodes are served at all.
    pub enabled: bool,
    /// `zoneAndRegionEnabled`: whether zone and region are read of the infra nodes.
    pub zone_and_region: bool,
    /// `nodeAddresses`: which of a VM's addresses are its Node's. The reference does not have it.
    pub addresses: AddressPolicy,
}

/// Why the text is no cloud-config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML.
    #[error("the cloud-config is not YAML: {0}")]
    Yaml(String),
    /// The choice of addresses can't be understood.
    #[error("instancesV2.nodeAddresses of the cloud-config: {0}")]
    Addresses(#[from] PolicyError),
    /// A rule of the policy can't be understood.
    #[error("{key} of the cloud-config: {why}")]
    Policy {
        /// The key, with its section.
        key: String,
        /// Why.
        why: policy::PolicyError,
    },
    /// A key that another one needs is missing.
    #[error("{0} of the cloud-config is missing")]
    Missing(String),
    /// A key has another value than those that there are.
    #[error("{key} of the cloud-config must be {word} or absent, it is {found:?}")]
    Word {
        /// The key, with its section.
        key: String,
        /// The value that it can have.
        word: &'static str,
        /// What it has.
        found: String,
    },
    /// A key has a value of another type.
    #[error("{key} of the cloud-config must be {wanted}, it is {found}")]
    Type {
        /// The key, with its section.
        key: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: &'static str,
    },
}

impl Default for LoadBalancerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            poll_interval: DEFAULT_POLL_INTERVAL,
            poll_timeout: DEFAULT_POLL_TIMEOUT,
            selectorless: false,
            endpoint_slices: false,
            policy: GuestPolicy::default(),
            owner: None,
            sweep_interval: Some(DEFAULT_SWEEP_INTERVAL),
            endpoints: ManagedEndpoints::default(),
        }
    }
}

impl Default for InstancesConfig {
    fn default() -> Self {
        Self { enabled: true, zone_and_region: true, addresses: AddressPolicy::default() }
    }
}

impl CloudConfig {
    /// Reads the text; also returns the keys that nobody knows, each with its section, to be warned about.
    ///
    /// # Errors
    /// The text is no YAML map, or a value has a wrong type.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        if text.trim().is_empty() {
            return Ok((Self::default(), Vec::new()));
        }
        let value = serde_saphyr::from_str(text).map_err(|error| ConfigError::Yaml(error.to_string()))?;
        let mut unknown = Vec::new();
        let mut root = Section::of("", &value)?;
        let mut load_balancer = root.section("loadBalancer")?;
        let mut instances = root.section("instancesV2")?;
        let mut addresses = instances.section_of("nodeAddresses", "instancesV2.nodeAddresses")?;
        let config = Self {
            kubeconfig: Some(root.text("kubeconfig")?).filter(|path| !path.is_empty()).map(PathBuf::from),
            namespace: root.text("namespace")?,
            infra_labels: root.texts("infraLabels")?,
            load_balancer: LoadBalancerConfig {
                enabled: load_balancer.flag("enabled")?.unwrap_or(true),
                poll_interval: load_balancer.seconds("creationPollInterval", DEFAULT_POLL_INTERVAL)?,
                poll_timeout: load_balancer.seconds("creationPollTimeout", DEFAULT_POLL_TIMEOUT)?,
                selectorless: load_balancer.flag("selectorless")?.unwrap_or(false),
                endpoint_slices: load_balancer.flag("enableEPSController")?.unwrap_or(false),
                policy: policy::read::policy(&mut load_balancer, &mut unknown)?,
                owner: owner(&mut load_balancer, &mut unknown)?,
                sweep_interval: load_balancer.seconds_or_never("sweepInterval", DEFAULT_SWEEP_INTERVAL)?,
                endpoints: if load_balancer.word("endpoints", MANAGED)? {
                    ManagedEndpoints::All
                } else {
                    ManagedEndpoints::AsReference
                },
            },
            instances: InstancesConfig {
                enabled: instances.flag("enabled")?.unwrap_or(true),
                zone_and_region: instances.flag("zoneAndRegionEnabled")?.unwrap_or(true),
                addresses: AddressPolicy::parse(
                    &addresses.text("interface")?,
                    &addresses.text("network")?,
                    &addresses.list("within")?,
                    &addresses.list("outside")?,
                )?,
            },
        };
        for section in [root, load_balancer, instances, addresses] {
            unknown.extend(section.left());
        }
        Ok((config, unknown))
    }
}

fn owner(
    load_balancer: &mut Section<'_>,
    unknown: &mut Vec<String>,
) -> Result<Option<OwnerChoice>, ConfigError> {
    let mut owner = load_balancer.section_of("owner", "loadBalancer.owner")?;
    if owner.keys.is_empty() {
        return Ok(None);
    }
    let mut needed = |key: &str| {
        let text = owner.text(key)?;
        if text.is_empty() { Err(ConfigError::Missing(owner.path(key))) } else { Ok(text) }
    };
    let choice =
        OwnerChoice { api_version: needed("apiVersion")?, kind: needed("kind")?, name: needed("name")? };
    unknown.extend(owner.left());
    Ok(Some(choice))
}

#[cfg(test)]
mod tests;
