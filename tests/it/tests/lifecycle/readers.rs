//! Readers: the token that each reader receives, and the number of requests to the platform.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use it::world::{World, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault};
use shared::domain::status::Status;
use shared::table::Item;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    an_installed_token_can_be_read,
    fifty_readers_of_an_expired_token_make_one_post,
    twenty_refused_readers_find_the_newer_token_and_make_no_post,
    a_refused_token_forces_one_refresh_a_minute,
    a_forced_refresh_without_an_answer_is_repeated_by_the_next_caller,
    a_token_that_still_works_does_not_let_an_unanswered_refresh_wait,
    a_waiter_with_little_time_left_still_waits,
);

async fn an_installed_token_can_be_read(world: World) {
    let l1 = location("L1");
    let installer = world.process().await;
    world.install(&installer, &l1).await;
    let reader = world.process().await;
    let access = reader.tokens.access(&l1, world.deadline()).await.expect("a token");
    assert!(world.market.takes_access_token(access.token.expose()));
    assert_eq!((access.epoch, access.generation), (1, 1));
    // The positive control of the search for secrets at the end of every story.
    assert!(!world.tells(access.token.expose()).await);
    let nested =
        AttributeValue::M(Item::from([("b".into(), AttributeValue::B(access.token.expose().as_bytes().into()))]));
    world.put(Item::from([("pk".into(), AttributeValue::S("control".into())), ("deep".into(), nested)])).await;
    assert!(world.tells(access.token.expose()).await);
    world.delete("control").await;
    world.end().await;
}

async fn fifty_readers_of_an_expired_token_make_one_post(world: World) {
    let l1 = location("L1");
    let mut processes = Vec::new();
    for _ in 0..5 {
        processes.push(world.process().await);
    }
    world.install(&processes[0], &l1).await;
    world.expire();
    let deadline = world.deadline();
    let readers = (0..50).map(|n| processes[n % 5].tokens.access(&l1, deadline));
    for access in join_all(readers).await {
        let access = access.expect("a token");
        assert_eq!(access.generation, 2);
        assert!(world.market.takes_access_token(access.token.expose()));
    }
    assert_eq!(world.presented(), 1);
    world.end().await;
}

async fn twenty_refused_readers_find_the_newer_token_and_make_no_post(world: World) {
    let l1 = location("L1");
    let (one, other) = (world.process().await, world.process().await);
    world.install(&one, &l1).await;
    let used = one.tokens.access(&l1, world.deadline()).await.expect("a token");
    let newer = other.tokens.renew(&l1, &used, world.deadline()).await.expect("a forced refresh");
    assert_eq!((newer.generation, world.presented()), (2, 1));
    for access in join_all((0..20).map(|_| one.tokens.renew(&l1, &used, world.deadline()))).await {
        assert_eq!(access.expect("the stored one").generation, 2);
    }
    assert_eq!(world.presented(), 1);
    world.end().await;
}

async fn a_refused_token_forces_one_refresh_a_minute(world: World) {
    let l1 = location("L1");
    let processes = [world.process().await, world.process().await, world.process().await];
    world.install(&processes[0], &l1).await;
    let first = processes[0].tokens.access(&l1, world.deadline()).await.expect("a token");
    for access in join_all(processes.iter().map(|process| process.tokens.renew(&l1, &first, world.deadline()))).await {
        assert_eq!(access.expect("a newer token").generation, 2);
    }
    assert_eq!(world.presented(), 1, "three processes at once");
    let second = processes[0].tokens.access(&l1, world.deadline()).await.expect("a token");
    world.advance(Duration::from_secs(59));
    for process in &processes {
        let again = process.tokens.renew(&l1, &second, world.deadline()).await;
        assert!(matches!(again, Err(TokenError::RecentlyForced)), "{again:?}");
    }
    assert_eq!(world.presented(), 1, "a platform that refuses for ever");
    world.advance(Duration::from_secs(2));
    let third = processes[1].tokens.renew(&l1, &second, world.deadline()).await.expect("a minute later");
    assert_eq!((third.generation, world.presented()), (3, 2));
    world.end().await;
}

async fn a_forced_refresh_without_an_answer_is_repeated_by_the_next_caller(world: World) {
    let l1 = location("L1");
    let (one, other) = (world.process().await, world.process().await);
    world.install(&one, &l1).await;
    let used = one.tokens.access(&l1, world.deadline()).await.expect("a token");
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(2));
    let lost = one.tokens.renew(&l1, &used, world.deadline()).await;
    assert!(matches!(lost, Err(TokenError::InProgress { .. })), "{lost:?}");
    assert_eq!(world.status(&l1).await, Status::Uncertain);
    // The renewal must not wait for the minute between forced refreshes, since the platform's grace period ends after
    // 30 s.
    world.advance(Duration::from_secs(2));
    let access = other.tokens.renew(&l1, &used, world.deadline()).await.expect("the answer that was lost");
    assert_eq!((access.generation, world.presented()), (2, 3));
    world.end().await;
}

async fn a_token_that_still_works_does_not_let_an_unanswered_refresh_wait(world: World) {
    let l1 = location("L1");
    let (one, other) = (world.process().await, world.process().await);
    world.install(&one, &l1).await;
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(2));
    let version = world.stored(&l1).await.version;
    let lost = one.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(lost, Refreshed::Failed(_)), "{lost:?}");
    assert_eq!(world.status(&l1).await, Status::Uncertain);
    world.advance(Duration::from_secs(2));
    // The old access token is good for another day, but the grant only for another 28 seconds.
    let access = other.tokens.access(&l1, world.deadline()).await.expect("a token");
    assert!(world.market.takes_access_token(access.token.expose()));
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Active, 3));
    world.end().await;
}

async fn a_waiter_with_little_time_left_still_waits(world: World) {
    let l1 = location("L1");
    let (holder, waiter) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.expire();
    let commit = holder.proxy.hold(it::proxy::Call::Commit);
    let deadline = world.deadline();
    let soon = world.clock.now() + Duration::from_secs(5);
    let renewing = holder.tokens.access(&l1, deadline);
    let waiting = async {
        commit.reached().await;
        let waiting = waiter.tokens.access(&l1, soon);
        let opening = async {
            // The waiter is known to wait only after it has read the table.
            until("the waiter has looked", async || waiter.proxy.calls(it::proxy::Call::Read) > 0).await;
            commit.open();
        };
        tokio::join!(waiting, opening).0
    };
    let (renewed, waited) = tokio::join!(renewing, waiting);
    assert_eq!(renewed.expect("a token").generation, 2);
    assert_eq!(waited.expect("the holder's token").generation, 2);
    assert_eq!(world.presented(), 1);
    world.end().await;
}
