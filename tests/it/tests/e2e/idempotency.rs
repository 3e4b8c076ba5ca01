//! Idempotency keys through the gateway, and the operator's commands for recorded calls.

use http::Method;
use it::outside::{ClientResponse, Setup, System, location, route, send};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;

use crate::operator::{done, ops};

async fn post(system: &System, path: &str, key: &str) -> ClientResponse {
    let request = system.relay(Method::POST, path).header("Idempotency-Key", key);
    let request = request.header("content-type", "application/json").header("x-location-id", location(1).id());
    send(request.body(r#"{"firstName":"Grace"}"#)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_counts_by_every_route() {
    let system = System::start(Setup::default()).await;
    system.install(&location(1)).await;
    let here = route(&location(1), "/contacts/");
    let created = post(&system, &here, "k").await;
    assert_eq!((created.status, created.source()), (201, "platform"), "{created:?}");
    for path in [&*here, "/api/contacts/"] {
        let again = post(&system, path, "k").await;
        assert_eq!((again.status, again.source(), again.header("relay-replayed")), (201, "platform", "true"));
        assert_eq!(again.body, created.body, "{path}");
    }
    let other = system.relay(Method::POST, &here).header("Idempotency-Key", "k").body("{}");
    assert_eq!(send(other).await.refusal(), (422, "idempotency_conflict".to_owned()));
    for bad in ["", "a b"] {
        assert_eq!(post(&system, &here, bad).await.refusal(), (400, "invalid_request".to_owned()), "{bad:?}");
    }
    assert_eq!(system.arrived(&location(1)), 1);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_resolves_an_unknown_call() {
    let system = System::start(Setup::default()).await;
    system.install(&location(1)).await;
    let here = route(&location(1), "/contacts/");
    let resource = location(1).to_string();
    let which = |key: &'static str| [key, "--caller", "sandbox", "--resource"].map(str::to_owned);
    let with = |verb: &'static str, key: &'static str, more: &[&'static str]| {
        let mut words = vec!["calls".to_owned(), verb.to_owned()];
        words.extend(which(key));
        words.push(resource.clone());
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    for (key, how, status, replayed) in [
        ("executed", &["--executed", "--status", "201", "--yes"][..], 201, true),
        ("lost", &["--not-executed", "--yes"], 201, false),
    ] {
        let words = |words: Vec<String>| words;
        system.sandbox.marketplace.fault(Endpoint::Api, Fault::HangUp { processed: false }, Some(1));
        assert_eq!(post(&system, &here, key).await.status, 502);
        assert_eq!(post(&system, &here, key).await.refusal(), (409, "idempotency_unknown".to_owned()));
        let show = words(with("show", key, &[]));
        let show: Vec<&str> = show.iter().map(String::as_str).collect();
        let shown = done(&system, &show).await;
        assert_eq!(
            (&shown["progress"], &shown["method"], &shown["caller"]),
            (&json!("unknown"), &json!("POST"), &json!("sandbox"))
        );
        let by_record = done(&system, &["calls", "show", shown["record"].as_str().expect("a record")]).await;
        assert_eq!(by_record, shown);
        let resolve = with("resolve", key, how);
        let resolve: Vec<&str> = resolve.iter().map(String::as_str).collect();
        let without_yes = ops(&system, &resolve[..resolve.len() - 1]).await;
        assert_eq!(without_yes.code, 4, "{without_yes:?}");
        done(&system, &resolve).await;
        let again = post(&system, &here, key).await;
        let is_replayed = again.headers.get("relay-replayed").is_some();
        assert_eq!((again.status, is_replayed), (status, replayed), "{again:?}");
        let twice = ops(&system, &resolve).await;
        assert_eq!(twice.code, 4, "it is not unknown any more: {twice:?}");
    }
    let missing = ops(&system, &["calls", "show", "none", "--caller", "sandbox", "--resource", &resource]).await;
    assert_eq!(missing.code, 3, "{missing:?}");
    let incomplete = ops(&system, &["calls", "show", "none"]).await;
    assert_eq!(incomplete.code, 2, "{incomplete:?}");
    system.end().await;
}
