//! A tenant that means harm. They are the administrator of their guest cluster: they write every object that our programs read
//! there, they are root in its VMs, and they may run the API server that our programs ask. Each *recipe* is one thing that they try.
//!
//! The tests begin with another guest that has what a guest has, in the same infra namespace: the worst case. What it has is recorded
//! before the recipes and compared after each of them. In the meantime it is counted what the tenant takes of the infra cluster. In the
//! end both programs, which were not restarted, serve the other guest, and the tenant too.
//!
//! | test | the tenant writes |
//! |---|---|
//! | `what_a_guest_writes_reaches_nobody_else` | Services, EndpointSlices, Nodes, Leases |
//! | `an_api_server_that_lies_reaches_nobody_else` | the answers of their API server |
//! | `requests_for_volumes_reach_nobody_else` | what the sidecars send to the driver |
//! | `attachments_reach_nobody_else` | volumes by hand, attachments, Nodes of drivers, claims, snapshot contents |
//!
//! What else a tenant can try has tests of its own: tokens that come to their API server
//! (`load_balancer::the_guest_says_who_reads_the_metrics`), a stolen token of a program (`admission_policy`), a cleanup that they want
//! to fail (`load_balancer::a_cleanup_names_what_it_leaves`), addresses that their VM's agent makes up
//! (`endpoints::without_a_proof_of_the_addresses_a_selector_stays`), and what they cost at most (`figures::hostile_guest`).

mod api_server;
mod attachments;
mod guests;
mod load_balancers;
mod nodes;
mod other_volumes;
mod record;
mod usage;
mod volumes;

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::rows::{Row, Rows};

use {
    api_server::an_api_server_that_lies_reaches_nobody_else, attachments::attachments_reach_nobody_else,
    guests::what_a_guest_writes_reaches_nobody_else, volumes::requests_for_volumes_reach_nobody_else,
};

tests! {
    Services:
        an_api_server_that_lies_reaches_nobody_else;
    Services, long:
        what_a_guest_writes_reaches_nobody_else;
    Calls:
        requests_for_volumes_reach_nobody_else;
    Calls, long:
        attachments_reach_nobody_else;
}

/// Within this time a new Service gets its address, and a new volume is attached, whatever the tenant did. Usually it takes one
/// second and some seconds; a busy machine takes longer.
const SERVED_WITHIN: Duration = Duration::from_mins(1);

/// What a tenant does, with whatever `T` it takes.
struct Recipe<T> {
    /// As it is reported.
    name: &'static str,
    run: fn(&T) -> BoxFuture<'_, Result<()>>,
}

/// A row of a table of recipes.
fn recipe<T>(row: Row, name: &'static str, run: fn(&T) -> BoxFuture<'_, Result<()>>) -> (Row, Recipe<T>) {
    (row, Recipe { name, run })
}

/// A table of recipes.
type Recipes<T> = Rows<Recipe<T>>;

/// Whether the tenant's own API server accepted what they wrote: what it refuses reaches nobody.
fn is_accepted<T>(answer: kube::Result<T>) -> Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
