//! Finds the UID of the guest cluster and the infra object that owns its infra Services: once, and again when there is
//! a sign that it changed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::time::sleep;

use crate::{
    access::{InfraCluster, chain},
    call::status_code,
    config::OwnerChoice,
    load_balancer::calls::Services,
};

/// Between two tries while an API server does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// HTTP: the right is missing.
const FORBIDDEN: u16 = 403;

/// Waits until the guest's API answers with the UID of the guest cluster. `None` = it has none.
pub(crate) async fn guest_cluster(services: &Services) -> Option<String> {
    loop {
        match services.guest_cluster().await {
            Ok(Some(uid)) => return Some(uid),
            Ok(None) => {
                tracing::warn!(
                    "the guest cluster has no Service default/kubernetes: its infra services are not marked as its own, \
                     and left-overs are not removed"
                );
                return None;
            }
            Err(error) => tracing::debug!(error = chain(&error), "the guest cluster does not answer"),
        }
        sleep(RETRY).await;
    }
}

/// The owner of all infra Services, if one is configured.
pub(crate) struct Owner {
    /// What to look up, and where.
    choice: Option<(OwnerChoice, InfraCluster)>,
    /// The last answer.
    found: Mutex<Option<OwnerReference>>,
    /// What was logged about it last.
    logged: Mutex<Option<String>>,
}

impl Owner {
    pub(crate) fn new(choice: Option<OwnerChoice>, infra: InfraCluster) -> Self {
        let choice = choice.map(|choice| (choice, infra));
        Self { choice, found: Mutex::default(), logged: Mutex::default() }
    }

    /// The owner, as it was found last.
    pub(crate) fn found(&self) -> Option<OwnerReference> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the owner until infra answers, so that every infra Service is created with it.
    pub(crate) async fn read_until_answered(&self) {
        while !self.read().await {
            sleep(RETRY).await;
        }
    }

    /// Reads the owner once. False = infra did not answer, and what was known stays.
    pub(crate) async fn read(&self) -> bool {
        let Some((choice, infra)) = &self.choice else { return true };
        let found = match choice.find(infra).await {
            Ok(found) => found,
            Err(error) if status_code(&error) == Some(FORBIDDEN) => {
                self.log(format!(
                    "no right to get {choice} in the infra namespace: infra services are made without owner"
                ));
                return true;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the owner of infra services can't be read");
                return false;
            }
        };
        if found.is_none() {
            self.log(format!("{choice} is not there: infra services are made without owner"));
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        true
    }

    /// Logs `text` unless it was logged last.
    fn log(&self, text: String) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            *logged = Some(text);
        }
    }
}
