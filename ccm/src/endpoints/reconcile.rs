//! One reconcile of the endpoints of one Service: observe, plan, act. It deletes no slice of another writer, and none
//! of ours after a handover, before a fresh read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;

use crate::{
    access::chain,
    backoff::AFTER_CONFLICT,
    call::CallError,
    endpoints::{
        calls::Answer,
        metrics::Count,
        plan::{Observed, Plan, Step, plan},
        session::{FIRST_PAUSE, Session},
    },
    guest::services::GuestService,
    guest_names::{has_mirror, infra_name},
    handover::Writer,
    infra::{
        mirrors::InfraService,
        slices::{Content, Endpoint, InfraSlice, Manager},
    },
    wire::ip_family::Family,
};

/// How often one reconcile observes: at its start, after its writes, and when another writer was faster.
const MAX_OBSERVATIONS: usize = 6;

/// How long what the former writer of endpoints left may stay, after another program has written its own.
const LEFT_BEHIND_INTERVAL: Duration = Duration::from_mins(1);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Another program changes the slices all the time.
    #[error("the endpoint slices of infra service {0} were changed by others again and again")]
    Unsettled(String),
}

/// What a reconcile observes.
struct View {
    service: Arc<InfraService>,
    slices: Vec<InfraSlice>,
    /// Whether both were read in this reconcile.
    is_fresh: bool,
}

impl View {
    fn has_slices_of_former_writers(&self) -> bool {
        self.slices.iter().any(|slice| slice.manager != Manager::Other)
    }
}

/// What a reconcile has to do.
struct Planned {
    plan: Plan,
    wanted: BTreeMap<Family, Vec<Endpoint>>,
    /// Whether the endpoints are ours to write.
    is_ours: bool,
    /// A VM whose addresses nothing proves, so that the endpoints are not ours.
    unproved: Option<String>,
}

/// One reconcile.
pub(crate) async fn reconcile(
    guest: Arc<GuestService>,
    session: Arc<Session>,
) -> Result<Action, ReconcileError> {
    let reconciled = observe_and_act(&guest, &session).await;
    match &reconciled {
        Ok(_) => session.backoff.succeeded(guest.uid()),
        Err(ReconcileError::Call(error)) if error.is_forbidden() => {
            session.is_refused(format!("refused: {}", chain(error)));
        }
        Err(_) => {}
    }
    reconciled
}

/// When a reconcile that failed is repeated.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
pub(crate) fn after_failure(
    guest: Arc<GuestService>,
    error: &ReconcileError,
    session: Arc<Session>,
) -> Action {
    let is_conflict = matches!(error, ReconcileError::Call(error) if error.is_conflict());
    let pause = match session.backoff.failed(guest.uid()) {
        FIRST_PAUSE if is_conflict => AFTER_CONFLICT,
        pause => pause,
    };
    tracing::warn!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        error = chain(error),
        pause = pause.as_secs(),
        "endpoints could not be written, which is repeated"
    );
    Action::requeue(pause)
}

async fn observe_and_act(guest: &GuestService, session: &Session) -> Result<Action, ReconcileError> {
    if !has_mirror(guest.uid()) {
        return Ok(Action::await_change());
    }
    let name = infra_name(guest.uid());
    if let Some(left) = session.pace.wait(guest.uid()) {
        return Ok(Action::requeue(left));
    }
    let mut view = session.seen(&name);
    let is_others = session.context.choice.writer(guest.spec.is_local()) == Writer::Others;
    let is_left_behind = is_others && view.as_ref().is_some_and(View::has_slices_of_former_writers);
    if is_left_behind {
        // The watch shows only slices with this guest's labels, which the other program's need not have.
        view = session.observe(&name).await?;
    }
    for _ in 0..MAX_OBSERVATIONS {
        let Some(planned) = session.plan(guest, view.as_ref()) else {
            session.context.wrote(guest, false);
            session.context.metrics.count(guest.uid(), None);
            return Ok(Action::await_change());
        };
        session.context.unproved(guest, planned.unproved.as_deref());
        session.context.wrote(guest, planned.plan.is_written);
        if planned.plan.steps.is_empty() {
            session.count(guest, &planned);
            let is_waiting = is_left_behind && view.as_ref().is_some_and(View::has_slices_of_former_writers);
            return Ok(if is_waiting {
                Action::requeue(LEFT_BEHIND_INTERVAL)
            } else {
                Action::await_change()
            });
        }
        let Some(seen) = view.take() else { return Ok(Action::await_change()) };
        if !seen.is_fresh && planned.plan.steps.iter().any(Step::is_final) {
            view = session.observe(&name).await?;
            continue;
        }
        let (due, wait) = session.due_of(&planned.plan.steps, &seen.slices);
        if due.is_empty() {
            return Ok(wait.map_or_else(Action::await_change, Action::requeue));
        }
        session.pace.changed(guest.uid());
        for step in due {
            if !session.act(&seen.service, step).await? {
                break;
            }
            session.wrote(guest, step, &seen.slices);
        }
        view = session.seen(&name);
    }
    Err(ReconcileError::Unsettled(name))
}

impl Session {
    /// The infra Service and its slices as the watches showed them last.
    fn seen(&self, name: &str) -> Option<View> {
        let service = self.context.services.mirror(name)?;
        let slices = self.state.lock().infra_slices.of(&name.to_owned()).cloned().collect();
        Some(View { service, slices, is_fresh: false })
    }

    /// Reads the infra Service and its slices.
    async fn observe(&self, name: &str) -> Result<Option<View>, ReconcileError> {
        let slices = self.calls.slices_of(name).await?;
        let Some(service) = self.calls.service(name).await? else { return Ok(None) };
        Ok(Some(View { service: Arc::new(service), slices, is_fresh: true }))
    }

    /// What to do. `None` = the Service is not ours, or too little is known.
    fn plan(&self, guest: &GuestService, view: Option<&View>) -> Option<Planned> {
        let (context, view) = (&self.context, view?);
        let is_served = guest.wants_load_balancer() && !guest.is_deleting() && !view.service.is_deleting();
        let writer = context.choice.writer(guest.spec.is_local());
        if !is_served || context.identity.check(guest, &*view.service).is_err() {
            return None;
        }
        let backends = if writer == Writer::Others { Arc::default() } else { self.backends()? };
        let mut counted = backends.iter().filter(|backend| !backend.excluded);
        let unproved = counted.find(|backend| writer == Writer::Ours && backend.is_unproved);
        let unproved = unproved.map(|backend| backend.vm.clone());
        // Infra's own controllers give the selector's endpoints the addresses of pods.
        let writer = if unproved.is_some() { Writer::Infra } else { writer };
        let everywhere = context.choice.slices_for_all;
        let wanted = self.state.lock().wanted(guest, &view.service, &view.slices, &backends, everywhere);
        let observed = Observed {
            service: &view.service,
            writer,
            may_convert: self.may_convert(),
            slices: &view.slices,
            wanted: &wanted,
        };
        let is_ours = writer == Writer::Ours;
        Some(Planned { plan: plan(&observed), wanted, is_ours, unproved })
    }

    /// The steps that are due, and how long the first of the others has to wait: another program writes the same slice
    /// again and again.
    fn due_of<'a>(&self, steps: &'a [Step], slices: &[InfraSlice]) -> (Vec<&'a Step>, Option<Duration>) {
        let (mut due, mut first) = (Vec::new(), None::<Duration>);
        for step in steps {
            let repaired = self.repaired(step, slices);
            match repaired.and_then(|(slice, wanted)| self.repairs.wait(&slice.uid, &wanted)) {
                Some(wait) => first = first.into_iter().chain([wait]).min(),
                None => due.push(step),
            }
        }
        (due, first)
    }

    /// The slice that `step` repairs, and what it writes. `None` = what the slice contains was written here. What we would never
    /// write is another program's.
    fn repaired<'a>(&self, step: &Step, slices: &'a [InfraSlice]) -> Option<(&'a InfraSlice, String)> {
        let Step::Replace { name, content, .. } = step else { return None };
        let slice = slices.iter().find(|slice| slice.name == *name)?;
        let is_ours =
            slice.content.as_ref().is_some_and(|found| self.repairs.is_ours(&slice.uid, &text(found)));
        (!is_ours).then(|| (slice, text(content)))
    }

    /// Records that a step was carried out.
    fn wrote(&self, guest: &GuestService, step: &Step, slices: &[InfraSlice]) {
        let Step::Replace { name, content, .. } = step else { return };
        if let Some((slice, wanted)) = self.repaired(step, slices)
            && self.repairs.made("slice", (&slice.uid, &wanted), slice.other_writer.as_deref())
        {
            self.context.contested(guest, name, slice.other_writer.as_deref());
        }
        if let Some(slice) = slices.iter().find(|slice| slice.name == *name) {
            self.repairs.wrote(&slice.uid, &text(content));
        }
    }

    /// Carries out one step. False = another writer was faster, so observe again.
    async fn act(&self, service: &InfraService, step: &Step) -> Result<bool, ReconcileError> {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let written = match step {
            Step::Create { name: slice, family, content } => {
                log(name, slice, "creating a slice", content);
                self.calls.create(slice, &content.object(service, slice, *family, None)).await?
            }
            Step::Replace { name: slice, version, family, content } => {
                log(name, slice, "writing a slice", content);
                self.calls.replace(slice, &content.object(service, slice, *family, Some(version))).await?
            }
            Step::Drop { name: slice, uid } | Step::Remove { name: slice, uid } => {
                tracing::info!(service = name, slice, "deleting a slice");
                return match self.calls.delete(slice, uid).await? {
                    Answer::Done(()) => {
                        self.state.lock().infra_slices.remove(slice);
                        Ok(true)
                    }
                    Answer::Changed => self.look_again(name, slice).await,
                };
            }
            Step::RemoveEndpoints => {
                tracing::info!(service = name, "deleting the Endpoints that the selector left");
                return match self.calls.remove_endpoints(name).await {
                    Err(error) if error.is_forbidden() => {
                        self.conversion_is_refused(&chain(&error));
                        Ok(false)
                    }
                    removed => Ok(matches!(removed?, Answer::Done(()))),
                };
            }
        };
        let (Step::Create { name: slice, .. } | Step::Replace { name: slice, .. }) = step else {
            return Ok(true);
        };
        match written {
            Answer::Done(now) => {
                self.state.lock().infra_slices.put(slice, Some(name.to_owned()), now);
                Ok(true)
            }
            Answer::Changed => self.look_again(name, slice).await,
        }
    }

    /// Reads a slice that is not as the watch showed it, and keeps the answer. The watch may be behind, and does not
    /// show a slice that lost our labels.
    async fn look_again(&self, service: &str, slice: &str) -> Result<bool, ReconcileError> {
        let now = self.calls.slice(slice).await?;
        let mut seen = self.state.lock();
        match now {
            Some(now) => drop(seen.infra_slices.put(slice, Some(service.to_owned()), now)),
            None => drop(seen.infra_slices.remove(slice)),
        }
        Ok(false)
    }

    fn count(&self, guest: &GuestService, planned: &Planned) {
        let all = || planned.wanted.values().flatten();
        let ready = all().filter(|endpoint| endpoint.conditions.ready).count();
        let count = Count { ready, unready: all().count() - ready };
        self.context.metrics.count(guest.uid(), planned.is_ours.then_some(count));
    }
}

/// A text that is the same for the same content.
fn text(content: &Content) -> String {
    format!("{content:?}")
}

fn log(service: &str, slice: &str, what: &str, content: &Content) {
    let ready = content.endpoints.iter().filter(|endpoint| endpoint.conditions.ready).count();
    tracing::info!(service, slice, endpoints = content.endpoints.len(), ready, "{what}");
}

#[cfg(test)]
mod tests;
