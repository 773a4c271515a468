//! Zone and region of infra Nodes. Each infra Node is read again after a while. After a refusal none is read
//! for a while.

use crate::{
    access::chain,
    infra::{machines::reads::InfraReads, topology::Topology},
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long the zone and region of an infra Node are cached; they hardly ever change.
const BELIEVED: Duration = Duration::from_mins(5);

/// How long a refusal is believed: an API server that starts refuses what it allows a moment later. The time doubles with
/// each refusal in a row, up to the longest.
const ASK_AGAIN: Duration = Duration::from_mins(1);
const ASK_AGAIN_AT_LAST: Duration = Duration::from_mins(15);

/// What is known of the infra Node on which a VM runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// Its zone and region.
    At(Topology),
    /// The CCM may not read infra Nodes.
    Forbidden,
    /// Zone and region are switched off, or the infra Node could not be read this time.
    #[default]
    Unknown,
}

/// Cache of the zone and region of infra Nodes.
pub(crate) struct Hosts {
    reads: InfraReads,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: HashMap<String, (Topology, Instant)>,
    /// The last refusal, and how long none is asked for again.
    refused: Option<(Instant, Duration)>,
}

impl Hosts {
    pub(crate) fn new(reads: InfraReads) -> Self {
        Self { reads, state: Mutex::default() }
    }

    /// Zone and region of the infra Node with this name. It never fails: if a Node can't be read, the answer is that
    /// nothing is known.
    pub(crate) async fn find(&self, node: &str) -> Host {
        if self.lock().refused.is_some_and(|(at, pause)| at.elapsed() < pause) {
            return Host::Forbidden;
        }
        let known = self.lock().places.get(node).cloned();
        if let Some((place, read)) = &known
            && read.elapsed() < BELIEVED
        {
            return Host::At(place.clone());
        }
        match self.reads.topology(node).await {
            Ok(place) => {
                let mut state = self.lock();
                if state.refused.take().is_some() {
                    tracing::info!("the nodes of the infra cluster can be read now");
                }
                state.places.retain(|_, (_, read)| read.elapsed() < BELIEVED);
                state.places.insert(node.to_owned(), (place.clone(), Instant::now()));
                Host::At(place)
            }
            Err(error) if error.is_forbidden() => {
                let mut state = self.lock();
                let before = state.refused.map(|(_, pause)| pause);
                let pause = before.map_or(ASK_AGAIN, |pause| (pause * 2).min(ASK_AGAIN_AT_LAST));
                state.refused = Some((Instant::now(), pause));
                if before.is_none() {
                    tracing::warn!(
                        "no right to get nodes of the infra cluster: zone and region are taken from the VMIs' own labels, where they have any, and the right is asked for again within 15 minutes"
                    );
                }
                Host::Forbidden
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the place of an infra node is not known");
                // An old answer is better than none, and does no harm: an infra Node that moves gets another name.
                known.map_or(Host::Unknown, |(place, _)| Host::At(place))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::InfraCluster,
        fake_api::{FakeApi, failure},
        wire::topology_labels::ZONE_LABEL,
    };
    use serde_json::json;

    const NODE: &str = "GET /api/v1/nodes/infra-1";

    /// kubernetes/kubernetes#121635: an API server that starts refuses until it knows its roles.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_believed_for_a_while_only() {
        let api = FakeApi::default();
        let (code, body) = failure(403, "Forbidden", &json!({}));
        api.answer(NODE, code, body);
        let hosts = Hosts::new(InfraReads::new(&InfraCluster::over(api.client(), "hcp")));
        let mut asked = Vec::new();
        for second in 0..3600 {
            let before = api.made("GET").len();
            assert_eq!(hosts.find("infra-1").await, Host::Forbidden);
            if api.made("GET").len() > before {
                asked.push(second / 60);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 30, 45], "minutes");
        let labels = json!({ZONE_LABEL: "z1"});
        api.answer(
            NODE,
            200,
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "infra-1", "labels": labels}}),
        );
        tokio::time::advance(ASK_AGAIN_AT_LAST).await;
        assert!(matches!(hosts.find("infra-1").await, Host::At(_)));
    }
}
