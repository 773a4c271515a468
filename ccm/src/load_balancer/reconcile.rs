//! One reconcile of one guest Service: observe, plan, and carry out the first step of the plan; its answer is the next
//! observation. A change that could do harm needs more than a watch, which may be behind.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::LoadBalancerIngress, apimachinery::pkg::apis::meta::v1::Time};
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use crate::{
    access::chain,
    announcer::Kind,
    guest::services::GuestService,
    guest_names::infra_name,
    infra::mirrors::InfraService,
    load_balancer::{
        announce::{self, reference},
        calls::{Answer, Deleted, Mirrored},
        context::Context,
        error::{ReconcileError, failed},
        explain,
        mirror::Mirror,
        plan::{Infra, Moment, Plan, PlanConfig, Refusal, Step, Wait, plan},
    },
};

/// How many observations one reconcile makes at most. Without other writers, six are enough: a Service that is replaced
/// is read, and shown; one that is deleted is read, deleted, and loses its status and finalizer.
const MAX_OBSERVATIONS: usize = 12;
/// Pause before the next reconcile of a guest Service that the API reports as gone or replaced. The watch has usually
/// shown that by then. If it still shows the same Service, the answer was wrong (a proxy's 404, for example).
const SUPERSEDED_INTERVAL: Duration = Duration::from_secs(5);
/// How long the guest keeps an address that infra does not show any more. Flaps of infra's load balancers last seconds
/// (cozystack/cozystack#3307, metallb/metallb#1774); the records of external-dns live for minutes anyway.
const KEEP_ADDRESS: Duration = Duration::from_secs(20);
/// HTTP: the object is invalid.
const INVALID: u16 = 422;
/// Pause before the next check of an infra Service that is not ours, which we do not watch.
const FOREIGN_INTERVAL: Duration = Duration::from_mins(5);

/// What a reconcile has observed: each object as it was read or answered last.
struct Observed<'a> {
    /// The guest Service as the watch showed it.
    shown: &'a GuestService,
    /// The guest Service as its API answered in this reconcile.
    answered: Option<GuestService>,
    infra: Seen,
    /// The whole infra Service, where infra answered it in this reconcile.
    whole: Option<Value>,
    /// Whether the owner of infra Services was read in this reconcile.
    is_owner_read: bool,
    accepted: Accepted,
}

/// What the API servers have accepted in this reconcile.
#[derive(Default)]
struct Accepted {
    /// How many steps besides addresses: what a change of the Service by a user leads to.
    changes: usize,
    /// The mirror was deleted.
    is_deleted: bool,
    /// The finalizer was removed.
    is_released: bool,
    /// The mirror was replaced.
    is_replaced: bool,
    /// The addresses that the guest's Service got.
    ingress: Option<Vec<LoadBalancerIngress>>,
}

/// What is known of the infra Service.
enum Seen {
    Unknown,
    Gone,
    Present(Arc<InfraService>),
}

/// How a step ended.
enum Outcome {
    /// It was carried out.
    Done,
    /// Something was read first, or another writer was faster: plan again.
    Read,
    /// The guest Service is gone, or another one has its name. The watch will show that; if it does not, a later
    /// reconcile checks.
    Superseded,
}

/// One reconcile. These are the calls in the life of a Service when nothing goes wrong, and why each is needed:
///
/// 1. guest `patch services/status`: adds the finalizer, before infra has anything that could be left over; also the
///    conditions.
/// 2. infra `create services`: creates the mirror.
/// 3. guest `patch services/status`: sets the address, and the conditions that change with it.
/// 4. infra `delete services`: deletes the mirror; if no finalizer holds it, the answer proves that it is gone.
/// 5. guest `patch services/status`: removes the finalizer, after that proof.
///
/// The reconcile reads only where these answers or a watch leave something open: see [`act`].
pub(crate) async fn reconcile(shown: &GuestService, context: &Context) -> Result<Action, ReconcileError> {
    if let Some(left) = context.index.is_behind(shown) {
        // The event of our patch triggers the next reconcile.
        return Ok(Action::requeue(left));
    }
    if let Some(left) = context.pace.wait(shown.uid()) {
        // What the Service is then counts, not each change until then.
        return Ok(Action::requeue(left));
    }
    let mut observed = Observed::of(shown, context);
    let reconciled = observe_and_act(&mut observed, context).await;
    if observed.accepted.changes > 0 {
        context.pace.changed(shown.uid());
    }
    reconciled
}

async fn observe_and_act(observed: &mut Observed<'_>, context: &Context) -> Result<Action, ReconcileError> {
    let shown = observed.shown;
    for _ in 0..MAX_OBSERVATIONS {
        let config = PlanConfig { moment: observed.moment(context), ..context.config_for(shown) };
        let plan = plan(observed.guest(), observed.infra.as_infra(), &config);
        if let Some(left) = awaited(&plan, observed, context) {
            return Ok(Action::requeue(left));
        }
        let plan = context.index.limit(observed.guest(), plan);
        let mut waits: Option<Duration> = None;
        let step = plan.steps.iter().find(|step| {
            let wait =
                repair(step, observed, context).and_then(|it| context.repairs.wait(it.object, &it.wanted));
            waits = waits.into_iter().chain(wait).min();
            wait.is_none() && !observed.accepted.has(step)
        });
        let Some(step) = step else {
            let next = conclude(observed, &plan, context);
            let next = waits.map_or(next, Action::requeue);
            return explain::write(
                (shown, observed.guest()),
                &plan,
                observed.accepted.is_deleted || observed.accepted.is_released,
                next,
                context,
            )
            .await;
        };
        let repair = repair(step, observed, context).map(Repair::into_owned);
        match act(step, &plan, observed, context).await? {
            Outcome::Done => {
                announce::step(shown, step, &plan, context);
                if let Step::SetStatus(ingress) = step {
                    context.repairs.wrote(shown.uid(), &written(ingress));
                }
                if let Some((kind, wanted, writer)) = repair
                    && context.repairs.made(kind, (shown.uid(), &wanted), writer.as_deref())
                {
                    announce::contested(shown, kind, writer.as_deref(), context);
                }
                observed.accepted.add(step);
                if *step == Step::RemoveFinalizer {
                    announce::refusals(shown, &plan, context);
                }
            }
            Outcome::Read => {}
            Outcome::Superseded => return Ok(Action::requeue(SUPERSEDED_INTERVAL)),
        }
    }
    Err(ReconcileError::Unsettled(infra_name(shown.uid())))
}

/// A step that writes again what was written before.
struct Repair<'a> {
    /// What is repaired, for the metric.
    kind: &'static str,
    /// UID of the guest Service.
    object: &'a str,
    /// What is written.
    wanted: String,
    /// The other program that wrote it.
    writer: Option<&'a str>,
}

impl Repair<'_> {
    fn into_owned(self) -> (&'static str, String, Option<String>) {
        (self.kind, self.wanted, self.writer.map(str::to_owned))
    }
}

/// What `step` repairs. `None` = it is no repair: for a status, what it replaces was written here.
fn repair<'a>(step: &Step, observed: &'a Observed<'_>, context: &Context) -> Option<Repair<'a>> {
    let object = observed.shown.uid();
    match step {
        Step::SetStatus(ingress) => {
            let found = written(&observed.guest().status.load_balancer.ingress);
            let writer = observed.shown.status_writer.as_deref();
            let repair = Repair { kind: "status", object, wanted: written(ingress), writer };
            (!context.repairs.is_ours(object, &found)).then_some(repair)
        }
        Step::Replace(mirror, fields) => {
            let writer = match &observed.infra {
                Seen::Present(infra) => infra.other_writer(),
                Seen::Unknown | Seen::Gone => None,
            };
            Some(Repair { kind: "mirror", object, wanted: format!("{fields:?} {mirror:?}"), writer })
        }
        _ => None,
    }
}

/// A text that is the same for the same addresses.
fn written(ingress: &[LoadBalancerIngress]) -> String {
    format!("{ingress:?}")
}

impl Seen {
    fn as_infra(&self) -> Infra<'_> {
        match self {
            Self::Unknown => Infra::NotSeen,
            Self::Gone => Infra::Gone,
            Self::Present(infra) => Infra::Present(infra),
        }
    }
}

impl Accepted {
    /// An API server has accepted this step.
    fn add(&mut self, step: &Step) {
        self.changes += usize::from(!matches!(step, Step::SetStatus(_) | Step::Confirm));
        match step {
            // The Service is wanted again: its life begins anew.
            Step::AddFinalizer => (self.is_deleted, self.is_released) = (false, false),
            Step::RemoveFinalizer => self.is_released = true,
            Step::Replace(..) => self.is_replaced = true,
            Step::SetStatus(ingress) => self.ingress = Some(ingress.clone()),
            Step::Delete(_) => self.is_deleted = true,
            Step::Confirm | Step::Create(_) => {}
        }
    }

    /// Whether an API server has accepted this step in this reconcile and yet answers that it is needed. It stores
    /// another value than the one that was written: an older guest drops `ipMode`, a policy of infra sets a field.
    /// Writing it again at once does not change that, and must not keep the steps behind it from being taken.
    fn has(&self, step: &Step) -> bool {
        match step {
            Step::Replace(..) => self.is_replaced,
            Step::SetStatus(ingress) => self.ingress.as_ref() == Some(ingress),
            _ => false,
        }
    }
}

impl<'a> Observed<'a> {
    /// What the index shows.
    fn of(shown: &'a GuestService, context: &Context) -> Self {
        let infra = context.index.mirror(&infra_name(shown.uid())).map_or(Seen::Unknown, Seen::Present);
        Self {
            shown,
            answered: None,
            infra,
            whole: None,
            is_owner_read: false,
            accepted: Accepted::default(),
        }
    }

    fn guest(&self) -> &GuestService {
        self.answered.as_ref().unwrap_or(self.shown)
    }

    /// What the time says about the Service.
    fn moment(&self, context: &Context) -> Moment {
        let (guest, index) = (self.guest(), &context.index);
        if matches!(&self.infra, Seen::Present(infra) if !infra.status.load_balancer.ingress.is_empty()) {
            index.found_address(guest.uid());
        }
        Moment {
            is_overdue: index.waited(guest.uid()) >= context.address_timeout,
            keeps_address: self.keeps_address_for(context).is_some(),
        }
    }

    /// How much longer the guest keeps the address that infra does not show any more. `None` = it does not.
    fn keeps_address_for(&self, context: &Context) -> Option<Duration> {
        let Seen::Present(infra) = &self.infra else { return None };
        let (has, shows) = (&infra.status.load_balancer.ingress, &self.guest().status.load_balancer.ingress);
        if infra.is_deleting() || !has.is_empty() || shows.is_empty() {
            return None;
        }
        let lost = context.index.lost_address(self.guest().uid(), infra.metadata.uid.as_deref()?)?;
        KEEP_ADDRESS.checked_sub(lost).filter(|left| !left.is_zero())
    }

    /// Whether the guest Service was read before the mirror is created or deleted, so that a watch that is behind does
    /// no harm. One that is being deleted needs no read, because nothing can undo that.
    fn is_guest_certain(&self, step: &Step) -> bool {
        self.answered.is_some() || (matches!(step, Step::Delete(_)) && self.shown.is_deleting())
    }

    /// Keeps the answer of the guest's API.
    fn guest_answered(&mut self, answer: Answer<GuestService>, done: Outcome, context: &Context) -> Outcome {
        match answer {
            Answer::Done(now) => {
                context.index.patched(&now);
                self.answered = Some(now);
                done
            }
            Answer::Absent | Answer::Changed => Outcome::Superseded,
        }
    }

    /// Keeps infra's answer. `None` = there is no such Service.
    fn infra_answered(&mut self, answer: Option<Mirrored>) {
        (self.infra, self.whole) = match answer {
            Some(Mirrored { object, service }) => (Seen::Present(Arc::new(service)), Some(object)),
            None => (Seen::Gone, None),
        };
    }

    /// Reads the infra Service.
    async fn read_infra(&mut self, context: &Context) -> Result<Outcome, ReconcileError> {
        let now = context.services.mirror_now(&infra_name(self.shown.uid())).await;
        self.infra_answered(now.map_err(failed("read the infra service"))?);
        Ok(Outcome::Read)
    }
}

/// How long to wait because the mirror was already created and only the watch does not show it yet.
fn awaited(plan: &Plan, observed: &Observed<'_>, context: &Context) -> Option<Duration> {
    let creates = plan.steps.iter().any(|step| matches!(step, Step::Create(_)));
    let is_open = creates && matches!(observed.infra, Seen::Unknown);
    is_open.then(|| context.index.is_coming(&infra_name(observed.shown.uid()))).flatten()
}

/// Carries out one step, or reads what the step needs to be certain.
async fn act(
    step: &Step,
    plan: &Plan,
    observed: &mut Observed<'_>,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let (services, guest) = (&context.services, observed.guest());
    let entries = || explain::entries(guest, &explain::wanted(guest, plan, context));
    match step {
        Step::AddFinalizer => {
            let added = services.add_finalizer(guest, &entries()).await;
            let added = added.map_err(failed("add the load balancer cleanup finalizer"))?;
            Ok(observed.guest_answered(added, Outcome::Done, context))
        }
        Step::SetStatus(ingress) => {
            let set = services.set_status(guest, ingress, &entries()).await;
            let set = set.map_err(failed("update the load balancer status"))?;
            Ok(observed.guest_answered(set, Outcome::Done, context))
        }
        Step::RemoveFinalizer => {
            let removed = services.remove_finalizer(guest).await;
            let removed = removed.map_err(failed("remove the load balancer cleanup finalizer"))?;
            Ok(observed.guest_answered(removed, Outcome::Done, context))
        }
        Step::Confirm => observed.read_infra(context).await,
        Step::Create(_) | Step::Delete(_) if !observed.is_guest_certain(step) => {
            let now = services.guest_now(observed.shown).await.map_err(failed("read the service again"))?;
            Ok(observed.guest_answered(now, Outcome::Read, context))
        }
        Step::Create(mirror) => create(mirror, observed, context).await,
        Step::Replace(mirror, fields) => replace(mirror, fields, observed, context).await,
        Step::Delete(uid) => delete(uid, observed, context).await,
    }
}

async fn create(
    mirror: &Mirror,
    observed: &mut Observed<'_>,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    if observed.shown.has_finalizer() && !observed.is_owner_read {
        // It had a mirror that another program deleted, perhaps together with its owner.
        context.owner.read().await;
        observed.is_owner_read = true;
        return Ok(Outcome::Read);
    }
    let guest = observed.guest();
    context.events.emit(&reference(guest), Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    context.index.waits(guest.uid());
    let created = create_in_any_family(mirror, guest, context).await;
    match created.map_err(failed("ensure load balancer"))? {
        Answer::Done(now) => {
            context.index.created(&mirror.name);
            observed.infra_answered(Some(now));
            Ok(Outcome::Done)
        }
        Answer::Absent | Answer::Changed => observed.read_infra(context).await,
    }
}

/// Creates the mirror in the guest's first address family; if infra does not have that, in its second, or else in the one
/// that infra chooses. The mirror's family is then reported as not the guest's.
async fn create_in_any_family(
    mirror: &Mirror,
    guest: &GuestService,
    context: &Context,
) -> Result<Answer<Mirrored>, kube::Error> {
    let mut object = mirror.new_object();
    let second = guest.spec.ip_families.get(1).map(|family| json!([family]));
    for families in [second, None] {
        match context.services.create_mirror(&object).await {
            Err(error) if is_family_refused(&error) => tracing::info!(
                service = guest.metadata.name,
                namespace = guest.metadata.namespace,
                error = chain(&error),
                "infra does not have the address family; trying another"
            ),
            answered => return answered,
        }
        if let Some(families) = families {
            object["spec"]["ipFamilies"] = families;
        } else if let Some(spec) = object["spec"].as_object_mut() {
            spec.remove("ipFamilies");
            spec.remove("ipFamilyPolicy");
        }
    }
    context.services.create_mirror(&object).await
}

/// Whether the API server refuses the Service because of its address families (validation of `spec.ipFamilies`).
fn is_family_refused(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == INVALID && causes.into_iter().any(|cause| cause.field.starts_with("spec.ipFamil"))
}

/// Turns the infra Service into the mirror again. It is read first, because the whole object is replaced and the watch
/// keeps only a part of it.
async fn replace(
    mirror: &Mirror,
    fields: &[&str],
    observed: &mut Observed<'_>,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let (Seen::Present(infra), Some(mut object)) = (&observed.infra, observed.whole.take()) else {
        return observed.read_infra(context).await;
    };
    let guest = observed.guest();
    tracing::info!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        ?fields,
        "updating infra"
    );
    context.events.emit(&reference(guest), Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    mirror.write_into(&mut object, infra);
    let replaced = context.services.replace_mirror(&mirror.name, &object).await;
    match replaced.map_err(failed("ensure load balancer"))? {
        Answer::Done(now) => {
            observed.infra_answered(Some(now));
            Ok(Outcome::Done)
        }
        Answer::Absent | Answer::Changed => observed.read_infra(context).await,
    }
}

async fn delete(
    uid: &str,
    observed: &mut Observed<'_>,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let (guest, name) = (observed.guest(), infra_name(observed.shown.uid()));
    context.events.emit(&reference(guest), Kind::Normal, "DeletingLoadBalancer", "Deleting load balancer");
    let deleted = context.services.delete_mirror(&name, uid).await;
    match deleted.map_err(failed("delete load balancer"))? {
        Answer::Done(Deleted::Gone) => {
            context.index.deleted(&name, uid);
            observed.infra_answered(None);
        }
        Answer::Done(Deleted::Going) => {
            if let Seen::Present(infra) = &mut observed.infra {
                let now = || Time(Timestamp::now());
                Arc::make_mut(infra).metadata.deletion_timestamp.get_or_insert_with(now);
            }
        }
        // It is gone, or another object has its name; the next read proves which.
        Answer::Absent | Answer::Changed => return observed.read_infra(context).await,
    }
    Ok(Outcome::Done)
}

/// What follows when no step is left: the wait, and the events about what is refused.
fn conclude(observed: &Observed<'_>, plan: &Plan, context: &Context) -> Action {
    let guest = observed.shown;
    if observed.accepted.is_released {
        context.index.forget(guest.uid());
        context.backoff.succeeded(guest.uid());
        return Action::await_change();
    }
    announce::refusals(guest, plan, context);
    if matches!(plan.refusal, Some(Refusal::Foreign(_))) {
        context.index.set_aside(guest.uid());
        return Action::requeue(FOREIGN_INTERVAL);
    }
    if matches!(plan.refusal, Some(Refusal::TooLarge(_) | Refusal::NoNodePort(_))) {
        // It takes no place of the quota from others until it is changed.
        context.index.set_aside(guest.uid());
    }
    if plan.keeps_address {
        return observed.keeps_address_for(context).map_or_else(Action::await_change, Action::requeue);
    }
    if plan.waits_for != Some(Wait::Address) {
        context.index.has_address(guest.uid());
        return Action::await_change();
    }
    let left = context.address_timeout.saturating_sub(context.index.waits(guest.uid()));
    if !left.is_zero() {
        return Action::requeue(left);
    }
    // Some load balancers read the selector (cozystack/cozystack#2256).
    let is_selectorless = matches!(&observed.infra, Seen::Present(infra) if infra.spec.selector.is_empty());
    let selector = if is_selectorless {
        ", which has no selector, as the cloud-config has it (selectorless, endpoints or enableEPSController), and some load \
         balancers need one"
    } else {
        ""
    };
    let note = format!(
        "Error syncing load balancer: the infra cluster has assigned no address to service {} for {} s; \
         check the infra cluster's load balancer{selector}; the address is copied when it appears",
        infra_name(guest.uid()),
        context.address_timeout.as_secs()
    );
    context.events.emit(&reference(guest), Kind::Warning, "SyncLoadBalancerFailed", &note);
    Action::await_change()
}

#[cfg(test)]
mod tests;
