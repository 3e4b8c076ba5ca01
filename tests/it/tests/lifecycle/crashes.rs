//! A process dies at some point of a refresh. A story simulates the death by dropping the refresh while a call is under
//! way.

use std::sync::Arc;
use std::time::Duration;

use it::proxy::{Call, Fault, Gate};
use it::world::{Process, World, location};
use sandbox::marketplace::grants::{RefreshTokenState, Rotation};
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    a_crash_before_the_claim_changes_nothing,
    a_crash_after_the_claim_is_recovered_by_the_schedule_with_one_presentation,
    a_crash_after_the_claim_is_recovered_by_the_next_caller,
    a_crash_between_grant_and_commit_is_recovered_if_the_platform_forgives,
    a_crash_between_grant_and_commit_marks_the_installation_once_if_the_platform_is_strict,
    a_crash_after_the_commit_loses_nothing,
    a_lost_answer_of_any_table_write_loses_no_token,
);

/// Begins a refresh and drops it while it waits at the gate.
async fn dies_at(world: &World, process: Process, resource: &Resource, gate: &Gate) {
    let version = world.stored(resource).await.version;
    let (process, resource, deadline) = (Arc::new(process), resource.clone(), world.deadline());
    let doomed = process.clone();
    let task = tokio::spawn(async move {
        doomed.refresher.refresh(&resource, version, Why::Due, deadline).await;
    });
    gate.reached().await;
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()), "it did not live to the end");
}

async fn a_crash_before_the_claim_changes_nothing(world: World) {
    let l1 = location("L1");
    let (doomed, other) = (world.process().await, world.process().await);
    world.install(&doomed, &l1).await;
    let before = world.stored(&l1).await;
    let gate = doomed.proxy.hold(Call::Claim);
    dies_at(&world, doomed, &l1, &gate).await;
    assert_eq!((world.stored(&l1).await, world.presented()), (before, 0));
    world.expire();
    other.tokens.access(&l1, world.deadline()).await.expect("a token");
    // The dead process's call, which was under way, arrives after the recovery.
    gate.open();
    tokio::task::yield_now().await;
    world.end().await;
}

async fn a_crash_after_the_claim_is_recovered_by_the_schedule_with_one_presentation(world: World) {
    let l1 = location("L1");
    let (doomed, other) = (world.process().await, world.process().await);
    world.install(&doomed, &l1).await;
    let gate = doomed.proxy.hold_answer(Call::Claim);
    dies_at(&world, doomed, &l1, &gate).await;
    assert_eq!(world.status(&l1).await, Status::Refreshing);
    let version = world.stored(&l1).await.version;
    let held = other.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(held, Refreshed::Held(_)), "the lease of a dead holder holds: {held:?}");
    assert_eq!(world.refresh(&other, json!({})).await["due"], 0, "and it is not due before");
    world.advance(LEASE);
    let summary = world.refresh(&other, json!({})).await;
    assert_eq!((&summary["due"], &summary["refreshed"]), (&json!(1), &json!(1)), "{summary}");
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Active, 1));
    world.end().await;
}

async fn a_crash_after_the_claim_is_recovered_by_the_next_caller(world: World) {
    let l1 = location("L1");
    let (doomed, other) = (world.process().await, world.process().await);
    world.install(&doomed, &l1).await;
    world.expire();
    let gate = doomed.proxy.hold_answer(Call::Claim);
    dies_at(&world, doomed, &l1, &gate).await;
    world.advance(LEASE);
    let access = other.tokens.access(&l1, world.deadline()).await.expect("a token");
    assert_eq!((access.generation, world.presented()), (2, 1));
    world.end().await;
}

async fn a_crash_between_grant_and_commit_is_recovered_if_the_platform_forgives(world: World) {
    let l1 = location("L1");
    let (doomed, other) = (world.process().await, world.process().await);
    world.install(&doomed, &l1).await;
    let gate = doomed.proxy.hold(Call::Commit);
    dies_at(&world, doomed, &l1, &gate).await;
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Replayable));
    world.advance(LEASE);
    // A caller asks for a token. The access token in the table is good for another day.
    let access = other.tokens.access(&l1, world.deadline()).await.expect("a token");
    assert!(world.market.takes_access_token(access.token.expose()));
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Active, 2));
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.end().await;
}

async fn a_crash_between_grant_and_commit_marks_the_installation_once_if_the_platform_is_strict(world: World) {
    let l1 = location("L1");
    let (doomed, other) = (world.process().await, world.process().await);
    world.install(&doomed, &l1).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    let gate = doomed.proxy.hold(Call::Commit);
    dies_at(&world, doomed, &l1, &gate).await;
    world.advance(LEASE);
    let version = world.stored(&l1).await.version;
    let refused = other.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    let Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: link }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(link.as_deref(), Some("https://relay.example/oauth/install"));
    let presented = world.presented();
    world.advance(Duration::from_hours(1));
    assert_eq!(world.refresh(&other, json!({})).await["due"], 0);
    assert_eq!(world.presented(), presented, "one notice");
    // The stored access token nevertheless stays usable until it expires.
    other.tokens.access(&l1, world.deadline()).await.expect("the old token");
    world.end_without(&[&l1]).await;
}

async fn a_crash_after_the_commit_loses_nothing(world: World) {
    let l1 = location("L1");
    let doomed = world.process().await;
    world.install(&doomed, &l1).await;
    let gate = doomed.proxy.hold_answer(Call::Commit);
    dies_at(&world, doomed, &l1, &gate).await;
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.generation), (Status::Active, 2));
    world.end().await;
}

async fn a_lost_answer_of_any_table_write_loses_no_token(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    let lost = Fault::HangUp { applied: true };
    process.proxy.once(Call::Install, lost.clone());
    world.install(&process, &l1).await;
    assert_eq!((world.stored(&l1).await.version.epoch, process.proxy.struck()), (1, 1));
    process.proxy.once(Call::Claim, lost.clone());
    // The fault strikes more often than the SDK retries, so the commit must recognise its own earlier write.
    process.proxy.fault(Call::Commit, 0, Some(3), lost.clone());
    let version = world.stored(&l1).await.version;
    let renewed = process.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!((world.presented(), process.proxy.struck()), (1, 5));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.generation, stored.standby().len()), (Status::Active, 2, 0));
    process.proxy.once(Call::Release, lost.clone());
    world.market.fault(
        sandbox::marketplace::faults::Endpoint::Refresh,
        sandbox::marketplace::faults::Fault::throttled(),
        Some(1),
    );
    let throttled = process.refresher.refresh(&l1, stored.version, Why::Due, world.deadline()).await;
    assert!(matches!(throttled, Refreshed::Failed(TokenError::Paced { .. })), "{throttled:?}");
    assert_eq!((world.status(&l1).await, process.proxy.struck()), (Status::Active, 6));
    world.advance(Duration::from_secs(63));
    // All answers to a claim are lost: no request is sent to the platform, and the lease expires by itself.
    process.proxy.fault(Call::Claim, 0, Some(3), lost.clone());
    let unknown = process.refresher.refresh(&l1, stored.version, Why::Due, world.deadline()).await;
    assert!(matches!(unknown, Refreshed::Failed(TokenError::Store(_))), "{unknown:?}");
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Refreshing, 2));
    world.advance(LEASE);
    let renewed = process.refresher.refresh(&l1, stored.version, Why::Due, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    process.proxy.once(Call::Uninstall, lost);
    let at = world.clock.now();
    let done = process.installations.uninstall(&l1, at).await.expect("a table");
    assert_eq!(done, shared::install::Uninstalled::Done);
    assert_eq!((world.stored(&l1).await.version.epoch, process.proxy.struck()), (2, 10));
    world.market.uninstall(&it::world::grantee(&l1));
    world.end().await;
}
