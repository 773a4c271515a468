//! Finds the UID of the guest cluster and the infra object that owns its infra Services: once, and again when there is
//! a sign that it changed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::time::{Instant, sleep};

use crate::{
    access::{InfraCluster, chain},
    call::status_code,
    config::OwnerChoice,
    load_balancer::calls::Services,
};

/// Between two tries while an API server does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// How long load balancers wait at the start for what is nice to know before they are served.
const WITHIN: Duration = Duration::from_mins(1);
/// HTTP: the right is missing.
const FORBIDDEN: u16 = 403;

/// Reads the UID of the guest cluster, for at most [`WITHIN`]. `None` = it has none, or it can't be read: then no mirror is
/// marked and none is swept, and Services are served all the same.
pub(crate) async fn guest_cluster(services: &Services) -> Option<String> {
    let began = Instant::now();
    let mut is_reported = false;
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
            Err(error) if error.is_forbidden() || began.elapsed() >= WITHIN => {
                tracing::warn!(
                    error = chain(&error),
                    "the Service default/kubernetes of the guest cluster can't be read: its infra services are not marked as \
                     its own, and left-overs are not removed, until the next start; grant get on services in the guest"
                );
                return None;
            }
            Err(error) if !std::mem::replace(&mut is_reported, true) => {
                tracing::warn!(
                    error = chain(&error),
                    "the guest cluster does not answer; load balancers wait for it"
                );
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

    /// Reads the owner until infra answers, so that every infra Service is created with it; for at most [`WITHIN`]. False =
    /// infra has not answered.
    pub(crate) async fn read_until_answered(&self) -> bool {
        let began = Instant::now();
        while !self.read().await {
            if began.elapsed() >= WITHIN {
                return false;
            }
            sleep(RETRY).await;
        }
        true
    }

    /// Reads the owner again until infra answers.
    pub(crate) async fn keep_reading(&self) {
        while !self.read().await {
            sleep(WITHIN).await;
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
                self.log(format!(
                    "{choice} can't be read, and infra services are made without owner until it can: {}",
                    chain(&error)
                ));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::GuestCluster,
        fake_api::{FakeApi, failure},
    };
    use rstest::rstest;
    use serde_json::json;

    const OWN: &str = "GET /api/v1/namespaces/default/services/kubernetes";

    /// kubermatic/kubermatic#15506: roles that were made for the framework have no `get` on services.
    #[rstest]
    #[case::no_right(403, "Forbidden", 0)]
    #[case::never_available(503, "ServiceUnavailable", 60)]
    #[case::broken(500, "InternalError", 60)]
    #[tokio::test(start_paused = true)]
    async fn load_balancers_do_not_wait_for_the_guest_s_uid_for_ever(
        #[case] code: u16,
        #[case] reason: &str,
        #[case] seconds: u64,
    ) {
        let api = FakeApi::default();
        let (code, body) = failure(code, reason, &json!({}));
        api.answer(OWN, code, body);
        let infra = InfraCluster::over(api.client(), "hcp");
        let services = Services::new(&GuestCluster::over(api.client()), &infra);
        let began = Instant::now();
        let hour = Duration::from_hours(1);
        assert_eq!(tokio::time::timeout(hour, guest_cluster(&services)).await.unwrap(), None);
        assert_eq!(began.elapsed().as_secs(), seconds);
    }

    #[tokio::test(start_paused = true)]
    async fn load_balancers_do_not_wait_for_an_owner_whose_api_is_down_for_ever() {
        let api = FakeApi::default();
        let (code, body) = failure(503, "ServiceUnavailable", &json!({}));
        api.answer("GET /api/v1", code, body);
        let choice = OwnerChoice { api_version: "v1".into(), kind: "ConfigMap".into(), name: "guest".into() };
        let owner = Owner::new(Some(choice), InfraCluster::over(api.client(), "hcp"));
        assert!(!owner.read_until_answered().await);
        assert_eq!(owner.found(), None);
    }
}
