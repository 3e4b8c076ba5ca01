//! What the platform says, heard by one process and binding all.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use it::dynamo::Engine;
use shared::clock::Clock;
use shared::quota::{LimitKind, Limits};

use crate::{START, TEN_SECONDS, headers, location, process, refused};

pub(crate) async fn what_one_learns_binds_all(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (first, first_calls) = process(engine, &table, &clock, TEN_SECONDS);
    let (warm, _) = process(engine, &table, &clock, TEN_SECONDS);
    let (cold, _) = process(engine, &table, &clock, TEN_SECONDS);
    let (idle, _) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    first.take(&resource, None).await.expect("free");
    idle.take(&resource, None).await.expect("free");
    warm.take(&resource, None).await.expect("free");
    let lower = headers(&[("x-ratelimit-max", "25"), ("x-ratelimit-limit-daily", "10000")]);
    let before = first_calls.count();
    let answers = (0..30).map(|_| first.observe(&resource, StatusCode::OK, &lower));
    for answer in futures_util::future::join_all(answers).await {
        answer.expect("learnt");
    }
    assert_eq!(first_calls.count(), before + 1, "a volley of equal answers is one write");
    for left in (13..=21).rev() {
        assert_eq!(warm.take(&resource, None).await.expect("free").usage.burst.remaining, left);
    }
    for left in (0..=12).rev() {
        assert_eq!(cold.take(&resource, None).await.expect("free").usage.burst.remaining, left);
    }
    let new = process(engine, &table, &clock, TEN_SECONDS).0;
    for quota in [&first, &warm, &cold, &idle, &new] {
        refused(quota.take(&resource, None).await);
    }
    assert_eq!(cold.usage(&resource).await.expect("a read").daily.limit, 10_000);

    first.observe(&resource, StatusCode::OK, &headers(&[("x-ratelimit-max", "26")])).await.expect("learnt");
    first.take(&resource, None).await.expect("a raised limit frees at once");
}

pub(crate) async fn a_longer_interval_is_adopted_by_all_without_losing_a_permit(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..6).map(|_| process(engine, &table, &clock, TEN_SECONDS).0).collect();
    let resource = location();
    let takes = || futures_util::future::join_all(processes.iter().map(|quota| quota.take(&resource, None)));
    assert!(takes().await.iter().all(Result::is_ok));
    let longer = headers(&[("x-ratelimit-interval-milliseconds", "20000")]);
    processes[0].observe(&resource, StatusCode::OK, &longer).await.expect("learnt");
    assert!(takes().await.iter().all(Result::is_ok), "all rewrite the slots, and each but one finds them rewritten");
    clock.advance(Duration::from_secs(12));
    let usage = processes[0].usage(&resource).await.expect("a read");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (88, 199_988), "held for the longer interval");
    clock.advance(Duration::from_millis(9_400));
    assert_eq!(processes[0].usage(&resource).await.expect("a read").burst.remaining, 100);
}

pub(crate) async fn a_429_closes_for_all(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..3).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    for (quota, _) in &processes[..2] {
        quota.take(&resource, None).await.expect("free");
    }
    let before = processes[0].1.count();
    for _ in 0..20 {
        processes[0].0.observe(&resource, StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new()).await.expect("closed");
    }
    assert_eq!(processes[0].1.count(), before + 1, "a volley of refusals is one write");
    let until = START + Duration::from_millis(10_700);
    for (quota, _) in &processes {
        let refusal = refused(quota.take(&resource, None).await);
        assert_eq!((refusal.limit, refusal.retry_at, refusal.usage.burst.remaining), (LimitKind::Burst, until, 0));
    }
    clock.advance(Duration::from_millis(10_699));
    for (quota, _) in &processes {
        refused(quota.take(&resource, None).await);
    }
    clock.advance(Duration::from_millis(1));
    for (quota, _) in &processes {
        quota.take(&resource, None).await.expect("open again");
    }
}

pub(crate) async fn the_day_is_counted_and_ends(engine: &Engine) {
    let limits = Limits { daily: 30, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, limits)).collect();
    let resource = location();
    for request in 0..20 {
        processes[request % 2].0.take(&resource, None).await.expect("free");
        clock.advance(Duration::from_secs(11));
    }
    // Somebody else has used seven, and the day ends in an hour.
    let theirs = headers(&[("x-ratelimit-daily-remaining", "3"), ("x-ratelimit-daily-reset", "3600000")]);
    let ends = clock.now() + Duration::from_hours(1);
    processes[0].0.observe(&resource, StatusCode::OK, &theirs).await.expect("learnt");
    let quota = &processes[1].0;
    for left in (0..3).rev() {
        let daily = quota.take(&resource, None).await.expect("free").usage.daily;
        assert_eq!((daily.remaining, daily.resets_at), (left, ends));
    }
    let before = processes[1].1.count();
    for _ in 0..10 {
        let refusal = refused(quota.take(&resource, None).await);
        assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Daily, ends));
    }
    assert_eq!(processes[1].1.count(), before, "known");
    clock.advance(Duration::from_millis(3_599_999));
    refused(quota.take(&resource, None).await);
    clock.advance(Duration::from_millis(1));
    let daily = quota.take(&resource, None).await.expect("a new day").usage.daily;
    assert_eq!((daily.remaining, daily.resets_at), (29, ends + Duration::from_hours(24)));
}
