//! The comparison of an agency's list with the stored locations: its differences, and what becomes of a location that is
//! not listed any more.

use std::time::Duration;

use it::proxy::Call;
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::company::Note;
use shared::table::minted::{InstallNotice, Noticed};
use shared::table::reconciliation::Comparison;
use shared::token::TokenError;

use crate::search::{agency, many};
use crate::{access, company, grow, locations, works};

it::stories!(
    the_daily_list_is_compared_and_changes_no_installation,
    a_list_with_an_unreadable_entry_is_not_compared,
    a_list_is_compared_when_it_was_read_completely,
    an_agency_that_nobody_calls_is_compared_each_day,
    a_minted_location_that_moved_goes_on_in_its_new_agency,
    a_location_with_its_own_grant_that_moved_goes_on_in_its_new_agency,
    a_deleted_sub_account_is_counted_until_it_is_revoked,
    a_deleted_sub_account_with_its_own_grant_is_given_up_after_a_day,
    a_notice_says_if_the_location_was_known,
);

async fn comparison(world: &World, company: &Resource) -> Comparison {
    world.table.comparison(company.id()).await.expect("a table").expect("a comparison")
}

/// The listed locations, those that were not stored, and those that are not listed.
async fn differences(world: &World, company: &Resource) -> (u64, Vec<String>, Vec<String>) {
    let Comparison { listed, not_stored, not_listed, .. } = comparison(world, company).await;
    assert_eq!(
        (not_stored.count, not_listed.count),
        (not_stored.examples.len() as u64, not_listed.examples.len() as u64)
    );
    (listed, not_stored.examples, not_listed.examples)
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// A day passes: the schedule renews the agencies' tokens, and then reads their lists.
async fn next_day(world: &World, process: &Process) {
    world.advance(Duration::from_hours(20));
    world.refresh(process, json!({})).await;
    world.refresh(process, json!({})).await;
}

/// Reads the list of one agency now.
async fn read_list(world: &World, process: &Process, company: &Resource) {
    world.advance(Duration::from_mins(2));
    world.table.note_task(company.id(), Note::Renewed, world.clock.now()).await.expect("a table");
    world.refresh(process, json!({})).await;
}

/// The platform lists these locations for the agency C`number`.
fn list(world: &World, number: usize, locations: &[&str]) {
    let locations = locations.iter().map(|id| Location { id: (*id).into(), name: "A location".into() }).collect();
    world.market.change(|options| {
        options.agencies.insert(agency(number).id().to_owned(), locations);
    });
}

/// The platform deletes the sub-account, and sends no webhook.
fn delete(world: &World, location: &Resource) {
    world.market.uninstall(&grantee(location));
    world.market.change(|options| options.locations.retain(|known| known.id != location.id()));
}

async fn the_daily_list_is_compared_and_changes_no_installation(world: World) {
    grow(&world, 5);
    let process = world.process().await;
    world.install(&process, &company()).await;
    world.refresh(&process, json!({})).await;
    assert_eq!(differences(&world, &company()).await, (5, vec![], vec![]), "the first list is no difference");
    let all = locations(5);
    works(&world, &process, &all[3]).await;
    world.install(&process, &all[4]).await;
    let before = [world.stored(&all[3]).await, world.stored(&all[4]).await];

    world.market.change(|options| {
        options.locations.retain(|known| !["L4", "L5"].contains(&&*known.id));
        options.locations.push(Location { id: "N1".into(), name: "New".into() });
    });
    world.advance(Duration::from_mins(2));
    read_list(&world, &process, &company()).await;
    assert_eq!(differences(&world, &company()).await, (4, ids(&["N1"]), ids(&["L4", "L5"])));
    assert_eq!(comparison(&world, &company()).await.at, world.clock.now());
    for before in &before {
        assert_eq!(world.stored(&before.resource).await, *before, "a location that is not listed stays as it is");
        works(&world, &process, &before.resource).await;
    }
    works(&world, &process, &location("N1")).await;

    // The list was wrong. A location that was installed just before the reading may not be in the list yet.
    world.market.change(|options| options.locations.push(Location { id: "L4".into(), name: "Back".into() }));
    world.market.change(|options| options.locations.push(Location { id: "L5".into(), name: "Back".into() }));
    world.table.note_task(company().id(), Note::Renewed, world.clock.now()).await.expect("a table");
    let (agency, now) = (company(), world.clock.now());
    let recent = InstallNotice { company: Some(agency.id()), at: now, event: None, now };
    world.table.record_install_notice(&location("L9"), recent).await.expect("a table");
    world.refresh(&process, json!({})).await;
    assert_eq!(differences(&world, &company()).await, (6, vec![], vec![]));
    read_list(&world, &process, &company()).await;
    assert_eq!(differences(&world, &company()).await, (6, vec![], ids(&["L9"])), "two minutes later it should be");

    // A location that has ended is no difference.
    process.installations.uninstall(&location("L9"), world.clock.now()).await.expect("a table");
    next_day(&world, &process).await;
    assert_eq!(differences(&world, &company()).await, (6, vec![], vec![]));
    world.end().await;
}

async fn a_list_with_an_unreadable_entry_is_not_compared(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    world.refresh(&process, json!({})).await;
    let before = comparison(&world, &company()).await;
    let broken = json!([{ "_id": "L1" }, { "id": "L2" }]);
    world.market.fault(Endpoint::InstalledLocations, Fault::With { field: "locations".into(), value: broken }, Some(1));
    read_list(&world, &process, &company()).await;
    assert_eq!(comparison(&world, &company()).await, before);
    assert_eq!(world.table.task(company().id(), world.clock.now()).await.expect("a table"), None);
    read_list(&world, &process, &company()).await;
    assert_eq!(differences(&world, &company()).await, (3, vec![], vec![]));
    world.end().await;
}

/// Reads the list, and lets the invocation end after about `installs` locations.
async fn read_a_part(world: &World, process: &Process, installs: usize) {
    let before = process.proxy.calls(Call::Install);
    let time = async {
        while process.proxy.calls(Call::Install) < before + installs {
            tokio::task::yield_now().await;
        }
        world.clock.advance(Duration::from_secs(75));
    };
    tokio::join!(world.refresh(process, json!({})), time);
}

async fn a_list_is_compared_when_it_was_read_completely(world: World) {
    grow(&world, 450);
    let processes = [world.process().await, world.process().await];
    world.install(&processes[0], &company()).await;
    world.refresh(&processes[0], json!({})).await;
    let first = comparison(&world, &company()).await;
    assert_eq!(first.listed, 450);
    let drop = |names: &'static [&str]| {
        world.market.change(|options| options.locations.retain(|known| !names.contains(&&*known.id)));
    };
    drop(&["L7", "L444"]);
    world.market.change(|options| options.locations.insert(0, Location { id: "N1".into(), name: "New".into() }));

    for is_page_lost in [true, false] {
        let before = comparison(&world, &company()).await;
        world.advance(Duration::from_mins(2));
        world.table.note_task(company().id(), Note::Renewed, world.clock.now()).await.expect("a table");
        read_a_part(&world, &processes[0], 150).await;
        let task = world.table.task(company().id(), world.clock.now()).await.expect("a table").expect("an open task");
        let pages = task.reading.as_ref().map(|reading| reading.pages);
        assert!(pages.is_some_and(|pages| (1..5).contains(&pages)), "{task:?}");
        assert_eq!(comparison(&world, &company()).await, before, "a part of a list is not compared");
        if is_page_lost {
            world.delete(&format!("app#company#{}#list#0", company().id())).await;
        }
        world.refresh(&processes[1], json!({})).await;
        assert_eq!(world.table.task(company().id(), world.clock.now()).await.expect("a table"), None);
        let after = differences(&world, &company()).await;
        if is_page_lost {
            assert_eq!(comparison(&world, &company()).await, before, "without one of its pages neither");
        } else {
            assert_eq!(after, (449, vec![], ids(&["L444", "L7"])), "N1 was stored by the reading before");
        }
    }
    // The index and the table are read in pages, too.
    world.market.change(|options| options.locations.clear());
    read_list(&world, &processes[0], &company()).await;
    let Comparison { listed, not_listed, .. } = comparison(&world, &company()).await;
    assert_eq!((listed, not_listed.count, not_listed.examples.len()), (0, 451, 50));
    world.end().await;
}

async fn an_agency_that_nobody_calls_is_compared_each_day(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    world.refresh(&process, json!({})).await;
    let mut compared = vec![comparison(&world, &company()).await.at];
    for _ in 0..9 * 12 {
        world.advance(Duration::from_hours(2));
        world.refresh(&process, json!({})).await;
        let at = comparison(&world, &company()).await.at;
        if compared.last() != Some(&at) {
            compared.push(at);
        }
    }
    let longest = compared.windows(2).map(|pair| pair[1].since(pair[0])).max().expect("several");
    assert!(longest <= Duration::from_hours(24), "{longest:?}");
    assert!(compared.len() > 9, "{compared:?}");
    world.end().await;
}

async fn a_minted_location_that_moved_goes_on_in_its_new_agency(world: World) {
    let process = world.process().await;
    for old_list_first in [true, false] {
        many(&world, &process, 2).await;
        let moved = location("M1");
        works(&world, &process, &moved).await;
        for number in [1, 2] {
            read_list(&world, &process, &agency(number)).await;
        }
        let before = world.stored(&moved).await;
        list(&world, 1, &[]);
        list(&world, 2, &["M1", "M2"]);
        if old_list_first {
            read_list(&world, &process, &agency(1)).await;
            assert_eq!(differences(&world, &agency(1)).await, (0, vec![], ids(&["M1"])));
            assert_eq!(world.stored(&moved).await, before);
        }
        read_list(&world, &process, &agency(2)).await;
        assert_eq!(differences(&world, &agency(2)).await, (2, ids(&["M1"]), vec![]));
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C2"));
        read_list(&world, &process, &agency(1)).await;
        assert_eq!(differences(&world, &agency(1)).await, (0, vec![], vec![]), "{old_list_first}");
        works(&world, &process, &moved).await;
        world.expire();
        works(&world, &process, &moved).await;
        assert_eq!(world.status(&moved).await, Status::Active);
        // Back, without a reading of any list: the next minting finds it.
        list(&world, 1, &["M1"]);
        list(&world, 2, &["M2"]);
        world.expire();
        world.advance(Duration::from_mins(10));
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"));
    }
    world.end().await;
}

async fn a_location_with_its_own_grant_that_moved_goes_on_in_its_new_agency(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    let moved = location("M1");
    world.install(&process, &moved).await;
    for number in [1, 2] {
        read_list(&world, &process, &agency(number)).await;
    }
    let before = world.stored(&moved).await;
    list(&world, 1, &[]);
    list(&world, 2, &["M1", "M2"]);
    read_list(&world, &process, &agency(1)).await;
    assert_eq!(differences(&world, &agency(1)).await, (0, vec![], ids(&["M1"])));
    assert_eq!(world.stored(&moved).await, before);
    read_list(&world, &process, &agency(2)).await;
    assert_eq!(differences(&world, &agency(2)).await, (2, ids(&["M1"]), vec![]));
    let stored = world.stored(&moved).await;
    assert_eq!((stored.company.as_deref(), stored.minted(), stored.access()), (Some("C2"), None, before.access()));
    // The platform refuses the grant that was made under the old agency.
    world.market.fault(Endpoint::Refresh, Fault::refusal(400, "Invalid grant: refresh token is invalid"), Some(1));
    world.refresh(&process, json!({ "resource": moved, "force": true })).await;
    works(&world, &process, &moved).await;
    assert!(world.stored(&moved).await.minted().is_some());
    read_list(&world, &process, &agency(1)).await;
    assert_eq!(differences(&world, &agency(1)).await, (0, vec![], vec![]));
    world.end().await;
}

async fn a_deleted_sub_account_is_counted_until_it_is_revoked(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    world.refresh(&process, json!({})).await;
    let [deleted, other] = [location("L1"), location("L2")];
    for location in [&deleted, &other] {
        works(&world, &process, location).await;
    }
    let before = world.stored(&deleted).await;
    delete(&world, &deleted);
    read_list(&world, &process, &company()).await;
    assert_eq!(differences(&world, &company()).await, (2, vec![], ids(&["L1"])));
    assert_eq!(world.stored(&deleted).await, before, "the list alone ends nothing");
    // The token ends. The platform is asked for another one, and refuses.
    world.expire();
    let refused = access(&world, &process, &deleted).await;
    assert!(matches!(refused, Err(TokenError::NotInstalled)), "{refused:?}");
    works(&world, &process, &other).await;
    for _ in 0..2 {
        next_day(&world, &process).await;
        assert_eq!(differences(&world, &company()).await, (2, vec![], ids(&["L1"])));
    }
    assert_eq!(world.stored(&deleted).await.access(), None);
    process.installations.uninstall(&deleted, world.clock.now()).await.expect("a table");
    next_day(&world, &process).await;
    assert_eq!(differences(&world, &company()).await, (2, vec![], vec![]));
    assert_eq!(world.status(&other).await, Status::Active);
    works(&world, &process, &other).await;
    world.end().await;
}

async fn a_deleted_sub_account_with_its_own_grant_is_given_up_after_a_day(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    let deleted = location("L1");
    world.install(&process, &deleted).await;
    world.refresh(&process, json!({})).await;
    delete(&world, &deleted);
    world.market.fault(Endpoint::Mint, Fault::refusal(404, "Location not found"), None);
    read_list(&world, &process, &company()).await;
    assert_eq!(differences(&world, &company()).await, (2, vec![], ids(&["L1"])));
    assert_eq!(world.status(&deleted).await, Status::Active);
    let mut counted = 0;
    for _ in 0..20 {
        world.advance(Duration::from_hours(6));
        // The token endpoint answers about this location, and the company's token is renewed as ever.
        if world.status(&deleted).await != Status::NeedsReauthorization {
            world.refresh(&process, json!({ "resource": company(), "force": true })).await;
            world.market.fault(Endpoint::Refresh, Fault::refusal(404, "Location not found"), Some(1));
            world.refresh(&process, json!({ "resource": deleted, "force": true })).await;
            world.market.clear_faults();
        }
        read_list(&world, &process, &company()).await;
        counted += u32::from(differences(&world, &company()).await.2 == ids(&["L1"]));
    }
    assert!(counted >= 4, "it is counted while the platform is asked: {counted}");
    assert_eq!(world.status(&deleted).await, Status::NeedsReauthorization);
    assert_eq!(differences(&world, &company()).await, (2, vec![], vec![]), "an ended installation is no difference");
    world.end().await;
}

async fn a_notice_says_if_the_location_was_known(world: World) {
    let process = world.process().await;
    let [l1, own] = [location("L1"), location("L2")];
    let notice = async |location: &Resource, company: &str| {
        world.advance(Duration::from_secs(1));
        let now = world.clock.now();
        let notice = InstallNotice { company: Some(company), at: now, event: None, now };
        world.table.record_install_notice(location, notice).await.expect("a table")
    };
    world.table.keep_placeholder(&l1, world.clock.now()).await.expect("a table");
    assert_eq!(notice(&l1, "C1").await, Noticed::New, "a placeholder is no installation");
    assert_eq!(notice(&l1, "C1").await, Noticed::Known);
    assert_eq!(notice(&l1, "C2").await, Noticed::New, "another company's");
    assert_eq!(notice(&location("L3"), "C1").await, Noticed::New);
    process.installations.uninstall(&l1, world.clock.now() + Duration::from_secs(5)).await.expect("a table");
    assert_eq!(notice(&l1, "C2").await, Noticed::Nothing, "older than the uninstall");
    world.advance(Duration::from_secs(9));
    assert_eq!(notice(&l1, "C2").await, Noticed::New, "installed again");
    world.install(&process, &own).await;
    let its = company();
    assert_eq!(notice(&own, its.id()).await, Noticed::Nothing);
    assert_eq!(notice(&own, "C2").await, Noticed::New);
}
