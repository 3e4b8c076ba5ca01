//! What the platform says, heard by one process and binding all.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use it::dynamo::Engine;
use shared::domain::clock::Clock;
use shared::domain::limits::{Endpoint, Limits};
use shared::limiter::LimitKind;

use crate::{START, TEN_SECONDS, counters, headers, location, process, refused};

pub(crate) async fn limits_observed_by_one_process_apply_to_all(engine: &Engine) {
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

pub(crate) async fn a_429_closes_the_resource_for_all_processes(engine: &Engine) {
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

pub(crate) async fn a_429_with_requests_left_closes_its_endpoint_for_all_processes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..3).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    let to = |path| Endpoint::of(&resource, path);
    for (quota, _) in &processes {
        quota.take(to("/contacts/"), None).await.expect("free");
    }
    let room = headers(&[("x-ratelimit-remaining", "80"), ("retry-after", "60")]);
    let before = processes[0].1.count();
    for _ in 0..20 {
        let heard = processes[0].0.observe(to("/contacts/search?x=1"), StatusCode::TOO_MANY_REQUESTS, &room);
        heard.await.expect("closed");
    }
    assert_eq!(processes[0].1.count(), before + 1, "a volley of refusals is one write");
    let until = START + Duration::from_mins(1);
    let new = process(engine, &table, &clock, TEN_SECONDS);
    for (quota, calls) in processes.iter().chain([&new]) {
        // In one batch with requests to other endpoints, of a process that has not heard of it.
        let (closed, open) =
            tokio::join!(quota.take(to("/contacts/1"), None), quota.take(to("/calendars/events"), None));
        let refusal = refused(closed);
        assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Endpoint, until));
        assert!(refusal.usage.burst.remaining > 80, "the resource has room");
        open.expect("another endpoint");
        let before = calls.count();
        for path in ["/opportunities/search", "/", "/contact"] {
            quota.take(to(path), None).await.expect("another endpoint");
        }
        quota.take(&resource, None).await.expect("no endpoint in particular");
        assert_eq!(calls.count(), before + 4, "one call each");
        assert_eq!(refused(quota.take(to("/contacts"), Some(until - Duration::from_millis(1))).await).retry_at, until);
        assert_eq!((quota.opens_at(to("/contacts/")), quota.opens_at(&resource)), (Some(until), None));
        assert_eq!(calls.count(), before + 4, "a known refusal costs nothing");
    }
    // However long ago a process has looked: nobody opens an endpoint before its time.
    let waiting = async {
        let waited = processes[1].0.take(to("/contacts/"), Some(until + Duration::from_secs(1))).await;
        (waited, clock.now())
    };
    let others = async {
        clock.advance(Duration::from_millis(59_999));
        for (quota, _) in &processes {
            refused(quota.take(to("/contacts/"), None).await);
            quota.take(to("/calendars/"), None).await.expect("another endpoint");
        }
        clock.advance(Duration::from_millis(1));
    };
    let ((waited, at), ()) = tokio::join!(waiting, others);
    waited.expect("open again");
    assert_eq!(at, until, "a caller that says that it waits is not refused");
    for (quota, _) in &processes {
        quota.take(to("/contacts/"), None).await.expect("open again");
    }
    assert!(!counters(&table).await.contains_key("closed_endpoints"), "what is over is forgotten");

    // Without an endpoint, or without a word about room, it is the resource's.
    processes[0].0.observe(&resource, StatusCode::TOO_MANY_REQUESTS, &room).await.expect("closed");
    for (quota, _) in &processes {
        assert_eq!(refused(quota.take(to("/calendars/"), None).await).limit, LimitKind::Burst);
    }
}

pub(crate) async fn a_used_up_day_without_a_known_end_closes_for_fifteen_minutes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    for (quota, _) in &processes {
        quota.take(&resource, None).await.expect("free");
    }
    let left = |left: &str| headers(&[("x-ratelimit-daily-remaining", left), ("x-ratelimit-limit-daily", "200000")]);
    for (status, quarter) in [(StatusCode::OK, 1), (StatusCode::TOO_MANY_REQUESTS, 2), (StatusCode::NOT_FOUND, 3)] {
        processes[0].0.observe(&resource, status, &left("1")).await.expect("nothing to learn");
        let before = processes[0].1.count();
        for _ in 0..20 {
            processes[0].0.observe(&resource, status, &left("0")).await.expect("closed");
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(processes[0].1.count(), before + 1, "a volley is one write");
        let until = START + Duration::from_mins(15) * quarter;
        for (quota, _) in &processes {
            let refusal = refused(quota.take(&resource, None).await);
            assert_eq!((refusal.limit, refusal.retry_at, refusal.usage.daily.remaining), (LimitKind::Daily, until, 0));
        }
        clock.advance((until - Duration::from_millis(1)).since(clock.now()));
        refused(processes[1].0.take(&resource, None).await);
        clock.advance(Duration::from_millis(1));
        // One request may try. The others wait for an interval, in which its answer comes.
        let new = process(engine, &table, &clock, TEN_SECONDS).0;
        let usage = new.take(&resource, None).await.expect("it may try").usage;
        assert!(usage.daily.remaining > 199_000, "what was counted is ours only");
        let opens = until + Duration::from_millis(10_700);
        for quota in [&new, &processes[0].0, &processes[1].0] {
            let refusal = refused(quota.take(&resource, None).await);
            assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Burst, opens));
        }
        if quarter == 3 {
            clock.advance(opens.since(clock.now()));
            for (quota, _) in &processes {
                quota.take(&resource, None).await.expect("nothing was heard: open again");
            }
        }
    }
}

pub(crate) async fn requests_of_a_day_are_counted_until_the_day_ends(engine: &Engine) {
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
