//! Permits within both limits, across processes, and their cost in calls.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use http::StatusCode;
use it::dynamo::Engine;
use it::world::until;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::limiter::{LimitKind, LimiterError};
use shared::table::Table;

use crate::{START, TEN_SECONDS, counters, headers, location, most_in_any, process, refused, report};

pub(crate) async fn a_process_that_used_the_whole_limit_refuses_without_a_call(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    for taken in 1..=100 {
        let permit = limiter.take(&resource, None).await.expect("free");
        assert_eq!((permit.usage.burst.remaining, permit.usage.daily.remaining), (100 - taken, 200_000 - taken));
        assert_eq!(permit.send_by, Millis(clock.now().0 / 125 * 125 + 250));
        clock.advance(Duration::from_millis(10));
    }
    assert_eq!(calls.count(), 101, "the first one fails because there is no item; then one for each permit");

    let refusal = refused(limiter.take(&resource, None).await);
    assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Burst, START + Duration::from_millis(10_550)));
    for _ in 0..50 {
        assert_eq!(refused(limiter.take(&resource, Some(refusal.retry_at - Duration::from_millis(1))).await), refusal);
    }
    assert_eq!(calls.count(), 101, "a refusal by the snapshot costs no call");

    let other = process(engine, &table, &clock, TEN_SECONDS).0;
    assert_eq!(refused(other.take(&resource, None).await).retry_at, refusal.retry_at, "another process says the same");
    clock.advance((refusal.retry_at - Duration::from_millis(1)).since(clock.now()));
    refused(other.take(&resource, None).await);
    refused(limiter.take(&resource, None).await);
    clock.advance(Duration::from_millis(1));
    for _ in 0..13 {
        limiter.take(&resource, None).await.expect("thirteen were taken in the first slot");
    }
    refused(limiter.take(&resource, None).await);
    let usage = other.usage(&resource).await.expect("a read");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (0, 199_887));
}

/// Four processes with twelve callers each take all permits that they can get, without knowledge of each other. The
/// clock stands still meanwhile, and then moves on by 50 ms.
pub(crate) async fn several_processes_admit_the_whole_limit_and_no_more(engine: &Engine) {
    let limits = Limits { burst: 40, interval: Duration::from_secs(5), daily: 200_000 };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, limits)).collect();
    let mut sent = Vec::new();
    // A permit counts for less than 5.4 s. So each third of this time has room for the whole limit once.
    for _ in 0..240 {
        let callers = processes.iter().cycle().take(48).map(|(limiter, _)| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.take(&location(), None).await })
        });
        let callers: Vec<_> = callers.collect();
        for caller in callers {
            match caller.await.expect("no panic") {
                Ok(_) => sent.push(clock.now().0),
                Err(LimiterError::Refused(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        clock.advance(Duration::from_millis(50));
    }
    let most = most_in_any(&sent, 5_000);
    let calls: Vec<_> = processes.iter().map(|(_, calls)| calls.count()).collect();
    report(&format!("pressure: {} of 120 admitted, calls {calls:?}, at most {most} in any 5 s", sent.len()));
    assert_eq!((most, sent.len()), (40, 120));
    // A process whose first write met no other process would need three writes for its three groups of permits.
    assert!(calls.iter().all(|&calls| calls >= 3), "each process took part: {calls:?}");
}

pub(crate) async fn an_admitted_request_costs_about_one_call(engine: &Engine) {
    for (name, gap, most) in [("sparse, 8/s", 125, 1.05), ("near the limit, 9.5/s", 105, 1.05)] {
        let (clock, table) = (Clock::manual(START), engine.table().await);
        let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
        let (mut admitted, mut refused) = (0_u32, 0_u32);
        for request in 0..600 {
            match processes[fastrand::usize(0..4)].0.take(&location(), None).await {
                Ok(_) => admitted += 1,
                Err(LimiterError::Refused(_)) => refused += 1,
                Err(error) => panic!("request {request}: {error}"),
            }
            clock.advance(Duration::from_millis(gap));
        }
        let calls: usize = processes.iter().map(|(_, calls)| calls.count()).sum();
        let ratio = f64::from(u32::try_from(calls).expect("few")) / f64::from(admitted);
        report(&format!("{name} over 4 processes: {ratio:.3} calls per admitted, {refused} of 600 refused"));
        assert!(ratio <= most, "{name}: {ratio:.3}");
        assert!(refused <= 12, "{name}: {refused} refused");
    }
}

pub(crate) async fn a_steady_process_takes_permits_ahead_of_need(engine: &Engine) {
    let limits = Limits { burst: 1_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, limits);
    let resource = location();
    let steadily = async |requests: u32| {
        let mut remaining = Vec::new();
        for _ in 0..requests {
            let permit = limiter.take(&resource, None).await.expect("free");
            assert!(clock.now() <= permit.send_by && permit.send_by <= clock.now() + Duration::from_secs(1));
            remaining.push(permit.usage.daily.remaining);
            clock.advance(Duration::from_millis(80));
        }
        remaining
    };
    let remaining = steadily(200).await;
    let writes = calls.count();
    report(&format!("200 calls of one process at 12.5/s: {writes} writes"));
    assert!(writes <= 50, "{writes} writes");
    // The count that each caller sees falls by one, as if each had made a write.
    assert_eq!(remaining, (0..200).map(|taken| 199_999 - taken).collect::<Vec<_>>());

    // Permits that are not used within a second lapse.
    clock.advance(Duration::from_secs(2));
    let last = limiter.take(&resource, None).await.expect("free").usage.daily.remaining;
    assert!((199_999 - 200 - 20..199_999 - 200).contains(&last), "{last}");
}

/// A process whose requests take permits ahead of need while they are on their way makes no caller wait for a write.
pub(crate) async fn no_caller_of_a_steady_process_waits_for_a_write(engine: &Engine) {
    let limits = Limits { burst: 1_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, limits);
    let resource = location();
    let mut remaining = Vec::new();
    let mut waited = 0;
    for request in 0..200 {
        let before = calls.count();
        let permit = limiter.take(&resource, None).await.expect("free");
        assert!(clock.now() <= permit.send_by && permit.send_by <= clock.now() + Duration::from_secs(1));
        // The demand is known after the first two seconds.
        waited += if request < 25 { 0 } else { calls.count() - before };
        remaining.push(permit.usage.daily.remaining);
        limiter.take_ahead(&resource).await;
        clock.advance(Duration::from_millis(80));
    }
    let writes = calls.count();
    report(&format!("200 calls of one process at 12.5/s: {writes} writes, and {waited} calls waited for one"));
    assert!(waited == 0 && writes <= 50, "{waited} calls waited, {writes} writes");
    assert_eq!(remaining, (0..200).map(|taken| 199_999 - taken).collect::<Vec<_>>());
}

/// Writes that take permits ahead of need, and that are given up, are counted. That costs credit.
pub(crate) async fn writes_ahead_of_need_that_are_given_up_lose_few_permits(engine: &Engine) {
    let limits = Limits { burst: 10_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, limits);
    let (observer, resource) = (process(engine, &table, &clock, limits).0, location());
    let left = async || observer.usage(&resource).await.expect("a read").daily.remaining;
    let (requests, mut given_up) = (600, 0);
    for _ in 0..requests {
        limiter.take(&resource, None).await.expect("free");
        let before = (calls.count(), left().await);
        let sent = async {
            while calls.count() == before.0 {
                tokio::task::yield_now().await;
            }
            // The request is written to its connection by another task.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        };
        {
            let mut running = std::pin::pin!(limiter.take_ahead(&resource));
            let is_given_up = tokio::select! {
                biased;
                () = &mut running => false,
                () = sent => true,
            };
            if is_given_up {
                given_up += 1;
                // The write is applied, and its answer is not awaited.
                while left().await == before.1 {}
            }
        }
        clock.advance(Duration::from_millis(80));
    }
    let lapsed = 200_000 - left().await - requests;
    report(&format!("{given_up} writes were given up: {lapsed} permits that were taken ahead have lapsed"));
    assert!(given_up > 0 && lapsed > 0, "{given_up} given up, {lapsed} lapsed");
    assert!(lapsed <= limits.burst / 50 + requests / 50, "{lapsed} lapsed");
}

/// A write whose answer comes too late counts its permits for nothing. That costs credit, and nothing is taken ahead by
/// the write that follows, because its slot lies far ahead.
pub(crate) async fn late_writes_lose_few_permits(engine: &Engine) {
    let limits = Limits { burst: 10_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, limits);
    let resource = location();
    let (rounds, steady) = (40, 13);
    for _ in 0..rounds {
        for _ in 0..steady {
            limiter.take(&resource, None).await.expect("free");
            clock.advance(Duration::from_millis(80));
        }
        // The spare permits lapse. The process has called steadily in the second before.
        clock.advance(Duration::from_millis(900));
        let before = calls.count();
        // The first write is planned when both futures are polled for the second time, and before the clock moves.
        let late = async {
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(3));
        };
        let (permit, ()) = futures_util::future::join(limiter.take(&resource, None), late).await;
        assert!(permit.expect("free").send_by > clock.now() + Duration::from_secs(2));
        assert_eq!(calls.count(), before + 2, "one in vain, and one of a slot that lies ahead");
        limiter.take(&resource, None).await.expect("free");
        assert_eq!(calls.count(), before + 3, "no permit is spare");
        // The next round begins with a second, and after the slot that lies ahead.
        clock.advance(Duration::from_millis(4_060));
    }
    let used = rounds * (steady + 2);
    let left = limiter.usage(&resource).await.expect("a read").daily.remaining;
    let lapsed = 200_000 - left - used - rounds;
    report(&format!("{rounds} late writes: {lapsed} permits that were taken ahead have lapsed"));
    assert!((1..=limits.burst / 50 + used / 50).contains(&lapsed), "{lapsed}");
}

/// A process with spare permits hands out none of them after the platform has restricted the resource.
pub(crate) async fn no_spare_permit_is_handed_out_after_a_restriction(engine: &Engine) {
    let (ok, refusal) = (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
    let day = [("x-ratelimit-daily-remaining", "0"), ("x-ratelimit-daily-reset", "3600000")];
    for (name, status, stated) in [
        ("a 429", refusal, [("retry-after", "5")].as_slice()),
        ("a used-up day with a known end", ok, &day),
        ("a used-up day with an assumed end", ok, &day[..1]),
        ("a lower burst limit", ok, &[("x-ratelimit-max", "25")]),
        ("a lower daily limit", ok, &[("x-ratelimit-limit-daily", "20")]),
    ] {
        let limits = Limits { burst: 1_000, ..TEN_SECONDS };
        let (clock, table) = (Clock::manual(START), engine.table().await);
        let (limiter, calls) = process(engine, &table, &clock, limits);
        let resource = location();
        for _ in 0..60 {
            limiter.take(&resource, None).await.expect("free");
            clock.advance(Duration::from_millis(80));
        }
        let written = calls.count();
        while calls.count() == written {
            limiter.take(&resource, None).await.expect("free");
        }
        // The last write has taken spare permits.
        limiter.observe(&resource, clock.now(), status, &headers(stated)).await.expect("observed");
        let refusal = refused(limiter.take(&resource, None).await);
        assert!(refusal.retry_at > clock.now(), "{name}");
    }
}

pub(crate) async fn expired_permits_of_a_process_that_ended_cost_nothing(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let ended = process(engine, &table, &clock, TEN_SECONDS).0;
    let resource = location();
    for _ in 0..80 {
        ended.take(&resource, None).await.expect("free");
    }
    clock.advance(Duration::from_millis(200));
    limiter.take(&resource, None).await.expect("free");
    clock.advance(Duration::from_secs(11));
    let before = calls.count();
    for _ in 0..100 {
        limiter.take(&resource, None).await.expect("free");
    }
    assert_eq!(calls.count(), before + 100);
}

pub(crate) async fn a_batch_of_permits_takes_few_writes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let (resource, other) = (location(), process(engine, &table, &clock, TEN_SECONDS).0);
    other.take(&resource, None).await.expect("free");
    let answers = futures_util::future::join_all((0..150).map(|_| limiter.take(&resource, None))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 99);
    assert!(answers.into_iter().filter_map(Result::err).all(|e| matches!(e, LimiterError::Refused(_))));
    assert!(calls.count() <= 5, "{} calls", calls.count());
}

pub(crate) async fn a_cancelled_wait_takes_no_permit(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    let all = futures_util::future::join_all((0..100).map(|_| limiter.take(&resource, None))).await;
    assert!(all.iter().all(Result::is_ok));
    let mut waiting: Vec<_> =
        (0..6).map(|_| Box::pin(limiter.take(&resource, Some(START + Duration::from_mins(1))))).collect();
    for one in &mut waiting {
        assert!(tokio::time::timeout(Duration::from_millis(20), one).await.is_err(), "it waits");
    }
    let before = calls.count();
    drop(waiting);
    clock.advance(Duration::from_secs(11));
    // The pause is longer than a batcher's longest sleep. A batcher that served cancelled waiters would take permits
    // for them.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(calls.count(), before, "without waiters there are no calls");
    let all = futures_util::future::join_all((0..100).map(|_| limiter.take(&resource, None))).await;
    assert!(all.iter().all(Result::is_ok));
}

pub(crate) async fn waiters_are_served_in_order(engine: &Engine) {
    let limits = Limits { burst: 2, interval: Duration::from_secs(4), daily: 200_000 };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let limiter = process(engine, &table, &clock, limits).0;
    let resource = location();
    let served = std::sync::Mutex::new(Vec::new());
    let count = || served.lock().expect("no panic").len();
    // Two are served at once and two after each interval. The third interval ends too late for the others.
    let end = START + Duration::from_secs(12);
    let waiters = (0..12).map(|number| {
        let (limiter, resource, served) = (&limiter, &resource, &served);
        async move {
            let answer = limiter.take(resource, Some(end)).await;
            if answer.is_ok() {
                served.lock().expect("no panic").push(number);
            }
            answer
        }
    });
    let time = async {
        for two in 1..=2 {
            until("two more are served", async || count() == 2 * two).await;
            // A request of another process. The refusal promises no place behind the waiters.
            let other = process(engine, &table, &clock, limits).0;
            let next = refused(other.take(&resource, None).await).retry_at;
            clock.advance(next.since(clock.now()));
        }
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(waiters), time);
    assert_eq!(*served.lock().expect("no panic"), (0..6).collect::<Vec<_>>(), "first come, first served");
    for refusal in answers.into_iter().filter(Result::is_err).map(refused) {
        assert!(refusal.retry_at > end, "refused, although it could have waited");
    }
}

pub(crate) async fn a_large_burst_keeps_the_item_small(engine: &Engine) {
    let limits = Limits { burst: 5_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let warm = process(engine, &table, &clock, limits).0;
    let (mut largest, mut most_slots, mut taken) = (0, 0, 0);
    for step in 0..300 {
        // First one process that has a snapshot, then several processes that have none.
        let is_warm = step < 120 || step % 60 == 0;
        let limiter = if is_warm { warm.clone() } else { process(engine, &table, &clock, limits).0 };
        let several = if step < 120 { 12 } else { 1 };
        let takes = (0..several).map(async |_| limiter.take(&location(), None).await);
        for permit in futures_util::future::join_all(takes).await {
            permit.expect("free");
            taken += 1;
        }
        let item = counters(&table).await;
        let slots = item["slots"].as_m().expect("a map");
        let sum: i64 = slots.values().filter_map(|count| count.as_n().ok()?.parse::<i64>().ok()).sum();
        assert_eq!(item["counted"], AttributeValue::N(sum.to_string()), "the sum is that of the slots");
        let bytes: usize = item.iter().map(|(name, value)| name.len() + size(value)).sum();
        (largest, most_slots) = (bytes.max(largest), slots.len().max(most_slots));
        clock.advance(Duration::from_millis(125));
    }
    report(&format!("{most_slots} slots, {largest} bytes at most"));
    assert!(
        (121..=130).contains(&most_slots) && (700..1_024).contains(&largest),
        "{most_slots} slots, {largest} bytes"
    );
    let lapsed = 200_000 - taken - warm.usage(&location()).await.expect("a read").daily.remaining;
    assert!(lapsed <= limits.burst / 50 + taken / 50, "{lapsed} permits that were taken ahead of need have lapsed");
}

pub(crate) async fn without_the_store_every_permit_is_refused(engine: &Engine) {
    let clock = Clock::manual(START);
    let missing = Table { name: "no-such-table".into(), ..engine.table().await };
    let limiter = process(engine, &missing, &clock, TEN_SECONDS).0;
    let answers = futures_util::future::join_all((0..5).map(|_| async { limiter.take(&location(), None).await })).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(LimiterError::Store(_)))), "{answers:?}");
}

/// Bytes of an attribute's value, by the rules of "DynamoDB item sizes and formats" in the developer guide.
fn size(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::N(digits) => digits.len().div_ceil(2) + 1,
        AttributeValue::S(text) => text.len(),
        AttributeValue::M(map) => 3 + map.iter().map(|(name, value)| name.len() + size(value) + 1).sum::<usize>(),
        AttributeValue::Bool(_) => 1,
        other => panic!("{other:?} in the counters"),
    }
}

pub(crate) async fn counters_that_were_restored_from_a_backup_are_used(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    limiter.take(&location(), None).await.expect("free");
    let backup = counters(&table).await;
    // The platform states another limit, so the item is of a later revision than the backup.
    let lower = headers(&[("x-ratelimit-max", "50")]);
    limiter.observe(&location(), clock.now(), StatusCode::OK, &lower).await.expect("observed");
    limiter.take(&location(), None).await.expect("free");
    table.client.put_item().table_name(&*table.name).set_item(Some(backup)).send().await.expect("restored");
    let before = calls.count();
    let permit = limiter.take(&location(), None).await.expect("free");
    assert_eq!(permit.usage.burst.limit, 100, "the limit of the backup");
    assert!(calls.count() - before < 10, "{} calls", calls.count() - before);
    limiter.take(&location(), None).await.expect("free");
}
