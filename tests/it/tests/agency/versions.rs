//! The versions of the platform's API for the system's own calls: v2, v3, and the change from one to the other.

use std::time::Duration;

use it::world::{Process, World};
use sandbox::marketplace::ApiVersions;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::api_version::{ApiVersion, OwnCall};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::company::ListReading;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

use crate::{access, company, grow, locations, minted, works};

it::stories!(
    a_platform_with_v3_only_is_found_out_once_for_all_processes,
    a_platform_that_goes_back_to_v2_is_followed,
    the_setting_v3_needs_no_v2,
    the_setting_v2_never_tries_v3_and_ends_no_installation,
    a_call_that_exists_in_no_version_ends_no_installation,
    a_list_that_was_begun_in_v2_is_read_to_its_end_in_v3,
);

/// Own calls that the platform refused because of their version.
fn refused(world: &World) -> usize {
    world.market.token_requests_for("other_version")
}

fn has_only(world: &World, api: ApiVersions) {
    world.market.change(|options| options.api = api);
}

/// Renews the token of `resource` now.
async fn renew(world: &World, process: &Process, resource: &Resource) -> serde_json::Value {
    world.refresh(process, json!({ "resource": resource, "force": true })).await
}

async fn known(world: &World) -> usize {
    world.items().await.iter().filter(|item| item.contains_key("minted")).count()
}

async fn a_platform_with_v3_only_is_found_out_once_for_all_processes(world: World) {
    grow(&world, 250);
    has_only(&world, ApiVersions::V3);
    let first = world.process().await;
    world.install(&first, &company()).await;
    assert_eq!(refused(&world), 1, "the token endpoint");
    world.refresh(&first, json!({})).await;
    assert_eq!((known(&world).await, refused(&world)), (250, 2), "the list of locations, in three pages");
    let all = locations(4);
    works(&world, &first, &all[0]).await;
    assert_eq!((minted(&world), refused(&world)), (1, 3), "minting");
    works(&world, &first, &all[1]).await;

    let second = world.process().await;
    works(&world, &second, &all[2]).await;
    world.expire();
    works(&world, &second, &all[3]).await;
    assert_eq!((world.presented(), minted(&world), refused(&world)), (1, 4, 3), "remembered");
    for resource in [&company(), &all[0], &all[3]] {
        assert_eq!(world.status(resource).await, Status::Active);
    }
    world.end().await;
}

async fn a_platform_that_goes_back_to_v2_is_followed(world: World) {
    has_only(&world, ApiVersions::V3);
    let process = world.process().await;
    world.install(&process, &company()).await;
    let all = locations(3);
    works(&world, &process, &all[0]).await;
    has_only(&world, ApiVersions::V2);
    works(&world, &process, &all[1]).await;
    world.expire();
    works(&world, &process, &all[2]).await;
    let now: std::collections::HashMap<_, _> = {
        let remembered = world.table.api_versions().await.expect("a table");
        remembered.into_iter().map(|(call, version)| (call.as_str(), version)).collect()
    };
    for call in [OwnCall::Token, OwnCall::Mint] {
        assert_eq!(now.get(call.as_str()), Some(&ApiVersion::V2), "{call:?}");
    }
    assert_eq!(refused(&world), 4, "each of both calls was refused once in each version");
    world.end().await;
}

async fn the_setting_v3_needs_no_v2(world: World) {
    grow(&world, 130);
    has_only(&world, ApiVersions::V3);
    let process = world.process_with(&[("PLATFORM_API", "v3")]).await;
    world.install(&process, &company()).await;
    world.refresh(&process, json!({})).await;
    assert_eq!(known(&world).await, 130);
    works(&world, &process, &locations(1)[0]).await;
    renew(&world, &process, &company()).await;
    assert_eq!((world.presented(), minted(&world), refused(&world)), (1, 1, 0));
    assert_eq!(world.table.api_versions().await.expect("a table"), [], "nothing needs to be remembered");
    world.end().await;
}

async fn the_setting_v2_never_tries_v3_and_ends_no_installation(world: World) {
    let process = world.process_with(&[("PLATFORM_API", "v2")]).await;
    world.install(&process, &company()).await;
    let all = locations(2);
    works(&world, &process, &all[0]).await;
    has_only(&world, ApiVersions::V3);
    let before = world.stored(&company()).await;
    renew(&world, &process, &company()).await;
    assert!(access(&world, &process, &all[1]).await.is_err());
    assert_eq!(refused(&world), 2, "the token endpoint and minting, once each");
    let stored = world.stored(&company()).await;
    assert_eq!(stored.access(), before.access(), "its token is kept");
    assert_ne!(stored.status(), Status::NeedsReauthorization);
    works(&world, &process, &all[0]).await;

    has_only(&world, ApiVersions::V2);
    world.advance(Duration::from_hours(2));
    renew(&world, &process, &company()).await;
    works(&world, &process, &company()).await;
    assert_eq!(world.status(&company()).await, Status::Active);
    world.end().await;
}

async fn a_call_that_exists_in_no_version_ends_no_installation(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    let one = &locations(1)[0];
    works(&world, &process, one).await;
    let unavailable = Fault::refusal(400, "Endpoint not available in API version 2021-07-28");
    for (at, fault) in [
        (Endpoint::Mint, unavailable.clone()),
        (Endpoint::Mint, Fault::refusal_v3(400, "Endpoint not available in API version v3")),
        (Endpoint::Mint, Fault::refusal(404, "Cannot POST /oauth/locationToken")),
        (Endpoint::Refresh, unavailable),
    ] {
        world.market.fault(at, fault.clone(), None);
        let asked = || world.market.token_requests().len();
        let (before, requests) = ([world.stored(&company()).await, world.stored(one).await], asked());
        if at == Endpoint::Mint {
            let minted = process.tokens.mint(&before[1], Why::Operator, world.deadline()).await;
            assert!(matches!(minted, Ok(Refreshed::Failed(TokenError::InProgress { .. }))), "{fault:?}: {minted:?}");
        } else {
            renew(&world, &process, &company()).await;
        }
        assert_eq!(asked() - requests, 2, "{fault:?}: once in each version");
        for before in before {
            let stored = world.stored(&before.resource).await;
            assert_eq!((stored.access(), stored.version), (before.access(), before.version), "{fault:?}");
            assert_ne!(stored.status(), Status::NeedsReauthorization, "{fault:?}");
        }
        world.market.clear_faults();
        world.advance(Duration::from_hours(1));
    }
    assert_eq!(world.table.api_versions().await.expect("a table"), [], "no other version has worked");
    renew(&world, &process, &company()).await;
    works(&world, &process, &company()).await;
    works(&world, &process, one).await;
    world.end().await;
}

async fn a_list_that_was_begun_in_v2_is_read_to_its_end_in_v3(world: World) {
    grow(&world, 250);
    let process = world.process().await;
    world.install(&process, &company()).await;
    let began = world.clock.now();
    let position = shared::platform::company_api::ListPosition::Skip(100);
    let reading = ListReading { since: began, pages: 1, position };
    world.table.set_locations_read(company().id(), Some(&reading), began).await.expect("a table");
    has_only(&world, ApiVersions::V3);
    world.refresh(&process, json!({})).await;
    assert_eq!(known(&world).await, 250, "from its start: v3 cannot skip");
    world.end().await;
}
