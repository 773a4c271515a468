//! One RPC while one of its infra calls meets a fault: what the answer may be.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{Deadline, until};
use fault_proxy::{Action, Faults, Guard, Matcher, Reply, Rule};
use tonic::{Code, Status};

use crate::volume_life::is_uncertain;

/// Infra's message in an injected answer.
pub const WORDS: &str = "said by the infra";

/// Deadline of an RPC under a fault: long enough for a pause of a second, short enough to wait it out in each case.
const SHORT: Duration = Duration::from_secs(2);

/// Deadline of an RPC during which the controller dies.
const UNTIL_KILLED: Duration = Duration::from_mins(1);

/// How often an RPC may end before it meets its fault.
const ATTEMPTS: usize = 10;

/// One infra call of one RPC.
#[derive(Clone, Copy, Debug)]
pub struct Case<R> {
    pub rpc: R,
    pub verb: &'static str,
    pub resource: &'static str,
}

impl<R> Case<R> {
    pub const fn new(rpc: R, verb: &'static str, resource: &'static str) -> Self {
        Self { rpc, verb, resource }
    }
}

/// A series of RPCs to one controller, whose infra calls pass a fault proxy.
pub trait Life {
    /// The RPCs.
    type Rpc: Copy + Debug + PartialEq;

    /// The faults between controller and infra.
    fn faults(&self) -> &Faults;

    /// One RPC.
    async fn call(&self, rpc: Self::Rpc, within: Duration) -> Result<(), Status>;

    /// Whether the clusters show what the RPC is for.
    async fn is_done(&self, rpc: Self::Rpc) -> Result<bool>;

    /// The final code of the answer where the API server refuses the content of this call: proof that it did nothing.
    fn refusal(case: &Case<Self::Rpc>) -> Option<Code>;

    /// Whether the RPC goes on without this call, so that its answer need not be about it.
    fn goes_on(case: &Case<Self::Rpc>, action: &Action) -> bool;

    /// Whether an earlier fault may have made this call unnecessary.
    fn may_be_skipped(case: &Case<Self::Rpc>) -> bool;
}

/// Kills the controller while the call is frozen: before or after it landed, as the action says. It stays frozen until the guard is
/// dropped.
pub async fn killed_at<L: Life>(
    life: &L,
    case: &Case<L::Rpc>,
    action: &Action,
    kill: impl Future<Output = ()>,
) -> Result<Guard> {
    let what = format!("{:?} at {} {}", case.rpc, case.verb, case.resource);
    let at = Matcher::of(case.verb, case.resource);
    let before = life.faults().succeeded(&at);
    let guard = life.faults().add(Rule::once(at.clone(), action.clone()));
    let dying = async {
        tokio::time::timeout(Deadline::Reaction.duration(), guard.caught(1)).await?;
        kill.await;
        anyhow::Ok(())
    };
    let (answer, died) = tokio::join!(life.call(case.rpc, UNTIL_KILLED), dying);
    died.with_context(|| format!("{what}: the call was not made"))?;
    ensure!(answer.is_err(), "{what}: expected no answer of a dead controller, saw {answer:?}");
    let landed = life.faults().succeeded(&at) - before;
    ensure!(
        landed == usize::from(*action == Action::FreezeAfter),
        "{what}: expected the call to land only if frozen after it, saw it land {landed} times"
    );
    Ok(guard)
}

/// Whether the fault is an answer of the API server with this code.
pub fn is_answer(action: &Action, wanted: u16) -> bool {
    matches!(action, Action::Answer(Reply::Kubernetes { code, .. }) if *code == wanted)
}

/// Calls until the RPC meets the fault: on a busy machine its short time can be over before. Each answer must be right; the code of
/// the last.
pub async fn until_met<L: Life>(
    life: &L,
    case: &Case<L::Rpc>,
    action: &Action,
    guard: &Guard,
) -> Result<String> {
    let mut answers = Vec::new();
    for _ in 0..ATTEMPTS {
        let answer = call_when_free(life, case.rpc, action, guard).await?;
        let is_met = guard.count() > 0;
        judge(life, case, action, is_met, answer.as_ref().err()).await?;
        if is_met || (L::may_be_skipped(case) && answer.is_ok()) {
            return Ok(answer.map_or_else(|status| format!("{:?}", status.code()), |()| "Ok".to_owned()));
        }
        answers.push(format!("{answer:?}"));
    }
    bail!("expected the call to be made, saw the answers {answers:?}")
}

/// Calls when the operation that an earlier call began has ended: a change whose reply hangs is not dropped, and the driver
/// notices the end of a fault a moment after the test. An operation that hangs in this fault doesn't end.
async fn call_when_free<L: Life>(
    life: &L,
    rpc: L::Rpc,
    action: &Action,
    guard: &Guard,
) -> Result<Result<(), Status>> {
    until("the earlier operation to end", Deadline::Reaction, async || {
        let answer = life.call(rpc, SHORT).await;
        let hangs = matches!(action, Action::Hang) && guard.count() > 0;
        Ok(match answer {
            Err(status) if status.message().contains("has been under way for") && !hangs => {
                Err(status.message().to_owned())
            }
            answer => Ok(answer),
        })
    })
    .await
}

/// Whether the answer is right for what the clusters show.
async fn judge<L: Life>(
    life: &L,
    case: &Case<L::Rpc>,
    action: &Action,
    is_met: bool,
    failure: Option<&Status>,
) -> Result<()> {
    let Some(status) = failure else {
        ensure!(life.is_done(case.rpc).await?, "expected OK only for work that is done, saw OK before");
        return Ok(());
    };
    // The one proof of absence among the faults: the API refused the object itself, so nothing was made or changed.
    let refusal = L::refusal(case).filter(|_| is_met && is_answer(action, 422));
    // An RPC that waits for something else first may answer before it makes the call, and goes on.
    let is_late = status.code() == Code::DeadlineExceeded;
    let is_right =
        refusal.map_or_else(|| is_uncertain(status.code()), |code| status.code() == code || is_late);
    ensure!(is_right, "expected a code that the sidecar retries, saw {status:?}");
    // CANCELLED is the client library's own code: on a busy machine its clock can end before the driver's answer is read.
    let is_drivers = status.code() != Code::Cancelled && !(is_late && refusal.is_some());
    let expects_words =
        is_met && is_drivers && !L::goes_on(case, action) && matches!(action, Action::Answer(_));
    ensure!(
        !expects_words || status.message().contains(WORDS),
        "expected infra's message in the answer, saw {status:?}"
    );
    ensure!(!status.message().is_empty(), "expected a message in the answer, saw {status:?}");
    Ok(())
}
