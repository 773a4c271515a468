//! The fields of a Service that are read, in either cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
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
    #[serde(rename = "type")]
    pub kind: String,
    /// `loadBalancerClass`: if it is set, another controller serves the Service.
    pub load_balancer_class: Option<String>,
    /// `ports`.
    pub ports: Vec<ServicePort>,
    /// `selector`.
    pub selector: BTreeMap<String, String>,
    /// `sessionAffinity`.
    pub session_affinity: String,
    /// `sessionAffinityConfig`.
    pub session_affinity_config: Option<Value>,
    /// `externalTrafficPolicy`.
    pub external_traffic_policy: String,
    /// `loadBalancerSourceRanges`.
    pub load_balancer_source_ranges: Vec<String>,
    /// `ipFamilies`.
    pub ip_families: Vec<String>,
    /// `ipFamilyPolicy`.
    pub ip_family_policy: Option<String>,
    /// `loadBalancerIP`.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    /// `externalIPs`.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
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
    pub port: i32,
    /// `targetPort`.
    pub target_port: Option<IntOrString>,
    /// `nodePort`; 0 = none.
    pub node_port: i32,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// The fields of `status` that are read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// `loadBalancer`.
    pub load_balancer: LoadBalancerStatus,
    /// `conditions`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The addresses.
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
}
