//! Zone and region of infra Nodes. Each infra Node is read again after a while; after a refusal none is read any more.

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
    forbidden: bool,
}

impl Hosts {
    pub(crate) fn new(reads: InfraReads) -> Self {
        Self { reads, state: Mutex::default() }
    }

    /// Zone and region of the infra Node with this name. It never fails: if a Node can't be read, the answer is that
    /// nothing is known.
    pub(crate) async fn find(&self, node: &str) -> Host {
        if self.lock().forbidden {
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
                state.places.retain(|_, (_, read)| read.elapsed() < BELIEVED);
                state.places.insert(node.to_owned(), (place.clone(), Instant::now()));
                Host::At(place)
            }
            Err(error) if error.is_forbidden() => {
                let mut state = self.lock();
                if !std::mem::replace(&mut state.forbidden, true) {
                    tracing::info!(
                        "no right to get nodes of the infra cluster: zone and region are taken from the VMIs' own labels, where they have any"
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
