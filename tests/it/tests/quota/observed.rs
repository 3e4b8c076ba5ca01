//! Limit updates: rate-limit headers that one process observes bind all processes.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use it::dynamo::Engine;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::{Endpoint, LimitPolicy, Limits};
use shared::domain::resource::Resource;
use shared::limiter::{LimitKind, Limiter, LimiterError};

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
    let answers = (0..30).map(|_| first.observe(&resource, clock.now(), StatusCode::OK, &lower));
    for answer in futures_util::future::join_all(answers).await {
        answer.expect("observed");
    }
    assert_eq!(first_calls.count(), before + 1, "many equal answers cause one write");
    for left in (13..=21).rev() {
        assert_eq!(warm.take(&resource, None).await.expect("free").usage.burst.remaining, left);
    }
    for left in (0..=12).rev() {
        assert_eq!(cold.take(&resource, None).await.expect("free").usage.burst.remaining, left);
    }
    let new = process(engine, &table, &clock, TEN_SECONDS).0;
    for limiter in [&first, &warm, &cold, &idle, &new] {
        refused(limiter.take(&resource, None).await);
    }
    assert_eq!(cold.usage(&resource).await.expect("a read").daily.limit, 10_000);

    clock.advance(Duration::from_secs(1));
    let higher = headers(&[("x-ratelimit-max", "26")]);
    first.observe(Endpoint::of(&resource, "/contacts/"), clock.now(), StatusCode::OK, &higher).await.expect("observed");
    refused(first.take(&resource, None).await);
    first
        .observe(Endpoint::of(&resource, "/calendars/"), clock.now(), StatusCode::OK, &higher)
        .await
        .expect("observed");
    first.take(&resource, None).await.expect("a raised limit frees at once");
}

/// The platform may raise the limits of a resource tenfold.
const RAISABLE: LimitPolicy = LimitPolicy {
    default: TEN_SECONDS,
    bounds: Limits { burst: 1_000, interval: Duration::from_secs(1), daily: 2_000_000 },
};

/// The answer of one endpoint to a request of `sent_at` states `burst`.
async fn state(limiter: &Limiter, resource: &Resource, path: &str, burst: &str, sent_at: Millis) {
    let headers = headers(&[
        ("x-ratelimit-max", burst),
        ("x-ratelimit-interval-milliseconds", "10000"),
        ("x-ratelimit-limit-daily", "200000"),
    ]);
    limiter.observe(Endpoint::of(resource, path), sent_at, StatusCode::OK, &headers).await.expect("observed");
}

/// The number of permits that `limiters` get for requests that come at once, 300 for each process.
async fn taken_at_once(limiters: &[Limiter], resource: &Resource) -> usize {
    let takes = limiters.iter().flat_map(|limiter| std::iter::repeat_n(limiter, 300));
    let answers = futures_util::future::join_all(takes.map(|limiter| limiter.take(resource, None))).await;
    answers
        .into_iter()
        .filter(|answer| {
            answer.as_ref().map_err(|error| assert!(matches!(error, LimiterError::Refused(_)), "{error}")).is_ok()
        })
        .count()
}

pub(crate) async fn a_limit_above_the_default_needs_two_endpoints_and_is_used_by_all_processes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let made: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, RAISABLE)).collect();
    let processes: Vec<_> = made.iter().map(|(limiter, _)| limiter.clone()).collect();
    let resource = location();
    assert_eq!(taken_at_once(&processes, &resource).await, 100);
    let calls = || made.iter().map(|(_, calls)| calls.count()).sum::<usize>();
    let before = calls();
    for _ in 0..20 {
        state(&processes[0], &resource, "/contacts/", "500", clock.now()).await;
        state(&processes[1], &resource, "/contacts/search", "500", clock.now()).await;
    }
    assert!((before + 1..=before + 2).contains(&calls()), "a proposal is written once");
    assert_eq!(taken_at_once(&processes, &resource).await, 0, "an endpoint may state a limit of its own");
    // The process that has seen no proposal yet.
    state(&processes[3], &resource, "/calendars/events", "500", clock.now()).await;
    assert_eq!(taken_at_once(&processes[3..], &resource).await, 300);
    // The others refuse by their snapshots until the permits in them expire.
    clock.advance(Duration::from_secs(11));
    assert_eq!(taken_at_once(&processes, &resource).await, 500);
    let raised = calls();
    for limiter in &processes {
        state(limiter, &resource, "/contacts/", "500", clock.now()).await;
    }
    assert_eq!(calls(), raised, "an answer that agrees costs nothing");
    assert_eq!(processes[2].usage(&resource).await.expect("a read").burst.limit, 500);

    // Lowered in the middle of the window: nothing more is sent until less than the new limit is live.
    clock.advance(Duration::from_secs(6));
    state(&processes[2], &resource, "/contacts/", "100", clock.now()).await;
    assert_eq!(taken_at_once(&processes, &resource).await, 0);
    clock.advance(Duration::from_millis(4_549));
    assert_eq!(taken_at_once(&processes, &resource).await, 0);
    // Permits of the first half of a limit of 200 or more are counted up to five slots later.
    clock.advance(Duration::from_millis(626));
    assert_eq!(taken_at_once(&processes, &resource).await, 100);
    assert!(!counters(&table).await.contains_key("observed"), "the default limits are not stored");
}

pub(crate) async fn a_limit_above_the_default_lapses_after_a_day_without_an_answer(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, RAISABLE).0).collect();
    let resource = location();
    processes[0].take(&resource, None).await.expect("free");
    let raise = async || {
        state(&processes[0], &resource, "/contacts/", "500", clock.now()).await;
        state(&processes[0], &resource, "/calendars/", "500", clock.now()).await;
    };
    raise().await;
    processes[1].take(&resource, None).await.expect("free");
    for _ in 0..4 {
        clock.advance(Duration::from_hours(23));
        state(&processes[0], &resource, "/contacts/", "500", clock.now()).await;
    }
    assert_eq!(taken_at_once(&processes, &resource).await, 500, "confirmed by each answer");
    clock.advance(Duration::from_hours(24) - Duration::from_millis(1));
    assert_eq!(taken_at_once(&processes, &resource).await, 500);
    clock.advance(Duration::from_secs(11));
    assert_eq!(taken_at_once(&processes, &resource).await, 100, "lapsed");
    assert_eq!(processes[1].usage(&resource).await.expect("a read").burst.limit, 100);
    clock.advance(Duration::from_hours(25));
    processes[0].take(&resource, None).await.expect("free");
    assert!(!counters(&table).await.contains_key("observed"), "dropped with the day");
    raise().await;
    assert_eq!(taken_at_once(&processes, &resource).await, 499);
}

pub(crate) async fn processes_that_disagree_at_once_leave_the_lower_limit(engine: &Engine) {
    let resource = location();
    for round in 0..20_i64 {
        let (clock, table) = (Clock::manual(START), engine.table().await);
        let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, RAISABLE).0).collect();
        for limiter in &processes {
            limiter.take(&resource, None).await.expect("free");
        }
        state(&processes[0], &resource, "/contacts/", "500", clock.now()).await;
        // Two answers agree on 500, and two others say 25, all at once.
        tokio::join!(
            state(&processes[0], &resource, "/calendars/", "500", clock.now()),
            state(&processes[1], &resource, "/contacts/", "25", clock.now()),
            state(&processes[2], &resource, "/calendars/", "500", clock.now()),
            state(&processes[3], &resource, "/opportunities/", "25", clock.now()),
        );
        let limit = processes[0].usage(&resource).await.expect("a read").burst.limit;
        // If the raise came first, it was lowered. If a lowering came first, nothing that was sent before it raises it.
        assert_eq!(limit, 25, "round {round}");
        let taken = taken_at_once(&processes, &resource).await;
        assert_eq!(taken, limit as usize - 4, "round {round}: all processes have the stored limit");
    }
}

/// Requests that left before a limit was lowered are answered after it, also at a process whose clock is ahead.
pub(crate) async fn answers_to_requests_from_before_a_lowering_do_not_raise_the_limit(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, RAISABLE)).collect();
    let [first, second] = [&processes[0].0, &processes[1].0];
    let resource = location();
    for limiter in [first, second] {
        limiter.take(&resource, None).await.expect("free");
    }
    state(first, &resource, "/contacts/", "500", clock.now()).await;
    let before = clock.now();
    clock.advance(Duration::from_secs(3));
    state(second, &resource, "/contacts/", "25", clock.now()).await;
    let lowered_at = clock.now();
    let calls = || processes.iter().map(|(_, calls)| calls.count()).sum::<usize>();
    let limit = async || first.usage(&resource).await.expect("a read").burst.limit;
    // The first process learns of the lower limit.
    first.take(&resource, None).await.expect("free");
    let written = calls();
    for sent_at in [before, lowered_at, lowered_at + Duration::from_millis(300)] {
        state(first, &resource, "/calendars/", "500", sent_at).await;
        state(second, &resource, "/opportunities/", "500", sent_at).await;
    }
    assert_eq!(calls(), written, "such an answer proposes nothing");
    assert_eq!(limit().await, 25);
    // Later answers raise the limit again. The proposal from before the lowering does not count.
    clock.advance(Duration::from_secs(2));
    let after = lowered_at + Duration::from_millis(301);
    state(first, &resource, "/calendars/", "500", after).await;
    assert_eq!(limit().await, 25);
    state(second, &resource, "/opportunities/", "500", after).await;
    assert_eq!(limit().await, 500);
}

pub(crate) async fn a_longer_interval_is_adopted_by_all_without_losing_a_permit(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..6).map(|_| process(engine, &table, &clock, TEN_SECONDS).0).collect();
    let resource = location();
    let takes = || futures_util::future::join_all(processes.iter().map(|limiter| limiter.take(&resource, None)));
    assert!(takes().await.iter().all(Result::is_ok));
    let longer = headers(&[("x-ratelimit-interval-milliseconds", "20000")]);
    processes[0].observe(&resource, clock.now(), StatusCode::OK, &longer).await.expect("observed");
    assert!(takes().await.iter().all(Result::is_ok), "each rewrites the slots, and all but one find them rewritten");
    clock.advance(Duration::from_secs(12));
    let usage = processes[0].usage(&resource).await.expect("a read");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (88, 199_988), "counted for the longer interval");
    clock.advance(Duration::from_millis(9_400));
    assert_eq!(processes[0].usage(&resource).await.expect("a read").burst.remaining, 100);
}

pub(crate) async fn a_429_closes_the_resource_for_all_processes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..3).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    for (limiter, _) in &processes[..2] {
        limiter.take(&resource, None).await.expect("free");
    }
    let before = processes[0].1.count();
    for _ in 0..20 {
        processes[0]
            .0
            .observe(&resource, clock.now(), StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new())
            .await
            .expect("closed");
    }
    assert_eq!(processes[0].1.count(), before + 1, "many refusals cause one write");
    let until = START + Duration::from_millis(10_550);
    for (limiter, _) in &processes {
        let refusal = refused(limiter.take(&resource, None).await);
        assert_eq!((refusal.limit, refusal.retry_at, refusal.usage.burst.remaining), (LimitKind::Burst, until, 0));
    }
    clock.advance(Duration::from_millis(10_549));
    for (limiter, _) in &processes {
        refused(limiter.take(&resource, None).await);
    }
    clock.advance(Duration::from_millis(1));
    for (limiter, _) in &processes {
        limiter.take(&resource, None).await.expect("open again");
    }
}

pub(crate) async fn a_429_with_requests_left_closes_its_endpoint_for_all_processes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..3).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    let to = |path| Endpoint::of(&resource, path);
    for (limiter, _) in &processes {
        limiter.take(to("/contacts/"), None).await.expect("free");
    }
    let room = headers(&[("x-ratelimit-remaining", "80"), ("retry-after", "60")]);
    let before = processes[0].1.count();
    for _ in 0..20 {
        let observed =
            processes[0].0.observe(to("/contacts/search?x=1"), clock.now(), StatusCode::TOO_MANY_REQUESTS, &room);
        observed.await.expect("closed");
    }
    assert_eq!(processes[0].1.count(), before + 1, "many refusals cause one write");
    let until = START + Duration::from_mins(1);
    let new = process(engine, &table, &clock, TEN_SECONDS);
    for (limiter, calls) in processes.iter().chain([&new]) {
        // One write serves requests to the closed endpoint and to another endpoint. The snapshot of the process has no
        // closure.
        let (closed, open) =
            tokio::join!(limiter.take(to("/contacts/1"), None), limiter.take(to("/calendars/events"), None));
        let refusal = refused(closed);
        assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Endpoint, until));
        assert!(refusal.usage.burst.remaining > 80, "the resource has room");
        open.expect("another endpoint");
        let before = calls.count();
        for path in ["/opportunities/search", "/", "/contact"] {
            limiter.take(to(path), None).await.expect("another endpoint");
        }
        limiter.take(&resource, None).await.expect("no endpoint in particular");
        assert_eq!(calls.count(), before + 4, "one call each");
        assert_eq!(
            refused(limiter.take(to("/contacts"), Some(until - Duration::from_millis(1))).await).retry_at,
            until
        );
        assert_eq!(
            (limiter.next_available_at(to("/contacts/")), limiter.next_available_at(&resource)),
            (Some(until), None)
        );
        assert_eq!(calls.count(), before + 4, "a refusal by the snapshot costs no call");
    }
    // A refusal by an old snapshot must hold, too: no process ends the closure of an endpoint early.
    let waiting = async {
        let waited = processes[1].0.take(to("/contacts/"), Some(until + Duration::from_secs(1))).await;
        (waited, clock.now())
    };
    let others = async {
        clock.advance(Duration::from_millis(59_999));
        for (limiter, _) in &processes {
            refused(limiter.take(to("/contacts/"), None).await);
            limiter.take(to("/calendars/"), None).await.expect("another endpoint");
        }
        clock.advance(Duration::from_millis(1));
    };
    let ((waited, at), ()) = tokio::join!(waiting, others);
    waited.expect("open again");
    assert_eq!(at, until, "a caller that waits is not refused");
    for (limiter, _) in &processes {
        limiter.take(to("/contacts/"), None).await.expect("open again");
    }
    assert!(!counters(&table).await.contains_key("closed_endpoints"), "ended closures are dropped");

    // A 429 to a request without an endpoint closes the resource.
    processes[0].0.observe(&resource, clock.now(), StatusCode::TOO_MANY_REQUESTS, &room).await.expect("closed");
    for (limiter, _) in &processes {
        assert_eq!(refused(limiter.take(to("/calendars/"), None).await).limit, LimitKind::Burst);
    }
}

pub(crate) async fn a_used_up_day_without_a_known_end_closes_for_fifteen_minutes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
    let resource = location();
    for (limiter, _) in &processes {
        limiter.take(&resource, None).await.expect("free");
    }
    let left = |left: &str| headers(&[("x-ratelimit-daily-remaining", left), ("x-ratelimit-limit-daily", "200000")]);
    for (status, quarter) in [(StatusCode::OK, 1), (StatusCode::TOO_MANY_REQUESTS, 2), (StatusCode::NOT_FOUND, 3)] {
        processes[0].0.observe(&resource, clock.now(), status, &left("1")).await.expect("nothing to observe");
        let before = processes[0].1.count();
        for _ in 0..20 {
            processes[0].0.observe(&resource, clock.now(), status, &left("0")).await.expect("closed");
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(processes[0].1.count(), before + 1, "many equal answers cause one write");
        let until = START + Duration::from_mins(15) * quarter;
        for (limiter, _) in &processes {
            let refusal = refused(limiter.take(&resource, None).await);
            assert_eq!((refusal.limit, refusal.retry_at, refusal.usage.daily.remaining), (LimitKind::Daily, until, 0));
        }
        clock.advance((until - Duration::from_millis(1)).since(clock.now()));
        refused(processes[1].0.take(&resource, None).await);
        clock.advance(Duration::from_millis(1));
        // One request probes the platform. The others wait for an interval, in which the answer to the probe arrives.
        let new = process(engine, &table, &clock, TEN_SECONDS).0;
        let usage = new.take(&resource, None).await.expect("it may try").usage;
        assert!(usage.daily.remaining > 199_000, "only our own requests are counted");
        let opens = until + Duration::from_millis(10_550);
        for limiter in [&new, &processes[0].0, &processes[1].0] {
            let refusal = refused(limiter.take(&resource, None).await);
            assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Burst, opens));
        }
        if quarter == 3 {
            clock.advance(opens.since(clock.now()));
            for (limiter, _) in &processes {
                limiter.take(&resource, None).await.expect("no closure was observed: open again");
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
    // Other users of the app have sent seven requests, and the day ends in an hour.
    let theirs = headers(&[("x-ratelimit-daily-remaining", "3"), ("x-ratelimit-daily-reset", "3600000")]);
    let ends = clock.now() + Duration::from_hours(1);
    processes[0].0.observe(&resource, clock.now(), StatusCode::OK, &theirs).await.expect("observed");
    let limiter = &processes[1].0;
    for left in (0..3).rev() {
        let daily = limiter.take(&resource, None).await.expect("free").usage.daily;
        assert_eq!((daily.remaining, daily.resets_at), (left, ends));
    }
    let before = processes[1].1.count();
    for _ in 0..10 {
        let refusal = refused(limiter.take(&resource, None).await);
        assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Daily, ends));
    }
    assert_eq!(processes[1].1.count(), before, "known");
    clock.advance(Duration::from_millis(3_599_999));
    refused(limiter.take(&resource, None).await);
    clock.advance(Duration::from_millis(1));
    let daily = limiter.take(&resource, None).await.expect("a new day").usage.daily;
    assert_eq!((daily.remaining, daily.resets_at), (29, ends + Duration::from_hours(24)));
}
