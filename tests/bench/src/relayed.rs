//! The cost of a warm call through the relay, in calls and in time.

use bytes::Bytes;
use sandbox::process::Program;
use serde_json::Value;

use crate::pairs::{alternate, float, p50};
use crate::permits::RawCounter;
use crate::platform::access_token;
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, System, Through, location, request};
use crate::wire::Calls;
use shared::table::Table;

/// The calls and requests for each warm call, counted by the proxy and by the platform.
pub(crate) async fn counts(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let system = System::new(store, functions, Through::Wire, Distances::default()).await;
    let (location, calls) = (location(0), if quick { 100 } else { 500 });
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
    let row = |name, what, wanted, counted| {
        let what = format!("one warm relayed call: {what}");
        Row::count(name, store.name, &what, Target::Exactly(wanted), float(counted) / float(calls))
    };
    vec![
        row("relayed.writes", "DynamoDB writes", 1.0, writes),
        row("relayed.reads", "DynamoDB reads, and anything else", 0.0, all - writes - secrets),
        row("relayed.secrets", "secret fetches", 0.0, secrets),
        row("relayed.platform", "platform requests", 1.0, after.1 - before.1),
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
    let http = reqwest::Client::new();
    let url = format!("{}/contacts/sx6wyHhbFdRXh302LLNR", system.platform.url());
    let token = access_token(0);
    let direct = async || {
        counter.take("raw#0").await;
        let answer = http.get(&url).bearer_auth(&token).header("accept", "application/json").send().await;
        answer.expect("an answer").bytes().await.expect("a body");
    };

    // A function that does nothing else makes the same two calls, under the same Runtime API.
    let own = [("RAW_TABLE", system.table.name.to_string()), ("RAW_URL", url.clone()), ("RAW_TOKEN", token.clone())];
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
