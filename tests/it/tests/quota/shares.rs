//! Shares of a resource.

use std::time::Duration;

use it::dynamo::Engine;
use shared::domain::clock::Clock;
use shared::domain::limits::Limits;
use shared::limiter::{LimitKind, LimiterError, ShareOwner};

use crate::{START, TEN_SECONDS, location, process, refused, report};

const BILLING: ShareOwner<'_> = ShareOwner::Caller("billing");

pub(crate) async fn callers_have_shares_of_their_own(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let limiter = process(engine, &table, &clock, TEN_SECONDS).0;
    let resource = location();
    for _ in 0..5 {
        limiter.take_within_share(BILLING, &resource, 5, None).await.expect("free");
    }
    let refusal = refused(limiter.take_within_share(BILLING, &resource, 5, None).await);
    assert_eq!((refusal.limit, refusal.usage.burst.limit), (LimitKind::Caller, 5));
    let known = limiter.remembered_usage(&resource).expect("just taken of");
    assert_eq!((known.burst.limit, known.burst.remaining), (100, 95), "the usage of the resource, for the headers");
    limiter.take_within_share(ShareOwner::Caller("sync"), &resource, 5, None).await.expect("another's");
    for owner in [ShareOwner::Minter, ShareOwner::Caller("(supposed)"), ShareOwner::Caller("minter")] {
        limiter.take_within_share(owner, &resource, 1, None).await.expect("no caller has the minter's share");
    }
    let taken = limiter.take(&resource, None).await.expect("free").usage;
    assert_eq!(taken.burst.remaining, 90, "permits within shares count in the resource");
}

pub(crate) async fn a_refused_request_takes_nothing_of_its_callers_share(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let limits = Limits { burst: 5, ..TEN_SECONDS };
    let (others, _) = process(engine, &table, &clock, limits);
    let (limiter, calls) = process(engine, &table, &clock, limits);
    let resource = location();
    for _ in 0..5 {
        others.take(&resource, None).await.expect("free");
    }
    // The first is refused after a call, with a permit of the share in hand; the others by the snapshot.
    clock.advance(Duration::from_secs(2));
    let opens = START + Duration::from_millis(10_700);
    let first = refused(limiter.take_within_share(BILLING, &resource, 3, None).await);
    assert_eq!((first.limit, first.retry_at), (LimitKind::Burst, opens));
    let so_far = calls.count();
    for _ in 0..16 {
        clock.advance(Duration::from_millis(500));
        assert_eq!(refused(limiter.take_within_share(BILLING, &resource, 3, None).await).retry_at, opens);
    }
    assert_eq!(calls.count(), so_far, "a refusal by the snapshot costs no call and no permit of the share");
    clock.advance(opens.since(clock.now()));
    // A process without a memory keeps the promised instant, too.
    let (limiter, _) = process(engine, &table, &clock, limits);
    for _ in 0..3 {
        limiter.take_within_share(BILLING, &resource, 3, None).await.expect("all of the share is there");
    }
    assert_eq!(refused(limiter.take_within_share(BILLING, &resource, 3, None).await).limit, LimitKind::Caller);
}

pub(crate) async fn a_cancelled_wait_gives_its_permit_of_a_share_back(engine: &Engine) {
    let (clock, table) = (Clock::system(), engine.table().await);
    let limits = Limits { burst: 1, interval: Duration::from_secs(1), daily: 9 };
    let resource = location();
    process(engine, &table, &clock, limits).0.take(&resource, None).await.expect("free");
    let limiter = process(engine, &table, &clock, limits).0;
    let until = Some(clock.now() + Duration::from_secs(9));
    let waiting = limiter.take_within_share(BILLING, &resource, 1, until);
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(), "it waits for the resource");
    // The share's interval is 10 s, ten times the resource's, so only a permit that was given back can be taken by
    // then. A task gives it back, so the first tries may come too early.
    let given_back = async {
        while limiter.take_within_share(BILLING, &resource, 1, until).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), given_back).await.expect("given back");
    let until = Some(clock.now() + Duration::from_secs(3));
    let refusal = refused(limiter.take_within_share(BILLING, &resource, 1, until).await);
    assert_eq!(refusal.limit, LimitKind::Caller, "10 s, not the resource's interval");
}

pub(crate) async fn of_two_refusals_the_later_one_is_the_answer(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (limiter, _) = process(engine, &table, &clock, Limits { burst: 4, ..TEN_SECONDS });
    let resource = location();
    let take =
        async |caller, share| limiter.take_within_share(ShareOwner::Caller(caller), &resource, share, None).await;
    let (early, late) = (START + Duration::from_millis(10_700), START + Duration::from_millis(12_700));
    take("billing", 1).await.expect("free");
    limiter.take(&resource, None).await.expect("free");
    clock.advance(Duration::from_secs(2));
    take("sync", 1).await.expect("free");
    limiter.take(&resource, None).await.expect("free");
    for (caller, share, limit, retry_at) in [
        ("billing", 1, LimitKind::Burst, early),
        ("sync", 1, LimitKind::Caller, late),
        ("new", 1, LimitKind::Burst, early),
    ] {
        let refusal = refused(take(caller, share).await);
        assert_eq!((refusal.limit, refusal.retry_at), (limit, retry_at), "{caller}");
    }
}

/// Two processes, under real concurrency. The resource is full at first, so the first permits of the share are too old
/// when the resource has places. Other requests of the share wait until those permits expire.
pub(crate) async fn a_share_holds_behind_a_full_resource(engine: &Engine) {
    let (clock, table) = (Clock::system(), engine.table().await);
    let limits = Limits { burst: 30, interval: Duration::from_secs(5), daily: 9_000 };
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, limits).0).collect();
    let resource = location();
    for taken in futures_util::future::join_all((0..30).map(|_| processes[0].take(&resource, None))).await {
        taken.expect("free");
    }
    let began = clock.now();
    let until = Some(began + Duration::from_secs(18));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (limiter, clock, resource) = (processes[number % 2].clone(), clock.clone(), resource.clone());
        calls.spawn(async move {
            // As the relay does: after a permit that came too late, another one is taken.
            for _ in 0..3 {
                match limiter.take_within_share(BILLING, &resource, 4, until).await {
                    Ok(permit) if clock.now() <= permit.send_by => return Ok(clock.now().since(began).as_millis()),
                    Ok(_) => {}
                    Err(LimiterError::Refused(refusal)) => return Err(refusal.limit),
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("three late permits");
        });
    }
    let (mut sent, mut refused) = (Vec::new(), Vec::new());
    for answer in calls.join_all().await {
        match answer {
            Ok(at) => sent.push(at),
            Err(limit) => refused.push(limit),
        }
    }
    sent.sort_unstable();
    let apart = sent.windows(5).map(|five| five[4] - five[0]).min();
    report(&format!("behind a full resource, 4 of 16 in 10 s: sent at {sent:?} ms"));
    assert!(apart >= Some(10_000), "a fifth within {apart:?} ms of the first: {sent:?}");
    // On a slow machine one permit may come too late; its place is used an interval later.
    assert!((7..=8).contains(&sent.len()) && sent.len() + refused.len() == 16, "{sent:?}");
    assert!(refused.iter().all(|limit| *limit == LimitKind::Caller), "{refused:?}");
    assert!(sent[0] >= 5_000, "the resource was full: {sent:?}");
    assert!(sent[2] < 6_500, "an exchanged permit keeps its place: {sent:?}");
}
