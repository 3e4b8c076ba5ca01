//! Background permits, those of queued calls.

use std::time::Duration;

use futures_util::future::join_all;
use it::dynamo::Engine;
use shared::domain::clock::Clock;
use shared::domain::limits::Limits;
use shared::limiter::{Background, LimitKind, LimiterError};

use crate::{START, TEN_SECONDS, location, process, refused};

pub(crate) async fn background_permits_leave_places_for_callers(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let resource = location();
    let callers = process(engine, &table, &clock, TEN_SECONDS).0;
    for _ in 0..20 {
        callers.take(&resource, None).await.expect("free");
    }
    // Several processes of the queue take as many permits as they get.
    let queues: Vec<_> = (0..4).map(|_| Background::new(process(engine, &table, &clock, TEN_SECONDS).0, 500)).collect();
    let take = |queue: usize| queues[queue % 4].take(&resource, None, START);
    let taken = join_all((0..200).map(take)).await;
    let count = taken.iter().filter(|permit| permit.is_ok()).count();
    assert_eq!(count, 79, "20 are in use by callers, and one place more is kept for them");
    for permit in taken.into_iter().filter(Result::is_err) {
        assert!(matches!(permit, Err(LimiterError::Refused(refusal)) if refusal.limit == LimitKind::Burst));
    }
    callers.take(&resource, None).await.expect("kept for callers");
    refused(callers.take(&resource, None).await);

    // An interval later, what callers used before is theirs, although none of them has called yet.
    clock.advance(Duration::from_millis(10_800));
    let taken = join_all((0..200).map(|number| queues[number % 4].take(&resource, None, clock.now()))).await;
    let count = taken.iter().filter(|permit| permit.is_ok()).count();
    assert_eq!(count, 79, "callers used 21");
    for _ in 0..21 {
        callers.take(&resource, None).await.expect("kept for callers");
    }
    refused(callers.take(&resource, None).await);
    // A process that begins now finds what they used in the item.
    clock.advance(Duration::from_millis(10_800));
    let fresh = Background::new(process(engine, &table, &clock, TEN_SECONDS).0, 500);
    let taken = join_all((0..120).map(|_| fresh.take(&resource, None, clock.now()))).await;
    assert_eq!(taken.iter().filter(|permit| permit.is_ok()).count(), 79, "callers used 21");
}

pub(crate) async fn the_reserve_has_a_bound(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let resource = location();
    let limits = Limits { burst: 10, ..TEN_SECONDS };
    let callers = process(engine, &table, &clock, limits).0;
    let queue = Background::new(process(engine, &table, &clock, limits).0, 300);
    queue.take(&resource, None, START).await.expect("free");
    for _ in 0..9 {
        callers.take(&resource, None).await.expect("free");
    }
    assert!(queue.take(&resource, None, START).await.is_err());
    clock.advance(Duration::from_millis(10_800));
    let taken = join_all((0..20).map(|_| queue.take(&resource, None, clock.now()))).await;
    assert_eq!(
        taken.iter().filter(|permit| permit.is_ok()).count(),
        7,
        "three tenths are kept, although nine were used"
    );
}

pub(crate) async fn a_caller_with_a_share_has_it_in_the_queue_too(engine: &Engine) {
    let (clock, table) = (Clock::manual(START), engine.table().await);
    let resource = location();
    let queue = Background::new(process(engine, &table, &clock, TEN_SECONDS).0, 500);
    for _ in 0..3 {
        queue.take(&resource, Some(("billing", 3)), START).await.expect("free");
    }
    let refusal = refused(queue.take(&resource, Some(("billing", 3)), START).await);
    assert_eq!(refusal.limit, LimitKind::Caller);
    queue.take(&resource, None, START).await.expect("others are not bound");
}
