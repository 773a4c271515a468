//! The sweep: finds left-overs of this guest in infra at an interval, and deletes them. Only the guest API's answer
//! about a Service proves that its mirror is a left-over; if the API does not answer, nothing is done.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use crate::{
    access::chain,
    call::CallError,
    guest_names::{SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL, infra_name},
    infra::mirrors::InfraService,
    load_balancer::{
        calls::Answer as Called,
        context::Context,
        left_over::{Answer, Classification, Observed, judge},
    },
};

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    /// A cluster did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Infra did not answer.
    #[error("infra could not be asked")]
    Infra(#[from] kube::Error),
    /// The guest cluster is not the one that it was at the start.
    #[error("the guest cluster is another than at the start")]
    OtherGuest,
}

impl SweepError {
    /// Whether an API server answered with an object that can't be read.
    fn is_unreadable(&self) -> bool {
        match self {
            Self::Call(error) => error.is_unreadable(),
            Self::Infra(error) => matches!(error, kube::Error::SerdeError(_)),
            Self::OtherGuest => false,
        }
    }
}

/// Sweeps at once, and then after each `interval`, without end.
pub(crate) async fn run(context: &Context, interval: Option<Duration>) {
    let Some(interval) = interval else { return std::future::pending().await };
    let mut seen = HashSet::new();
    loop {
        if let Err(error) = sweep_once(context, &mut seen).await {
            tracing::info!(error = chain(&error), "the search for left-overs in infra did not finish");
        }
        sleep(interval).await;
        context.owner.read().await;
    }
}

/// One sweep. `seen` are the infra Services (by UID) that the last sweep found unneeded without proof.
async fn sweep_once(context: &Context, seen: &mut HashSet<String>) -> Result<(), SweepError> {
    let mirrors = context.index.mirrors();
    let suspects: Vec<_> = mirrors.iter().filter(|mirror| is_suspect(mirror, context)).collect();
    if suspects.is_empty() {
        seen.clear();
        return Ok(());
    }
    match (context.services.guest_cluster().await?.as_deref(), context.guest_cluster.uid()) {
        (now, own) if now == own => {}
        // It could not be read at the start. It is asked for, and no mirror is marked with it yet.
        (Some(_), None) => return Ok(()),
        _ => return Err(SweepError::OtherGuest),
    }
    let before = std::mem::take(seen);
    for mirror in suspects {
        let uid = mirror.metadata.uid.clone().unwrap_or_default();
        match sweep(mirror, before.contains(&uid), context).await {
            Ok(may_go) => drop(may_go.then(|| seen.insert(uid))),
            // Nothing is concluded from it, and the others are swept.
            Err(error) if error.is_unreadable() => {
                let name = mirror.metadata.name.as_deref();
                tracing::warn!(
                    infra = name,
                    error = chain(&error),
                    "an infra Service can't be judged and stays"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the watches show no Service that this one mirrors. The sweep never deletes because of the watches alone.
fn is_suspect(mirror: &InfraService, context: &Context) -> bool {
    let name = mirror.metadata.name.as_deref().unwrap_or_default();
    let wanted = |guest: &crate::guest::services::GuestService| {
        infra_name(guest.uid()) == name && (guest.wants_load_balancer() || guest.has_finalizer())
    };
    context.config.identity.owns(mirror)
        && !mirror.is_deleting()
        && !context.index.guest_of(name).is_some_and(|guest| wanted(&guest))
}

/// Asks the guest about one infra Service, and deletes it if it is proved to be a left-over. True = the next sweep may
/// find it so.
async fn sweep(mirror: &InfraService, seen_before: bool, context: &Context) -> Result<bool, SweepError> {
    let label = |key: &str| mirror.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    let (namespace, name) = (label(SERVICE_NAMESPACE_LABEL), label(SERVICE_NAME_LABEL));
    let (Some(namespace), Some(name)) = (namespace, name) else { return Ok(false) };
    let guest = context.services.guest_named(&namespace, &name).await?;
    let infra = mirror.metadata.name.as_deref().unwrap_or_default();
    let config = &context.config;
    let known =
        Observed { identity: &config.identity, guest_cluster: context.guest_cluster.uid(), seen_before };
    let answer = guest.as_ref().map_or(Answer::Absent, Answer::Present);
    // The watch may be behind, so judge the Service as it is now.
    let Some(now) = context.services.mirror_now(infra).await?.map(|now| now.service) else {
        return Ok(false);
    };
    if now.metadata.uid != mirror.metadata.uid {
        return Ok(false);
    }
    match judge(&now, answer, known) {
        Classification::Stays => Ok(false),
        Classification::Unproved(why) => {
            tracing::info!(infra, namespace, service = name, why, "an infra Service seems to be left over");
            Ok(true)
        }
        Classification::LeftOver => {
            let uid = now.metadata.uid.as_deref().unwrap_or_default();
            if let Called::Done(_) = context.services.delete_mirror(infra, uid).await? {
                tracing::info!(
                    infra,
                    namespace,
                    service = name,
                    "deleted an infra Service that was left over"
                );
                context.metrics.left_over_deleted();
            }
            Ok(false)
        }
    }
}
