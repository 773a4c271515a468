//! The fields of a Service that are read, in either cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kubevirt::null_as_default;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `spec.type` of a Service that asks for a load balancer.
pub const LOAD_BALANCER: &str = "LoadBalancer";
/// `spec.externalTrafficPolicy`: only nodes that have an endpoint take traffic, and the endpoint sees the client's
/// address.
pub const LOCAL: &str = "Local";
/// `spec.sessionAffinity`: no affinity.
pub const NO_AFFINITY: &str = "None";
/// `ports[].protocol` where it is absent.
const DEFAULT_PROTOCOL: &str = "TCP";

/// The fields of `spec` that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `type`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// `loadBalancerClass`: if it is set, another controller serves the Service.
    pub load_balancer_class: Option<String>,
    /// `ports`.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ServicePort>,
    /// `selector`.
    #[serde(deserialize_with = "null_as_default")]
    pub selector: BTreeMap<String, String>,
    /// `sessionAffinity`.
    #[serde(deserialize_with = "null_as_default")]
    pub session_affinity: String,
    /// `sessionAffinityConfig`.
    pub session_affinity_config: Option<Value>,
    /// `externalTrafficPolicy`.
    #[serde(deserialize_with = "null_as_default")]
    pub external_traffic_policy: String,
    /// `loadBalancerSourceRanges`.
    #[serde(deserialize_with = "null_as_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `ipFamilies`.
    #[serde(deserialize_with = "null_as_default")]
    pub ip_families: Vec<String>,
    /// `ipFamilyPolicy`.
    pub ip_family_policy: Option<String>,
    /// `loadBalancerIP`.
    #[serde(rename = "loadBalancerIP", deserialize_with = "null_as_default")]
    pub load_balancer_ip: String,
    /// `externalIPs`.
    #[serde(rename = "externalIPs", deserialize_with = "null_as_default")]
    pub external_ips: Vec<String>,
    /// `allocateLoadBalancerNodePorts`; absent = true.
    pub allocate_load_balancer_node_ports: Option<bool>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// `name`.
    pub name: Option<String>,
    /// `protocol`; absent = TCP.
    pub protocol: Option<String>,
    /// `port`.
    #[serde(deserialize_with = "null_as_default")]
    pub port: i32,
    /// `targetPort`.
    pub target_port: Option<IntOrString>,
    /// `nodePort`; 0 = none.
    #[serde(deserialize_with = "null_as_default")]
    pub node_port: i32,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// The fields of `status` that are read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// `loadBalancer`.
    #[serde(deserialize_with = "null_as_default")]
    pub load_balancer: LoadBalancerStatus,
    /// `conditions`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// One of `status.conditions`. Any program may write conditions, and the API server checks none of their fields: all are
/// read as text, and may be missing or null (`metav1.Time` writes the zero time as null).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `type`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// `status`: `True`, `False` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub status: String,
    /// `reason`, in CamelCase.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// `message`, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub message: String,
    /// `lastTransitionTime`.
    pub last_transition_time: Option<String>,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The addresses.
    #[serde(deserialize_with = "null_as_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

impl ServicePort {
    /// The protocol, with the API's default.
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or(DEFAULT_PROTOCOL)
    }
}

impl ServiceSpec {
    /// Whether a node sends traffic only to the endpoints on itself.
    pub fn is_local(&self) -> bool {
        self.external_traffic_policy == LOCAL
    }

    /// Whether each port gets a node port.
    pub fn allocates_node_ports(&self) -> bool {
        self.allocate_load_balancer_node_ports != Some(false)
    }
}
