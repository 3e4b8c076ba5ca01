//! Refreshes a second of one invocation, against a loop that makes the same two writes and one POST and nothing else.

use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use shared::table::{Table, installation_key, n, quota_key, s};

use crate::pairs::{alternate, float, rate};
use crate::permits::RawCounter;
use crate::platform::refresh_token;
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, System, Through, location};

/// What the function does at once.
const AT_ONCE: usize = 16;

/// The rate, and the calls that a refresh costs.
pub(crate) async fn rate_of_one(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let (pairs, due) = if quick { (3, 100) } else { (16, 400) };
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    prepare(&system, due).await;
    let _refresh = system.start_function("refresh");

    let table = Table { client: store::client(&store.url()).await, name: system.table.name.clone() };
    let counter = RawCounter::new(&table);
    for number in 0..due {
        counter.create(&format!("raw#{number}")).await;
    }
    let http = shared::http_client::token_endpoint().expect("a client");
    let url = format!("{}/oauth/token", system.platform.url());
    let (system, counter, http, url) = (&system, &counter, &http, &url);
    let raw = async || {
        let began = Instant::now();
        let one = |number: usize| async move {
            let key = format!("raw#{number}");
            counter.take(&key).await;
            let form = format!(
                "grant_type=refresh_token&refresh_token={}&user_type=Location&client_id=bench-app&client_secret=x",
                refresh_token(location(number).id(), number)
            );
            let answer = http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
            answer.send().await.expect("an answer").bytes().await.expect("a grant");
            counter.take(&key).await;
        };
        stream::iter(0..due).for_each_concurrent(AT_ONCE, one).await;
        rate(due, began.elapsed())
    };
    let refreshes = async || {
        make_due(system, due).await;
        let began = Instant::now();
        tick(system, due).await;
        rate(due, began.elapsed())
    };
    raw().await;
    refreshes().await;
    let ratio = alternate(pairs, raw, refreshes).await;
    let what = "refreshes a second of one invocation, against its two writes and one POST at the same concurrency";
    let mut rows = vec![Row::ratio("refresh.rate", store.name, what, Target::AtLeast(0.85), &ratio, "/s")];
    rows.extend(counts(store, functions, due).await);
    rows
}

async fn counts(store: &Store, functions: &Functions, due: usize) -> Vec<Row> {
    let system = System::new(store, functions, Through::Wire, Distances::default()).await;
    prepare(&system, due).await;
    make_due(&system, due).await;
    let _refresh = system.start_function("refresh");
    let before = (system.wire.calls(), system.platform.grants());
    tick(&system, due).await;
    let after = (system.wire.calls(), system.platform.grants());
    let more = |operation: &str| {
        let of = |calls: &crate::wire::Calls| calls.get(operation).copied().unwrap_or_default();
        of(&after.0) - of(&before.0)
    };
    let reads = more("Query") + more("GetItem") + more("BatchGetItem");
    let row = |name, what: &str, target, count| {
        Row::count(name, store.name, what, target, float(count) / float(due))
            .told(format!("{count} for {due} refreshes"))
    };
    vec![
        row(
            "refresh.writes",
            "writes of one refresh (one in twenty is a tally)",
            Target::AtMost(2.06),
            more("UpdateItem"),
        ),
        row("refresh.reads", "reads of one refresh, shared by those due together", Target::Told, reads),
        row("refresh.posts", "token requests of one refresh", Target::Exactly(1.0), after.1 - before.1),
    ]
}

/// Installations that were called of late.
async fn prepare(system: &System, due: usize) {
    let one = |number: usize| async move {
        system.install(&location(number), number).await;
        system.app.quota.take(&location(number), None).await.expect("a permit");
        debug_assert!(quota_key(&location(number)).starts_with("quota#"));
    };
    stream::iter(0..due).for_each_concurrent(AT_ONCE, one).await;
}

/// Puts all of them before the schedule.
async fn make_due(system: &System, due: usize) {
    let one = |number: usize| async move {
        let update = system.table.client.update_item().table_name(&*system.table.name);
        let update = update.key("pk", s(installation_key(&location(number)))).update_expression("SET due_at = :past");
        update.expression_attribute_values(":past", n(1)).send().await.expect("an installation");
    };
    stream::iter(0..due).for_each_concurrent(AT_ONCE, one).await;
}

async fn tick(system: &System, due: usize) {
    let answer = system.invoke("refresh", Bytes::from_static(br#"{"source":"aws.scheduler"}"#)).await;
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["refreshed"], due, "{answer}");
}
