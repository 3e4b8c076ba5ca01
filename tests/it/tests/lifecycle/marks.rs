//! The budget of marks: a mass refusal asks at most three customers to install again, and a grant that is really dead
//! is still marked.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use it::proxy::{Call, Fault as Cut};
use it::world::{Process, World, grantee, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::app::BreakerReason;
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

mod agency;

it::stories!(
    a_mass_refusal_of_thirty_marks_three_and_opens_the_breaker,
    a_mass_refusal_of_a_small_app_marks_three_and_opens_the_breaker,
    a_resume_does_not_make_further_marks_possible,
    processes_that_race_for_the_mark_budget_get_three_marks,
    three_dead_grants_of_a_small_app_are_marked_and_a_fourth_waits_for_an_hour_with_a_grant,
    a_hundred_grants_free_a_place,
    an_installation_that_waits_for_a_mark_uses_its_token_until_it_expires,
    a_mark_that_cannot_be_stored_keeps_its_reservation,
    a_reservation_whose_answer_is_lost_takes_one_place,
    without_the_budget_nothing_is_marked,
    an_operator_can_retry_a_marked_installation_without_a_reservation,
    a_standby_pair_needs_no_reservation,
    a_refusal_that_a_frozen_process_brings_late_marks_nothing,
    a_refusal_after_the_lease_does_not_mark,
);

fn refusal() -> Fault {
    Fault::refusal(400, "Invalid grant: refresh token is invalid")
}

fn locations(count: usize) -> Vec<Resource> {
    (0..count).map(|n| location(&format!("M{n}"))).collect()
}

async fn installed(world: &World, process: &Process, count: usize) -> Vec<Resource> {
    let all = locations(count);
    for resource in &all {
        world.install(process, resource).await;
    }
    all
}

async fn refresh(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Due, world.deadline()).await
}

async fn with_status(world: &World, all: &[Resource], status: Status) -> Vec<Resource> {
    let mut found = Vec::new();
    for resource in all {
        if world.status(resource).await == status {
            found.push(resource.clone());
        }
    }
    found
}

async fn marked(world: &World, all: &[Resource]) -> usize {
    with_status(world, all, Status::NeedsReauthorization).await.len()
}

async fn is_stopped(world: &World) -> bool {
    let open = world.table.breaker().await.expect("a table");
    open.is_some_and(|open| open.reason == BreakerReason::MassRefusal && world.clock.now() < open.until)
}

async fn taken(world: &World) -> u64 {
    world.table.app_state().await.expect("a table").budget.taken(world.clock.now())
}

/// The number of distinct events that ask a customer to install again. An event that was published twice counts once.
fn notices(world: &World) -> usize {
    let events = world.event_bridge.events().into_iter().filter(|put| put.detail_type == "NeedsReauthorization");
    events.map(|put| put.detail.to_string()).collect::<BTreeSet<_>>().len()
}

/// Installs `count` locations and makes all of them due. Then several processes refresh them, and the platform refuses
/// every token.
async fn mass_refusal(world: &World, count: usize) -> Vec<Resource> {
    let processes = [world.teller().await, world.teller().await, world.teller().await];
    let all = installed(world, &processes[0], count).await;
    world.advance(world.market.options().token_life * 4 / 5);
    world.market.fault(Endpoint::Refresh, refusal(), None);
    join_all(processes.iter().map(|process| world.refresh(process, json!({})))).await;
    for _ in 0..3 {
        world.advance(Duration::from_hours(1));
        world.refresh(&processes[0], json!({})).await;
    }
    assert_eq!((marked(world, &all).await, notices(world)), (3, 3));
    assert!(is_stopped(world).await);
    let presented = world.presented();
    world.advance(Duration::from_mins(30));
    world.refresh(&processes[1], json!({})).await;
    assert_eq!(world.presented(), presented, "nothing is presented any more");
    all
}

/// Makes all installations work again as an operator does after the platform has recovered.
async fn mend(world: &World, all: &[Resource]) {
    world.market.clear_faults();
    world.table.close_breaker().await.expect("a table");
    world.advance(Duration::from_mins(30));
    let process = world.process().await;
    world.refresh(&process, json!({})).await;
    for resource in with_status(world, all, Status::NeedsReauthorization).await {
        let summary = world.refresh(&process, json!({ "resource": resource, "force": true })).await;
        assert_eq!(summary["refreshed"], 1, "{summary}");
    }
    assert_eq!(with_status(world, all, Status::Active).await.len(), all.len(), "nothing is lost");
}

async fn a_mass_refusal_of_thirty_marks_three_and_opens_the_breaker(world: World) {
    let all = Box::pin(mass_refusal(&world, 30)).await;
    mend(&world, &all).await;
    world.end().await;
}

async fn a_mass_refusal_of_a_small_app_marks_three_and_opens_the_breaker(world: World) {
    let all = Box::pin(mass_refusal(&world, 7)).await;
    mend(&world, &all).await;
    world.end().await;
}

async fn a_resume_does_not_make_further_marks_possible(world: World) {
    let all = Box::pin(mass_refusal(&world, 12)).await;
    for forget in [false, true] {
        let other = world.teller().await;
        if forget {
            world.table.forget_waiting().await.expect("a table");
        }
        world.table.close_breaker().await.expect("a table");
        let presented = world.presented();
        world.advance(Duration::from_hours(2));
        world.refresh(&other, json!({})).await;
        assert!(world.presented() > presented, "it goes on");
        assert_eq!((marked(&world, &all).await, notices(&world)), (3, 3));
        assert_eq!(is_stopped(&world).await, !forget, "refusals still come: it stops again, unless they are true");
    }
    mend(&world, &all).await;
    world.end().await;
}

async fn processes_that_race_for_the_mark_budget_get_three_marks(world: World) {
    let mut processes = Vec::new();
    for _ in 0..7 {
        processes.push(world.process().await);
    }
    let all = installed(&world, &processes[0], processes.len()).await;
    world.market.fault(Endpoint::Refresh, refusal(), None);
    let gates: Vec<_> = processes.iter().map(|process| process.proxy.hold(Call::Reserve)).collect();
    let refreshes = processes.iter().zip(&all).map(|(process, resource)| refresh(&world, process, resource));
    let race = async {
        // Each process has read an unused budget.
        for gate in &gates {
            gate.reached().await;
        }
        gates.iter().for_each(it::proxy::Gate::open);
    };
    let (outcomes, ()) = tokio::join!(join_all(refreshes), race);
    let refused =
        |outcome: &&Refreshed| matches!(outcome, Refreshed::Failed(TokenError::ReauthorizationRequired { .. }));
    assert_eq!(outcomes.iter().filter(refused).count(), 3, "{outcomes:?}");
    assert_eq!((marked(&world, &all).await, taken(&world).await), (3, 3));
    assert_eq!(with_status(&world, &all, Status::Uncertain).await.len(), 4);
    let writes: usize = processes.iter().map(|process| process.proxy.calls(Call::Reserve)).sum();
    assert!(writes > processes.len(), "they were in each other's way: {writes} writes");
    world.table.close_breaker().await.expect("a table");
    mend(&world, &all).await;
    world.end().await;
}

async fn three_dead_grants_of_a_small_app_are_marked_and_a_fourth_waits_for_an_hour_with_a_grant(world: World) {
    let process = world.teller().await;
    let all = installed(&world, &process, 6).await;
    let (dead, alive) = all.split_at(4);
    for resource in dead {
        world.market.uninstall(&grantee(resource));
    }
    for resource in &dead[..3] {
        let refused = refresh(&world, &process, resource).await;
        assert!(
            matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: Some(_) })),
            "{refused:?}"
        );
    }
    let waits = async |hours| {
        world.advance(Duration::from_hours(hours));
        refresh(&world, &process, &dead[3]).await;
        assert_eq!(world.status(&dead[3]).await, Status::Uncertain, "hours without a grant prove nothing");
        assert!(!is_stopped(&world).await, "one more dead grant stops nobody");
    };
    waits(0).await;
    waits(2).await;
    let renewed = refresh(&world, &process, &alive[0]).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let refused = refresh(&world, &process, &dead[3]).await;
    assert!(
        matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: Some(_) })),
        "{refused:?}"
    );
    assert_eq!(notices(&world), 4);
    world.end().await;
}

async fn a_hundred_grants_free_a_place(world: World) {
    let (process, other) = (world.process().await, world.process().await);
    let all = installed(&world, &process, 6).await;
    let (dead, alive) = all.split_at(5);
    for resource in dead {
        world.market.uninstall(&grantee(resource));
        refresh(&world, &process, resource).await;
    }
    assert_eq!((marked(&world, &all).await, taken(&world).await), (3, 3));
    let grants = async |count| {
        for n in 0..count {
            // The renewals of all processes count together.
            let renewed = refresh(&world, if n % 2 == 0 { &process } else { &other }, &alive[0]).await;
            assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        }
    };
    grants(99).await;
    refresh(&world, &process, &dead[3]).await;
    assert_eq!(world.status(&dead[3]).await, Status::Uncertain, "99 are too few");
    grants(1).await;
    refresh(&world, &process, &dead[3]).await;
    refresh(&world, &process, &dead[4]).await;
    assert_eq!(world.status(&dead[3]).await, Status::NeedsReauthorization);
    assert_eq!(world.status(&dead[4]).await, Status::Uncertain, "one place, not two");
    world.end().await;
}

async fn an_installation_that_waits_for_a_mark_uses_its_token_until_it_expires(world: World) {
    let process = world.process().await;
    let all = installed(&world, &process, 4).await;
    for resource in &all {
        world.market.uninstall(&grantee(resource));
        refresh(&world, &process, resource).await;
    }
    let waits = &all[3];
    let stored = world.stored(waits).await;
    assert_eq!((stored.status(), stored.access().is_some()), (Status::Uncertain, true));
    let retry_at = stored.schedule().retry_at.expect("an instant");
    assert!((150..=300).contains(&retry_at.since(world.clock.now()).as_secs()), "in minutes");
    let presented = world.presented();
    for _ in 0..3 {
        process.tokens.access(waits, world.deadline()).await.expect("the token still works");
    }
    assert_eq!(world.presented(), presented, "callers do not present what was just refused");
    world.expire();
    refresh(&world, &process, waits).await;
    let failed = process.tokens.access(waits, world.deadline()).await;
    assert!(matches!(failed, Err(TokenError::InProgress { .. })), "nobody says that a human must act: {failed:?}");
    world.end().await;
}

async fn a_mark_that_cannot_be_stored_keeps_its_reservation(world: World) {
    let (failing, process) = (world.process().await, world.process().await);
    let all = installed(&world, &process, 1).await;
    world.market.uninstall(&grantee(&all[0]));
    failing.proxy.always(Call::Release, Cut::AccessDenied);
    let failed = refresh(&world, &failing, &all[0]).await;
    assert!(matches!(failed, Refreshed::Failed(TokenError::Store(_))), "{failed:?}");
    assert_eq!((world.status(&all[0]).await, taken(&world).await), (Status::Refreshing, 1));
    world.advance(LEASE);
    refresh(&world, &process, &all[0]).await;
    assert_eq!((world.status(&all[0]).await, taken(&world).await), (Status::NeedsReauthorization, 2));
    world.end().await;
}

async fn a_reservation_whose_answer_is_lost_takes_one_place(world: World) {
    let process = world.process().await;
    let all = installed(&world, &process, 1).await;
    world.market.uninstall(&grantee(&all[0]));
    process.proxy.once(Call::Reserve, Cut::HangUp { applied: true });
    refresh(&world, &process, &all[0]).await;
    assert_eq!(process.proxy.struck(), 1);
    assert_eq!((world.status(&all[0]).await, taken(&world).await), (Status::NeedsReauthorization, 1));
    world.end().await;
}

async fn without_the_budget_nothing_is_marked(world: World) {
    let process = world.process().await;
    let all = installed(&world, &process, 1).await;
    world.market.uninstall(&grantee(&all[0]));
    process.proxy.always(Call::Reserve, Cut::AccessDenied);
    let failed = refresh(&world, &process, &all[0]).await;
    assert!(matches!(failed, Refreshed::Failed(TokenError::Store(_))), "{failed:?}");
    assert_eq!(world.status(&all[0]).await, Status::Refreshing, "the lease passes by itself");
    world.end().await;
}

async fn an_operator_can_retry_a_marked_installation_without_a_reservation(world: World) {
    let process = world.teller().await;
    let all = installed(&world, &process, 3).await;
    for resource in &all {
        world.market.uninstall(&grantee(resource));
        refresh(&world, &process, resource).await;
    }
    for resource in &all {
        let summary = world.refresh(&process, json!({ "resource": resource, "force": true })).await;
        assert_eq!(summary["failed"], 1, "{summary}");
    }
    assert_eq!((marked(&world, &all).await, taken(&world).await, notices(&world)), (3, 3, 3));
    assert!(!is_stopped(&world).await);
    world.end().await;
}

async fn a_standby_pair_needs_no_reservation(world: World) {
    let process = world.process().await;
    let l1 = location("L1");
    let earlier = world.clock.now();
    let older = world.consent(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    process.installations.install(&older, earlier, it::world::HOME).await.expect("kept as a standby pair");
    world.market.fault(Endpoint::Refresh, refusal(), Some(1));
    let moved = refresh(&world, &process, &l1).await;
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    assert_eq!((world.status(&l1).await, process.proxy.calls(Call::Reserve)), (Status::Active, 0));
    world.end().await;
}

async fn a_refusal_that_a_frozen_process_brings_late_marks_nothing(world: World) {
    let (frozen, rival) = (world.teller().await, world.teller().await);
    let all = installed(&world, &rival, 3).await;
    world.market.fault(Endpoint::Refresh, refusal(), Some(3));
    let settle = frozen.proxy.hold(Call::Release);
    let story = async {
        until("all three have a place", async || frozen.proxy.calls(Call::Release) == 3).await;
        settle.reached().await;
        world.advance(LEASE);
        // Meanwhile one location is renewed, one is claimed without an answer yet, and one is installed again.
        assert!(matches!(refresh(&world, &rival, &all[0]).await, Refreshed::Renewed(_)));
        let commit = rival.proxy.hold(Call::Commit);
        let claimed = async {
            commit.reached().await;
            world.install(&frozen, &all[2]).await;
            settle.open();
            until("the late marks are refused", async || frozen.proxy.calls(Call::Release) >= 3).await;
            commit.open();
        };
        let (renewed, ()) = tokio::join!(refresh(&world, &rival, &all[1]), claimed);
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    };
    let late = join_all(all.iter().map(|resource| refresh(&world, &frozen, resource)));
    let (late, ()) = tokio::join!(late, story);
    assert!(late.iter().all(|late| matches!(late, Refreshed::Moved | Refreshed::Held(_))), "{late:?}");
    assert_eq!((with_status(&world, &all, Status::Active).await.len(), notices(&world)), (3, 0));
    world.end().await;
}

async fn a_refusal_after_the_lease_does_not_mark(world: World) {
    let (frozen, process) = (world.teller().await, world.process().await);
    let all = installed(&world, &frozen, 1).await;
    world.market.fault(Endpoint::Refresh, refusal(), Some(1));
    // The process freezes after the refusal, while it asks for the depth of the queue.
    let depth = frozen.proxy.hold(Call::Queue);
    let story = async {
        depth.reached().await;
        world.advance(Duration::from_mins(20));
        depth.open();
    };
    let (late, ()) = tokio::join!(refresh(&world, &frozen, &all[0]), story);
    assert!(matches!(late, Refreshed::Failed(TokenError::InProgress { .. })), "{late:?}");
    assert_eq!((world.status(&all[0]).await, taken(&world).await, notices(&world)), (Status::Uncertain, 0, 0));
    world.advance(Duration::from_mins(5));
    assert!(matches!(refresh(&world, &process, &all[0]).await, Refreshed::Renewed(_)));
    world.end().await;
}
