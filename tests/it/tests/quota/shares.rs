//! A caller's own share of a resource.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::dynamo::Engine;
use shared::clock::Clock;
use shared::quota::{LimitKind, Limits, Quota};

use crate::{START, TEN_SECONDS, location, process, refused};

pub(crate) async fn callers_have_shares_of_their_own(engine: &Engine) {
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

pub(crate) async fn a_refused_request_takes_nothing_of_its_callers_share(engine: &Engine) {
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

pub(crate) async fn who_goes_away_leaves_its_part_of_a_share(engine: &Engine) {
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

pub(crate) async fn of_two_limits_the_later_refusal_counts(engine: &Engine) {
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

pub(crate) async fn a_share_that_is_packed_takes_back_what_was_not_used(engine: &Engine) {
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
