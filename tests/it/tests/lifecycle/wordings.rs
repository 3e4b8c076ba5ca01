//! Answers of the token endpoint with known and unknown wordings, and block pages of the network in front of the
//! platform.

use std::time::Duration;

use it::world::{World, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::token::TokenError;
use shared::token::outcome::Refreshed;

use crate::outcomes::{answered, refresh};

it::stories!(
    every_known_wording_for_a_dead_refresh_token_marks_the_installation,
    an_unknown_answer_is_not_final_and_raises_one_alarm,
    an_unknown_answer_after_a_lost_one_leaves_the_token_in_doubt,
    a_block_page_counts_as_no_connection_and_raises_one_alarm,
    a_block_page_after_a_lost_answer_leaves_the_token_in_doubt,
);

/// Locations with ids that no other story uses.
pub(crate) fn own_locations(count: usize) -> (String, Vec<Resource>) {
    let prefix = format!("P{}", shared::domain::random::hex::<4>());
    let all = (0..count).map(|n| location(&format!("{prefix}x{n}"))).collect();
    (prefix, all)
}

async fn every_known_wording_for_a_dead_refresh_token_marks_the_installation(world: World) {
    let process = world.process().await;
    // Each answer counts as a refusal, and only a few installations are marked before the circuit breaker stops
    // refreshing.
    let refusals = [
        Fault::refusal(400, "Invalid grant: refresh token has expired"),
        answered(false, 400, r#"{"error":"invalid_request","error_description":"refresh token not found"}"#),
        Fault::refusal_v3(400, "Invalid grant: refresh token is invalid"),
    ];
    let (_, all) = own_locations(refusals.len());
    for (resource, fault) in all.iter().zip(refusals) {
        world.install(&process, resource).await;
        world.market.fault(Endpoint::Refresh, fault.clone(), Some(1));
        let dead = refresh(&world, &process, resource).await;
        assert!(matches!(dead, Refreshed::Failed(TokenError::ReauthorizationRequired { .. })), "{fault:?}: {dead:?}");
        assert_eq!(world.status(resource).await, Status::NeedsReauthorization, "{fault:?}");
    }
}

async fn an_unknown_answer_is_not_final_and_raises_one_alarm(world: World) {
    let processes = [world.process().await, world.process().await];
    let (prefix, all) = own_locations(8);
    for resource in &all {
        world.install(&processes[0], resource).await;
    }
    let faults = [
        Fault::refusal(400, "Something new"),
        Fault::refusal(401, "Something new"),
        Fault::refusal(403, "Forbidden"),
        Fault::refusal(404, "Cannot POST /oauth/token"),
        Fault::refusal_v3(422, "Something new"),
        answered(false, 400, ""),
        answered(false, 404, "Not Found"),
        answered(false, 400, r#"[{"message":{"a":7}}]"#),
    ];
    for (n, (resource, fault)) in all.iter().zip(faults).enumerate() {
        let before = world.stored(resource).await;
        world.market.fault(Endpoint::Refresh, fault.clone(), Some(1));
        let unknown = refresh(&world, &processes[n % 2], resource).await;
        assert!(matches!(unknown, Refreshed::Failed(TokenError::InProgress { .. })), "{fault:?}: {unknown:?}");
        let stored = world.stored(resource).await;
        assert_eq!(
            (stored.status(), stored.version, stored.access()),
            (Status::Blocked, before.version, before.access())
        );
        processes[0].tokens.access(resource, world.deadline()).await.expect("the token works on");
    }
    assert_eq!(world.alarms("unclassified", &prefix), 1, "one for the app");
    world.advance(Duration::from_mins(61));
    world.market.fault(Endpoint::Refresh, Fault::refusal(400, "Something new"), Some(3));
    for resource in &all[..3] {
        refresh(&world, &processes[1], resource).await;
    }
    assert_eq!(world.alarms("unclassified", &prefix), 2, "and one for the next hour");
    world.advance(Duration::from_hours(4));
    for resource in &all {
        let renewed = refresh(&world, &processes[0], resource).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{resource}: {renewed:?}");
    }
    world.end().await;
}

async fn an_unknown_answer_after_a_lost_one_leaves_the_token_in_doubt(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    world.market.fault(Endpoint::Refresh, Fault::refusal(400, "Something new"), Some(1));
    let unknown = refresh(&world, &process, &l1).await;
    assert!(matches!(unknown, Refreshed::Failed(TokenError::Unanswered { .. })), "{unknown:?}");
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Uncertain, 2));
    world.advance(Duration::from_secs(1));
    let renewed = refresh(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "the answer that was lost: {renewed:?}");
    world.end().await;
}

async fn a_block_page_counts_as_no_connection_and_raises_one_alarm(world: World) {
    let processes = [world.process().await, world.process().await];
    let (prefix, all) = own_locations(6);
    for resource in &all {
        world.install(&processes[0], resource).await;
    }
    for fault in [Fault::block_page(), answered(false, 403, "error code: 1010")] {
        world.market.fault(Endpoint::Refresh, fault, None);
        for (n, resource) in all.iter().enumerate() {
            let (presented, now) = (world.presented(), world.clock.now());
            let failed = refresh(&world, &processes[n % 2], resource).await;
            let Refreshed::Failed(TokenError::InProgress { retry_at: at }) = failed else {
                panic!("{resource}: {failed:?}")
            };
            assert!(at.since(now) <= Duration::from_secs(2), "a caller may try again in seconds");
            let stored = world.stored(resource).await;
            assert_eq!((stored.status(), world.presented() - presented), (Status::Active, 1));
            assert!(
                stored.schedule().due_at.is_some_and(|due| due.since(now) <= Duration::from_mins(2)),
                "the schedule in minutes"
            );
        }
        world.market.clear_faults();
        world.advance(Duration::from_secs(3));
    }
    assert_eq!(world.alarms("not_reached", &prefix), 1);
    for resource in &all {
        let renewed = refresh(&world, &processes[0], resource).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{resource}: {renewed:?}");
    }
    world.end().await;
}

async fn a_block_page_after_a_lost_answer_leaves_the_token_in_doubt(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    world.market.fault(Endpoint::Refresh, Fault::block_page(), Some(1));
    let unknown = refresh(&world, &process, &l1).await;
    assert!(matches!(unknown, Refreshed::Failed(TokenError::Unanswered { .. })), "{unknown:?}");
    assert_eq!(world.status(&l1).await, Status::Uncertain);
    world.advance(Duration::from_secs(1));
    let renewed = refresh(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "the answer that was lost: {renewed:?}");
    world.end().await;
}
