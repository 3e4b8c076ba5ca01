//! Agencies: the grant of one company, hundreds of locations without a grant of their own, and webhooks in every order.

mod ended;
mod minting;
mod moved;
mod presence;
mod reconciliation;
mod search;
mod uninstall;
mod versions;
mod webhooks;

use it::world::{Process, World, location};
use sandbox::marketplace::Location;
use shared::domain::access::Access;
use shared::domain::resource::Resource;
use shared::token::TokenError;

fn company() -> Resource {
    Resource::company("HLcompany0000000001").expect("an id")
}

fn locations(count: usize) -> Vec<Resource> {
    (1..=count).map(|n| location(&format!("L{n}"))).collect()
}

/// Gives the agency `count` locations.
fn grow(world: &World, count: usize) {
    let locations =
        locations(count).iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = locations);
}

fn minted(world: &World) -> usize {
    world.market.token_requests_for("mint")
}

async fn access(world: &World, process: &Process, resource: &Resource) -> Result<Access, TokenError> {
    process.tokens.access(resource, world.deadline()).await
}

async fn works(world: &World, process: &Process, resource: &Resource) {
    let access = access(world, process, resource).await.expect("a token");
    assert!(world.market.takes_access_token(access.token.expose()), "{resource}");
}
