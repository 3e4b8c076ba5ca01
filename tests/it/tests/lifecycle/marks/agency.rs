//! The budget of marks and the locations of an agency: refusals of minting draw on the same budget, and a location
//! whose refresh token is refused is minted from its agency's token before it is marked.

use std::time::Duration;

use it::proxy::Call;
use it::world::{Process, World, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::token::TokenError;
use shared::token::outcome::Refreshed;

use super::{installed, is_stopped, locations, marked, mend, notices, refresh, refusal, taken};

it::stories!(
    a_mass_refusal_of_minting_erases_three_tokens_and_opens_the_breaker,
    an_agency_that_loses_locations_does_not_open_the_breaker,
    an_unknown_location_needs_no_reservation,
    a_mass_refusal_takes_no_grant_of_a_location_in_which_its_agency_lacks_the_app,
    a_mass_refusal_leads_to_minting_where_the_agency_has_the_app,
    a_refused_location_keeps_its_grant_while_its_agency_cannot_be_asked,
    a_refused_location_is_marked_if_its_agency_may_not_mint,
);

fn company() -> Resource {
    Resource::company("HLcompany0000000001").expect("an id")
}

/// An agency with `count` locations, each of which has a minted token.
async fn agency(world: &World, process: &Process, count: usize) -> Vec<Resource> {
    let all = locations(count);
    let agency = all.iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = agency);
    world.install(process, &company()).await;
    // The schedule reads the list of the agency's locations. A location that only callers have named is minted only
    // seldom.
    world.refresh(process, json!({})).await;
    for resource in &all {
        process.tokens.access(resource, world.deadline()).await.expect("minted");
    }
    all
}

async fn without_token(world: &World, all: &[Resource]) -> usize {
    let mut without = 0;
    for resource in all {
        without += usize::from(world.stored(resource).await.access().is_none());
    }
    without
}

async fn a_mass_refusal_of_minting_erases_three_tokens_and_opens_the_breaker(world: World) {
    let process = world.process().await;
    let all = agency(&world, &process, 20).await;
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
    world.advance(world.market.options().token_life * 4 / 5);
    world.refresh(&process, json!({})).await;
    assert_eq!((without_token(&world, &all).await, is_stopped(&world).await), (0, false), "tokens that work are used");
    world.expire();
    for _ in 0..3 {
        world.advance(Duration::from_mins(30));
        world.refresh(&process, json!({})).await;
    }
    assert_eq!(without_token(&world, &all).await, 3);
    assert!(is_stopped(&world).await);
    let before = world.market.token_requests_for("mint");
    world.advance(Duration::from_mins(30));
    world.refresh(&process, json!({})).await;
    assert_eq!(world.market.token_requests_for("mint"), before, "nothing is minted any more");
    world.market.clear_faults();
    world.table.close_breaker().await.expect("a table");
    world.advance(Duration::from_mins(30));
    for resource in &all {
        process.tokens.access(resource, world.deadline()).await.expect("minted again");
    }
    world.end().await;
}

async fn an_agency_that_loses_locations_does_not_open_the_breaker(world: World) {
    let process = world.process().await;
    let all = agency(&world, &process, 66).await;
    let (left, stay) = all.split_at(6);
    let stays = stay.iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = stays);
    world.expire();
    // Callers come in this order, which spreads the refusals among the grants.
    for (n, resource) in stay.iter().enumerate() {
        process.tokens.access(resource, world.deadline()).await.expect("minted");
        if let Some(resource) = left.get(n / 10).filter(|_| n % 10 == 0) {
            let refused = process.tokens.access(resource, world.deadline()).await;
            assert!(refused.is_err(), "{resource}");
        }
    }
    assert_eq!((without_token(&world, left).await, without_token(&world, stay).await), (3, 0));
    assert!(!is_stopped(&world).await);
    world.end().await;
}

async fn an_unknown_location_needs_no_reservation(world: World) {
    let process = world.process().await;
    agency(&world, &process, 1).await;
    for n in 0..5 {
        let unknown = location(&format!("X{n}"));
        let absent = process.tokens.access(&unknown, world.deadline()).await;
        assert!(matches!(absent, Err(TokenError::NotInstalled)), "{absent:?}");
    }
    assert_eq!((taken(&world).await, process.proxy.calls(Call::Reserve)), (0, 0));
    world.end().await;
}

/// Due locations with grants of their own, and an agency whose access token is new. The platform refuses every refresh
/// token.
async fn refused_beside_an_agency(
    world: &World,
    process: &Process,
    count: usize,
    agency_has_app: bool,
) -> Vec<Resource> {
    let all = installed(world, process, count).await;
    if agency_has_app {
        let known = all.iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
        world.market.change(|options| options.locations = known);
    }
    world.advance(world.market.options().token_life * 4 / 5);
    world.install(process, &company()).await;
    world.market.fault(Endpoint::Refresh, refusal(), None);
    all
}

/// Returns true if the location still has a refresh token of its own.
async fn has_own_grant(world: &World, resource: &Resource) -> bool {
    let stored = world.stored(resource).await;
    stored.minted().is_none() && stored.refresh_token().is_some()
}

async fn a_mass_refusal_takes_no_grant_of_a_location_in_which_its_agency_lacks_the_app(world: World) {
    let process = world.teller().await;
    let all = refused_beside_an_agency(&world, &process, 7, false).await;
    for _ in 0..3 {
        world.refresh(&process, json!({})).await;
        world.advance(Duration::from_hours(1));
    }
    for resource in &all {
        assert!(has_own_grant(&world, resource).await, "{resource}");
    }
    assert_eq!((marked(&world, &all).await, notices(&world)), (3, 3));
    assert!(is_stopped(&world).await);
    world.table.close_breaker().await.expect("a table");
    mend(&world, &all).await;
    world.end().await;
}

async fn a_mass_refusal_leads_to_minting_where_the_agency_has_the_app(world: World) {
    let process = world.teller().await;
    let all = refused_beside_an_agency(&world, &process, 7, true).await;
    world.refresh(&process, json!({})).await;
    for resource in &all {
        assert!(world.stored(resource).await.minted().is_some(), "{resource}");
    }
    assert_eq!((marked(&world, &all).await, notices(&world), taken(&world).await), (0, 0, 0));
    world.expire();
    world.market.clear_faults();
    for resource in &all {
        process.tokens.access(resource, world.deadline()).await.expect("minted");
    }
    world.end().await;
}

async fn a_refused_location_keeps_its_grant_while_its_agency_cannot_be_asked(world: World) {
    let process = world.teller().await;
    let all = refused_beside_an_agency(&world, &process, 7, true).await;
    let faults = [
        Fault::HangUp { processed: false },
        Fault::refusal(503, "Service Unavailable"),
        Fault::throttled(),
        Fault::unauthorized("Invalid JWT"),
        Fault::unauthorized("Something new"),
        Fault::refusal(400, "Something new"),
    ];
    let waits = async |resource: &Resource, why: &str| {
        let waits = refresh(&world, &process, resource).await;
        assert!(matches!(waits, Refreshed::Failed(TokenError::InProgress { .. })), "{why}: {waits:?}");
        let status = world.status(resource).await;
        assert_eq!((status, has_own_grant(&world, resource).await), (Status::Uncertain, true), "{why}");
    };
    for (resource, fault) in all.iter().zip(faults) {
        let why = format!("{fault:?}");
        let is_dead = why.contains("Invalid JWT");
        let due_at = async || world.stored(&company()).await.schedule().due_at;
        let before = due_at().await;
        world.market.fault(Endpoint::Mint, fault, None);
        waits(resource, &why).await;
        let expected = if is_dead { Some(world.clock.now()) } else { before };
        assert_eq!(due_at().await, expected, "a company's token is due if it is refused in known words: {why}");
        world.market.clear_faults();
        world.market.fault(Endpoint::Refresh, refusal(), None);
        // A 429 closes the company's endpoint for a while, and the next question needs a permit.
        world.advance(Duration::from_secs(31));
    }
    let last = all.last().expect("a location");
    world.expire();
    waits(last, "the agency's token is expired").await;
    assert_eq!((taken(&world).await, notices(&world), is_stopped(&world).await), (0, 0, false));
    // The agency's token works again, so one location is minted. The other locations are renewed after the platform has
    // recovered.
    world.install(&process, &company()).await;
    world.advance(Duration::from_mins(30));
    let moved = refresh(&world, &process, last).await;
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    assert!(world.stored(last).await.minted().is_some());
    world.market.clear_faults();
    for resource in &all[..all.len() - 1] {
        let renewed = refresh(&world, &process, resource).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        assert!(has_own_grant(&world, resource).await);
    }
    world.end().await;
}

async fn a_refused_location_is_marked_if_its_agency_may_not_mint(world: World) {
    let process = world.teller().await;
    let all = refused_beside_an_agency(&world, &process, 1, true).await;
    world.market.fault(Endpoint::Mint, Fault::unauthorized("The token is not authorized for this scope."), None);
    let refused = refresh(&world, &process, &all[0]).await;
    assert!(
        matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: Some(_) })),
        "{refused:?}"
    );
    assert_eq!((taken(&world).await, notices(&world)), (1, 1));
}
