//! A process that takes itself to be the only one, and those who come to it.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use http::{HeaderMap, StatusCode};
use it::dynamo::Engine;
use it::proxy::{Call, Fault, Proxy, Upstreams};
use shared::clock::Clock;
use shared::quota::{LimitKind, Limits, Quota};
use shared::table::Table;

use crate::{START, TEN_SECONDS, counters, headers, location, process, refused};

pub(crate) async fn a_process_that_takes_itself_to_be_alone_overwrites_nobody(engine: &Engine) {
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
    let theirs =
        [("x-ratelimit-max", "60"), ("x-ratelimit-daily-remaining", "1000"), ("x-ratelimit-daily-reset", "3600000")];
    let (theirs, day_ends) = (headers(&theirs), clock.now() + Duration::from_hours(1));
    busy.observe(&location(), StatusCode::OK, &theirs).await.expect("learnt");
    busy.observe(&location(), StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new()).await.expect("closed");
    let text = counters(&table).await["packed"].as_s().expect("a text").clone();
    assert!(text.contains(&format!(" {} told learnt=60/-/- closed-burst=", day_ends.0)), "{text}");
    let new = process(engine, &table, &clock, TEN_SECONDS).0;
    for quota in [&busy, &other, &new] {
        let refusal = refused(quota.take(&location(), None).await);
        assert_eq!((refusal.limit, refusal.usage.burst.limit), (LimitKind::Burst, 60));
        assert_eq!((refusal.usage.burst.remaining, refusal.usage.daily.remaining), (0, 1_000));
        assert_eq!(refusal.usage.daily.resets_at, day_ends);
    }
    clock.advance(Duration::from_secs(11));
    for left in [999, 998, 997] {
        assert_eq!(new.take(&location(), None).await.expect("open again").usage.daily.remaining, left);
    }
}

pub(crate) async fn a_newcomer_is_not_starved_by_who_has_the_item_for_itself(engine: &Engine) {
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
        let client = Client::from_conf(client.config().to_builder().endpoint_url(distant.url()).build());
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

/// A way to `engine` on which each answer takes longer than the writes of somebody nearer.
async fn at_a_distance(engine: &Engine) -> Proxy {
    let no_other = || "http://127.0.0.1:9".to_owned();
    let upstreams = Upstreams { dynamodb: engine.url(), secrets: no_other(), queue: no_other(), events: no_other() };
    let proxy = Proxy::start(upstreams).await.expect("a port");
    proxy.always(Call::Store, Fault::Late(Duration::from_millis(20)));
    proxy
}
