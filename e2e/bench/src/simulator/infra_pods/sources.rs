//! The `ConfigMap`s and Secrets that a pod's environment and volumes are made of, read together before they are used.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use kube::{Api, Client, ResourceExt};

/// The content of one `ConfigMap` or Secret by key.
pub(super) type Data = BTreeMap<String, Vec<u8>>;

/// Names of objects in the pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SourceNames {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

/// Those that exist.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    /// By name.
    pub config_maps: BTreeMap<String, Data>,
    /// By name.
    pub secrets: BTreeMap<String, Data>,
}

impl SourceNames {
    /// What a container's environment refers to.
    pub(super) fn of_container(container: &Container) -> Self {
        let mut wanted = Self::default();
        for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            wanted.config_maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            wanted.secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        for from in container.env_from.iter().flatten() {
            wanted.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            wanted.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        wanted
    }

    /// What a pod's volumes hold.
    pub(super) fn of_volumes(volumes: &[Volume]) -> Self {
        let mut wanted = Self::default();
        for volume in volumes {
            wanted.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
            wanted.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
            for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
                wanted.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
                wanted.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
            }
        }
        wanted
    }

    /// Reads them; what does not exist is left out.
    pub(super) async fn read(&self, client: &Client, pod: &Pod) -> Result<Sources> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut sources = Sources::default();
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        for name in &self.config_maps {
            if let Some(found) = config_maps.get_opt(name).await? {
                let text =
                    found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
                let binary =
                    found.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
                sources.config_maps.insert(name.clone(), text.chain(binary).collect());
            }
        }
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        for name in &self.secrets {
            if let Some(found) = secrets.get_opt(name).await? {
                let data = found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
                sources.secrets.insert(name.clone(), data.collect());
            }
        }
        Ok(sources)
    }
}
