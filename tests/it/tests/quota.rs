//! The counters on real engines: what is promised to the platform and to callers, and what it costs in calls.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use http::{HeaderMap, HeaderName, StatusCode};
use it::dynamo::{Calls, Engine, Kind};
use shared::clock::{Clock, Millis};
use shared::quota::{LimitKind, Limits, Permit, Quota, QuotaError, Refusal};
use shared::resource::Resource;
use shared::table::Table;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const TEN_SECONDS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

/// A `Quota` with a client of its own, as in a process of its own.
fn process(engine: &Engine, table: &Table, clock: &Clock, limits: Limits) -> (Quota, Calls) {
    let (client, calls) = engine.client();
    (Quota::new(Table { client, name: table.name.clone() }, clock.clone(), limits), calls)
}

fn location() -> Resource {
    Resource::location("ve9EPM428h8vShlRW1KT").expect("an id")
}

/// Each story as a test of its own on the embedded engine, and one after the other on one DynamoDB Local, which takes
/// seconds to start.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                let name = concat!("embedded::", stringify!($story));
                let engine = super::Engine::start(super::Kind::Embedded, name).await.expect("always there");
                super::$story(&engine).await;
            })*
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn on_dynamodb_local() {
            let Some(engine) = Engine::start(Kind::Local, "on_dynamodb_local").await else { return };
            $(report(concat!("DynamoDB Local: ", stringify!($story)));
            $story(&engine).await;)*
        }
    };
}

stories!(
    one_process_takes_all_and_is_refused_by_memory,
    several_processes_under_pressure,
    an_admitted_request_costs_about_one_call,
    dead_permits_of_a_process_that_ended_cost_nothing,
    what_one_learns_binds_all,
    a_longer_interval_is_adopted_by_all_without_losing_a_permit,
    a_429_closes_for_all,
    the_day_is_counted_and_ends,
    a_batch_is_few_writes,
    a_cancelled_wait_takes_no_permit,
    those_who_wait_are_served_in_order,
    callers_have_shares_of_their_own,
    a_refused_request_takes_nothing_of_its_callers_share,
    who_goes_away_leaves_its_part_of_a_share,
    of_two_limits_the_later_refusal_counts,
    a_large_burst_keeps_the_item_small,
    a_process_that_takes_itself_to_be_alone_overwrites_nobody,
    a_share_that_is_packed_takes_back_what_was_not_used,
    a_newcomer_is_not_starved_by_who_has_the_item_for_itself,
    a_store_that_is_gone_refuses_all,
);

/// An instant in the middle of nowhere, at the start of a slot.
const START: Millis = Millis(1_800_000_000_000);

fn refused(answer: Result<Permit, QuotaError>) -> Refusal {
    match answer {
        Err(QuotaError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect()
}

async fn one_process_takes_all_and_is_refused_by_memory(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (quota, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    for taken in 1..=100 {
        let permit = quota.take(&resource, None).await.expect("free");
        assert_eq!((permit.usage.burst.remaining, permit.usage.daily.remaining), (100 - taken, 200_000 - taken));
        assert_eq!(permit.send_by, Millis(clock.now().0 / 200 * 200 + 400));
        clock.advance(Duration::from_millis(10));
    }
    assert_eq!(calls.count(), 101, "one failed since there was no item, then one each");

    let refusal = refused(quota.take(&resource, None).await);
    assert_eq!((refusal.limit, refusal.retry_at), (LimitKind::Burst, START + Duration::from_millis(10_700)));
    for _ in 0..50 {
        assert_eq!(refused(quota.take(&resource, Some(refusal.retry_at - Duration::from_millis(1))).await), refusal);
    }
    assert_eq!(calls.count(), 101, "a known refusal costs nothing");

    let other = process(engine, &table, &clock, TEN_SECONDS).0;
    assert_eq!(refused(other.take(&resource, None).await).retry_at, refusal.retry_at, "another process says the same");
    clock.advance((refusal.retry_at - Duration::from_millis(1)).since(clock.now()));
    refused(other.take(&resource, None).await);
    refused(quota.take(&resource, None).await);
    clock.advance(Duration::from_millis(1));
    for _ in 0..20 {
        quota.take(&resource, None).await.expect("twenty were taken in the first slot");
    }
    refused(quota.take(&resource, None).await);
    let usage = other.usage(&resource).await.expect("a read");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (0, 199_880));
}

/// Counts when requests could leave, by the takers' own record.
async fn several_processes_under_pressure(engine: &Engine) {
    let limits = Limits { burst: 40, interval: Duration::from_secs(5), daily: 200_000 };
    let (clock, table) = (Clock::system(), engine.table().await);
    let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, limits)).collect();
    // Permits live for 5.2 to 5.3 s: three times forty fit, where a window without any loss has three times forty too.
    let end = clock.now() + Duration::from_millis(11_200);
    let mut takers = Vec::new();
    for (quota, _) in &processes {
        for taker in 0..12 {
            let (quota, clock) = (quota.clone(), clock.clone());
            takers.push(tokio::spawn(async move {
                let mut sent = Vec::new();
                loop {
                    // Half of them wait in line, half come back when they are told.
                    match quota.take(&location(), (taker % 2 == 0).then_some(end)).await {
                        Ok(permit) if clock.now() <= permit.send_by => sent.push(clock.now().0),
                        Ok(_) => {}
                        Err(QuotaError::Refused(refusal)) if refusal.retry_at < end => {
                            tokio::time::sleep(refusal.retry_at.since(clock.now())).await;
                        }
                        Err(QuotaError::Refused(_)) => return sent,
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
    // The item was full or changed when they came, or else each would have written once for its group.
    assert!(calls.iter().all(|&calls| calls >= 3), "each process took part: {calls:?}");
}

fn most_in_any(sent: &[i64], interval: i64) -> usize {
    (0..sent.len()).map(|i| i + 1 - sent.partition_point(|at| *at <= sent[i] - interval)).max().unwrap_or(0)
}

async fn an_admitted_request_costs_about_one_call(engine: &Engine) {
    for (name, gap, most) in [("sparse, 8/s", 125, 1.05), ("near the limit, 9.5/s", 105, 1.10)] {
        let (clock, table) = (Clock::manual(START), engine.table().await);
        let processes: Vec<_> = (0..4).map(|_| process(engine, &table, &clock, TEN_SECONDS)).collect();
        let (mut admitted, mut refused) = (0_u32, 0_u32);
        for request in 0..600 {
            match processes[fastrand::usize(0..4)].0.take(&location(), None).await {
                Ok(_) => admitted += 1,
                Err(QuotaError::Refused(_)) => refused += 1,
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

async fn what_one_learns_binds_all(engine: &Engine) {
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

async fn a_longer_interval_is_adopted_by_all_without_losing_a_permit(engine: &Engine) {
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

async fn dead_permits_of_a_process_that_ended_cost_nothing(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (quota, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let ended = process(engine, &table, &clock, TEN_SECONDS).0;
    let resource = location();
    for _ in 0..80 {
        ended.take(&resource, None).await.expect("free");
    }
    clock.advance(Duration::from_millis(200));
    quota.take(&resource, None).await.expect("free");
    clock.advance(Duration::from_secs(11));
    let before = calls.count();
    for _ in 0..100 {
        quota.take(&resource, None).await.expect("free");
    }
    assert_eq!(calls.count(), before + 100);
}

async fn a_429_closes_for_all(engine: &Engine) {
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

async fn the_day_is_counted_and_ends(engine: &Engine) {
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

async fn a_batch_is_few_writes(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (quota, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let (resource, other) = (location(), process(engine, &table, &clock, TEN_SECONDS).0);
    other.take(&resource, None).await.expect("free");
    let answers = futures_util::future::join_all((0..150).map(|_| quota.take(&resource, None))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 99);
    assert!(answers.into_iter().filter_map(Result::err).all(|e| matches!(e, QuotaError::Refused(_))));
    assert!(calls.count() <= 5, "{} calls", calls.count());
}

async fn a_cancelled_wait_takes_no_permit(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (quota, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    let all = futures_util::future::join_all((0..100).map(|_| quota.take(&resource, None))).await;
    assert!(all.iter().all(Result::is_ok));
    let mut waiting: Vec<_> =
        (0..6).map(|_| Box::pin(quota.take(&resource, Some(START + Duration::from_mins(1))))).collect();
    for one in &mut waiting {
        assert!(tokio::time::timeout(Duration::from_millis(20), one).await.is_err());
    }
    let before = calls.count();
    drop(waiting);
    clock.advance(Duration::from_secs(11));
    // Longer than a driver naps: one that went on for those who left would take permits for them.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(calls.count(), before, "nobody waits, nobody asks");
    let all = futures_util::future::join_all((0..100).map(|_| quota.take(&resource, None))).await;
    assert!(all.iter().all(Result::is_ok));
}

async fn those_who_wait_are_served_in_order(engine: &Engine) {
    let limits = Limits { burst: 2, interval: Duration::from_secs(4), daily: 200_000 };
    let (clock, table) = (Clock::system(), engine.table().await);
    let quota = process(engine, &table, &clock, limits).0;
    let resource = location();
    let served = std::sync::Mutex::new(Vec::new());
    let end = clock.now() + Duration::from_millis(9_200);
    let takers = (0..12).map(|number| {
        let (quota, resource, served) = (&quota, &resource, &served);
        async move {
            let answer = quota.take(resource, Some(end)).await;
            if answer.is_ok() {
                served.lock().expect("no panic").push(number);
            }
            answer
        }
    });
    let answers = futures_util::future::join_all(takers).await;
    let served = served.into_inner().expect("no panic");
    assert_eq!(served, (0..served.len()).collect::<Vec<_>>(), "first come, first served");
    assert!((4..=6).contains(&served.len()), "two at once, two after each interval, less what came too late");
    for refusal in answers.into_iter().filter(Result::is_err).map(refused) {
        assert!(refusal.retry_at > end, "it could have waited");
    }
}

async fn callers_have_shares_of_their_own(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let quota = process(engine, &table, &clock, TEN_SECONDS).0;
    let resource = location();
    for _ in 0..5 {
        quota.take_within_share("billing", &resource, 5, None).await.expect("free");
    }
    let refusal = refused(quota.take_within_share("billing", &resource, 5, None).await);
    assert_eq!((refusal.limit, refusal.usage.burst.limit), (LimitKind::Caller, 5));
    let known = quota.remembered_usage(&resource).expect("just taken of");
    assert_eq!((known.burst.limit, known.burst.remaining), (100, 95), "the resource's own, for the headers");
    quota.take_within_share("sync", &resource, 5, None).await.expect("another's");
    let taken = quota.take(&resource, None).await.expect("free").usage;
    assert_eq!(taken.burst.remaining, 93, "what shares are taken of is the resource's");
}

async fn a_refused_request_takes_nothing_of_its_callers_share(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let limits = Limits { burst: 5, ..TEN_SECONDS };
    let (others, _) = process(engine, &table, &clock, limits);
    let (quota, calls) = process(engine, &table, &clock, limits);
    let resource = location();
    for _ in 0..5 {
        others.take(&resource, None).await.expect("free");
    }
    // The first is refused by the table, after the share was asked; the others by memory.
    clock.advance(Duration::from_secs(2));
    let opens = START + Duration::from_millis(10_700);
    let first = refused(quota.take_within_share("billing", &resource, 3, None).await);
    assert_eq!((first.limit, first.retry_at), (LimitKind::Burst, opens));
    let so_far = calls.count();
    for _ in 0..16 {
        clock.advance(Duration::from_millis(500));
        assert_eq!(refused(quota.take_within_share("billing", &resource, 3, None).await).retry_at, opens);
    }
    assert_eq!(calls.count(), so_far, "a known refusal costs nothing, and nothing of the share");
    clock.advance(opens.since(clock.now()));
    // Without its memory, as in a process of its own: the promised instant holds.
    let (quota, _) = process(engine, &table, &clock, limits);
    for _ in 0..3 {
        quota.take_within_share("billing", &resource, 3, None).await.expect("all of the share is there");
    }
    assert_eq!(refused(quota.take_within_share("billing", &resource, 3, None).await).limit, LimitKind::Caller);
}

async fn who_goes_away_leaves_its_part_of_a_share(engine: &Engine) {
    let (clock, table) = (Clock::system(), engine.table().await);
    let limits = Limits { burst: 1, interval: Duration::from_secs(1), daily: 9 };
    let resource = location();
    process(engine, &table, &clock, limits).0.take(&resource, None).await.expect("free");
    let quota = process(engine, &table, &clock, limits).0;
    let until = Some(clock.now() + Duration::from_secs(9));
    let waiting = quota.take_within_share("billing", &resource, 1, until);
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(), "it waits for the resource");
    // The share's interval is 10 s, ten times the resource's: only what was given back can be taken by then. It is given
    // back beside, so a first look may come too early.
    let given_back = async {
        while quota.take_within_share("billing", &resource, 1, until).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), given_back).await.expect("given back");
    let until = Some(clock.now() + Duration::from_secs(3));
    let refusal = refused(quota.take_within_share("billing", &resource, 1, until).await);
    assert_eq!(refusal.limit, LimitKind::Caller, "10 s, not the resource's interval");
}

async fn of_two_limits_the_later_refusal_counts(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (quota, _) = process(engine, &table, &clock, Limits { burst: 4, ..TEN_SECONDS });
    let resource = location();
    let take = async |caller, share| quota.take_within_share(caller, &resource, share, None).await;
    let (early, late) = (START + Duration::from_millis(10_700), START + Duration::from_millis(12_700));
    take("billing", 1).await.expect("free");
    quota.take(&resource, None).await.expect("free");
    clock.advance(Duration::from_secs(2));
    take("sync", 1).await.expect("free");
    quota.take(&resource, None).await.expect("free");
    for (caller, share, limit, retry_at) in [
        ("billing", 1, LimitKind::Burst, early),
        ("sync", 1, LimitKind::Caller, late),
        ("new", 1, LimitKind::Burst, early),
    ] {
        let refusal = refused(take(caller, share).await);
        assert_eq!((refusal.limit, refusal.retry_at), (limit, retry_at), "{caller}");
    }
}

async fn a_large_burst_keeps_the_item_small(engine: &Engine) {
    let limits = Limits { burst: 5_000, ..TEN_SECONDS };
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let warm = process(engine, &table, &clock, limits).0;
    let (mut largest, mut taken, mut packed) = ((0, 0), 0, Vec::new());
    for step in 0..300 {
        // Alone, then among those without a memory, which drop nothing.
        let is_warm = step < 120 || step % 60 == 0;
        let quota = if is_warm { warm.clone() } else { process(engine, &table, &clock, limits).0 };
        let several = if step < 120 { 12 } else { 1 };
        let takes = (0..several).map(async |_| quota.take(&location(), None).await);
        for permit in futures_util::future::join_all(takes).await {
            permit.expect("free, whatever others dropped that this one would drop");
            taken += 1;
        }
        let item = counters(&table).await;
        if item.contains_key("packed") {
            let names: BTreeSet<_> = item.keys().map(String::as_str).collect();
            assert_eq!(names, BTreeSet::from(["expires_at", "packed", "pk", "revision"]), "one text, and nothing else");
            packed.push(step);
        } else {
            let slots = item["slots"].as_m().expect("a map");
            assert!(slots.len() <= 81, "{} slots", slots.len());
            let sum: i64 = slots.values().filter_map(|count| count.as_n().ok()?.parse::<i64>().ok()).sum();
            assert_eq!(item["held"], AttributeValue::N(sum.to_string()), "the sum is that of the slots");
        }
        let bytes: usize = item.iter().map(|(name, value)| name.len() + size(value)).sum();
        let largest = if item.contains_key("packed") { &mut largest.0 } else { &mut largest.1 };
        *largest = bytes.max(*largest);
        clock.advance(Duration::from_millis(200));
    }
    assert!(packed.len() > 80 && packed.iter().all(|step| *step <= 120), "while alone: {packed:?}");
    assert!((300..600).contains(&largest.0) && (600..1_024).contains(&largest.1), "{largest:?} bytes");
    assert_eq!(warm.usage(&location()).await.expect("a read").daily.remaining, 200_000 - taken);
}

async fn a_process_that_takes_itself_to_be_alone_overwrites_nobody(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (busy, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let other = process(engine, &table, &clock, TEN_SECONDS).0;
    let alone = async |permits| {
        for _ in 0..permits {
            busy.take(&location(), None).await.expect("free");
            clock.advance(Duration::from_millis(50));
        }
    };
    alone(38).await;
    assert_eq!(calls.count(), 39, "one failed since there was no item, then one each");
    let seen_by_busy = async |left| {
        let before = calls.count();
        assert_eq!(busy.take(&location(), None).await.expect("free").usage.burst.remaining, left);
        assert_eq!(calls.count(), before + 2, "what the other did is seen, by one call more");
    };
    assert!(counters(&table).await.contains_key("packed"));
    other.take(&location(), None).await.expect("free");
    assert_eq!(counters(&table).await["held"], AttributeValue::N("39".to_owned()), "taken apart again");
    seen_by_busy(60).await;
    alone(34).await;
    let lower = headers(&[("x-ratelimit-max", "80")]);
    assert!(counters(&table).await.contains_key("packed"));
    other.observe(&location(), StatusCode::OK, &lower).await.expect("learnt");
    seen_by_busy(5).await;
    // What the platform says while the item is packed is as good, and whoever comes is bound by it.
    clock.advance(Duration::from_secs(11));
    alone(40).await;
    assert!(counters(&table).await.contains_key("packed"));
    let theirs = headers(&[("x-ratelimit-max", "60"), ("x-ratelimit-daily-remaining", "1000")]);
    busy.observe(&location(), StatusCode::OK, &theirs).await.expect("learnt");
    busy.observe(&location(), StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new()).await.expect("closed");
    let text = counters(&table).await["packed"].as_s().expect("a text").clone();
    assert!(text.contains(" learnt=60/-/- closed-burst="), "{text}");
    let new = process(engine, &table, &clock, TEN_SECONDS).0;
    for quota in [&busy, &other, &new] {
        let refusal = refused(quota.take(&location(), None).await);
        assert_eq!((refusal.limit, refusal.usage.burst.limit), (LimitKind::Burst, 60));
        assert_eq!((refusal.usage.burst.remaining, refusal.usage.daily.remaining), (0, 1_000));
    }
    clock.advance(Duration::from_secs(11));
    for left in [999, 998, 997] {
        assert_eq!(new.take(&location(), None).await.expect("open again").usage.daily.remaining, left);
    }
}

async fn a_share_that_is_packed_takes_back_what_was_not_used(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let quota = process(engine, &table, &clock, TEN_SECONDS).0;
    let others = process(engine, &table, &clock, TEN_SECONDS).0;
    let share = async |quota: &Quota| quota.take_within_share("billing", &location(), 50, None).await;
    share(&quota).await.expect("free");
    clock.advance(Duration::from_secs(1));
    for _ in 0..39 {
        share(&quota).await.expect("free");
    }
    // The rest is taken by others, which this process does not know of, so it asks for its share before it is refused.
    for _ in 0..60 {
        others.take(&location(), None).await.expect("free");
    }
    let key = AttributeValue::S(format!("caller-quota#billing#location#{}", location().id()));
    let item = async || {
        let get = table.client.get_item().table_name(&*table.name).key("pk", key.clone());
        get.send().await.expect("a read").item.expect("a share")
    };
    let (before, usual) = (item().await["packed"].as_s().expect("a text").clone(), " 5=39");
    assert!(before.ends_with(usual), "{before}");
    assert_eq!(refused(share(&quota).await).limit, LimitKind::Burst);
    let after = item().await["packed"].as_s().expect("a text").clone();
    assert!(after.ends_with(usual), "given back: {after}");
}

async fn a_newcomer_is_not_starved_by_who_has_the_item_for_itself(engine: &Engine) {
    let limits = Limits { burst: 1_000_000, interval: Duration::from_secs(10), daily: 2_000_000 };
    let (clock, table) = (Clock::system(), engine.table().await);
    let busy = process(engine, &table, &clock, limits).0;
    busy.take(&location(), None).await.expect("free");
    let mut calling = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let busy = busy.clone();
        // Its driver never stops, so that each of its writes follows the last at once.
        calling.spawn(async move {
            loop {
                busy.take(&location(), None).await.expect("free");
            }
        });
    }
    let (lower, resource) = (headers(&[("x-ratelimit-limit-daily", "1999999")]), location());
    let distant = at_a_distance(engine).await;
    for round in 0..10 {
        let packed = async {
            while !counters(&table).await.contains_key("packed") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), packed).await.expect("alone again");
        let (client, calls) = engine.client();
        let client = Client::from_conf(client.config().to_builder().endpoint_url(&distant).build());
        let newcomer = Quota::new(Table { client, name: table.name.clone() }, clock.clone(), limits);
        newcomer.take(&resource, None).await.expect("free");
        assert!(calls.count() <= 8, "{} calls", calls.count());
        if round == 5 {
            newcomer.observe(&resource, StatusCode::OK, &lower).await.expect("learnt");
            assert_eq!(newcomer.usage(&resource).await.expect("a read").daily.limit, 1_999_999);
        }
    }
    // What the busy one hears itself is not lost among its own writes either.
    let lower = headers(&[("x-ratelimit-limit-daily", "1999998")]);
    busy.observe(&resource, StatusCode::OK, &lower).await.expect("learnt");
    assert_eq!(busy.usage(&resource).await.expect("a read").daily.limit, 1_999_998);
    calling.shutdown().await;
}

/// A way to `engine` on which each answer takes longer than the writes of somebody nearer. Its URL; it ends with the test.
async fn at_a_distance(engine: &Engine) -> String {
    let near = engine.url().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&near).await.expect("the engine");
            tokio::spawn(async move {
                let ((mut asks, mut hears), (mut answers, mut gets)) = (client.split(), server.split());
                let there = tokio::io::copy(&mut asks, &mut gets);
                let back = async {
                    let mut some = vec![0; 64 * 1024];
                    loop {
                        let read = answers.read(&mut some).await?;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        hears.write_all(&some[..read]).await?;
                        if read == 0 {
                            return std::io::Result::Ok(());
                        }
                    }
                };
                // Whoever hangs up ends both.
                tokio::select! { _ = there => {} _ = back => {} }
            });
        }
    });
    url
}

/// The item of [`location`].
async fn counters(table: &Table) -> shared::table::Item {
    let key = AttributeValue::S(shared::table::quota_key(&location()));
    let item = table.client.get_item().table_name(&*table.name).key("pk", key).send().await.expect("a read").item;
    item.expect("an item")
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

async fn a_store_that_is_gone_refuses_all(engine: &Engine) {
    let clock = Clock::manual(START);
    let missing = Table { name: "no-such-table".into(), ..engine.table().await };
    let quota = process(engine, &missing, &clock, TEN_SECONDS).0;
    let answers = futures_util::future::join_all((0..5).map(|_| async { quota.take(&location(), None).await })).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(QuotaError::Store(_)))), "{answers:?}");
}

#[expect(clippy::print_stdout, reason = "measurements are for the reader of the test's output")]
fn report(line: &str) {
    println!("{line}");
}
