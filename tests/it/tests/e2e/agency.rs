//! An agency of five hundred locations, ten of them called first, through four processes.

use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use it::outside::{Answer, Setup, System, company, location, route, send};
use serde_json::json;

/// How long every process may take to notice an uninstall.
const NOTICED: Duration = Duration::from_secs(10);

fn key() -> (Ed25519KeyPair, String) {
    let signer = Ed25519KeyPair::generate().expect("a key");
    let der: PublicKeyX509Der<'_> = signer.public_key().as_der().expect("a public key");
    let spki = STANDARD.encode(der.as_ref());
    (signer, spki)
}

/// Four calls for each of the first ten locations, all at once.
async fn ten_called(system: &System) -> Vec<Answer> {
    let call = |number: usize| send(system.relay(Method::GET, &route(&location(number % 10 + 1), "/contacts/")));
    join_all((0..40).map(call)).await
}

fn granted(system: &System, grant: &str) -> usize {
    let requests = system.sandbox.marketplace.token_requests();
    requests.iter().filter(|request| request.grant == grant && request.outcome == "granted").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agencys_locations_work_at_the_first_call_and_stop_with_it() {
    let (signer, spki) = key();
    let environment = vec![("WEBHOOK_PUBLIC_KEYS", spki)];
    let system = System::start(Setup { relays: 4, at_once: 10, locations: 500, environment, ..Setup::default() }).await;
    system.install(&company()).await;

    for answer in ten_called(&system).await {
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    }
    assert_eq!((granted(&system, "mint"), system.refreshes()), (10, 0), "one minting for each, none for the company");

    system.sandbox.marketplace.expire_access_tokens();
    for answer in ten_called(&system).await {
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    }
    assert_eq!((granted(&system, "mint"), system.refreshes()), (20, 1), "all of them needed the company's token");

    let app_id = system.sandbox.marketplace.options().client_id;
    let app_id = app_id.split('-').next().expect("the part before the dash");
    let at = shared::clock::Clock::system().now().rfc3339();
    let notice = json!({"type": "UNINSTALL", "appId": app_id, "companyId": company().id(), "timestamp": at,
        "webhookId": "w1"});
    let signature = STANDARD.encode(signer.sign(notice.to_string().as_bytes()));
    let post = system.request(Method::POST, "/webhooks/marketplace").header("x-ghl-signature", signature);
    let heard = post.header("content-type", "application/json").body(notice.to_string()).send().await.expect("heard");
    assert_eq!(heard.status(), 200, "{heard:?}");
    let told = Instant::now();
    loop {
        let answers = ten_called(&system).await;
        if answers.iter().all(|answer| answer.refusal() == (410, "revoked".to_owned())) {
            break;
        }
        assert!(told.elapsed() < NOTICED, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    }
    system.end().await;
}
