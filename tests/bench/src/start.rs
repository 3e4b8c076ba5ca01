//! The time from the start of a process to its readiness, and to the answer to its first call.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use futures_util::future::join_all;
use http::HeaderMap;
use sandbox::process::{Program, lambda_environment};
use serde_json::Value;
use shared::domain::installation::installation_key;
use shared::table::Table;

use crate::cgroup::Cgroup;
use crate::pairs::{alternate, micros, quantile};
use crate::permits::RawCounter;
use crate::platform::access_token;
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, System, Through, location, request};

/// Round-trip times that are added to the emulators, so that a start waits for each service as long as for the real
/// one.
const DISTANCES: Distances = Distances {
    dynamodb: Duration::from_millis(6),
    secrets: Duration::from_millis(30),
    platform: Duration::from_millis(90),
};

/// The time from the start of a process to its first request to the Runtime API.
pub(crate) async fn poll(store: &Store, functions: &Functions, bare: &Path, quick: bool) -> Vec<Row> {
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    let relay = functions.bootstrap("relay");
    let pairs = if quick { 3 } else { 30 };
    let environment = system.environment().clone();
    let nothing = BTreeMap::new();
    first_poll(bare, &nothing);
    first_poll(&relay, &environment);
    let ratio = alternate(
        pairs,
        async || tokio::task::block_in_place(|| first_poll(bare, &nothing)),
        async || tokio::task::block_in_place(|| first_poll(&relay, &environment)),
    );
    // Without a target: the relay prepares its first call before the poll, and `throttled` measures what that brings.
    let what = "process start to first poll, against a bare function that prepares nothing";
    vec![Row::ratio("start.poll", "none", what, Target::Told, &ratio.await, "µs")]
}

/// The time to the first bytes of the first poll, in microseconds.
fn first_poll(program: &Path, environment: &BTreeMap<String, String>) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(lambda_environment("relay", "relay-1"))
        .envs(environment)
        .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn().expect("the function is built");
    let (mut connection, _) = listener.accept().expect("it connects");
    let mut first = [0; 16];
    let read = connection.read(&mut first).expect("it asks");
    let took = began.elapsed();
    assert!(first[..read].starts_with(b"GET "), "it asks for work");
    process.kill().expect("it runs");
    process.wait().expect("it is gone");
    micros(took)
}

/// The time from the start of a process to its first relayed answer, with the round-trip times of the real services.
pub(crate) async fn answer(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let system = System::new(store, functions, Through::Wire, DISTANCES).await;
    let (location, payload) = (location(0), request(&location(0)));
    system.install(&location, 0).await;
    let table = Table { client: store::client(&system.wire.url()).await, name: system.table.name.clone() };
    let counter = RawCounter::new(&table);
    counter.create("raw#0").await;
    let url = format!("{}/contacts/sx6wyHhbFdRXh302LLNR", system.platform.url());
    let token = access_token(0);
    // Each round trip uses a client without an open connection, as in a process that has just started.
    let round_trips = async || {
        let counter =
            RawCounter::new(&Table { client: new_client(&system.wire.url()).await, name: table.name.clone() });
        let http = reqwest::Client::new();
        let began = Instant::now();
        join_all((0..3).map(|_| secret(&http, &system))).await;
        counter.take("raw#0").await;
        let answer = http.get(&url).bearer_auth(&token).send().await.expect("an answer");
        answer.bytes().await.expect("a body");
        micros(began.elapsed()) / 1_000.0
    };
    let first_answer = async || {
        // The function exists as soon as its Runtime API is requested, and the invocation waits for a process.
        let _address = system.runtime.url_for("relay", "relay-1");
        let began = Instant::now();
        let worker = system.start_function("relay");
        system.relay(&payload).await;
        let took = micros(began.elapsed()) / 1_000.0;
        worker.end().await;
        took
    };
    first_answer().await;
    let ratio = alternate(if quick { 3 } else { 30 }, round_trips, first_answer).await;
    let what =
        "start to first relayed answer, against its unavoidable round trips (secrets in parallel, store, platform)";
    let distances = format!(
        "DynamoDB {:?}, secrets {:?}, platform {:?} away",
        DISTANCES.dynamodb, DISTANCES.secrets, DISTANCES.platform
    );
    vec![Row::ratio("start.answer", store.name, what, Target::AtMost(1.5), &ratio, "ms").with_remark(distances)]
}

/// The part of a processor, in percent, that Lambda gives to a function of about 512 MB after its initialization.
pub(crate) const PROCESSOR: u32 = 30;

/// The time from the start of a process to its first answer, with a part of a processor from the first poll on, as on
/// Lambda. The baseline is a bare function that makes the same round trips.
pub(crate) async fn throttled(
    store: &Store,
    functions: &Functions,
    bare: &Path,
    group: &Cgroup,
    quick: bool,
) -> Vec<Row> {
    let system = System::new(store, functions, Through::Wire, DISTANCES).await;
    let (location, payload) = (location(0), request(&location(0)));
    system.install(&location, 0).await;
    RawCounter::new(&system.table).create("raw#0").await;
    let own = [
        ("RAW_TABLE", system.table.name.to_string()),
        ("RAW_URL", format!("{}/contacts/sx6wyHhbFdRXh302LLNR", system.platform.url())),
        ("RAW_TOKEN", access_token(0)),
        ("RAW_ITEM", installation_key(&location)),
        ("RAW_SECRETS", "app,sealing,callers".to_owned()),
    ];
    let initialized = std::cell::RefCell::new([const { Vec::new() }; 2]);
    let first_answer = async |function: &str, program: Program, own: &[(&str, String)]| {
        let polls = system.runtime.polls(function);
        let began = Instant::now();
        let worker = system.start(program, function, own);
        while system.runtime.polls(function) == polls {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        initialized.borrow_mut()[usize::from(function == "relay")].push(micros(began.elapsed()) / 1_000.0);
        group.add(worker.pid().expect("it runs")).expect("a process of ours");
        if function == "relay" {
            system.relay(&payload).await;
        } else {
            let answer: Value = serde_json::from_slice(&system.invoke(function, "{}").await).expect("JSON");
            assert_eq!(answer["status"], 200, "{answer}");
        }
        let took = micros(began.elapsed()) / 1_000.0;
        worker.end().await;
        took
    };
    let raw = async || first_answer("raw", Program::Path(bare.to_owned()), &own).await;
    let relay = async || first_answer("relay", Program::Path(functions.bootstrap("relay")), &[]).await;
    raw().await;
    relay().await;
    let ratio = alternate(if quick { 3 } else { 30 }, raw, relay).await;
    let [of_raw, of_relay] = initialized.take().map(|times| quantile(&times, 0.5));
    let what = format!(
        "start to first relayed answer with 0.{PROCESSOR} of a processor after the first poll, against a bare function \
         with the same round trips"
    );
    let stopped = group.throttled();
    let remark = format!(
        "until the first poll {of_relay:.0} ms against {of_raw:.0}; stopped {stopped} times by the quota; without TLS"
    );
    vec![Row::ratio("start.throttled", store.name, &what, Target::AtMost(1.15), &ratio, "ms").with_remark(remark)]
}

async fn new_client(url: &str) -> Client {
    store::client(url).await
}

async fn secret(http: &reqwest::Client, system: &System) {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-target", http::HeaderValue::from_static("secretsmanager.GetSecretValue"));
    let body = r#"{"SecretId":"app"}"#;
    let answer = http.post(system.wire.url()).headers(headers).body(body).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
}
