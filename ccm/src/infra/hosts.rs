//! Where infra nodes are: each read once in a while, and none any more once that is refused.

use crate::{
    access::chain,
    infra::machines::reads::InfraReads,
    wire::topology_labels::{BETA_LABELS, REGION_LABEL, ZONE_LABEL},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

/// How long a place is believed: a node's zone and region hardly ever change.
const BELIEVED: Duration = Duration::from_mins(5);

/// Zone and region of an infra node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Zone.
    pub zone: Option<String>,
    /// Region.
    pub region: Option<String>,
}

/// What is known of the infra node that a VM runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// Its place.
    At(Place),
    /// Infra nodes may not be read.
    Forbidden,
    /// Zone and region are switched off, or the node could not be read this time.
    #[default]
    Unknown,
}

impl Place {
    /// Reads an infra node's labels; the older names count where the present ones are missing.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let of = |wanted: &str| {
            let older = BETA_LABELS.iter().find(|(_, stable)| *stable == wanted).map(|(beta, _)| *beta);
            labels.get(wanted).or_else(|| labels.get(older?)).filter(|value| !value.is_empty()).cloned()
        };
        Self { zone: of(ZONE_LABEL), region: of(REGION_LABEL) }
    }
}

/// Places of infra nodes.
pub(crate) struct Hosts {
    reads: InfraReads,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: HashMap<String, (Place, Instant)>,
    forbidden: bool,
}

impl Hosts {
    pub(crate) fn new(reads: InfraReads) -> Self {
        Self { reads, state: Mutex::default() }
    }

    /// Where the infra node of this name is. Never fails: what can't be read is not known.
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
        match self.reads.place(node).await {
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
                // An old answer is better than none, and does no harm: a node that moved has another name.
                known.map_or(Host::Unknown, |(place, _)| Host::At(place))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
