//! The time that a permit takes, against the cheapest possible shared counter: one conditional `UpdateItem`.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::limiter::Limiter;
use shared::table::{Table, n, s};

use crate::pairs::{alternate, p50, p50_after, rate};
use crate::report::{Row, Target};
use crate::store::{self, Store};

/// Limits so high that no caller is ever refused.
pub(crate) const UNLIMITED: Limits =
    Limits { burst: 1_000_000_000, interval: Duration::from_secs(10), daily: 2_000_000_000 };
const CALLERS: usize = 32;
/// After this time each slot of the window has permits.
const FULL: Duration = Duration::from_millis(10_800);

/// The cheapest possible shared counter: no window, no daily limit, and no permit is given back.
#[derive(Clone)]
pub(crate) struct RawCounter {
    client: Client,
    table: String,
}

impl RawCounter {
    /// Counters in this table.
    pub(crate) fn new(table: &Table) -> Self {
        Self { client: table.client.clone(), table: table.name.to_string() }
    }

    /// Makes a counter.
    pub(crate) async fn create(&self, key: &str) {
        let item = [("pk".to_owned(), s(key)), ("used".to_owned(), n(0))];
        let put = self.client.put_item().table_name(&self.table).set_item(Some(item.into()));
        put.send().await.expect("a counter");
    }

    /// Counts one permit, if the limit allows.
    pub(crate) async fn take(&self, key: &str) {
        self.client
            .update_item()
            .table_name(&self.table)
            .key("pk", s(key))
            .update_expression("SET used = used + :one")
            .condition_expression("used < :most")
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .expression_attribute_values(":most", AttributeValue::N("1000000000".to_owned()))
            .send()
            .await
            .expect("room for one more");
    }
}

fn location(number: usize) -> Resource {
    Resource::location(&format!("benchLocation{number:07}")).expect("an id")
}

struct Scene {
    raw: RawCounter,
    limiter: Limiter,
    /// The limiter of another process.
    other: Limiter,
    /// The clock of both. It stands still while permits are measured, so no process calls steadily and takes permits
    /// ahead of need: each batch of permits is a write.
    clock: Clock,
}

impl Scene {
    async fn new(store: &Store) -> Self {
        let made = store.table().await;
        // Both limiters use the same client, configured as a function's.
        let table = Table { client: store::client(&store.url()).await, name: made.name };
        let raw = RawCounter::new(&table);
        for number in 0..CALLERS {
            raw.create(&format!("raw#{number}")).await;
        }
        let clock = Clock::manual(Millis(1_800_000_000_000));
        let process = || Limiter::new(table.clone(), clock.clone(), UNLIMITED);
        Self { raw, limiter: process(), other: process(), clock }
    }

    async fn permit(&self, resource: &Resource) {
        self.limiter.take(resource, None).await.expect("no limit");
    }

    /// Takes permits until each slot of the window has some.
    async fn fill_window(&self, resources: &[Resource]) {
        let until = self.clock.now() + FULL;
        while self.clock.now() < until {
            join_all(resources.iter().map(|resource| self.permit(resource))).await;
            self.clock.advance(Duration::from_millis(200));
        }
    }
}

/// The latency with one caller.
pub(crate) async fn latency(store: &Store, quick: bool) -> Vec<Row> {
    let scene = Scene::new(store).await;
    let resource = location(0);
    let (pairs, batch) = if quick { (5, 20) } else { (60, 50) };
    let raw = async || p50(batch, async || scene.raw.take("raw#0").await).await;
    let permits = async || p50(batch, async || scene.permit(&resource).await).await;
    raw().await;
    permits().await;
    let ratio = alternate(pairs, raw, permits).await;
    let what = "permit taken, 1 caller: p50 against a raw conditional UpdateItem";
    let mut rows = vec![Row::ratio("permit.latency", store.name, what, Target::AtMost(1.3), &ratio, "µs")];
    let resource_of_two = location(1);
    let others = async || {
        scene.other.take(&resource_of_two, None).await.expect("no limit");
    };
    let shared = async || p50_after(batch, others, async || scene.permit(&resource_of_two).await).await;
    shared().await;
    let ratio = alternate(pairs, raw, shared).await;
    let what = "the same by one of two processes that take turns";
    rows.push(Row::ratio("permit.latency.shared", store.name, what, Target::AtMost(1.45), &ratio, "µs"));
    if !quick {
        scene.fill_window(std::slice::from_ref(&resource)).await;
        let ratio = alternate(pairs, raw, permits).await;
        let what = "the same where every slot of the window holds permits: an item of 0.4 KB against one of 20 bytes";
        rows.push(Row::ratio("permit.latency.full", store.name, what, Target::Told, &ratio, "µs"));
    }
    rows
}

/// The throughput of thirty-two callers, each with a resource of its own.
pub(crate) async fn throughput(store: &Store, quick: bool) -> Vec<Row> {
    let scene = Scene::new(store).await;
    let resources: Vec<Resource> = (0..CALLERS).map(location).collect();
    let (pairs, batch) = if quick { (3, 5) } else { (30, 25) };
    let raw = async || {
        let began = Instant::now();
        let caller = async |number: usize| {
            let key = format!("raw#{number}");
            for _ in 0..batch {
                scene.raw.take(&key).await;
            }
        };
        join_all((0..CALLERS).map(caller)).await;
        rate(CALLERS * batch, began.elapsed())
    };
    let permits = async || {
        let began = Instant::now();
        let caller = async |resource| {
            for _ in 0..batch {
                scene.permit(resource).await;
            }
        };
        join_all(resources.iter().map(caller)).await;
        rate(CALLERS * batch, began.elapsed())
    };
    raw().await;
    permits().await;
    let ratio = alternate(pairs, raw, permits).await;
    let what = "permits a second, 32 callers on 32 resources, against the raw rate";
    let mut rows = vec![Row::ratio("permit.throughput", store.name, what, Target::AtLeast(0.9), &ratio, "/s")];
    if !quick {
        scene.fill_window(&resources).await;
        let ratio = alternate(pairs, raw, permits).await;
        let what = "the same where every slot of the window holds permits";
        rows.push(Row::ratio("permit.throughput.full", store.name, what, Target::Told, &ratio, "/s"));
    }
    rows
}

/// The throughput of thirty-two callers of one process for one resource.
pub(crate) async fn group(store: &Store, quick: bool) -> Vec<Row> {
    let scene = Scene::new(store).await;
    let resource = location(0);
    let (pairs, batch) = if quick { (3, 5) } else { (30, 25) };
    let raw = async || {
        let began = Instant::now();
        let caller = async |_| {
            for _ in 0..batch {
                scene.raw.take("raw#0").await;
            }
        };
        join_all((0..CALLERS).map(caller)).await;
        rate(CALLERS * batch, began.elapsed())
    };
    let permits = async || {
        let began = Instant::now();
        let caller = async |_| {
            for _ in 0..batch {
                scene.permit(&resource).await;
            }
        };
        join_all((0..CALLERS).map(caller)).await;
        rate(CALLERS * batch, began.elapsed())
    };
    raw().await;
    permits().await;
    let ratio = alternate(pairs, raw, permits).await;
    let what = "32 callers of one process on one resource, against the raw rate on one item";
    vec![Row::ratio("permit.group", store.name, what, Target::AtLeast(5.0), &ratio, "/s")]
}
