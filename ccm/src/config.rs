//! The cloud-config: the YAML file that `--cloud-config` names, with the keys and defaults of
//! kubevirt/cloud-provider-kubevirt (`pkg/provider/cloud.go`).
//!
//! An unknown key is not an error, because upstream ignores it too. It is logged, so that an operator finds a misspelt
//! key. A value of a wrong type is an error that names the key.

pub mod limits;
pub mod policy;
mod section;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serving::go_yaml::{self, NotYaml};

use crate::guest_names::FormerLabels;
use crate::nodes::{
    address::{AddressPolicy, PolicyError},
    recognise::Unlabelled,
};
use limits::Limits;
use policy::GuestPolicy;
use section::Section;

/// `loadBalancer.creationPollInterval` where it is absent or not positive (upstream's default).
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// `loadBalancer.creationPollTimeout` where it is absent or not positive (upstream's default).
const DEFAULT_POLL_TIMEOUT: Duration = Duration::from_mins(5);
/// `loadBalancer.sweepInterval` where it is absent. A left-over costs an address; a sweep costs one call per left-over.
const DEFAULT_SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// Value of `loadBalancer.endpoints`.
const MANAGED: &str = "Managed";
/// Value of `instancesV2.unlabelledVMs`.
const ALLOWED: &str = "Allowed";

/// The content of the cloud-config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudConfig {
    /// `kubeconfig`: file with the infra cluster's credentials. `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `namespace`: the infra namespace of this guest's VMs. Empty = the namespace of the credentials.
    pub namespace: String,
    /// `infraLabels`: labels of every infra Service of this guest. They win over the labels that we set.
    pub infra_labels: BTreeMap<String, String>,
    /// `formerLabels`: values that labels of this guest's infra Services had before. A Service with one of them is taken over.
    /// Upstream does not have this key.
    pub former_labels: FormerLabels,
    /// `loadBalancer`.
    pub load_balancer: LoadBalancerConfig,
    /// `instancesV2`.
    pub instances: InstancesConfig,
}

/// The section `loadBalancer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerConfig {
    /// `enabled`: whether the CCM serves LoadBalancer Services at all.
    pub enabled: bool,
    /// `creationPollInterval`: accepted and not used, because the CCM watches instead of polling.
    pub poll_interval: Duration,
    /// `creationPollTimeout`: after this time without an address, the Service gets a warning event.
    pub poll_timeout: Duration,
    /// `selectorless`: infra Services have no selector; another program writes their endpoints.
    pub selectorless: bool,
    /// `enableEPSController`: the CCM writes the endpoints of infra Services with policy Local.
    pub endpoint_slices: bool,
    /// `policy`: which requests of the guest may reach infra. Upstream does not have this key.
    pub policy: GuestPolicy,
    /// `limits`: how much one Service may ask for. Upstream does not have this key.
    pub limits: Limits,
    /// `allocateLoadBalancerNodePorts`: whether infra allots node ports to the mirrors. `None` = as infra has it. Upstream
    /// does not have this key.
    pub node_ports: Option<bool>,
    /// `owner`: the infra object that owns all infra Services of this guest, so that they are deleted with it. Upstream
    /// does not have this key.
    pub owner: Option<OwnerChoice>,
    /// `sweepInterval`: how often the CCM sweeps left-overs. `None` = never. Upstream does not have this key.
    pub sweep_interval: Option<Duration>,
    /// `endpoints`. Upstream does not have this key.
    pub endpoints: ManagedEndpoints,
}

/// The section `loadBalancer.owner`: an object in the infra cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerChoice {
    /// `apiVersion`: group and version.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `name`; the object is in the namespace of the infra Services.
    pub name: String,
}

/// `loadBalancer.endpoints`: for which infra Services the CCM writes the endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagedEndpoints {
    /// Absent: for those that upstream's keys select.
    #[default]
    AsReference,
    /// `Managed`: for all.
    All,
}

/// The section `instancesV2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancesConfig {
    /// `enabled`: whether the CCM serves Nodes at all.
    pub enabled: bool,
    /// `zoneAndRegionEnabled`: whether the CCM reads zone and region from the infra Nodes.
    pub zone_and_region: bool,
    /// `nodeAddresses`: which of a VM's addresses its Node gets. Upstream does not have this key.
    pub addresses: AddressPolicy,
    /// `unlabelledVMs`: `Allowed` = VMs without a label and without a system UUID get traffic of load balancers. Upstream
    /// does not have this key.
    pub unlabelled: Unlabelled,
}

/// Why a text is not a valid cloud-config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not YAML.
    #[error("the cloud-config is not YAML: {0}")]
    Yaml(#[from] NotYaml),
    /// The choice of addresses is invalid.
    #[error("instancesV2.nodeAddresses of the cloud-config: {0}")]
    Addresses(#[from] PolicyError),
    /// A rule of the policy is invalid.
    #[error("{key} of the cloud-config: {why}")]
    Policy {
        /// The key, with its section.
        key: String,
        /// What is wrong with it.
        why: policy::PolicyError,
    },
    /// A key that another one needs is missing.
    #[error("{0} of the cloud-config is missing")]
    Missing(String),
    /// A key has a value that is not one of the possible ones.
    #[error("{key} of the cloud-config must be {word} or absent, it is {found:?}")]
    Word {
        /// The key, with its section.
        key: String,
        /// The only possible value.
        word: &'static str,
        /// The value that it has.
        found: String,
    },
    /// A key has a value of another type.
    #[error("{key} of the cloud-config must be {wanted}, it is {found}")]
    Type {
        /// The key, with its section.
        key: String,
        /// The type that it should have.
        wanted: &'static str,
        /// What it has.
        found: String,
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
            limits: Limits::default(),
            node_ports: None,
            owner: None,
            sweep_interval: Some(DEFAULT_SWEEP_INTERVAL),
            endpoints: ManagedEndpoints::default(),
        }
    }
}

impl Default for InstancesConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            zone_and_region: true,
            addresses: AddressPolicy::default(),
            unlabelled: Unlabelled::default(),
        }
    }
}

impl CloudConfig {
    /// Reads the text. Also returns the unknown keys, each with its section, so that the caller can log them.
    ///
    /// # Errors
    /// The text is not a YAML map, or a value has a wrong type.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        if text.trim().is_empty() {
            return Ok((Self::default(), Vec::new()));
        }
        let value = go_yaml::parse(text)?;
        let mut unknown = Vec::new();
        let mut root = Section::of("", &value)?;
        let mut load_balancer = root.section("loadBalancer")?;
        let mut instances = root.section("instancesV2")?;
        let mut addresses = instances.section_of("nodeAddresses", "instancesV2.nodeAddresses")?;
        let config = Self {
            kubeconfig: Some(root.text("kubeconfig")?).filter(|path| !path.is_empty()).map(PathBuf::from),
            namespace: root.text("namespace")?,
            infra_labels: root.texts("infraLabels")?,
            former_labels: root.lists("formerLabels")?,
            load_balancer: LoadBalancerConfig {
                enabled: load_balancer.flag("enabled")?.unwrap_or(true),
                poll_interval: load_balancer.seconds("creationPollInterval", DEFAULT_POLL_INTERVAL)?,
                poll_timeout: load_balancer.seconds("creationPollTimeout", DEFAULT_POLL_TIMEOUT)?,
                selectorless: load_balancer.flag("selectorless")?.unwrap_or(false),
                endpoint_slices: load_balancer.flag("enableEPSController")?.unwrap_or(false),
                policy: policy::read::policy(&mut load_balancer, &mut unknown)?,
                limits: limits::limits(&mut load_balancer, &mut unknown)?,
                node_ports: load_balancer.flag("allocateLoadBalancerNodePorts")?,
                owner: owner(&mut load_balancer, &mut unknown)?,
                sweep_interval: load_balancer.seconds_or_never("sweepInterval", DEFAULT_SWEEP_INTERVAL)?,
                endpoints: load_balancer.word("endpoints", (MANAGED, ManagedEndpoints::All))?,
            },
            instances: InstancesConfig {
                enabled: instances.flag("enabled")?.unwrap_or(true),
                unlabelled: instances.word("unlabelledVMs", (ALLOWED, Unlabelled::Allowed))?,
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
