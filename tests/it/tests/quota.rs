//! The counters on real engines: what is promised to the platform and to callers, and what it costs in calls.

use std::time::Duration;

use it::dynamo::{Calls, Engine, Kind};
use shared::clock::{Clock, Millis};
use shared::quota::{Limits, Permit, Quota, QuotaError};
use shared::resource::Resource;
use shared::table::Table;

const TEN_SECONDS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

/// A `Quota` with a client of its own, as in a process of its own.
fn process(engine: &Engine, table: &Table, clock: &Clock, limits: Limits) -> (Quota, Calls) {
    let (client, calls) = engine.client();
    (Quota::new(Table { client, name: table.name.clone() }, clock.clone(), limits), calls)
}

fn location() -> Resource {
    Resource::location("ve9EPM428h8vShlRW1KT").expect("an id")
}

/// Runs `story` on both engines.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!("embedded::", stringify!($name));
                if let Some(engine) = super::Engine::start(super::Kind::Embedded, name).await {
                    super::$name(&engine).await;
                }
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!("local::", stringify!($name));
                if let Some(engine) = super::Engine::start(super::Kind::Local, name).await {
                    super::$name(&engine).await;
                }
            })*
        }
    };
}

on_both_engines!(takes_and_refuses);

async fn takes_and_refuses(engine: &Engine) {
    let clock = Clock::manual(Millis(1_800_000_000_000));
    let table = engine.table().await;
    let (quota, calls) = process(engine, &table, &clock, TEN_SECONDS);
    let resource = location();
    for taken in 1..=100 {
        let permit = quota.take(&resource, None).await.expect("free");
        assert_eq!(permit.usage.burst.remaining, 100 - taken);
        clock.advance(Duration::from_millis(10));
    }
    assert_eq!(calls.count(), 102);
    let _: Option<(Permit, QuotaError)> = None;
}
