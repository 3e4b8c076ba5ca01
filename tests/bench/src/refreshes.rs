//! Refreshes a second of one invocation, against a loop that makes the same two writes and one POST and nothing else.

use std::time::Instant;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use shared::table::{Table, installation_key, n, s};

use crate::pairs::{alternate, float, rate};
use crate::platform::{access_token, refresh_token};
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
    let copies = Copies::of_installations(&system, table, due).await;
    let http = shared::http_client::token_endpoint().expect("a client");
    let url = format!("{}/oauth/token", system.platform.url());
    let (system, copies, http, url) = (&system, &copies, &http, &url);
    let raw = async || {
        let began = Instant::now();
        let one = |number: usize| async move {
            copies.claim(number).await;
            let form = format!(
                "grant_type=refresh_token&refresh_token={}&user_type=Location&client_id=bench-app&client_secret=x",
                refresh_token(location(number).id(), number)
            );
            let answer = http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
            answer.send().await.expect("an answer").bytes().await.expect("a grant");
            copies.commit(number).await;
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

/// Items as large and as indexed as installations, on which two writes as large as a claim and a commit are made, with
/// one condition each and nothing else.
struct Copies {
    table: Table,
}

impl Copies {
    async fn of_installations(system: &System, table: Table, count: usize) -> Self {
        for number in 0..count {
            let get = system.table.client.get_item().table_name(&*table.name);
            let found = get.key("pk", s(installation_key(&location(number)))).send().await.expect("an answer");
            let mut item = found.item.expect("an installation");
            item.insert("pk".to_owned(), s(format!("copy#{number}")));
            // Indexed like the others, but never due.
            item.insert("due_shard".to_owned(), s("copies"));
            table.client.put_item().table_name(&*table.name).set_item(Some(item)).send().await.expect("a copy");
        }
        Self { table }
    }

    async fn claim(&self, number: usize) {
        let update = self.table.client.update_item().table_name(&*self.table.name);
        update
            .key("pk", s(format!("copy#{number}")))
            .update_expression(
                "SET #status = :status, attempt = :attempt, lease_ends_at = :at, due_at = :at, tried_at = :at",
            )
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":status", s("refreshing"))
            .expression_attribute_values(":attempt", s("0af76519-16cd-43dd-8448-eb211c80319c"))
            .expression_attribute_values(":at", n(1_900_000_000_000_i64))
            .return_values(aws_sdk_dynamodb::types::ReturnValue::AllNew)
            .send()
            .await
            .expect("written");
    }

    async fn commit(&self, number: usize) {
        let token = |text: String| AttributeValue::B(Blob::new(text));
        let update = self.table.client.update_item().table_name(&*self.table.name);
        update
            .key("pk", s(format!("copy#{number}")))
            .update_expression("SET #status = :status, #access = :access, #refresh = :refresh, due_at = :at REMOVE attempt, lease_ends_at")
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_names("#access", "access_token")
            .expression_attribute_names("#refresh", "refresh_token")
            .expression_attribute_values(":status", s("active"))
            .expression_attribute_values(":access", token(access_token(number)))
            .expression_attribute_values(":refresh", token(refresh_token(location(number).id(), number)))
            .expression_attribute_values(":at", n(1_900_000_000_001_i64))
            .send()
            .await
            .expect("written");
    }
}

/// Installations that were called of late.
async fn prepare(system: &System, due: usize) {
    let one = |number: usize| async move {
        system.install(&location(number), number).await;
        // A permit that came too late to be used is one for the schedule, too.
        let _taken_or_late = system.app.quota.take(&location(number), None).await;
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
