//! The table fails after the platform has answered: the pair goes to the rescue queue, and from the queue into the
//! table.

use std::time::{Duration, Instant};

use it::proxy::{Call, Fault, STALL};
use it::world::{HOME, Process, World, grantee, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault as PlatformFault};
use sandbox::marketplace::grants::RefreshTokenState;
use serde_json::json;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::install::{InstallError, Uninstalled};
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    a_pair_that_cannot_be_stored_is_rescued_and_its_caller_served,
    a_rescued_pair_is_dropped_after_a_newer_install,
    a_refusal_does_not_mark_while_a_pair_is_on_the_queue,
    a_batch_reports_only_the_messages_that_cannot_be_stored,
    a_table_that_hangs_leaves_time_for_the_queue,
    without_table_and_queue_the_pair_is_offered_to_both_until_the_deadline,
    an_install_that_cannot_be_stored_is_rescued,
    an_install_into_a_table_that_hangs_is_rescued_in_time,
    a_rescued_install_does_not_outlive_an_uninstall,
);

/// Refreshes while the table accepts no commit. The refresher retries until the last seconds of its lease.
async fn refresh_without_commits(world: &World, process: &Process, resource: &Resource, fault: Fault) -> Refreshed {
    let presented = world.presented();
    process.proxy.always(Call::Commit, fault);
    world.market.fault(Endpoint::Refresh, PlatformFault::Late { millis: 300 }, Some(1));
    let version = world.stored(resource).await.version;
    let time = async {
        until("the token is presented", async || world.presented() > presented).await;
        world.advance(LEASE.saturating_sub(Duration::from_secs(2)));
    };
    let refreshed = process.refresher.refresh(resource, version, Why::Due, world.deadline());
    tokio::join!(refreshed, time).0
}

async fn a_pair_that_cannot_be_stored_is_rescued_and_its_caller_served(world: World) {
    let l1 = location("L1");
    let (process, other) = (world.process().await, world.process().await);
    world.install(&process, &l1).await;
    let served = refresh_without_commits(&world, &process, &l1, Fault::Unavailable).await;
    let Refreshed::Renewed(access) = served else { panic!("{served:?}") };
    assert!(world.market.takes_access_token(access.token.expose()));
    assert_eq!((world.status(&l1).await, world.queue.sent()), (Status::Refreshing, 1));
    // The table of the rescuing process is still down, so the queue delivers the message again.
    let message = world.queue.messages().remove(0).id;
    process.proxy.always(Call::Store, Fault::Unavailable);
    let failed = world.refresh(&process, world.rescued()).await;
    assert_eq!(failed, json!({ "batchItemFailures": [{ "itemIdentifier": message }] }));
    for _ in 0..2 {
        let stored = world.refresh(&other, world.rescued()).await;
        assert_eq!(stored, json!({ "batchItemFailures": [] }), "also when it comes twice");
        let stored = world.stored(&l1).await;
        assert_eq!((stored.status(), stored.version.generation), (Status::Active, 2));
        assert_eq!((stored.standby().len(), world.presented()), (0, 1));
    }
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    let read = other.tokens.access(&l1, world.deadline()).await.expect("a token");
    assert_eq!(read.token.expose(), access.token.expose());
    world.end().await;
}

async fn a_rescued_pair_is_dropped_after_a_newer_install(world: World) {
    let l1 = location("L1");
    let (process, other) = (world.process().await, world.process().await);
    world.install(&process, &l1).await;
    let served = refresh_without_commits(&world, &process, &l1, Fault::Unavailable).await;
    assert!(matches!(served, Refreshed::Renewed(_)), "{served:?}");
    world.advance(Duration::from_mins(1));
    world.install(&other, &l1).await;
    let installed = world.stored(&l1).await;
    let dropped = world.refresh(&other, world.rescued()).await;
    assert_eq!(dropped, json!({ "batchItemFailures": [] }));
    assert_eq!(world.stored(&l1).await, installed);
    world.end().await;
}

async fn a_refusal_does_not_mark_while_a_pair_is_on_the_queue(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let (process, other) = (world.process().await, world.teller().await);
    world.install(&process, &l1).await;
    world.install(&process, &l2).await;
    let served = refresh_without_commits(&world, &process, &l1, Fault::Unavailable).await;
    assert!(matches!(served, Refreshed::Renewed(_)), "{served:?}");
    // The table recovers before the queue delivers the message, and the grace period is over. A queue that does not
    // answer does not prove that no pair waits there.
    world.market.uninstall(&grantee(&l2));
    for silent in [false, true] {
        if silent {
            other.proxy.always(Call::Queue, Fault::AccessDenied);
        }
        world.advance(Duration::from_mins(1));
        for resource in [&l1, &l2] {
            let version = world.stored(resource).await.version;
            let refused = other.refresher.refresh(resource, version, Why::Due, world.deadline()).await;
            assert!(matches!(refused, Refreshed::Failed(TokenError::InProgress { .. })), "{refused:?}");
            assert_eq!(world.status(resource).await, Status::Uncertain);
        }
    }
    assert_eq!(world.event_bridge.events(), [], "nobody is told to install again");
    other.proxy.heal();
    world.refresh(&other, world.rescued()).await;
    world.queue.purge();
    assert_eq!(world.status(&l1).await, Status::Active);
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.advance(Duration::from_mins(2));
    world.refresh(&other, json!({})).await;
    assert_eq!(world.status(&l2).await, Status::NeedsReauthorization, "the one that is really dead");
    world.end().await;
}

async fn a_batch_reports_only_the_messages_that_cannot_be_stored(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let (process, other) = (world.process().await, world.process().await);
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
        let served = refresh_without_commits(&world, &process, resource, Fault::Unavailable).await;
        assert!(matches!(served, Refreshed::Renewed(_)), "{served:?}");
    }
    let [first, second] = &world.queue.messages()[..] else { panic!("two messages") };
    let records = json!({ "Records": [
        { "messageId": "garbage", "body": "{}" },
        { "messageId": first.id, "body": first.body },
        { "messageId": "moved", "body": first.body.replace("L1", "L2") },
        { "messageId": second.id, "body": second.body },
    ]});
    let answer = world.refresh(&other, records).await;
    let failed = json!({ "batchItemFailures": [{ "itemIdentifier": "garbage" }, { "itemIdentifier": "moved" }] });
    assert_eq!(answer, failed);
    for resource in [&l1, &l2] {
        let stored = world.stored(resource).await;
        assert_eq!((stored.status(), stored.version.generation), (Status::Active, 2));
    }
    world.end().await;
}

async fn a_table_that_hangs_leaves_time_for_the_queue(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let before = Instant::now();
    let served = refresh_without_commits(&world, &process, &l1, Fault::Stall { applied: false }).await;
    assert!(matches!(served, Refreshed::Renewed(_)), "{served:?}");
    assert_eq!(world.queue.sent(), 1);
    assert!(before.elapsed() < STALL, "it does not wait for the table to answer: {:?}", before.elapsed());
    world.end().await;
}

async fn without_table_and_queue_the_pair_is_offered_to_both_until_the_deadline(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    process.proxy.always(Call::Queue, Fault::AccessDenied);
    let story = async {
        until("the queue is tried", async || process.proxy.calls(Call::Queue) > 0).await;
        process.proxy.heal();
    };
    let (served, ()) = tokio::join!(refresh_without_commits(&world, &process, &l1, Fault::Unavailable), story);
    assert!(matches!(served, Refreshed::Renewed(_)), "{served:?}");
    assert_eq!((world.queue.sent(), world.stored(&l1).await.version.generation), (0, 2));
    world.end().await;
}

async fn an_install_that_cannot_be_stored_is_rescued(world: World) {
    let l1 = location("L1");
    let (process, other) = (world.process().await, world.process().await);
    process.proxy.always(Call::Install, Fault::Throttled);
    let started = world.clock.now();
    let grant = world.consent(&process, &l1).await;
    let rescued = process.installations.install(&grant, started, HOME).await;
    assert!(matches!(rescued, Err(InstallError::Rescued)), "{rescued:?}");
    assert_eq!(world.refresh(&other, world.rescued()).await, json!({ "batchItemFailures": [] }));
    other.tokens.access(&l1, world.deadline()).await.expect("a token");
    world.end().await;
}

async fn an_install_into_a_table_that_hangs_is_rescued_in_time(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    let started = world.clock.now();
    let grant = world.consent(&process, &l1).await;
    process.proxy.always(Call::Store, Fault::Stall { applied: false });
    let before = Instant::now();
    let rescued = process.installations.install(&grant, started, HOME).await;
    assert!(matches!(rescued, Err(InstallError::Rescued)), "{rescued:?}");
    // API Gateway waits 29 s for the callback function.
    assert!(before.elapsed() < Duration::from_secs(29), "{:?}", before.elapsed());
    world.end().await;
}

async fn a_rescued_install_does_not_outlive_an_uninstall(world: World) {
    let l1 = location("L1");
    let (process, other) = (world.process().await, world.process().await);
    world.install(&other, &l1).await;
    world.advance(Duration::from_secs(10));
    process.proxy.always(Call::Install, Fault::Throttled);
    let started = world.clock.now();
    let grant = world.consent(&process, &l1).await;
    let rescued = process.installations.install(&grant, started, HOME).await;
    assert!(matches!(rescued, Err(InstallError::Rescued)), "{rescued:?}");
    world.advance(Duration::from_secs(10));
    world.market.uninstall(&grantee(&l1));
    assert_eq!(other.installations.uninstall(&l1, world.clock.now()).await.expect("a table"), Uninstalled::Done);
    world.advance(Duration::from_secs(10));
    assert_eq!(world.refresh(&other, world.rescued()).await, json!({ "batchItemFailures": [] }));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.access(), stored.standby().len()), (Status::Revoked, None, 0));
    world.end().await;
}
