//! The cost of a warm call through the relay, in calls and in time.

use std::time::Duration;

use bytes::Bytes;
use sandbox::process::Program;
use serde_json::Value;

use crate::pairs::{Ratio, alternate, float, p50, quantile, times};
use crate::permits::RawCounter;
use crate::platform::access_token;
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, ONE_BY_ONE, System, Through, location, request};
use crate::wire::Calls;
use shared::domain::limits::Limits;
use shared::table::Table;

/// The call that a relayed call makes of the platform, made without the relay.
struct Direct {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Direct {
    fn to(system: &System) -> Self {
        let url = format!("{}/contacts/sx6wyHhbFdRXh302LLNR", system.platform.url());
        Self { http: reqwest::Client::new(), url, token: access_token(0) }
    }

    async fn call(&self) {
        let request = self.http.get(&self.url).bearer_auth(&self.token).header("accept", "application/json");
        request.send().await.expect("an answer").bytes().await.expect("a body");
    }
}

/// The calls and requests for each warm call, counted by the proxy and by the platform.
pub(crate) async fn counts(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let system = System::with_limits(store, functions, Through::Wire, Distances::default(), ONE_BY_ONE).await;
    let (location, calls) = (location(0), if quick { 100 } else { 150 });
    system.install(&location, 0).await;
    let _relay = system.start_function("relay");
    let payload = request(&location);
    for _ in 0..3 {
        system.relay(&payload).await;
    }
    let before = (system.wire.calls(), system.platform.requests());
    for _ in 0..calls {
        system.relay(&payload).await;
    }
    let after = (system.wire.calls(), system.platform.requests());
    let of =
        |calls: &Calls, wanted: &[&str]| -> usize { wanted.iter().filter_map(|operation| calls.get(*operation)).sum() };
    let more = |wanted: &[&str]| of(&after.0, wanted) - of(&before.0, wanted);
    let all: usize = after.0.values().sum::<usize>() - before.0.values().sum::<usize>();
    let (writes, secrets) = (more(&["UpdateItem", "PutItem", "DeleteItem"]), more(&["GetSecretValue"]));
    let row = |name, what, target, counted| {
        let what = format!("one warm relayed call: {what}");
        Row::count(name, store.name, &what, target, float(counted) / float(calls))
    };
    vec![
        row("relayed.writes", "DynamoDB writes", Target::Exactly(1.0), writes),
        row("relayed.reads", "DynamoDB reads, and anything else", Target::Exactly(0.0), all - writes - secrets),
        row("relayed.secrets", "secret fetches", Target::Exactly(0.0), secrets),
        row("relayed.platform", "platform requests", Target::Exactly(1.0), after.1 - before.1),
    ]
}

/// The time of a warm call, against the two calls that the relay cannot avoid.
pub(crate) async fn latency(store: &Store, functions: &Functions, bare: &std::path::Path, quick: bool) -> Vec<Row> {
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    let (location, payload) = (location(0), request(&location(0)));
    system.install(&location, 0).await;
    let _relay = system.start_function("relay");

    let table = Table { client: store::client(&store.url()).await, name: system.table.name.clone() };
    let counter = RawCounter::new(&table);
    counter.create("raw#0").await;
    let platform = Direct::to(&system);
    let direct = async || {
        counter.take("raw#0").await;
        platform.call().await;
    };

    // A function that does nothing else makes the same two calls, under the same Runtime API.
    let own = [
        ("RAW_TABLE", system.table.name.to_string()),
        ("RAW_URL", platform.url.clone()),
        ("RAW_TOKEN", platform.token.clone()),
    ];
    let _raw = system.start(Program::Path(bare.to_owned()), "raw", &own);
    let _echo = system.start(Program::Path(bare.to_owned()), "echo", &[]);
    let raw_function = async || {
        let answer: Value =
            serde_json::from_slice(&system.invoke("raw", Bytes::from_static(b"{}")).await).expect("JSON");
        assert_eq!(answer["status"], 200, "{answer}");
    };
    let echo = async || drop(system.invoke("echo", payload.clone()).await);
    let relay = async || system.relay(&payload).await;

    let (pairs, batch) = if quick { (5, 20) } else { (60, 40) };
    for _ in 0..batch {
        direct().await;
        relay().await;
        raw_function().await;
        echo().await;
    }
    let against_function =
        alternate(pairs, async || p50(batch, raw_function).await, async || p50(batch, relay).await).await;
    let runtime_api = p50(batch * 10, echo).await;
    let against_calls = alternate(pairs, async || p50(batch, direct).await, async || p50(batch, relay).await).await;
    vec![
        Row::ratio(
            "relayed.latency",
            store.name,
            "warm relayed call: p50 against raw UpdateItem + direct call by a bare function",
            Target::AtMost(1.15),
            &against_function,
            "µs",
        ),
        Row::ratio(
            "relayed.overhead",
            store.name,
            "the same against both calls made without any function: includes the Runtime API's two requests",
            Target::Told,
            &against_calls,
            "µs",
        )
        .with_remark(format!("an invocation that does nothing takes {runtime_api:.0} µs")),
    ]
}

/// The round-trip times of a table in the same region and of the platform.
const DISTANCES: Distances =
    Distances { dynamodb: Duration::from_millis(3), secrets: Duration::ZERO, platform: Duration::from_millis(80) };

/// The time of a warm call with the round-trip times of the real services, without and with permits ahead of need.
pub(crate) async fn distant(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let one_by_one = Limits { interval: Duration::from_secs(10), daily: 200_000, ..ONE_BY_ONE };
    let (against_both, _) = distant_calls(store, functions, one_by_one, true, quick).await;
    let ahead = Limits { burst: 1_000, ..one_by_one };
    let (against_direct, writes) = distant_calls(store, functions, ahead, false, quick).await;
    let row = |name, what: &str, most, ratio| {
        Row::ratio(name, store.name, what, Target::AtMost(most), ratio, "µs")
            .with_remark(format!("DynamoDB {:?}, platform {:?} away", DISTANCES.dynamodb, DISTANCES.platform))
    };
    let [both_p50, _, both_p99] = &against_both;
    let [direct_p50, direct_p90, direct_p99] = &against_direct;
    let what = "DynamoDB writes for each request of a process that calls steadily, with a limit of 1,000 in 10 s";
    vec![
        row("relayed.distant.p50", "warm relayed call: p50 against write + direct call by no function", 1.05, both_p50),
        row("relayed.distant.p99", "the same: p99", 1.05, both_p99),
        row("relayed.steady.p50", "steady calls, limit 1,000: p50 against the direct call alone", 1.03, direct_p50),
        // Other programs on the machine move the p99, but hardly the p90. One call in seven would move the p90, too.
        row("relayed.steady.p90", "the same: p90", 1.04, direct_p90),
        row("relayed.steady.p99", "the same: p99", 1.06, direct_p99),
        // It depends on the pace of the calls, and so on the machine.
        Row::time("relayed.steady.writes", store.name, what, Target::AtMost(0.4), writes),
    ]
}

/// The ratios of p50, p90 and p99 of calls one after the other, and the writes of a relayed call. The baseline is the direct
/// call, after a raw write if `with_write`.
async fn distant_calls(
    store: &Store,
    functions: &Functions,
    limits: Limits,
    with_write: bool,
    quick: bool,
) -> ([Ratio; 3], f64) {
    let system = System::with_limits(store, functions, Through::Wire, DISTANCES, limits).await;
    let (location, payload) = (location(0), request(&location(0)));
    system.install(&location, 0).await;
    let _relay = system.start_function("relay");
    let table = Table { client: store::client(&system.wire.url()).await, name: system.table.name.clone() };
    let counter = RawCounter::new(&table);
    counter.create("raw#0").await;
    let platform = Direct::to(&system);
    let direct = async || {
        if with_write {
            counter.take("raw#0").await;
        }
        platform.call().await;
    };
    let relay = async || system.relay(&payload).await;
    // Each change of turns is a pause in which spare permits lapse, so a turn is long.
    let (pairs, batch) = if quick { (1, 30) } else { (4, 300) };
    direct().await;
    let (mut relayed_calls, mut relayed_writes) = (0, 0);
    let mut measured = [const { Vec::new() }; 3];
    for _ in 0..pairs {
        let raw = times(batch, direct).await;
        // The relay knows the demand of whole seconds only.
        for _ in 0..25 {
            relay().await;
        }
        let before = system.wire.count();
        let relayed = times(batch, relay).await;
        relayed_writes += system.wire.count() - before;
        relayed_calls += batch;
        for (pairs, part) in measured.iter_mut().zip([0.5, 0.9, 0.99]) {
            pairs.push((quantile(&raw, part), quantile(&relayed, part)));
        }
    }
    (measured.map(|pairs| Ratio::of(&pairs)), float(relayed_writes) / float(relayed_calls))
}
