//! Permits within both limits, across processes, and their cost in calls.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::dynamo::Engine;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::limiter::{LimitKind, LimiterError};
use shared::table::Table;

use crate::{START, TEN_SECONDS, counters, location, most_in_any, process, refused, report};

pub(crate) async fn one_process_takes_all_and_is_refused_without_a_call(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (limiter, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    for taken in 1..=100 {
        let permit = limiter.take(&resource, None).await.expect("free");
        assert_eq!((permit.usage.burst.remaining, permit.usage.daily.remaining), (100 - taken, 200_000 - taken));
        assert_eq!(permit.send_by, Millis(clock.now().0 / 200 * 200 + 400));
        clock.advance(Duration::from_millis(10));
    }
    assert_eq!(calls.count(), 101, "the first one fails because there is no item; then one for each permit");

    let refusal = refused(limiter.take(&resource, None).await);
    assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Burst, START + Duration::from_millis(10_700)));
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
    for _ in 0..20 {
        limiter.take(&resource, None).await.expect("twenty were taken in the first slot");
    }
    refused(limiter.take(&resource, None).await);
    let usage = other.usage(&resource).await.expect("a read");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (0, 199_880));
}

/// The takers record the instants at which their requests could leave.
pub(crate) async fn several_processes_under_pressure(engine: &Engine) {
    let limits = Limits { burst: 40, interval: Duration::from_secs(5), daily: 200_000 };
    let (clock, table) = (Clock::system(), engine.table().await);
    let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, limits)).collect();
    // A permit is counted for 5.25 to 5.35 s, so three times forty fit, as many as in windows of exactly 5 s.
    let end = clock.now() + Duration::from_millis(11_200);
    let mut takers = Vec::new();
    for (limiter, _) in &processes {
        for taker in 0..12 {
            let (limiter, clock) = (limiter.clone(), clock.clone());
            takers.push(tokio::spawn(async move {
                let mut sent = Vec::new();
                loop {
                    // Half of them wait in the queue, half come back at `retry_at`.
                    match limiter.take(&location(), (taker % 2 == 0).then_some(end)).await {
                        Ok(permit) if clock.now() <= permit.send_by => sent.push(clock.now().0),
                        Ok(_) => {}
                        Err(LimiterError::Refused(refusal)) if refusal.retry_at < end => {
                            tokio::time::sleep(refusal.retry_at.since(clock.now())).await;
                        }
                        Err(LimiterError::Refused(_)) => return sent,
                        Err(error) => panic!("{error}"),
                    }
                }
            }));
        }
    }
    let mut sent = Vec::new();
    for taker in takers {
        sent.append(&mut taker.await.expect("no panic"));
    }
    sent.sort_unstable();
    let most = most_in_any(&sent, 5_000);
    let calls: Vec<_> = processes.iter().map(|(_, calls)| calls.count()).collect();
    report(&format!("pressure: {} of 120 admitted, calls {calls:?}, at most {most} in any 5 s", sent.len()));
    assert_eq!(most, 40, "in one of the intervals");
    assert!(sent.len() >= 117, "{} admitted", sent.len());
    // At least one write for each of three windows.
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

pub(crate) async fn a_batch_is_few_writes(engine: &Engine) {
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
        assert!(tokio::time::timeout(Duration::from_millis(20), one).await.is_err());
    }
    let before = calls.count();
    drop(waiting);
    clock.advance(Duration::from_secs(11));
    // Longer than a batcher naps: a batcher that still served the waiters that left would take permits for them.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(calls.count(), before, "nobody waits, so nothing is written");
    let all = futures_util::future::join_all((0..100).map(|_| limiter.take(&resource, None))).await;
    assert!(all.iter().all(Result::is_ok));
}

pub(crate) async fn waiters_are_served_in_order(engine: &Engine) {
    let limits = Limits { burst: 2, interval: Duration::from_secs(4), daily: 200_000 };
    let (clock, table) = (Clock::system(), engine.table().await);
    let limiter = process(engine, &table, &clock, limits).0;
    let resource = location();
    let served = std::sync::Mutex::new(Vec::new());
    let end = clock.now() + Duration::from_millis(9_200);
    let takers = (0..12).map(|number| {
        let (limiter, resource, served) = (&limiter, &resource, &served);
        async move {
            let answer = limiter.take(resource, Some(end)).await;
            if answer.is_ok() {
                served.lock().expect("no panic").push(number);
            }
            answer
        }
    });
    let answers = futures_util::future::join_all(takers).await;
    let served = served.into_inner().expect("no panic");
    assert_eq!(served, (0..served.len()).collect::<Vec<_>>(), "first come, first served");
    assert!((4..=6).contains(&served.len()), "two at once and two after each interval; some may be too late");
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
        // First one process that has a snapshot, then several that have none.
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
        clock.advance(Duration::from_millis(200));
    }
    report(&format!("{most_slots} slots, {largest} bytes at most"));
    assert!((100..=109).contains(&most_slots) && (700..950).contains(&largest), "{most_slots} slots, {largest} bytes");
    assert_eq!(warm.usage(&location()).await.expect("a read").daily.remaining, 200_000 - taken);
}

pub(crate) async fn without_a_store_nothing_is_permitted(engine: &Engine) {
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
