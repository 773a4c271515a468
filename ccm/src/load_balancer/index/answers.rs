//! The results of our own calls that the watches do not show yet. Without them, a reconcile between a call and its
//! event would create a mirror a second time, treat a deleted one as present, or write what is already written.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::{guest::services::GuestService, guest_names::infra_name};

/// How long to wait for the event of our own call. A watch that works brings it within milliseconds; after this time
/// the reconcile reads.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the API servers answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// By the infra Service's name.
    known: Mutex<HashMap<String, Known>>,
    /// The version that our patch gave to the guest Service with this UID, and the time of the patch.
    patched: Mutex<HashMap<String, (u64, Instant)>>,
}

/// What infra answered about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// It was created.
    Created(Instant),
    /// The Service with this UID is gone.
    Deleted(String),
}

impl Answers {
    /// Records infra's answer that it was created. `shown` = the UID that the watch shows by now.
    pub(super) fn created(&self, name: &str, shown: Option<&str>) {
        if shown.is_none() {
            self.lock().insert(name.to_owned(), Known::Created(Instant::now()));
        }
    }

    /// Records infra's answer that the Service with this UID is gone.
    pub(super) fn deleted(&self, name: &str, uid: &str, shown: Option<&str>) {
        if shown == Some(uid) {
            self.lock().insert(name.to_owned(), Known::Deleted(uid.to_owned()));
        }
    }

    /// Whether the Service with this UID, which the watch still shows, is gone.
    pub(super) fn is_gone(&self, name: &str, uid: Option<&str>) -> bool {
        matches!(self.lock().get(name), Some(Known::Deleted(gone)) if Some(gone.as_str()) == uid)
    }

    /// How much longer to wait for the event of a create.
    pub(super) fn is_coming(&self, name: &str) -> Option<Duration> {
        let mut known = self.lock();
        let Some(Known::Created(since)) = known.get(name) else { return None };
        let left = PATIENCE.saturating_sub(since.elapsed());
        if left.is_zero() {
            known.remove(name);
            return None;
        }
        Some(left)
    }

    /// The watch has had an event about it, and shows this UID now.
    pub(super) fn watch_showed(&self, name: &str, shown: Option<&str>) {
        let mut known = self.lock();
        if !matches!(known.get(name), Some(Known::Deleted(gone)) if shown == Some(gone.as_str())) {
            known.remove(name);
        }
    }

    /// The watch has restarted with a full list: `shown` gives the UID by name.
    pub(super) fn watch_restarted(&self, shown: impl Fn(&str) -> Option<String>) {
        self.lock().retain(|name, known| match known {
            Known::Created(_) => false,
            Known::Deleted(gone) => shown(name).as_ref() == Some(gone),
        });
    }

    /// Records the guest's answer `now` to a patch. `shown` = what the watch shows by now.
    pub(super) fn patched(&self, shown: &GuestService, now: &GuestService) {
        // The answer to the patch that ends an object has its old version.
        let ended = now.is_deleting() && now.metadata.finalizers.iter().flatten().next().is_none();
        let wrote = if ended { Some(u64::MAX) } else { version(now) };
        if let (Some(shown), Some(wrote)) = (version(shown), wrote)
            && shown < wrote
        {
            self.patches().insert(now.uid().to_owned(), (wrote, Instant::now()));
        }
    }

    /// How much longer the watch may take to show our patch of this Service. `None` if it shows it, or if the time is
    /// over.
    pub(super) fn is_behind(&self, shown: &GuestService) -> Option<Duration> {
        let mut patched = self.patches();
        let (wrote, since) = *patched.get(shown.uid())?;
        let left = PATIENCE.saturating_sub(since.elapsed());
        if left.is_zero() || version(shown).is_none_or(|shown| shown >= wrote) {
            patched.remove(shown.uid());
            return None;
        }
        Some(left)
    }

    /// Drops what is known of the guest Service with this UID, which is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(&infra_name(uid));
        self.patches().remove(uid);
    }

    /// Keeps only what is known of guest Services that still exist; `is_there` has the names of their mirrors.
    pub(super) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| is_there(name));
        self.patches().retain(|uid, _| is_there(&infra_name(uid)));
    }

    fn patches(&self) -> MutexGuard<'_, HashMap<String, (u64, Instant)>> {
        self.patched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions of one object are numbers that grow (Kubernetes API concepts, "Resource versions"). A version that is not a
/// number is not compared.
fn version(guest: &GuestService) -> Option<u64> {
    guest.metadata.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn guest(version: &str) -> GuestService {
        let mut guest = GuestService::default();
        guest.metadata.uid = Some("u1".to_owned());
        guest.metadata.resource_version = Some(version.to_owned());
        guest
    }

    #[tokio::test(start_paused = true)]
    async fn a_patch_is_waited_for_until_the_watch_shows_it_or_more_or_patience_ends() {
        let answers = Answers::default();
        assert_eq!(answers.is_behind(&guest("9")), None);
        answers.patched(&guest("9"), &guest("10"));
        assert_eq!(answers.is_behind(&guest("9")), Some(PATIENCE), "as numbers");
        assert_eq!(answers.is_behind(&guest("10")), None);
        assert_eq!(answers.is_behind(&guest("9")), None, "what was shown is not waited for again");
        answers.patched(&guest("9"), &guest("10"));
        assert_eq!(answers.is_behind(&guest("11")), None);
        answers.patched(&guest("11"), &guest("12"));
        tokio::time::advance(PATIENCE).await;
        assert_eq!(answers.is_behind(&guest("11")), None);
        answers.patched(&guest("12"), &guest("12"));
        answers.patched(&guest("12"), &guest("not a number"));
        assert!(answers.patches().is_empty());

        let mut ended = guest("12");
        ended.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        answers.patched(&guest("12"), &ended);
        assert_eq!(answers.is_behind(&guest("12")), Some(PATIENCE), "the last finalizer went");
    }

    #[tokio::test(start_paused = true)]
    async fn a_created_one_is_waited_for_until_the_watch_tells_or_patience_ends() {
        let answers = Answers::default();
        assert_eq!(answers.is_coming("a"), None);
        answers.created("a", None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(answers.is_coming("a"), Some(Duration::from_secs(3)));
        answers.watch_showed("a", Some("u1"));
        assert_eq!(answers.is_coming("a"), None);

        answers.created("a", None);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(answers.is_coming("a"), None, "it may be gone: infra is asked");
        answers.created("a", Some("u1"));
        assert_eq!(answers.is_coming("a"), None, "the watch was faster");
    }

    #[test]
    fn a_deleted_one_is_not_believed_in_until_the_watch_shows_its_end() {
        let answers = Answers::default();
        answers.deleted("a", "u1", Some("u1"));
        assert!(
            answers.is_gone("a", Some("u1"))
                && !answers.is_gone("a", Some("u2"))
                && !answers.is_gone("b", Some("u1"))
        );
        answers.watch_showed("a", Some("u1"));
        assert!(answers.is_gone("a", Some("u1")), "an older event of it came late");
        answers.watch_restarted(|_| Some("u1".to_owned()));
        assert!(answers.is_gone("a", Some("u1")), "the list was older than the answer");
        answers.watch_showed("a", None);
        assert!(!answers.is_gone("a", Some("u1")));
        answers.deleted("a", "u1", None);
        assert!(!answers.is_gone("a", Some("u1")), "the watch was faster");
    }

    #[test]
    fn nothing_is_kept_of_what_the_watch_has_caught_up_with() {
        let answers = Answers::default();
        answers.created("a", None);
        answers.deleted("b", "u2", Some("u2"));
        answers.deleted("c", "u3", Some("u3"));
        answers.watch_restarted(|name| (name == "c").then(|| "u3".to_owned()));
        assert!(answers.lock().contains_key("c"));
        answers.deleted(&infra_name("u1"), "u4", Some("u4"));
        answers.patched(&guest("1"), &guest("2"));
        answers.forget("u1");
        assert!(answers.patches().is_empty() && answers.lock().len() == 1);
    }
}
