//! Ids and names: of providers, nodes, volumes, disks, clusters. What is read is printed as it was written, or is refused.
#![no_main]

use std::str::FromStr;

use ccm::{
    cluster_name::ClusterName,
    config::policy::KeyPattern,
    guest::nodes::provided_node_ips,
    guest_names::{infra_name, is_infra_name},
    wire::{ip_family::Family, system_uuid::SystemUuid},
};
use cluster::TokenIssuer;
use csi_call::{contract, mount_flags};
use fuzz::text;
use infra::{GuestGuard, ObjectName, is_dns_label};
use kubevirt::provider_id::{Claimed, ProviderId};
use libfuzzer_sys::fuzz_target;
use node::{
    NodeObject, device_number::DeviceNumber, mount_options::MountOptions, node_id::node_id,
    origin::FilesystemUuid,
};

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    match Claimed::parse(text) {
        Claimed::Vm(id) => {
            assert_eq!(id.to_string(), text);
            assert_eq!(ProviderId::of(id.vm()), Some(id.clone()));
            assert_is_name(id.vm());
        }
        Claimed::Nothing => assert!(text.is_empty()),
        Claimed::Foreign => assert!(!text.is_empty()),
    }
    if let Some(id) = contract::NodeId::parse(text) {
        assert_eq!(id.to_string(), text);
        assert_eq!(contract::NodeId::new(id.namespace(), id.vm()).as_ref(), Some(&id));
    }
    if let Some(name) = ObjectName::parse(text) {
        assert_eq!(name.as_str(), text);
        assert_is_name(text);
    }
    assert!(!is_dns_label(text) || (text.len() <= 63 && !text.contains('.')));
    if let Some(uuid) = FilesystemUuid::parse(text) {
        assert_eq!(uuid.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(number) = DeviceNumber::from_str(text) {
        assert_eq!(DeviceNumber::from_str(&number.to_string()), Ok(number));
    }
    if let Ok(cluster) = ClusterName::from_str(text) {
        assert!(!cluster.as_str().is_empty() && cluster.as_str().len() <= 63);
        assert_eq!(ClusterName::from_str(cluster.as_str()).ok().as_ref(), Some(&cluster));
    }
    drop(KeyPattern::from_str(text));
    drop(Family::parse(text));
    if is_infra_name(&infra_name(text)) {
        assert!(is_dns_label(&infra_name(text).to_ascii_lowercase()));
    }
    let addresses = provided_node_ips(text);
    assert!(addresses.len() <= 2 && addresses.iter().all(|ip| !ip.is_unspecified()), "{addresses:?}");
    uuids(text);
    labels(text);
    mount_words(text);
    nodes(text);
    if let Some(issuer) = TokenIssuer::of(text) {
        assert!(issuer.is_of(&issuer), "{}", issuer.issuer());
    }
});

fn assert_is_name(name: &str) {
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    assert!(
        (1..=253).contains(&name.len()) && name.bytes().all(is_legal) && !name.contains(".."),
        "{name:?}"
    );
}

/// Both byte orders of the first three groups are one UUID.
fn uuids(text: &str) {
    let Some(uuid) = SystemUuid::parse(text) else { return };
    assert_eq!(SystemUuid::parse(&text.to_uppercase()), Some(uuid.clone()));
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    let swapped: String = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
        .into_iter()
        .flat_map(|at: usize| [digits[2 * at], digits[2 * at + 1]])
        .collect();
    assert_eq!(SystemUuid::parse(&swapped), Some(uuid));
}

fn labels(text: &str) {
    let Ok(labels) = GuestGuard::parse_labels(text) else { return };
    assert!(!labels.is_empty());
    let printed = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    assert_eq!(GuestGuard::parse_labels(&printed), Ok(labels));
}

fn mount_words(text: &str) {
    let Ok(options) = MountOptions::parse(&[text]) else { return };
    assert!(!options.data.iter().any(|word| mount_flags::is_refused(word)));
}

/// A Node whose fields are the parts of the text. An id that the node role gives is one that the controller role reads.
fn nodes(text: &str) {
    let mut parts = text.split('\n').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let keys =
        [node::node_id::CLUSTER_NAMESPACE, node::node_id::INFRA_VM_NAME, node::node_id::INFRA_VM_NAMESPACE];
    let provider_id = next();
    let annotations =
        keys.into_iter().map(|key| (key.to_owned(), next())).filter(|(_, value)| !value.is_empty());
    let object = NodeObject {
        provider_id: Some(provider_id).filter(|id| !id.is_empty()),
        annotations: annotations.collect(),
    };
    if let Ok(id) = node_id(&object) {
        assert!(contract::NodeId::parse(&id).is_some(), "{id:?} of {object:?}");
    }
}
