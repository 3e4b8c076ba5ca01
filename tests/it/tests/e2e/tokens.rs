//! A token is renewed only if the renewal helps, once for all callers, and also by the schedule.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::Method;
use it::outside::{ClientResponse, Setup, System, company, location, route, send};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Resource;
use sandbox::whole::scheduled_event;
use serde_json::{Value, json};

const MINUTE: i64 = 60_000;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in range")
}

/// Four processes of `relay`, each of which takes several invocations at once.
async fn system() -> System {
    System::start(Setup { relays: 4, at_once: 10, ..Setup::default() }).await
}

/// Makes `count` calls at the same time.
async fn volley(system: &System, count: usize, path: &str) -> Vec<ClientResponse> {
    let call = |number: usize| {
        let method = if number % 4 == 3 { Method::POST } else { Method::GET };
        send(system.relay(method, &route(&location(1), path)).body(if number % 4 == 3 { "{}" } else { "" }))
    };
    join_all((0..count).map(call)).await
}

fn expect_all_served(answers: &[ClientResponse]) {
    for answer in answers {
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    }
}

/// Delays each renewal, so that every process needs a renewal while the first one is under way.
fn slow_renewals(system: &System) {
    system.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Delay { millis: 800 }, None);
}

/// Asserts that the stored grant is alive. Otherwise a customer would have to install again.
fn expect_alive(system: &System, resource: &Resource) {
    assert_eq!(system.sandbox.marketplace.live_refresh_tokens(resource).len(), 1, "{resource} has one live chain");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_under_forty_calls_is_renewed_once() {
    let system = system().await;
    system.install(&location(1)).await;
    expect_all_served(&volley(&system, 12, "/echo").await);
    assert_eq!(system.refreshes(), 0);

    slow_renewals(&system);
    system.sandbox.marketplace.expire_access_tokens();
    expect_all_served(&volley(&system, 40, "/echo").await);
    assert_eq!(system.refreshes(), 1, "{:?}", system.sandbox.marketplace.token_requests());
    let refused =
        system.sandbox.marketplace.api_requests(&location(1)).iter().filter(|seen| seen.status == Some(401)).count();
    assert!(refused >= 2, "no contention: only {refused} calls met the expired token");
    expect_alive(&system, &location(1));

    assert!(system.busy_relays() >= 3, "no contention: only {} processes had work", system.busy_relays());

    expect_all_served(&volley(&system, 4, "/echo").await);
    assert_eq!(system.refreshes(), 1, "the new one is used from now on");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_about_the_request_causes_no_refresh() {
    let system = system().await;
    system.install(&location(1)).await;
    let here = location(1);
    for answer in join_all((0..12).map(|_| system.get(&here, "/payments/orders"))).await {
        assert_eq!((answer.status, answer.source()), (401, "platform"), "{answer:?}");
        assert_eq!(answer.json()["message"], "The token is not authorized for this scope.");
    }
    let wrong_version = system.relay(Method::GET, &route(&location(1), "/echo")).header("version", "1999-01-01");
    assert_eq!(send(wrong_version).await.status, 401);
    for message in [
        "This authClass type is not allowed to access this scope. Please verify your IAM configuration if this is not the case.",
        "Token's user type mismatch!",
        "version header was not found.",
    ] {
        system.sandbox.marketplace.fault(Endpoint::Api, Fault::unauthorized(message), Some(1));
        let answer = system.get(&location(1), "/echo").await;
        assert_eq!((answer.status, answer.source()), (401, "platform"), "{message}");
    }
    assert_eq!(system.refreshes(), 0);
    assert_eq!(system.arrived(&location(1)), 16, "and nothing is sent twice");

    system.sandbox.marketplace.fault(Endpoint::Api, Fault::unauthorized("The access token has expired"), Some(1));
    assert_eq!(system.get(&location(1), "/echo").await.status, 200);
    assert_eq!(system.refreshes(), 1, "the control: this one helps");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_token_is_renewed_before_it_is_used() {
    let system = system().await;
    system.install(&location(1)).await;
    let now = now_ms();
    system
        .set_stored(&location(1), &[("access_issued_at", now - 1440 * MINUTE), ("access_expires_at", now + MINUTE / 2)])
        .await;
    slow_renewals(&system);
    expect_all_served(&volley(&system, 40, "/echo").await);
    assert!(system.busy_relays() >= 3, "no contention: only {} processes had work", system.busy_relays());
    assert_eq!(system.refreshes(), 1, "{:?}", system.sandbox.marketplace.token_requests());
    let seen = system.sandbox.marketplace.api_requests(&location(1));
    assert!(
        seen.iter().all(|seen| seen.status == Some(200)),
        "nothing was tried with a token that might end on the way"
    );
    expect_alive(&system, &location(1));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_renews_due_installations_and_reports_them() {
    let system = System::start(Setup { relays: 1, locations: 5, ..Setup::default() }).await;
    let all: Vec<Resource> = (1..=5).map(location).chain([company()]).collect();
    for resource in &all {
        system.install(resource).await;
    }
    let summary = |due: u64, refreshed: u64, failed: u64| json!({ "due": due, "refreshed": refreshed, "minted": 0, "deferred": 0, "failed": failed, "left": 0 });
    let tick = async || system.refresh(&scheduled_event()).await.expect("a summary");
    assert_eq!(tick().await, summary(0, 0, 0), "what is new is not due");

    let before: Vec<Vec<String>> =
        all.iter().map(|resource| system.sandbox.marketplace.live_refresh_tokens(resource)).collect();
    system.sandbox.marketplace.set_active(location(3), false);
    let due = [location(1), location(2), location(3), company()];
    for resource in &due {
        system.set_stored(resource, &[("due_at", now_ms() - MINUTE)]).await;
    }
    assert_eq!(tick().await, summary(4, 3, 1), "one is paused by the agency");
    assert_eq!(system.refreshes(), 4);
    for (resource, before) in all.iter().zip(&before) {
        let now = system.sandbox.marketplace.live_refresh_tokens(resource);
        let renewed = due.contains(resource) && *resource != location(3);
        assert_eq!(now != *before, renewed, "{resource}");
        expect_alive(&system, resource);
    }
    assert_eq!(tick().await, summary(0, 0, 0), "nothing is due twice");
    assert_eq!(system.get(&location(3), "").await.json()["status"], "Suspended");
    assert_eq!(system.get(&location(3), "/echo").await.status, 200, "its token still works");

    system.sandbox.marketplace.set_active(location(3), true);
    let one = json!({ "resource": location(3), "force": true });
    assert_eq!(system.refresh(&one).await.expect("a summary"), summary(1, 1, 0));
    assert_eq!(system.get(&location(3), "").await.json()["status"], "Active");
    for resource in &all {
        let path = if *resource == company() { format!("/companies/{}", resource.id()) } else { "/echo".to_owned() };
        let answer = system.get(resource, &path).await;
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{resource}: {answer:?}");
    }

    let refreshes = system.refreshes();
    for bad in [json!({ "shard": 4, "shards": 4 }), json!({ "resource": { "team": "x" } }), json!({ "Records": 7 })] {
        assert!(system.refresh(&bad).await.is_err(), "{bad}");
    }
    assert_eq!(
        system.refresh(&json!({ "resource": { "location": "HLnobody" } })).await.expect("a summary")["failed"],
        1
    );
    assert_eq!(system.refresh(&Value::Null).await.expect("a summary"), summary(0, 0, 0));
    assert_eq!(system.refreshes(), refreshes);
    system.end().await;
}
