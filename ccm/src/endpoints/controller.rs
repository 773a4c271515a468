//! The endpoint controller: writes the slices of those infra Services whose endpoints are ours to write, as soon as the
//! guest's slices or Nodes, a VM, or the Service change.

use std::time::Duration;

use kube::api::{Api, ListParams};
use tokio::time;

use crate::{
    access::chain,
    call::{CallError, call},
    endpoints::{
        context::Context,
        follow::{follow, of_guest},
        rights::{self, ASK_AGAIN},
        session::Session,
        watches::Refused,
    },
    handover::Work,
    infra::slices::{MANAGER_LABEL, MIRROR_MANAGER, OUR_MANAGER, SELECTOR_MANAGER, WireSlice},
    unreadable::Readable,
};

/// Pause before the CCM asks again for its rights after it got no answer.
const RETRY: Duration = Duration::from_secs(5);
/// After this many refusals in a row the CCM stops, although it has the rights: an API server that starts refuses for a
/// moment.
const BELIEVED_REFUSALS: u32 = 2;
/// How often the CCM looks for slices of an earlier configuration while it writes none: a replica of that configuration may
/// have written some since, and the right to list them may have been granted.
const LEFT_OVERS_INTERVAL: Duration = Duration::from_mins(10);

/// The endpoint controller.
pub struct EndpointController(Context);

impl EndpointController {
    /// A controller with this context.
    pub fn new(context: Context) -> Self {
        Self(context)
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        if !self.0.choice.is_ours() {
            self.wait_for_left_overs().await;
        }
        let feed = self.0.feed.clone();
        tokio::join!(feed.run(), self.write_while_allowed());
    }

    /// Reports that the controller is switched off: it writes no slices, so Services have selectors.
    pub fn stay_off(&self) {
        if self.0.choice.is_ours() {
            tracing::warn!(
                "kubevirt_eps_controller is switched off by --controllers; infra Services have selectors instead"
            );
            self.0.metrics.off(true);
        }
        self.0.gate.set(Work::Off);
    }

    async fn write_while_allowed(&self) {
        let (mut said, mut refused) = (None, 0);
        loop {
            let pause = match rights::ask(&self.0.guest, &self.0.infra).await {
                Ok(rights) if rights.missing.is_empty() => {
                    let began = time::Instant::now();
                    let Refused(why) = Box::pin(self.write(rights.may_convert, said.is_some())).await;
                    refused = if began.elapsed() < ASK_AGAIN { refused + 1 } else { 1 };
                    if refused < BELIEVED_REFUSALS {
                        tracing::info!("{why}, although the right is given; trying again");
                        RETRY
                    } else {
                        self.switch_off(why, &mut said);
                        ASK_AGAIN
                    }
                }
                Ok(rights) => {
                    self.switch_off(format!("no right to {}", rights.missing.join(", ")), &mut said);
                    ASK_AGAIN
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "whether endpoints may be written is not known yet"
                    );
                    RETRY
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Writes until a right turns out to be missing.
    async fn write(&self, may_convert: bool, was_off: bool) -> Refused {
        if was_off {
            tracing::info!("kubevirt_eps_controller: the rights are there now");
        }
        if !may_convert {
            tracing::info!(
                "kubevirt_eps_controller: no right to delete endpoints in the infra namespace: infra Services that have a selector keep it; the right is asked for again every {ASK_AGAIN:?}"
            );
        }
        self.0.services.wait_until_complete().await;
        self.0.metrics.off(false);
        follow(Session::new(self.0.clone(), may_convert)).await
    }

    /// Logs the reason once; from now on Services have their selectors.
    fn switch_off(&self, why: String, said: &mut Option<String>) {
        if !self.0.choice.is_ours() {
            tracing::debug!("slices that the former writer of endpoints left are not removed: {why}");
            return self.0.set(Work::Off);
        }
        self.0.metrics.off(true);
        self.0.metrics.keep(|_| false);
        if said.as_ref() != Some(&why) {
            tracing::warn!(
                "kubevirt_eps_controller is switched off: {why}; infra Services have selectors instead, which is asked for again every {ASK_AGAIN:?}"
            );
            *said = Some(why);
        }
        self.0.set(Work::Off);
    }

    /// Waits until slices of ours exist although none should, because the configuration was changed; where another program
    /// writes the endpoints, also slices of infra's controllers. Without the right to list them, the CCM can't remove them.
    async fn wait_for_left_overs(&self) {
        let managers = if self.0.choice.selectorless {
            format!("{OUR_MANAGER},{SELECTOR_MANAGER},{MIRROR_MANAGER}")
        } else {
            OUR_MANAGER.to_owned()
        };
        let former = format!("{MANAGER_LABEL} in ({managers}),{}", of_guest(&self.0.identity));
        let slices: Api<Readable<WireSlice>> =
            Api::namespaced(self.0.infra.client.clone(), &self.0.infra.namespace);
        loop {
            let first = ListParams::default().labels(&former).limit(1);
            let found = async {
                if !rights::may_look(&self.0.infra).await? {
                    return Ok(false);
                }
                let found = call(|| "list endpointslices".to_owned(), slices.list(&first)).await?;
                Ok::<_, CallError>(!found.items.is_empty())
            };
            let pause = match found.await {
                Ok(true) => return,
                Ok(false) => LEFT_OVERS_INTERVAL,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "are there slices of ours?");
                    RETRY
                }
            };
            time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests;
