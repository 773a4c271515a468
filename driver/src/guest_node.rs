//! Where the node role learns which VM it runs in: one GET of its own Node in the guest cluster.

use std::error::Error;

use node::{NodeIdentitySource, NodeObject};
use tenant::Tenant;

/// This worker's Node object, read through the guest cluster's API.
#[derive(Debug)]
pub struct OwnNode {
    /// The guest cluster.
    pub tenant: Tenant,
    /// The name of the Node.
    pub name: String,
}

impl NodeIdentitySource for OwnNode {
    async fn node(&self) -> Result<NodeObject, Box<dyn Error + Send + Sync>> {
        let tenant::GuestNode { provider_id, annotations } = self.tenant.node(&self.name).await?;
        Ok(NodeObject { provider_id, annotations })
    }
}
