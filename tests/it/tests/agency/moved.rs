//! Locations that have moved to another agency: with a grant of their own that is dead, in great number, and while a
//! search ends.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use it::proxy::Call;
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::installation::installation_key;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::search::SearchReason;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

use crate::search::{agency, asked, many};
use crate::{access, locations, works};
use it::sender::Sender;

it::stories!(
    a_location_with_a_dead_grant_is_minted_from_the_agency_it_moved_to,
    a_location_with_a_dead_grant_is_minted_from_one_of_many_agencies,
    a_location_with_a_dead_grant_is_marked_after_its_agencies_were_asked,
    a_location_with_a_dead_grant_waits_once_for_another_agency,
    an_unreadable_agency_keeps_no_location_from_being_marked,
    a_paused_location_with_a_dead_grant_is_suspended,
    a_late_grant_replaces_a_token_that_was_minted_twice,
    many_locations_that_moved_at_once_are_all_found,
    locations_of_an_agency_that_has_ended_leave_room_for_new_locations,
    the_schedule_leaves_the_locations_of_an_agency_without_a_grant,
    an_install_notice_during_the_end_of_a_search_wins,
    a_search_whose_progress_is_not_stored_goes_on,
);

/// Moves the location to these agencies only.
fn move_to(world: &World, location: &Resource, companies: &[&str]) {
    world.market.change(|options| {
        options.agencies.values_mut().for_each(|locations| locations.retain(|known| known.id != location.id()));
        for company in companies {
            let locations = options.agencies.entry((*company).to_owned()).or_default();
            locations.push(Location { id: location.id().into(), name: "Moved".into() });
        }
    });
}

/// The agency C1 uninstalls the app.
async fn uninstall_c1(world: &World, process: &Process) {
    world.market.uninstall(&grantee(&agency(1)));
    process.installations.uninstall(&agency(1), world.clock.now()).await.expect("a table");
}

/// The platform refuses the location's own refresh token.
async fn refuse(world: &World, process: &Process, location: &Resource) -> Refreshed {
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let version = world.stored(location).await.version;
    process.refresher.refresh(location, version, Why::Due, world.deadline()).await
}

fn is_marked(refreshed: &Refreshed) -> bool {
    matches!(refreshed, Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: Some(_) }))
}

/// Installs the app in M1 itself, which is a location of C1.
async fn with_own_grant(world: &World, process: &Process, agencies: usize) -> Resource {
    many(world, process, agencies).await;
    let own = location("M1");
    world.install(process, &own).await;
    assert_eq!(world.stored(&own).await.company.as_deref(), Some("C1"));
    own
}

async fn a_location_with_a_dead_grant_is_minted_from_the_agency_it_moved_to(world: World) {
    let process = world.process().await;
    for ended in [false, true] {
        let moved = with_own_grant(&world, &process, 3).await;
        move_to(&world, &moved, &["C3"]);
        if ended {
            uninstall_c1(&world, &process).await;
        }
        let refused = refuse(&world, &process, &moved).await;
        assert!(matches!(refused, Refreshed::Moved), "{ended}: {refused:?}");
        let stored = world.stored(&moved).await;
        assert_eq!((stored.status(), stored.company.as_deref()), (Status::Active, Some("C3")), "{ended}");
        world.expire();
        works(&world, &process, &moved).await;
    }
    world.end().await;
}

async fn a_location_with_a_dead_grant_is_minted_from_one_of_many_agencies(world: World) {
    let process = world.process().await;
    for ended in [false, true] {
        let moved = with_own_grant(&world, &process, 9).await;
        move_to(&world, &moved, &["C2"]);
        if ended {
            uninstall_c1(&world, &process).await;
        }
        let refused = refuse(&world, &process, &moved).await;
        assert!(is_marked(&refused), "{ended}: {refused:?}");
        world.advance(Duration::from_secs(1));
        process.tokens.search(world.deadline()).await;
        let stored = world.stored(&moved).await;
        assert_eq!((stored.status(), stored.company.as_deref()), (Status::Active, Some("C2")), "{ended}");
        assert_eq!(world.table.searches().await.expect("a table"), []);
        world.expire();
        works(&world, &process, &moved).await;
    }
    world.end().await;
}

async fn a_location_with_a_dead_grant_is_marked_after_its_agencies_were_asked(world: World) {
    let process = world.process().await;
    // The budget of marks has three places.
    for (count, ended) in [(3, true), (9, false), (9, true)] {
        let gone = with_own_grant(&world, &process, count).await;
        move_to(&world, &gone, &[]);
        if ended {
            uninstall_c1(&world, &process).await;
        }
        let before = asked(&world, &gone);
        let refused = refuse(&world, &process, &gone).await;
        assert!(is_marked(&refused), "{count} agencies, {ended}: {refused:?}");
        process.tokens.search(world.deadline()).await;
        assert_eq!(world.status(&gone).await, Status::NeedsReauthorization, "{count} agencies, {ended}");
        assert!(asked(&world, &gone) - before >= count - usize::from(ended), "each agency was asked");
        assert_eq!(world.table.searches().await.expect("a table"), []);
    }
}

async fn a_location_with_a_dead_grant_waits_once_for_another_agency(world: World) {
    let process = world.process().await;
    let gone = with_own_grant(&world, &process, 2).await;
    move_to(&world, &gone, &[]);
    uninstall_c1(&world, &process).await;
    world.market.fault(Endpoint::Mint, Fault::refusal(503, "Service Unavailable"), None);
    let refused = refuse(&world, &process, &gone).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::InProgress { .. })), "{refused:?}");
    assert_eq!(world.status(&gone).await, Status::Uncertain);
    world.advance(Duration::from_mins(5));
    let refused = refuse(&world, &process, &gone).await;
    assert!(is_marked(&refused), "{refused:?}");
    // An operator's retry leaves the mark as it is, although the other agency is still silent.
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let summary = world.refresh(&process, json!({ "resource": gone, "force": true })).await;
    assert_eq!(summary["failed"], 1, "{summary}");
    assert_eq!(world.status(&gone).await, Status::NeedsReauthorization);
}

async fn an_unreadable_agency_keeps_no_location_from_being_marked(world: World) {
    let process = world.process().await;
    let gone = with_own_grant(&world, &process, 3).await;
    move_to(&world, &gone, &[]);
    let key = AttributeValue::S(installation_key(&agency(3)));
    let mut item = world.items().await.into_iter().find(|item| item["pk"] == key).expect("an installation");
    item.insert("status".into(), AttributeValue::S("Unheard of".into()));
    world.put(item).await;
    let refused = refuse(&world, &process, &gone).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::InProgress { .. })), "{refused:?}");
    world.advance(Duration::from_mins(5));
    let refused = refuse(&world, &process, &gone).await;
    assert!(is_marked(&refused), "{refused:?}");
}

async fn a_paused_location_with_a_dead_grant_is_suspended(world: World) {
    let process = world.process().await;
    let paused = with_own_grant(&world, &process, 2).await;
    world.market.fault(Endpoint::Mint, Fault::refusal(400, "Location is not active"), Some(1));
    let refused = refuse(&world, &process, &paused).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::Suspended { .. })), "{refused:?}");
    assert_eq!(world.status(&paused).await, Status::Suspended);
    // The location is active again.
    world.expire();
    works(&world, &process, &agency(1)).await;
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    works(&world, &process, &paused).await;
    assert!(world.stored(&paused).await.minted().is_some());
    world.end().await;
}

async fn a_late_grant_replaces_a_token_that_was_minted_twice(world: World) {
    let (late, process) = (world.process().await, world.process().await);
    let own = with_own_grant(&world, &process, 2).await;
    let version = world.stored(&own).await.version;
    let commit = late.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        // The lease of the first process ends before its pair is stored. The platform refuses the same token now.
        world.advance(Duration::from_secs(31));
        let refused = refuse(&world, &process, &own).await;
        assert!(matches!(refused, Refreshed::Moved), "{refused:?}");
        for _ in 0..2 {
            world.expire();
            works(&world, &process, &own).await;
        }
        assert!(world.stored(&own).await.minted().is_some());
        commit.open();
    };
    let (refreshed, ()) = tokio::join!(late.refresher.refresh(&own, version, Why::Due, world.deadline()), story);
    assert!(matches!(refreshed, Refreshed::Renewed(_)), "{refreshed:?}");
    let stored = world.stored(&own).await;
    let has_refresh_token = stored.refresh_token().is_some();
    assert_eq!((stored.minted().is_some(), has_refresh_token), (false, true), "the pair of its own grant is stored");
    world.end().await;
}

async fn many_locations_that_moved_at_once_are_all_found(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    let all = locations(50);
    let known = |company: &str| {
        let known: Vec<_> = all.iter().map(|l| Location { id: l.id().into(), name: "Moved".into() }).collect();
        world.market.change(|options| {
            options.agencies.values_mut().for_each(Vec::clear);
            options.agencies.insert(company.to_owned(), known);
        });
    };
    known("C1");
    world.expire();
    for location in &all {
        works(&world, &process, location).await;
        world.advance(Duration::from_secs(1));
    }
    known("C2");
    uninstall_c1(&world, &process).await;
    // The other agency's permits for such locations are few, so most locations are asked about later.
    let mut found = 0;
    for _ in 0..12 {
        world.advance(Duration::from_secs(30));
        let tokens = join_all(all.iter().map(|location| access(&world, &process, location))).await;
        found = tokens.iter().filter(|token| token.is_ok()).count();
        for token in tokens {
            assert!(matches!(token, Ok(_) | Err(TokenError::Revoked)), "{token:?}");
        }
    }
    assert_eq!(found, all.len(), "within 6 minutes");
    world.end().await;
}

async fn locations_of_an_agency_that_has_ended_leave_room_for_new_locations(world: World) {
    let all = locations(80);
    let former = join_all(all.iter().map(|location| world.table.begin_search(location, SearchReason::Former))).await;
    assert_eq!(former.into_iter().filter(|queued| matches!(queued, Ok(true))).count(), 50);
    let process = world.process().await;
    many(&world, &process, 7).await;
    let found = access(&world, &process, &location("M1")).await;
    assert!(matches!(found, Err(TokenError::InProgress { .. })), "a new location is searched for: {found:?}");
}

async fn the_schedule_leaves_the_locations_of_an_agency_without_a_grant(world: World) {
    let process = world.process().await;
    many(&world, &process, 1).await;
    let hot = location("M1");
    works(&world, &process, &hot).await;
    process.limiter.take(shared::domain::limits::Endpoint::of(&hot, "/"), None).await.expect("a permit");
    refuse(&world, &process, &agency(1)).await;
    assert_eq!(world.status(&agency(1)).await, Status::NeedsReauthorization);
    world.expire();
    let first = world.refresh(&process, json!({})).await;
    assert_eq!((&first["due"], &first["failed"]), (&json!(1), &json!(0)), "{first}");
    let second = world.refresh(&process, json!({})).await;
    assert_eq!(second["due"], 0, "{second}");
    world.install(&process, &agency(1)).await;
    works(&world, &process, &hot).await;
    world.end().await;
}

async fn an_install_notice_during_the_end_of_a_search_wins(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    many(&world, &process, 7).await;
    let own = location("M1");
    // The location once had a grant of its own, so the end of the search would mark it.
    world.install(&process, &own).await;
    refuse(&world, &process, &own).await;
    assert!(world.stored(&own).await.minted().is_some());
    move_to(&world, &own, &[]);
    world.expire();
    assert!(matches!(access(&world, &process, &own).await, Err(TokenError::InProgress { .. })));
    let conclude = process.proxy.hold(Call::ConcludeSearch);
    let story = async {
        conclude.reached().await;
        move_to(&world, &own, &["C1"]);
        let members = json!({"locationId": own.id(), "companyId": "C1"});
        let notice = sender.notice("INSTALL", world.clock.now(), "of M1", &members);
        assert_eq!(sender.send(&notice).await.0, 200);
        conclude.open();
    };
    tokio::join!(process.tokens.search(world.deadline()), story);
    assert_eq!(world.status(&own).await, Status::Active, "nobody is asked to install the app again");
    works(&world, &process, &own).await;
    process.tokens.search(world.deadline()).await;
    assert_eq!(world.table.searches().await.expect("a table"), []);
    world.end().await;
}

async fn a_search_whose_progress_is_not_stored_goes_on(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    many(&world, &process, 7).await;
    let oldest = location("M1");
    move_to(&world, &oldest, &[]);
    assert!(matches!(access(&world, &process, &oldest).await, Err(TokenError::InProgress { .. })));
    let save = process.proxy.hold(Call::SaveSearch);
    let story = async {
        save.reached().await;
        world.advance(Duration::from_secs(1));
        // A notice without a company ends the search, and the next call begins another one.
        let notice = sender.notice("INSTALL", world.clock.now(), "of M1", &json!({"locationId": oldest.id()}));
        assert_eq!(sender.send(&notice).await.0, 200);
        assert!(matches!(access(&world, &world.process().await, &oldest).await, Err(TokenError::InProgress { .. })));
        save.open();
    };
    tokio::join!(process.tokens.search(world.deadline()), story);
    assert_eq!(
        world.table.searches().await.expect("a table"),
        std::slice::from_ref(&oldest),
        "the other search goes on"
    );
    move_to(&world, &oldest, &["C1"]);
    process.tokens.search(world.deadline()).await;
    works(&world, &process, &oldest).await;
    world.end().await;
}
