//! Shares of a resource.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use it::dynamo::Engine;
use it::world::until;
use shared::domain::clock::Clock;
use shared::domain::limits::Limits;
use shared::limiter::{LimitKind, ShareOwner};

use crate::{START, TEN_SECONDS, location, process, refused};

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
    for owner in [ShareOwner::Minter, ShareOwner::Caller("(minter)"), ShareOwner::Caller("minter")] {
        limiter.take_within_share(owner, &resource, 1, None).await.expect("no caller has the minter's share");
    }
    let taken = limiter.take(&resource, None).await.expect("free").usage;
    assert_eq!(taken.burst.remaining, 90, "permits within shares count in the resource");
}

pub(crate) async fn nothing_of_a_share_is_taken_ahead_of_need(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let (limiter, calls) = process(engine, &table, &clock, Limits { burst: 1_000, ..TEN_SECONDS });
    for _ in 0..60 {
        limiter.take_within_share(BILLING, &location(), 500, None).await.expect("free");
        clock.advance(Duration::from_millis(80));
    }
    // Each request makes a write to the share, and one in seven makes a write to the resource.
    assert!((65..90).contains(&calls.count()), "{}", calls.count());
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
    // The first caller is refused after a call to the store, while it has a permit of its share. The snapshot refuses
    // the other callers.
    clock.advance(Duration::from_secs(2));
    let opens = START + Duration::from_millis(10_550);
    let first = refused(limiter.take_within_share(BILLING, &resource, 3, None).await);
    assert_eq!((first.limit, first.retry_at), (LimitKind::Burst, opens));
    let so_far = calls.count();
    for _ in 0..16 {
        clock.advance(Duration::from_millis(500));
        assert_eq!(refused(limiter.take_within_share(BILLING, &resource, 3, None).await).retry_at, opens);
    }
    assert_eq!(calls.count(), so_far, "a refusal by the snapshot costs no call and no permit of the share");
    clock.advance(opens.since(clock.now()));
    // A new process without a snapshot keeps the promised instant, too.
    let (limiter, _) = process(engine, &table, &clock, limits);
    for _ in 0..3 {
        limiter.take_within_share(BILLING, &resource, 3, None).await.expect("all of the share is there");
    }
    assert_eq!(refused(limiter.take_within_share(BILLING, &resource, 3, None).await).limit, LimitKind::Caller);
}

pub(crate) async fn a_cancelled_waiter_returns_its_part_of_the_share(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let limits = Limits { burst: 1, interval: Duration::from_secs(1), daily: 9 };
    let resource = location();
    process(engine, &table, &clock, limits).0.take(&resource, None).await.expect("free");
    let limiter = process(engine, &table, &clock, limits).0;
    let waiting = limiter.take_within_share(BILLING, &resource, 1, Some(START + Duration::from_secs(9)));
    assert!(tokio::time::timeout(Duration::from_millis(500), waiting).await.is_err(), "it waits for the resource");
    // The share's interval is 10 s and the resource's is 1 s, so the part is free again only if it was returned.
    let free = refused(limiter.take(&resource, None).await).retry_at;
    clock.advance(free.since(clock.now()));
    // A task of its own returns the part, so the first tries may come too early.
    until("the part is returned", async || limiter.take_within_share(BILLING, &resource, 1, None).await.is_ok()).await;
    let soon = Some(clock.now() + Duration::from_secs(3));
    let refusal = refused(limiter.take_within_share(BILLING, &resource, 1, soon).await);
    assert_eq!(refusal.limit, LimitKind::Caller, "10 s, not the resource's interval");
}

pub(crate) async fn if_two_limits_refuse_the_later_instant_is_promised(engine: &Engine) {
    let clock = Clock::manual(START);
    let table = engine.table().await;
    let (limiter, _) = process(engine, &table, &clock, Limits { burst: 4, ..TEN_SECONDS });
    let resource = location();
    let take =
        async |caller, share| limiter.take_within_share(ShareOwner::Caller(caller), &resource, share, None).await;
    let (early, late) = (START + Duration::from_millis(10_550), START + Duration::from_millis(12_550));
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

/// Sixteen callers of two processes wait for a resource that is full. The parts of their share that they took at once
/// are too old when the resource has room.
pub(crate) async fn a_share_holds_behind_a_full_resource(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let limits = Limits { burst: 30, interval: Duration::from_secs(5), daily: 9_000 };
    let processes: Vec<_> = (0..2).map(|_| process(engine, &table, &clock, limits).0).collect();
    let resource = location();
    for taken in futures_util::future::join_all((0..30).map(|_| processes[0].take(&resource, None))).await {
        taken.expect("free");
    }
    let opens = refused(processes[0].take(&resource, None).await).retry_at;
    let last = Some(START + Duration::from_secs(18));
    let sent = Arc::new(Mutex::new(Vec::new()));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (limiter, clock, resource, sent) =
            (processes[number % 2].clone(), clock.clone(), resource.clone(), Arc::clone(&sent));
        calls.spawn(async move {
            let answer = limiter.take_within_share(BILLING, &resource, 4, last).await;
            if answer.is_ok() {
                sent.lock().expect("no panic").push(clock.now());
            }
            answer
        });
    }
    let count = || sent.lock().expect("no panic").len();
    clock.advance(opens.since(clock.now()));
    until("the share is used", async || count() == 4).await;
    let next = refused(processes[0].take_within_share(BILLING, &resource, 4, None).await);
    assert_eq!(next.limit, LimitKind::Caller);
    clock.advance((next.retry_at - Duration::from_millis(1)).since(clock.now()));
    refused(processes[1].take_within_share(BILLING, &resource, 4, None).await);
    clock.advance(Duration::from_millis(1));
    until("the share is used again", async || count() == 8).await;
    let answers = calls.join_all().await;
    let refused: Vec<_> = answers.into_iter().filter(Result::is_err).map(refused).collect();
    assert_eq!(refused.len(), 8);
    assert!(refused.iter().all(|refusal| refusal.limit == LimitKind::Caller), "{refused:?}");
    let sent = sent.lock().expect("no panic");
    assert_eq!(sent[..4], [opens; 4], "a part that grew old keeps its place");
    assert_eq!(sent[4..], [next.retry_at; 4]);
    assert!(next.retry_at.since(opens) >= Duration::from_secs(10), "{sent:?}");
}
