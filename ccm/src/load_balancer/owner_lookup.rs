//! Finds the UID of the guest cluster and the infra object that owns its infra Services: once, and again when there is
//! a sign that it changed.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::time::{Instant, sleep};

use crate::{
    access::{InfraCluster, chain},
    backoff::doubled,
    call::status_code,
    config::OwnerChoice,
    load_balancer::calls::Services,
};

/// Between two tries while an API server does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// How long load balancers wait at the start for what is nice to know before they are served.
const WITHIN: Duration = Duration::from_mins(1);
/// Pauses between two questions after that: an API server that starts refuses what it allows a moment later, and a right
/// may be granted at any time. They double up to the longest.
const ASK_AGAIN: Duration = Duration::from_mins(1);
const ASK_AGAIN_AT_LAST: Duration = Duration::from_mins(15);
/// HTTP: the right is missing.
const FORBIDDEN: u16 = 403;

/// The pauses before the questions that follow a refusal.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..).map(|doublings| doubled(ASK_AGAIN, doublings, ASK_AGAIN_AT_LAST))
}

/// The UID of the guest cluster. Once it is known it stays: another UID is another guest's.
#[derive(Debug, Default)]
pub(crate) struct GuestCluster(OnceLock<String>);

impl GuestCluster {
    pub(crate) fn new(uid: Option<String>) -> Self {
        Self(uid.map(OnceLock::from).unwrap_or_default())
    }

    /// `None` = not known.
    pub(crate) fn uid(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Asks until it is known. Returns whether it has become known.
    pub(crate) async fn ask_until_known(&self, services: &Services) -> bool {
        if self.uid().is_some() {
            return false;
        }
        for pause in pauses() {
            sleep(pause).await;
            match services.guest_cluster().await {
                Ok(Some(uid)) => {
                    tracing::info!(
                        "the UID of the guest cluster is known now: its infra services are marked"
                    );
                    return self.0.set(uid).is_ok();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "the UID of the guest cluster is not known");
                }
            }
        }
        false
    }
}

/// Reads the UID of the guest cluster, for at most [`WITHIN`]. `None` = it has none, or it can't be read: then no mirror is
/// marked and none is swept, Services are served all the same, and [`GuestCluster::ask_until_known`] goes on.
pub(crate) async fn guest_cluster(services: &Services) -> Option<String> {
    let began = Instant::now();
    let mut is_reported = false;
    loop {
        match services.guest_cluster().await {
            Ok(Some(uid)) => return Some(uid),
            Ok(None) => {
                tracing::warn!(
                    "the guest cluster has no Service default/kubernetes: its infra services are not marked as its own, \
                     and left-overs are not removed, until it has one"
                );
                return None;
            }
            Err(error) if error.is_forbidden() || began.elapsed() >= WITHIN => {
                tracing::warn!(
                    error = chain(&error),
                    "the Service default/kubernetes of the guest cluster can't be read: its infra services are not marked as \
                     its own, and left-overs are not removed, until it can; grant get on services in the guest"
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

/// How a read of the owner ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerRead {
    /// Infra answered, or no owner is configured.
    Answered,
    /// Infra refused. What was known stays.
    Refused,
    /// Infra did not answer. What was known stays.
    Failed,
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
    /// infra has refused, or not answered.
    pub(crate) async fn read_until_answered(&self) -> bool {
        let began = Instant::now();
        loop {
            match self.read_once().await {
                OwnerRead::Answered => return true,
                OwnerRead::Refused => return false,
                OwnerRead::Failed if began.elapsed() >= WITHIN => return false,
                OwnerRead::Failed => sleep(RETRY).await,
            }
        }
    }

    /// Reads the owner again until infra answers.
    pub(crate) async fn keep_reading(&self) {
        for pause in pauses() {
            sleep(pause).await;
            if self.read_once().await == OwnerRead::Answered {
                return;
            }
        }
    }

    /// Reads the owner once. If infra does not answer, what was known stays.
    pub(crate) async fn read(&self) {
        self.read_once().await;
    }

    async fn read_once(&self) -> OwnerRead {
        let Some((choice, infra)) = &self.choice else { return OwnerRead::Answered };
        let found = match choice.find(infra).await {
            Ok(found) => found,
            Err(error) if status_code(&error) == Some(FORBIDDEN) => {
                self.log(format!(
                    "no right to get {choice} in the infra namespace: infra services are made without owner until it is \
                     granted"
                ));
                return OwnerRead::Refused;
            }
            Err(error) => {
                self.log(format!(
                    "{choice} can't be read, and infra services are made without owner until it can: {}",
                    chain(&error)
                ));
                return OwnerRead::Failed;
            }
        };
        if found.is_none() {
            self.log(format!("{choice} is not there: infra services are made without owner"));
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        OwnerRead::Answered
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
        access,
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
        let services = services(&api);
        let began = Instant::now();
        let hour = Duration::from_hours(1);
        assert_eq!(tokio::time::timeout(hour, guest_cluster(&services)).await.unwrap(), None);
        assert_eq!(began.elapsed().as_secs(), seconds);
    }

    fn services(api: &FakeApi) -> Services {
        let infra = InfraCluster::over(api.client(), "hcp");
        Services::new(&access::GuestCluster::over(api.client()), &infra)
    }

    /// kubernetes/kubernetes#121635: what an API server refuses while it starts, it allows a moment later.
    #[rstest]
    #[case::no_right(failure(403, "Forbidden", &json!({})))]
    #[case::no_service(failure(404, "NotFound", &json!({"name": "kubernetes", "kind": "services"})))]
    #[case::not_available(failure(503, "ServiceUnavailable", &json!({})))]
    #[tokio::test(start_paused = true)]
    async fn the_guest_s_uid_is_asked_for_until_it_is_known(#[case] (code, body): (u16, serde_json::Value)) {
        let api = FakeApi::default();
        api.answer(OWN, code, body);
        let services = services(&api);
        let cluster = GuestCluster::new(guest_cluster(&services).await);
        assert_eq!(cluster.uid(), None);
        let hours = Duration::from_hours(3);
        assert!(tokio::time::timeout(hours, cluster.ask_until_known(&services)).await.is_err());
        let asked = api.made("GET").len();
        assert!(asked < 60, "{asked} questions in three hours");
        api.answer(OWN, 200, json!({"metadata": {"name": "kubernetes", "namespace": "default", "uid": "g"}}));
        let long = ASK_AGAIN_AT_LAST + RETRY;
        assert!(tokio::time::timeout(long, cluster.ask_until_known(&services)).await.unwrap());
        assert_eq!(cluster.uid(), Some("g"));
        assert!(!cluster.ask_until_known(&services).await, "it is known");
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_may_not_be_read_holds_up_nothing_and_is_read_when_it_may() {
        let api = FakeApi::default();
        let (code, body) = failure(403, "Forbidden", &json!({}));
        let resources = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [
            {"name": "configmaps", "singularName": "", "namespaced": true, "kind": "ConfigMap", "verbs": ["get"]}]});
        api.answer("GET /api/v1", 200, resources);
        let object = "GET /api/v1/namespaces/hcp/configmaps/guest";
        api.answer(object, code, body);
        let choice = OwnerChoice { api_version: "v1".into(), kind: "ConfigMap".into(), name: "guest".into() };
        let owner = Owner::new(Some(choice), InfraCluster::over(api.client(), "hcp"));
        let began = Instant::now();
        assert!(!owner.read_until_answered().await);
        assert!(began.elapsed().is_zero(), "a refusal is not waited out");
        let ((), found) = tokio::join!(
            async {
                sleep(ASK_AGAIN * 2).await;
                let guest = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"name": "guest", "uid": "o"}});
                api.answer(object, 200, guest);
            },
            async {
                owner.keep_reading().await;
                owner.found()
            }
        );
        assert_eq!(found.map(|owner| owner.uid).as_deref(), Some("o"));
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
