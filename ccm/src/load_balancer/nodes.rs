//! Which of the guest's Nodes take traffic of load balancers.

use std::collections::HashSet;

use crate::{
    changes::Subscription,
    guest::nodes::{
        GuestNode,
        watch::{Listing, NodeWatch},
    },
    load_balancer::conditions::Backends,
    nodes::backends::{NodeSet, is_counted, update},
};

/// The Nodes that take traffic.
pub(crate) struct Nodes(NodeWatch);

impl Nodes {
    /// Starts to watch the Nodes.
    pub(crate) fn start(watch: NodeWatch) -> Self {
        watch.start();
        Self(watch)
    }

    /// Which backends there are.
    pub(crate) fn backends(&self) -> Backends {
        if self.0.listing() != Listing::Complete {
            Backends::Unknown
        } else if self.0.all().iter().any(|node| is_counted(&GuestNode::from(&**node))) {
            Backends::Nodes
        } else {
            Backends::NoNodes
        }
    }

    /// Waits until the Nodes are known, or known to be unreadable. Otherwise each start would update all Services
    /// twice.
    pub(crate) async fn wait_until_known(&self) {
        self.0.wait_until_listed().await;
    }

    /// Follows the set from now on.
    pub(crate) fn followed(&self) -> Followed {
        Followed::of(self.0.clone())
    }
}

/// The set of the Nodes that take traffic, and its changes.
pub(crate) struct Followed {
    watch: NodeWatch,
    changes: Subscription<String>,
    /// `None` = the Nodes are not known.
    set: Option<NodeSet>,
}

impl Followed {
    fn of(watch: NodeWatch) -> Self {
        let changes = watch.subscribe();
        let set = (watch.listing() == Listing::Complete).then(|| Self::present(&watch));
        Self { watch, changes, set }
    }

    fn present(watch: &NodeWatch) -> NodeSet {
        let mut set = NodeSet::new();
        for node in watch.all() {
            let node = GuestNode::from(&*node);
            update(&mut set, &node.claims.name, Some(&node));
        }
        set
    }

    /// Waits until the set changes, or becomes known.
    pub(crate) async fn changed(&mut self) {
        if self.set.is_none() {
            self.watch.wait_until_complete().await;
            self.set = Some(Self::present(&self.watch));
            return;
        }
        loop {
            let names = self.changes.next().await;
            if self.update(names) {
                return;
            }
        }
    }

    /// Takes the changes that have come meanwhile.
    pub(crate) fn catch_up(&mut self) {
        let names = self.changes.take();
        self.update(names);
    }

    fn update(&mut self, names: HashSet<String>) -> bool {
        let Some(set) = &mut self.set else { return false };
        let mut has_changed = false;
        for name in names {
            let node = self.watch.get(&name).map(|node| GuestNode::from(&*node));
            has_changed |= update(set, &name, node.as_ref());
        }
        has_changed
    }
}
