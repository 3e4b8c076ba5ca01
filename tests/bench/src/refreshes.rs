//! The refreshes per second of one invocation, against a loop that makes the two writes and one POST of a refresh and
//! nothing else. For information also against a loop whose writes have a single condition.

use std::time::Instant;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use shared::domain::installation::installation_key;
use shared::domain::status::Status;
use shared::limiter::LimiterError;
use shared::table::{StoreError, Table, n, s};

use crate::pairs::{alternate, float, rate};
use crate::platform::{access_token, refresh_token};
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, System, Through, location};

/// The number of refreshes that the function runs at once.
const AT_ONCE: usize = 16;

/// The rate, and the number of calls for each refresh.
pub(crate) async fn rate_of_one(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let (pairs, due) = if quick { (3, 100) } else { (40, 400) };
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    prepare(&system, due).await;
    let _refresh = system.start_function("refresh");

    let table = Table { client: store::client(&store.url()).await, name: system.table.name.clone() };
    let copies = Copies::of_installations(&system, table, due).await;
    // As in the functions, each presentation of a refresh token has its own connection.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
    let url = format!("{}/oauth/token", system.platform.url());
    let (system, copies, http, url) = (&system, &copies, &http, &url);
    let raw = async |of: Conditions| {
        let began = Instant::now();
        let one = |number: usize| async move {
            copies.claim(number, of).await;
            let form = format!(
                "grant_type=refresh_token&refresh_token={}&user_type=Location&client_id=bench-app&client_secret=x",
                refresh_token(location(number).id(), number)
            );
            let answer = http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
            answer.send().await.expect("an answer").bytes().await.expect("a grant");
            copies.commit(number, of).await;
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
    raw(Conditions::Its).await;
    raw(Conditions::One).await;
    refreshes().await;
    let ratio = alternate(pairs, async || raw(Conditions::Its).await, refreshes).await;
    let what = "refreshes a second of one invocation, against its two writes and one POST at the same concurrency";
    let mut rows = vec![Row::ratio("refresh.rate", store.name, what, Target::AtLeast(0.85), &ratio, "/s")];
    let ratio = alternate(pairs.min(16), async || raw(Conditions::One).await, refreshes).await;
    let what = "the same against two writes as large, with one condition each";
    rows.push(Row::ratio("refresh.rate.bare", store.name, what, Target::Told, &ratio, "/s"));
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
            .with_remark(format!("{count} for {due} refreshes"))
    };
    vec![
        row("refresh.writes", "writes of one refresh", Target::AtMost(2.06), more("UpdateItem")),
        row("refresh.reads", "reads of one refresh, shared by those due together", Target::Told, reads),
        row("refresh.posts", "token requests of one refresh", Target::Exactly(1.0), after.1 - before.1),
    ]
}

/// The conditions and values of the raw loop's writes.
#[derive(Clone, Copy)]
enum Conditions {
    /// All conditions and values of a claim and a commit.
    Its,
    /// The same amount of data, and only the condition that the item exists.
    One,
}

/// Copies of installations, of the same size and in the same indexes. The raw loop makes the writes of a claim and a
/// commit on them.
struct Copies {
    table: Table,
    epoch: AttributeValue,
    generation: AttributeValue,
}

impl Copies {
    async fn of_installations(system: &System, table: Table, count: usize) -> Self {
        let mut version = (n(0), n(0));
        for number in 0..count {
            let get = system.table.client.get_item().table_name(&*table.name);
            let found = get.key("pk", s(installation_key(&location(number)))).send().await.expect("an answer");
            let mut item = found.item.expect("an installation");
            // All installations were installed once and never renewed, so they have the same version.
            version = (item["epoch"].clone(), item["generation"].clone());
            item.insert("pk".to_owned(), s(format!("copy#{number}")));
            // The copies are in the index like the others, but never due.
            item.insert("due_shard".to_owned(), s("copies"));
            table.client.put_item().table_name(&*table.name).set_item(Some(item)).send().await.expect("a copy");
        }
        let (epoch, generation) = version;
        Self { table, epoch, generation }
    }

    /// The first write of a refresh, as `Table::claim` sends it, with the conditions `of`.
    async fn claim(&self, number: usize, of: Conditions) {
        let update = self.table.client.update_item().table_name(&*self.table.name);
        let update = update
            .key("pk", s(format!("copy#{number}")))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":refreshing", s(Status::Refreshing.as_str()))
            .expression_attribute_values(":attempt", s("0af76519-16cd-43dd-8448-eb211c80319c"))
            .expression_attribute_values(":due", n(1_900_000_000_000_i64))
            .expression_attribute_values(":now", n(1_900_000_000_000_i64))
            .return_values(ReturnValue::AllNew);
        let update = match of {
            Conditions::One => update
                .update_expression(
                    "SET #status = :refreshing, attempt = :attempt, lease_ends_at = :due, due_at = :due, tried_at = :now",
                )
                .condition_expression("attribute_exists(pk)"),
            Conditions::Its => update
                .update_expression(
                    "SET #status = :refreshing, attempt = :attempt, lease_ends_at = :due, due_at = :due, \
                     due_shard = :shard, tried_at = :now, claimed_from = #status REMOVE retry_at",
                )
                .condition_expression(
                    "epoch = :epoch AND generation = :generation AND (#status IN (:active, :suspended, :blocked, :given_up) \
                     OR (#status IN (:refreshing, :uncertain) AND \
                     (attribute_not_exists(lease_ends_at) OR lease_ends_at <= :now))) AND attribute_not_exists(minted)",
                )
                .expression_attribute_values(":epoch", self.epoch.clone())
                .expression_attribute_values(":generation", self.generation.clone())
                .expression_attribute_values(":active", s(Status::Active.as_str()))
                .expression_attribute_values(":suspended", s(Status::Suspended.as_str()))
                .expression_attribute_values(":blocked", s(Status::Blocked.as_str()))
                .expression_attribute_values(":given_up", s(Status::Active.as_str()))
                .expression_attribute_values(":uncertain", s(Status::Uncertain.as_str()))
                .expression_attribute_values(":shard", s("copies"))
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld),
        };
        update.send().await.expect("written");
    }

    /// The second write, as `Table::commit` sends it. Only the generation stays the same.
    async fn commit(&self, number: usize, of: Conditions) {
        let token = |text: String| AttributeValue::B(Blob::new(text));
        let update = self.table.client.update_item().table_name(&*self.table.name);
        let update = update
            .key("pk", s(format!("copy#{number}")))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":access", token(access_token(number)))
            .expression_attribute_values(":refresh", token(refresh_token(location(number).id(), number)))
            .expression_attribute_values(":due", n(1_900_000_000_001_i64));
        let update = match of {
            Conditions::One => update
                .update_expression(
                    "SET #status = :active, access_token = :access, refresh_token = :refresh, due_at = :due \
                     REMOVE attempt, lease_ends_at",
                )
                .condition_expression("attribute_exists(pk)"),
            Conditions::Its => update
                .update_expression(
                    "SET #status = :active, generation = :next, granted_from = :generation, committed_by = :attempt, \
                     due_at = :due, due_shard = :shard, failures = :zero, access_token = :access, refresh_token = :refresh, \
                     access_issued_at = :issued, access_expires_at = :expires REMOVE attempt, lease_ends_at",
                )
                .condition_expression("epoch = :epoch AND generation = :generation AND #status <> :revoked")
                .expression_attribute_values(":epoch", self.epoch.clone())
                .expression_attribute_values(":generation", self.generation.clone())
                .expression_attribute_values(":next", self.generation.clone())
                .expression_attribute_values(":revoked", s(Status::Revoked.as_str()))
                .expression_attribute_values(":attempt", s("0af76519-16cd-43dd-8448-eb211c80319c"))
                .expression_attribute_values(":shard", s("copies"))
                .expression_attribute_values(":zero", n(0))
                .expression_attribute_values(":issued", n(1_900_000_000_000_i64))
                .expression_attribute_values(":expires", n(1_900_086_399_000_i64))
                .return_values(ReturnValue::AllNew)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld),
        };
        update.send().await.expect("written");
    }
}

/// Prepares installations that had recent calls.
async fn prepare(system: &System, due: usize) {
    let one = |number: usize| async move {
        system.install(&location(number), number).await;
        match system.app.limiter.take(&location(number), None).await {
            // The schedule also counts a permit that came too late to be used as a recent call.
            Ok(_) | Err(LimiterError::Store(StoreError::Unavailable(_))) => {}
            Err(error) => panic!("{error}"),
        }
    };
    stream::iter(0..due).for_each_concurrent(AT_ONCE, one).await;
}

/// Makes all installations due.
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
