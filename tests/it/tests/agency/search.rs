//! The search for the agency of a location, among many agencies.

use std::time::Duration;

use futures_util::future::join_all;
use it::sender::{Sender, reply};
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::company::Note;
use shared::table::search::SearchReason;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

use crate::{access, locations, works};

it::stories!(
    a_location_of_the_oldest_of_many_agencies_is_found_by_the_schedule,
    a_location_that_no_agency_has_is_searched_for_once,
    an_agency_that_does_not_answer_keeps_the_search_open,
    a_location_that_moved_to_another_agency_is_found,
    an_install_notice_ends_a_search,
    another_agencys_new_installation_costs_no_token,
    a_location_that_may_be_elsewhere_is_not_given_up,
    a_location_is_given_up_even_if_another_agency_does_not_answer,
    the_number_of_open_searches_is_bounded,
    a_task_that_is_requested_again_while_it_runs_is_kept,
    companies_are_listed_in_pages,
);

pub(crate) fn agency(number: usize) -> Resource {
    Resource::company(&format!("C{number}")).expect("an id")
}

/// Installs the app in `count` agencies, oldest first, each with one location: C1 with M1, C2 with M2, and so on.
pub(crate) async fn many(world: &World, process: &Process, count: usize) {
    let location = |number: usize| Location { id: format!("M{number}"), name: "A location".into() };
    let agencies = (1..=count).map(|number| (agency(number).id().to_owned(), vec![location(number)])).collect();
    world.market.change(|options| options.agencies = agencies);
    for number in 1..=count {
        world.install(process, &agency(number)).await;
        world.advance(Duration::from_secs(1));
    }
}

/// The number of mint requests for a location that the platform has received, including the refused ones.
pub(crate) fn asked(world: &World, location: &Resource) -> usize {
    let wanted = grantee(location);
    world.market.token_requests().iter().filter(|r| r.grant == "mint" && r.resource.as_ref() == Some(&wanted)).count()
}

async fn a_location_of_the_oldest_of_many_agencies_is_found_by_the_schedule(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    many(&world, &one, 9).await;
    works(&world, &one, &location("M9")).await;
    works(&world, &one, &location("M5")).await;
    let oldest = location("M1");
    for process in [&one, &other, &one] {
        let found = access(&world, process, &oldest).await;
        assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    }
    assert_eq!(asked(&world, &oldest), 5, "a call asks a few, once for all processes");
    // Only the search runs here. The task of that agency does not run; its list would also find the location.
    one.tokens.search(world.deadline()).await;
    works(&world, &other, &oldest).await;
    assert_eq!(world.stored(&oldest).await.company.as_deref(), Some("C1"));
    assert_eq!(world.table.searches().await.expect("a table"), []);
    world.end().await;
}

async fn a_location_that_no_agency_has_is_searched_for_once(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let nobodys = location("M99");
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    process.tokens.search(world.deadline()).await;
    let requests = asked(&world, &nobodys);
    assert_eq!(requests, 5 + 7, "by the call and by the schedule");
    for _ in 0..5 {
        let found = access(&world, &process, &nobodys).await;
        assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
        world.advance(Duration::from_mins(5));
        process.tokens.search(world.deadline()).await;
    }
    assert_eq!(asked(&world, &nobodys), requests, "an absence is remembered");
    // A new agency has the location. The relay notices that within 10 s, although the absence would be remembered for
    // longer.
    world.market.change(|options| {
        options.agencies.insert("C8".into(), vec![Location { id: "M99".into(), name: "Moved".into() }]);
    });
    world.install(&process, &agency(8)).await;
    world.advance(Duration::from_secs(3));
    works(&world, &process, &nobodys).await;
    world.end().await;
}

async fn an_agency_that_does_not_answer_keeps_the_search_open(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let oldest = location("M1");
    let down = Fault::Answer { processed: false, status: 503, body: "<html>".into(), content_type: None };
    world.market.fault(Endpoint::Mint, down, None);
    for _ in 0..3 {
        let found = access(&world, &process, &oldest).await;
        assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
        process.tokens.search(world.deadline()).await;
        world.advance(Duration::from_mins(1));
    }
    world.market.clear_faults();
    process.tokens.search(world.deadline()).await;
    works(&world, &process, &oldest).await;
    // No caller waits forever: after some minutes the answer is "not installed", which is remembered only for a short
    // time.
    world.market.fault(Endpoint::Mint, Fault::HangUp { processed: false }, None);
    let nobodys = location("M99");
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    for _ in 0..11 {
        process.tokens.search(world.deadline()).await;
        world.advance(Duration::from_mins(1));
    }
    process.tokens.search(world.deadline()).await;
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::NotInstalled)));
    world.market.clear_faults();
    world.advance(Duration::from_mins(5));
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    world.end().await;
}

async fn a_location_that_moved_to_another_agency_is_found(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    let moved = location("M1");
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"));
    let to = |company: &str| {
        world.market.change(|options| {
            options.agencies.values_mut().for_each(|locations| locations.retain(|location| location.id != "M1"));
            let locations = options.agencies.entry(company.to_owned()).or_default();
            locations.push(Location { id: "M1".into(), name: "Moved".into() });
        });
    };
    to("C2");
    world.expire();
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C2"), "among a few agencies at the first call");
    many(&world, &process, 9).await;
    to("C1");
    world.expire();
    let found = access(&world, &process, &moved).await;
    assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    process.tokens.search(world.deadline()).await;
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"), "among many by the schedule");
    world.end().await;
}

/// A location that had a grant of its own, is minted now, and no longer gets a token from any company.
async fn to_be_minted(world: &World, process: &Process, location: &Resource) {
    world.install(process, location).await;
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let stored = world.stored(location).await;
    let moved = process.refresher.refresh(location, stored.version, Why::Due, world.deadline()).await;
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    assert!(world.stored(location).await.minted().is_some());
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
}

async fn another_agencys_new_installation_costs_no_token(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    // The agency C2 has a later epoch than C1. The location belongs to C1.
    world.install(&process, &agency(2)).await;
    let l1 = location("M1");
    works(&world, &process, &l1).await;
    let before = asked(&world, &l1);
    world.market.change(|options| options.agencies.values_mut().for_each(Vec::clear));
    world.advance(Duration::from_hours(20));
    let stored = world.stored(&l1).await;
    let absent = Box::pin(process.tokens.mint(&stored, Why::Due, world.deadline())).await;
    assert!(matches!(absent, Ok(Refreshed::Failed(TokenError::NotInstalled))), "{absent:?}");
    assert_eq!(world.stored(&l1).await.access(), stored.access(), "the token that works stays");
    assert_eq!(asked(&world, &l1) - before, 2, "and both agencies were asked");
    works(&world, &world.process().await, &l1).await;
    world.end().await;
}

async fn a_location_that_may_be_elsewhere_is_not_given_up(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let l1 = location("M1");
    to_be_minted(&world, &process, &l1).await;
    world.expire();
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    assert_ne!(world.status(&l1).await, Status::NeedsReauthorization, "two agencies were not asked yet");
    process.tokens.search(world.deadline()).await;
    assert_eq!(world.status(&l1).await, Status::NeedsReauthorization, "all were");
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
}

async fn a_location_is_given_up_even_if_another_agency_does_not_answer(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    world.market.uninstall(&grantee(&agency(2)));
    let version = world.stored(&agency(2)).await.version;
    let refused = process.refresher.refresh(&agency(2), version, Why::Due, world.deadline()).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { .. })), "{refused:?}");
    let l1 = location("M1");
    to_be_minted(&world, &process, &l1).await;
    let own = world.stored(&l1).await;
    assert_eq!(own.company.as_deref(), Some("C1"));
    world.expire();
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
}

async fn an_install_notice_ends_a_search(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    many(&world, &process, 7).await;
    for (id, company) in [("M1", json!("C1")), ("M2", json!(null))] {
        let oldest = location(id);
        assert!(matches!(access(&world, &process, &oldest).await, Err(TokenError::InProgress { .. })));
        let members = json!({"locationId": id, "companyId": company});
        let notice = sender.notice("INSTALL", world.clock.now(), &format!("of {id}"), &members);
        assert_eq!(sender.send(&notice).await, reply(200, "stored"));
        let found = access(&world, &process, &oldest).await;
        if company.is_null() {
            assert!(matches!(found, Err(TokenError::InProgress { .. })), "it is searched for anew: {found:?}");
            process.tokens.search(world.deadline()).await;
        } else {
            assert!(found.is_ok(), "at once: {found:?}");
        }
        works(&world, &process, &oldest).await;
    }
    process.tokens.search(world.deadline()).await;
    assert_eq!(world.table.searches().await.expect("a table"), []);
    world.end().await;
}

async fn the_number_of_open_searches_is_bounded(world: World) {
    let all = locations(250);
    let queued = join_all(all.iter().map(|location| world.table.begin_search(location, SearchReason::Unknown))).await;
    let queued = queued.into_iter().filter(|queued| matches!(queued, Ok(true))).count();
    let searches = world.table.searches().await.expect("a table");
    assert_eq!((queued, searches.len()), (100, 100), "and there was contention: {} wanted a place", all.len());
    assert!(world.table.begin_search(&searches[0], SearchReason::Unknown).await.expect("a table"), "it has its place");
    world.table.end_search(&searches[0]).await.expect("a table");
    assert!(world.table.begin_search(&location("new"), SearchReason::Unknown).await.expect("a table"));
    assert!(!world.table.begin_search(&location("newer"), SearchReason::Unknown).await.expect("a table"));
    // If no place for a search is free, the answer depends only on the companies that were asked directly.
    let process = world.process().await;
    many(&world, &process, 7).await;
    let found = access(&world, &process, &location("M1")).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    world.end().await;
}

async fn a_task_that_is_requested_again_while_it_runs_is_kept(world: World) {
    let (id, now) = ("C1", world.clock.now());
    let task = async |at| world.table.task(id, at).await.expect("a table");
    world.table.note_task(id, Note::Installing(now), now).await.expect("a table");
    let first = task(now).await.expect("a task");
    assert_eq!((first.installing, first.settles_at), (Some(now), None));
    let later = now + Duration::from_secs(1);
    world.table.note_task(id, Note::Reported, later).await.expect("a table");
    assert!(!world.table.finish_task(&first, later).await.expect("a table"), "it was noted again");
    world.table.postpone_task(&first, later + Duration::from_hours(1), 3).await.expect("a table");
    let due = world.table.due_tasks(later, None, 9).await.expect("a table");
    assert_eq!(due.items, [id], "and is still due");
    let second = task(later).await.expect("a task");
    assert_eq!((second.installing, second.failures), (Some(now), 0), "both notes count");
    assert!(second.settles_at.is_some_and(|at| at > later));
    world.table.postpone_task(&second, later + Duration::from_hours(1), 3).await.expect("a table");
    assert_eq!(world.table.due_tasks(later, None, 9).await.expect("a table").items, [""; 0]);
    assert!(world.table.finish_task(&second, later).await.expect("a table"));
    assert_eq!(task(later).await, None);
    assert!(!world.table.finish_task(&second, later).await.expect("a table"));
    // A company that is listed again before the removal stays listed.
    world.table.list_company(id, now).await.expect("a table");
    world.table.list_company(id, later).await.expect("a table");
    world.table.unlist_company(id, now, later).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table").0.len(), 1);
    world.table.keep_company_listed(id, now).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table").0[0].listed_at, later);
    world.table.unlist_company(id, later, later).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table").0, []);
    world.table.keep_company_listed(id, now).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table").0[0].listed_at, now);
}

/// A million companies are a million items, which are read in pages of bounded size. So no item and no page grows with
/// the number of companies.
async fn companies_are_listed_in_pages(world: World) {
    const MANY: usize = 1_000;
    let now = world.clock.now();
    let ids: Vec<String> = (0..MANY).map(|number| format!("HLcompany{number:010}")).collect();
    for some in ids.chunks(50) {
        // All companies are listed in one millisecond, as after a migration. The instant and the id form the place in
        // the list.
        let listed = join_all(some.iter().map(|id| world.table.list_company(id, now))).await;
        assert!(listed.iter().all(Result::is_ok), "{listed:?}");
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut after = None;
    loop {
        let page = world.table.companies(after.as_ref(), 64).await.expect("a table");
        let Some(last) = page.items.last().cloned() else { break };
        assert!(page.items.len() <= 64);
        for listed in page.items {
            assert!(seen.insert(listed.company.clone()), "{} is read twice", listed.company);
        }
        after = Some(last);
    }
    assert_eq!(seen.len(), MANY);
    assert_eq!(world.table.newest_companies(6).await.expect("a table").0.len(), 6);
    let bytes = |item: &shared::table::Item| -> usize {
        item.iter().map(|(name, value)| name.len() + value.as_s().map_or(21, String::len)).sum()
    };
    let largest = world.items().await.iter().map(bytes).max().expect("items");
    assert!(largest < 200, "{largest} bytes: one write unit, and 200 MB for a million");
}
