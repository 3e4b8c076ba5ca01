//! The guarantees on a network with faults between the functions and the platform: slow handshakes, connections that
//! end while a process is frozen, answers that arrive meanwhile, and changes while a call waits for its permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use futures_util::future::join_all;
use http::Method;
use it::front::{Answers, End, Front};
use it::outside::{Setup, System, company, location, route, send, until};
use sandbox::marketplace::grants::Rotation;
use sandbox::process::Signal;
use sandbox::server::{Server, WhenClientLeaves};
use sandbox::whole::{APP_SECRET, CALLERS_SECRET, SEALING_SECRET};
use serde_json::json;
use shared::domain::clock::Clock;
use shared::http_client::{self, ResponseLimits};
use url::Url;

const PATH: &str = "/contacts/?limit=1";
const INTERVAL: Duration = Duration::from_secs(10);

/// A system that reaches the platform through a TLS front.
async fn behind_a_front(setup: Setup) -> (System, Front) {
    let front = Front::start().await;
    let mut environment = setup.environment.clone();
    environment.push(("API_URL", front.url()));
    environment.push(("SSL_CERT_FILE", front.root_file().display().to_string()));
    let system = System::start(Setup { environment, ..setup }).await;
    front.lead_to(&system.sandbox.marketplace.url());
    (system, front)
}

/// Lambda runs a process at full speed until it asks for an event.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_prepares_its_first_call_before_it_asks_for_an_event() {
    let (mut system, front) = behind_a_front(Setup { relays: 0, ..Setup::default() }).await;
    let secrets = [APP_SECRET, SEALING_SECRET, CALLERS_SECRET];
    let read = |system: &System| secrets.map(|id| system.sandbox.secrets.requests_for(id));
    let (reads, open) = (read(&system), front.open());
    system.start_more("relay", 1).await;
    assert_eq!(read(&system), reads.map(|reads| reads + 1), "it has read its secrets");
    assert_eq!(front.open(), open + 1, "it is connected to the platform");
    system.install(&location(1)).await;
    let reads = read(&system);
    let answer = send(system.relay(Method::GET, &route(&location(1), PATH))).await;
    assert_eq!((answer.status, read(&system)), (200, reads), "its first call reads no secret: {answer:?}");
    system.end().await;
}

/// A hundred calls need more than two seconds to connect. A hundred more calls use the open connections at the time at
/// which the first permits would be free again if they had been taken before the handshakes.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_does_not_make_permits_arrive_together_with_those_of_the_next_window() {
    const HANDSHAKE: Duration = Duration::from_millis(2_200);
    let (system, front) = behind_a_front(Setup { relays: 4, at_once: 30, ..Setup::default() }).await;
    let busy = location(1);
    system.install(&busy).await;
    front.handshakes_take(HANDSHAKE);
    let began = Instant::now();
    let volley = async || {
        let call = |_| send(system.relay(Method::GET, &route(&busy, PATH)).header("relay-wait-ms", "20000"));
        join_all((0..100).map(call)).await
    };
    let first = volley().await;
    assert!(began.elapsed() > HANDSHAKE, "the handshakes were slow");
    front.handshakes_take(Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(10_750).saturating_sub(began.elapsed())).await;
    let second = volley().await;
    let worst = system.sandbox.marketplace.worst_window(&busy);
    assert!(worst <= 100, "{worst} requests within an interval");
    for answer in first.iter().chain(&second) {
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    }
    assert_eq!(system.arrived(&busy), 200);
    system.end().await;
}

/// The same for minting, whose permits belong to the company. Each process mints after a slow handshake.
#[tokio::test(flavor = "multi_thread")]
async fn minting_keeps_the_companys_limit_though_its_connections_are_slow() {
    const HANDSHAKE: Duration = Duration::from_millis(2_200);
    let environment = vec![("BURST_LIMIT", "20".to_owned())];
    let setup = Setup { relays: 4, at_once: 10, locations: 40, environment, ..Setup::default() };
    let (system, front) = behind_a_front(setup).await;
    system.install(&company()).await;
    front.handshakes_take(HANDSHAKE);
    let began = Instant::now();
    let called = async |numbers: std::ops::Range<usize>| {
        let call = |number| send(system.relay(Method::GET, &route(&location(number), PATH)));
        join_all(numbers.map(call)).await
    };
    let first = called(1..21).await;
    let served = first.iter().filter(|answer| answer.status == 200).count();
    // On a busy machine a permit that is used too late is lost.
    assert!(served >= 12, "{served} of 20 served: {first:?}");
    assert!(began.elapsed() > HANDSHAKE, "the handshakes were slow");
    front.handshakes_take(Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(10_750).saturating_sub(began.elapsed())).await;
    called(21..41).await;
    let mut minted: Vec<Duration> = system
        .sandbox
        .marketplace
        .token_requests()
        .into_iter()
        .filter(|seen| seen.grant == "mint")
        .map(|seen| seen.at)
        .collect();
    minted.sort_unstable();
    assert!(minted.len() >= 20, "{} mintings", minted.len());
    let within =
        minted.iter().map(|first| minted.iter().filter(|at| **at >= *first && **at < *first + INTERVAL).count());
    let worst = within.max().unwrap_or_default();
    assert!(worst <= 20, "{worst} requests with the company's token within an interval");
    system.end().await;
}

/// A process is frozen between two calls, as Lambda freezes it, and the platform ends the process's connections
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn no_post_fails_or_is_sent_twice_after_a_freeze() {
    let (system, front) = behind_a_front(Setup { relays: 1, ..Setup::default() }).await;
    let resource = location(1);
    system.install(&resource).await;
    let post = async || {
        let post = system.relay(Method::POST, &route(&resource, "/contacts/"));
        send(post.header("content-type", "application/json").body(r#"{"firstName":"Once"}"#)).await
    };
    assert_eq!(post().await.status, 201);
    for round in 0..20 {
        let how = if round % 2 == 0 { End::Reset } else { End::Close };
        system.signal("relay-1", Signal::Stop).await;
        front.end_all(how);
        // The invocation waits for the frozen process, as Lambda thaws an environment for an invocation.
        let (answer, ()) = tokio::join!(post(), system.signal("relay-1", Signal::Continue));
        assert_eq!((answer.status, answer.source()), (201, "platform"), "{how:?}, round {round}: {answer:?}");
        assert_eq!(system.arrived(&resource), round + 2, "{how:?}: once each");
    }
    system.end().await;
}

/// A thread stops and then sends a request before it has read anything. The end of its TLS connection is already in its
/// socket.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_sent_on_a_tls_connection_that_ended_while_its_thread_stood_still() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&arrived);
    let router = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { "arrived" }
    });
    let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
    let front = Front::start().await;
    front.lead_to(&server.url());
    let url = Url::parse(&front.url()).expect("a URL");
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let connections = http_client::trusting(front.client(), Clock::system());
            let limits = ResponseLimits { time: Duration::from_secs(10), body: 1_000 };
            for round in 1..=20 {
                let answer = connections.get(&url, limits).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
                assert_eq!((&answer.body[..], arrived.load(Ordering::SeqCst)), (&b"arrived"[..], round));
                front.end_all(if round % 2 == 0 { End::Reset } else { End::Close });
                while front.open() > 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
    });
    tokio::task::spawn_blocking(|| client.join()).await.expect("no panic").expect("no panic");
}

/// The platform rotates a token, and its answer reaches the machine while the process is stopped for longer than the
/// time-out of an answer. A strict platform never repeats that answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_has_arrived_is_used_even_if_the_process_reads_it_late() {
    let (system, front) = behind_a_front(Setup { relays: 1, ..Setup::default() }).await;
    system.sandbox.marketplace.change(|options| options.rotation = Rotation::Strict);
    for (number, answers) in [(1, Answers::Whole), (2, Answers::InPieces(200, Duration::from_millis(2)))] {
        let resource = location(number);
        system.install(&resource).await;
        front.answers(answers);
        system.sandbox.marketplace.expire_access_tokens_of(&resource);
        system.set_stored(&resource, &[("access_expires_at", 1_000)]).await;
        let before = system.refreshes();
        front.hold();
        let call = system.get(&resource, PATH);
        let stopped = async {
            assert!(until(|| system.refreshes() == before + 1).await, "the token is presented");
            system.signal("relay-1", Signal::Stop).await;
            front.release();
            tokio::time::sleep(Duration::from_secs(8)).await;
            system.signal("relay-1", Signal::Continue).await;
        };
        let (answer, ()) = tokio::join!(call, stopped);
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answers:?}: {answer:?}");
        assert_eq!(system.refreshes(), before + 1, "{answers:?}: the token is presented once");
        assert_eq!(system.get(&resource, "").await.json()["status"], "Active", "{answers:?}");
    }
    system.end().await;
}

/// The app is uninstalled while a call waits for its permit.
#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_is_noticed_by_a_call_that_waits_for_its_permit() {
    let system = System::start(Setup { relays: 2, ..Setup::default() }).await;
    let resource = location(1);
    system.install(&resource).await;
    let hooks = format!("{}/webhooks/marketplace", system.sandbox.gateway.url());
    system.sandbox.marketplace.webhooks().send_to(hooks);
    let request = json!({ "resource": resource, "method": "GET", "path": "/contacts/", "query": "limit=1" });
    let batch = json!({ "requests": vec![request; 100] }).to_string();
    let answers = system.invoke(batch, None).await;
    assert!(answers["responses"].as_array().expect("answers").iter().all(|answer| answer["status"] == 200));
    let waiting = || send(system.relay(Method::GET, &route(&resource, PATH)).header("relay-wait-ms", "20000"));
    let uninstalling = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        system.sandbox.marketplace.uninstall(&resource);
    };
    let (answers, ()) = tokio::join!(join_all((0..4).map(|_| waiting())), uninstalling);
    for answer in answers {
        assert_eq!(answer.refusal(), (410, "revoked".to_owned()), "{answer:?}");
    }
    let arrived = system.arrived(&resource);
    assert_eq!((arrived, system.sandbox.marketplace.strangers()), (100, 0), "nothing was sent after the wait");
    system.end().await;
}
