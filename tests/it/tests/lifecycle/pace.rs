//! The pace of the token endpoint: at most the limit in any minute for all processes together, nothing is renewed too
//! late, and the most urgent requests come first.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use it::world::{Process, World, grantee, location, until};
use sandbox::marketplace::TokenRequest;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::RefreshTokenState;
use serde_json::json;
use shared::domain::pace::Priority;
use shared::domain::resource::Resource;
use shared::domain::status::{Status, TokenVersion};
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};
use shared::token::pace::{Patience, sleep_until};

use crate::outcomes::refresh;

it::stories!(
    a_ceiling_of_five_a_minute_renews_companies_first_and_all_in_time,
    a_pace_is_learnt_from_429_by_all_processes,
    sixty_due_installations_are_renewed_at_five_a_minute,
    callers_come_before_the_schedule,
    a_lost_answer_is_asked_for_within_its_grace_while_the_schedule_is_busy,
    a_caller_with_a_usable_token_waits_for_the_place_of_its_lost_answer,
    a_replay_does_not_follow_in_the_moment_that_loses_answers,
    an_answer_lost_outside_a_tick_is_asked_for_first_by_the_next_tick,
    a_location_that_never_answers_takes_few_places,
    a_429_to_a_replay_is_followed_by_another_presentation,
    a_429_to_a_replay_beyond_the_lease_is_followed_by_another_claim,
    renewals_without_a_place_leave_installations_as_they_are,
    a_pause_reaches_renewals_that_wait_for_their_turn,
    without_a_pace_nothing_is_written,
);

/// The version of a new installation.
const VERSION: TokenVersion = TokenVersion { epoch: 1, generation: 1 };
const FIVE: [(&str, &str); 1] = [("TOKEN_REQUESTS_PER_MINUTE", "5")];

/// Moves the clocks, ten times as fast as real time, until `work` is done.
async fn as_time_passes<T>(world: &World, work: impl Future<Output = T>) -> T {
    world.at_speed(10, work).await
}

/// Runs ticks of the schedule, one after the other, until nothing is left.
async fn ticks(world: &World, process: &Process) {
    while world.refresh(process, json!({})).await["left"] != 0 {}
}

/// Installs the app in resources that become due in this order.
async fn due(world: &World, resources: &[Resource]) {
    let installer = world.process().await;
    for resource in resources {
        world.install(&installer, resource).await;
    }
    world.advance(Duration::from_hours(20));
}

fn locations(prefix: &str, count: usize) -> Vec<Resource> {
    (0..count).map(|n| location(&format!("{prefix}{n}"))).collect()
}

/// The presentations of refresh tokens at the platform.
fn presentations(world: &World) -> Vec<TokenRequest> {
    world.market.token_requests().into_iter().filter(|request| request.grant == "refresh_token").collect()
}

/// The most of these requests in any minute.
fn busiest_minute(requests: &[TokenRequest]) -> usize {
    let within = |from: &TokenRequest| {
        requests.iter().filter(|one| one.at >= from.at && one.at < from.at + Duration::from_mins(1)).count()
    };
    requests.iter().map(within).max().unwrap_or(0)
}

async fn all_renewed_once(world: &World, resources: &[Resource]) {
    for resource in resources {
        let stored = world.stored(resource).await;
        let found = (stored.status(), stored.version.generation, stored.schedule().failures);
        assert_eq!(found, (Status::Active, 2, 0), "{resource}");
    }
}

async fn a_ceiling_of_five_a_minute_renews_companies_first_and_all_in_time(world: World) {
    let companies = ["HLcompany0000000001", "C2"].map(|id| Resource::company(id).expect("an id"));
    let all = [locations("pace", 10), companies.to_vec()].concat();
    due(&world, &all).await;
    world.market.change(|options| options.token_requests_per_minute = Some(5));
    let (one, other) = (world.process_with(&FIVE).await, world.process_with(&FIVE).await);
    let began = world.clock.now();
    as_time_passes(&world, async { tokio::join!(ticks(&world, &one), ticks(&world, &other)) }).await;
    let took = world.clock.now().since(began);
    assert!(took < Duration::from_secs(170), "twelve places of 61.5 s by five: {took:?}");
    let requests = presentations(&world);
    assert_eq!((requests.len(), busiest_minute(&requests)), (12, 5));
    assert!(requests.iter().all(|request| request.status == Some(200)), "{requests:?}");
    for request in &requests[..2] {
        assert!(companies.iter().any(|company| request.resource == Some(grantee(company))), "{requests:?}");
    }
    all_renewed_once(&world, &all).await;
}

async fn a_pause_reaches_renewals_that_wait_for_their_turn(world: World) {
    let all = locations("pause", 15);
    due(&world, &all).await;
    let process = world.process_with(&[("TOKEN_REQUESTS_PER_MINUTE", "30")]).await;
    let pause = async {
        until("the first renewals", async || presentations(&world).len() >= 5).await;
        world.table.pause(world.clock.now()).await.expect("a table");
    };
    as_time_passes(&world, async { tokio::join!(world.refresh(&process, json!({})), pause) }).await;
    let before = presentations(&world).len();
    assert!((5..all.len()).contains(&before), "{before} of {}", all.len());
    assert!(world.table.end_pause().await.expect("a table"));
    world.advance(Duration::from_mins(2));
    as_time_passes(&world, ticks(&world, &process)).await;
    assert_eq!(presentations(&world).len(), all.len());
    all_renewed_once(&world, &all).await;
    world.end().await;
}

async fn a_pace_is_learnt_from_429_by_all_processes(world: World) {
    let all = locations("learn", 12);
    due(&world, &all).await;
    world.market.change(|options| options.token_requests_per_minute = Some(5));
    let (one, other) = (world.process().await, world.process().await);
    as_time_passes(&world, async { tokio::join!(ticks(&world, &one), ticks(&world, &other)) }).await;
    let requests = presentations(&world);
    let first = requests.iter().find(|request| request.status == Some(429)).expect("a 429").at;
    let later: Vec<_> = requests.iter().filter(|one| one.at > first + Duration::from_secs(20)).cloned().collect();
    assert_eq!(later.len(), 7, "{requests:?}");
    assert!(later.iter().all(|request| request.status == Some(200)), "{later:?}");
    assert!(later[0].at >= first + Duration::from_secs(55), "a pause: {requests:?}");
    assert!(busiest_minute(&later) <= 5, "{later:?}");
    assert_eq!(world.table.app_state().await.expect("a table").pace.limit(None, world.clock.now()), Some(5));
    all_renewed_once(&world, &all).await;
}

/// Moves the clocks from place to place of the schedule while no renewal is under way, until `work` is done.
///
/// A renewal claims its installation before it takes its place, and does neither before the place is free. So the pace
/// is read before the installations, and the clocks stop short of the place that was free next by then: no renewal that
/// begins after these reads meets a jump.
async fn from_place_to_place<T>(world: &World, work: impl Future<Output = T>) -> T {
    let skips = async {
        loop {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let pace = world.table.app_state().await.expect("a table").pace;
            let next = pace.earliest(Priority::Schedule, 5, world.clock.now());
            let is_leased = |item: &HashMap<String, AttributeValue>| item.contains_key("lease_ends_at");
            if !world.items().await.iter().any(is_leased) {
                let wait = next.since(world.clock.now());
                world.advance(wait.saturating_sub(Duration::from_millis(500)));
            }
        }
    };
    let work = async {
        tokio::select! {
            done = work => done,
            () = skips => unreachable!("skips for ever"),
        }
    };
    world.at_speed(5, work).await
}

async fn sixty_due_installations_are_renewed_at_five_a_minute(world: World) {
    let all = locations("many", 60);
    due(&world, &all).await;
    world.market.change(|options| options.token_requests_per_minute = Some(5));
    let (one, other) = (world.process_with(&FIVE).await, world.process_with(&FIVE).await);
    let began = world.clock.now();
    let ticks = async { tokio::join!(ticks(&world, &one), ticks(&world, &other)) };
    Box::pin(from_place_to_place(&world, ticks)).await;
    let (requests, took) = (presentations(&world), world.clock.now().since(began));
    assert_eq!(requests.len(), 60, "{requests:?}");
    assert!(requests.iter().all(|request| request.status == Some(200)), "{requests:?}");
    assert_eq!(busiest_minute(&requests), 5);
    assert!(took < Duration::from_mins(16), "sixty places of 61.5 s by five, and the starts of the ticks: {took:?}");
    all_renewed_once(&world, &all).await;
}

async fn callers_come_before_the_schedule(world: World) {
    let all = locations("behind", 12);
    due(&world, &all).await;
    let (one, other) = (world.process_with(&FIVE).await, world.process_with(&FIVE).await);
    let caller = world.process_with(&FIVE).await;
    // The callers' locations are due last of all.
    let called = locations("called", 3);
    for location in &called {
        world.install(&caller, location).await;
    }
    world.expire();
    let calls = async {
        until("the schedule is busy", async || presentations(&world).len() == 6).await;
        for location in &called {
            let asked_at = world.clock.now();
            // The relay answers 503 with this time, and the caller comes back.
            while let Err(error) = caller.tokens.access(location, world.deadline()).await {
                let TokenError::Paced { retry_at } = error else { panic!("{error:?}") };
                sleep_until(&world.clock, retry_at).await;
            }
            let waited = world.clock.now().since(asked_at);
            assert!(waited < Duration::from_secs(16), "a place is free each 12.5 s: {waited:?}");
        }
    };
    as_time_passes(&world, async { tokio::join!(ticks(&world, &one), ticks(&world, &other), calls) }).await;
    let requests = presentations(&world);
    assert_eq!((requests.len(), busiest_minute(&requests)), (15, 5));
    for (request, location) in requests[6..].iter().zip(&called) {
        assert_eq!(request.resource, Some(grantee(location)), "the next place is the caller's: {requests:?}");
    }
}

async fn a_lost_answer_is_asked_for_within_its_grace_while_the_schedule_is_busy(world: World) {
    let all = locations("lost", 10);
    due(&world, &all).await;
    let (one, other) = (world.process_with(&FIVE).await, world.process_with(&FIVE).await);
    let loses = async {
        until("the schedule is busy", async || presentations(&world).len() == 5).await;
        world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    };
    // Slower, because each renewal must keep up with the platform's grace.
    let work = async { tokio::join!(ticks(&world, &one), ticks(&world, &other), loses) };
    world.at_speed(5, work).await;
    let requests = presentations(&world);
    assert_eq!((requests.len(), busiest_minute(&requests)), (11, 5), "{requests:?}");
    let lost: Vec<_> = requests.iter().filter(|request| request.status.is_none()).collect();
    let of_lost: Vec<_> = requests.iter().filter(|request| request.resource == lost[0].resource).collect();
    assert_eq!(of_lost.len(), 2, "{requests:?}");
    assert!(of_lost[1].at < of_lost[0].at + Duration::from_secs(30), "{of_lost:?}");
    for resource in &all {
        assert_eq!(world.refresh_token_state(resource).await, Some(RefreshTokenState::Live), "{resource}");
    }
}

async fn a_caller_with_a_usable_token_waits_for_the_place_of_its_lost_answer(world: World) {
    let (installer, process) = (world.process().await, world.process_with(&FIVE).await);
    let (others, l1) = (locations("used", 4), location("L1"));
    for other in &others {
        world.install(&installer, other).await;
    }
    world.advance(Duration::from_secs(50));
    world.install(&installer, &l1).await;
    // The tokens of the others end in 30 s.
    world.advance(Duration::from_hours(24) - Duration::from_secs(80));
    let calls = others.iter().map(|other| process.tokens.access(other, world.deadline()));
    join_all(calls).await.into_iter().for_each(|access| drop(access.expect("a token")));
    assert_eq!(world.presented(), 4, "all but one of five places");
    world.advance(Duration::from_secs(50));
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    let access = Box::pin(world.at_speed(5, process.tokens.access(&l1, world.deadline()))).await.expect("a token");
    assert_eq!((access.generation, world.presented()), (2, 6), "the next place is free in 11 s, after the lease");
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.end().await;
}

/// One place is kept for a replay. It must not be used up in the moment in which answers are lost.
async fn a_replay_does_not_follow_in_the_moment_that_loses_answers(world: World) {
    let (others, l1) = (locations("moment", 3), location("L1"));
    due(&world, &[others.clone(), vec![l1.clone()]].concat()).await;
    world.expire();
    let process = world.process_with(&FIVE).await;
    for other in &others {
        process.tokens.access(other, world.deadline()).await.expect("a token");
    }
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), None);
    let moment = async {
        until("the answer is lost", async || world.presented() == 4).await;
        sleep_until(&world.clock, world.clock.now() + Duration::from_secs(1)).await;
        world.market.clear_faults();
    };
    let work = async { tokio::join!(process.tokens.access(&l1, world.deadline()), moment) };
    let (access, ()) = Box::pin(world.at_speed(5, work)).await;
    assert_eq!((access.expect("a token").generation, world.presented()), (2, 5));
    world.end().await;
}

async fn an_answer_lost_outside_a_tick_is_asked_for_first_by_the_next_tick(world: World) {
    let (used, busy, l1) = (locations("used", 4), locations("busy", 3), location("L1"));
    due(&world, &[used.clone(), busy, vec![l1.clone()]].concat()).await;
    let (caller, process) = (world.process_with(&FIVE).await, world.process_with(&FIVE).await);
    let renew = async |resource: &Resource, left: Duration| {
        let (patience, version) = (Patience { priority: Priority::Caller, until: world.clock.now() }, VERSION);
        caller.refresher.refresh_with(patience, resource, version, Why::Due, world.clock.now() + left).await
    };
    for location in &used {
        let renewed = renew(location, Duration::from_mins(1)).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    }
    world.advance(Duration::from_secs(50));
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    // The invocation ends before the next place is free.
    let lost = renew(&l1, LEASE).await;
    assert!(matches!(lost, Refreshed::Failed(TokenError::Unanswered { .. })), "{lost:?}");
    Box::pin(world.at_speed(5, ticks(&world, &process))).await;
    let requests = presentations(&world);
    let (asked, again) = (&requests[4], &requests[5]);
    assert_eq!((asked.status, &again.resource), (None, &Some(grantee(&l1))), "{requests:?}");
    assert!(again.at < asked.at + Duration::from_secs(30), "{requests:?}");
    assert_eq!((requests.len(), world.status(&l1).await), (9, Status::Active));
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
}

/// A location that never answers would take a place each 12 s if each of its presentations were an urgent one.
async fn a_location_that_never_answers_takes_few_places(world: World) {
    let l1 = location("silent");
    due(&world, std::slice::from_ref(&l1)).await;
    let process = world.process_with(&FIVE).await;
    world.market.fault(
        Endpoint::Refresh,
        Fault::Answer { processed: false, status: 500, body: "{}".into(), content_type: None },
        None,
    );
    let end = world.clock.now() + Duration::from_mins(5);
    let five_minutes = async {
        while world.clock.now() < end {
            let next = world.clock.now() + Duration::from_mins(1);
            world.refresh(&process, json!({})).await;
            sleep_until(&world.clock, next).await;
        }
    };
    Box::pin(as_time_passes(&world, five_minutes)).await;
    assert!((3..=8).contains(&world.presented()), "{:?}", presentations(&world));
    assert_eq!(world.status(&l1).await, Status::Uncertain);
}

async fn a_429_to_a_replay_is_followed_by_another_presentation(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    for throttled in [Fault::throttled(), Fault::ComeBack { seconds: 3 }] {
        world.install(&process, &l1).await;
        world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
        world.market.fault(Endpoint::Refresh, throttled.clone(), Some(1));
        let (presented, generation) = (world.presented(), world.stored(&l1).await.version.generation);
        let renewed = Box::pin(as_time_passes(&world, refresh(&world, &process, &l1))).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{throttled:?}: {renewed:?}");
        assert_eq!((world.presented() - presented, world.status(&l1).await), (3, Status::Active), "{throttled:?}");
        assert_eq!(world.stored(&l1).await.version.generation, generation + 1);
        world.advance(Duration::from_hours(25));
    }
}

async fn a_429_to_a_replay_beyond_the_lease_is_followed_by_another_claim(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.advance(Duration::from_hours(20));
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    // Longer than the lease allows, and within the platform's grace.
    world.market.fault(Endpoint::Refresh, Fault::ComeBack { seconds: 14 }, Some(1));
    let summary = as_time_passes(&world, world.refresh(&process, json!({}))).await;
    assert_eq!((&summary["refreshed"], &summary["failed"]), (&json!(1), &json!(0)), "{summary}");
    assert_eq!((world.presented(), world.status(&l1).await), (3, Status::Active));
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
}

async fn renewals_without_a_place_leave_installations_as_they_are(world: World) {
    let all = locations("still", 4);
    due(&world, &all).await;
    let before = join_all(all.iter().map(|resource| world.stored(resource))).await;
    let process = world.process().await;
    world.market.fault(Endpoint::Refresh, Fault::ComeBack { seconds: 600 }, None);
    let summary = world.refresh(&process, json!({})).await;
    let expected = json!({ "due": 4, "refreshed": 0, "minted": 0, "deferred": 0, "failed": 0, "left": 4 });
    assert_eq!(summary, expected);
    for (resource, before) in all.iter().zip(before) {
        let stored = world.stored(resource).await;
        assert_eq!((stored.status(), stored.version), (Status::Active, before.version));
        assert_eq!((stored.schedule().failures, stored.schedule().retry_at), (0, None));
        assert!(stored.schedule().due_at.is_some_and(|at| at <= world.clock.now()), "due as before");
    }
    let presented = world.presented();
    // All processes know, the schedule and callers alike, and none sends a request.
    let other = world.process().await;
    assert_eq!(world.refresh(&other, json!({})).await["left"], 4);
    world.advance(Duration::from_hours(5));
    world.market.fault(Endpoint::Refresh, Fault::ComeBack { seconds: 600 }, None);
    let failed = other.tokens.access(&all[0], world.deadline()).await;
    let now = world.clock.now();
    assert!(matches!(failed, Err(TokenError::Paced { retry_at }) if retry_at > now), "{failed:?}");
    let failed = process.tokens.access(&all[1], world.deadline()).await;
    assert!(matches!(failed, Err(TokenError::Paced { retry_at }) if retry_at > now), "{failed:?}");
    assert_eq!(world.presented(), presented + 1);
    world.market.clear_faults();
    world.advance(Duration::from_secs(601));
    process.tokens.access(&all[1], world.deadline()).await.expect("a token");
}

async fn without_a_pace_nothing_is_written(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.advance(Duration::from_hours(20));
    world.refresh(&process, json!({})).await;
    let keys: Vec<_> = world.items().await.iter().filter_map(|item| item["pk"].as_s().ok().cloned()).collect();
    assert!(!keys.iter().any(|key| key == "app#breaker"), "{keys:?}");
    world.end().await;
}
