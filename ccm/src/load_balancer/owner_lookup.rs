//! Finds the UID of the guest cluster and the infra object that owns its infra Services: once, and again when there is
//! a sign that it changed.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::sleep;

use crate::{
    access::{InfraCluster, chain},
    call::status_code,
    config::OwnerChoice,
    load_balancer::{calls::Services, controller::Context},
};

/// Between two tries while an API server does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// HTTP: the right is missing.
const FORBIDDEN: u16 = 403;

/// The owner of all infra Services, if one is configured.
pub(crate) struct Owner {
    choice: OwnerChoice,
    infra: InfraCluster,
    /// What was logged about it last.
    said: Mutex<Option<String>>,
}

impl Owner {
    pub(crate) fn new(choice: OwnerChoice, infra: InfraCluster) -> Self {
        Self { choice, infra, said: Mutex::default() }
    }

    /// Logs `text` unless it was logged last.
    fn say(&self, text: String) {
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            *said = Some(text);
        }
    }
}

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

/// Reads the owner until infra answers, so that every infra Service is created with it.
pub(crate) async fn look_until_answered(context: &Context) {
    while !look(context).await {
        sleep(RETRY).await;
    }
}

/// Reads the owner once. False = infra did not answer, and what was known stays.
pub(crate) async fn look(context: &Context) -> bool {
    let Some(owner) = &context.owner else { return true };
    let found = match owner.choice.find(&owner.infra).await {
        Ok(found) => found,
        Err(error) if status_code(&error) == Some(FORBIDDEN) => {
            owner.say(format!(
                "no right to get {} in the infra namespace: infra services are made without owner",
                owner.choice
            ));
            return true;
        }
        Err(error) => {
            tracing::debug!(error = chain(&error), "the owner of infra services can't be read");
            return false;
        }
    };
    if found.is_none() {
        owner.say(format!("{} is not there: infra services are made without owner", owner.choice));
    }
    if context.settings().owner != found {
        context.learn(|settings| settings.owner = found);
    }
    true
}
