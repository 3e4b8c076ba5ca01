//! An agency with five hundred locations. Four processes serve the calls, and ten locations are called first.

use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use it::outside::{ClientResponse, Setup, System, company, location, route, send};
use sandbox::marketplace::Location;
use sandbox::marketplace::grants::Resource;
use sandbox::whole::scheduled_event;
use serde_json::json;

/// Longest time after which every process has noticed an uninstall.
const NOTICED: Duration = Duration::from_secs(10);

fn key() -> (Ed25519KeyPair, String) {
    let signer = Ed25519KeyPair::generate().expect("a key");
    let der: PublicKeyX509Der<'_> = signer.public_key().as_der().expect("a public key");
    let spki = STANDARD.encode(der.as_ref());
    (signer, spki)
}

/// Makes four calls for each of the first ten locations, all at the same time. A call that must wait for a token's
/// renewal is retried.
async fn ten_called(system: &System) -> Vec<ClientResponse> {
    let call = async |number: usize| {
        let mut tries = 0;
        loop {
            let answer = send(system.relay(Method::GET, &route(&location(number % 10 + 1), "/contacts/"))).await;
            tries += 1;
            if tries == 10 || answer.refusal() != (503, "refresh_in_progress".to_owned()) {
                return answer;
            }
            tokio::time::sleep(answer.retry_after()).await;
        }
    };
    join_all((0..40).map(call)).await
}

fn granted(system: &System, grant: &str) -> usize {
    let requests = system.sandbox.marketplace.token_requests();
    requests.iter().filter(|request| request.grant == grant && request.outcome == "granted").count()
}

/// The part of the client id before the dash.
fn app_id(system: &System) -> String {
    let client_id = system.sandbox.marketplace.options().client_id;
    client_id.split('-').next().expect("the part before the dash").to_owned()
}

/// Sends a signed webhook as the platform does.
async fn hear(system: &System, signer: &Ed25519KeyPair, body: &str) -> u16 {
    let post = system.request(Method::POST, "/webhooks/marketplace");
    let post = post.header("x-ghl-signature", STANDARD.encode(signer.sign(body.as_bytes())));
    let heard = post.header("content-type", "application/json").body(body.to_owned()).send().await.expect("heard");
    heard.status().as_u16()
}

/// Calls until the answer has this status. Each process may take [`NOTICED`] to notice a change.
async fn becomes(system: &System, resource: &Resource, status: u16) {
    let began = Instant::now();
    loop {
        // A call that begins later than this time must have the new answer, even if it takes long on a busy machine.
        let asked = began.elapsed();
        let answer = system.get(resource, "/contacts/").await;
        if answer.status == status {
            return;
        }
        assert!(asked < NOTICED, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_without_a_timestamp_does_not_end_a_newer_installation() {
    let (signer, spki) = key();
    let environment = vec![("WEBHOOK_PUBLIC_KEYS", spki)];
    let system = System::start(Setup { relays: 1, environment, ..Setup::default() }).await;
    let market = &system.sandbox.marketplace;
    system.install(&location(1)).await;
    becomes(&system, &location(1), 200).await;
    let gone = format!(r#"{{"type":"UNINSTALL","appId":"{}","locationId":"{}"}}"#, app_id(&system), location(1).id());
    market.uninstall(&Resource::Location(location(1).id().to_owned()));
    assert_eq!(hear(&system, &signer, &gone).await, 200);
    becomes(&system, &location(1), 410).await;
    system.install(&location(1)).await;
    becomes(&system, &location(1), 200).await;
    for stale in [gone.clone(), gone.replace(',', ", ")] {
        assert_eq!(hear(&system, &signer, &stale).await, 200, "{stale}");
    }
    // The status route reads the status from the table.
    let standing = send(system.relay(Method::GET, &route(&location(1), ""))).await;
    assert_eq!(standing.json()["status"], "Active", "{standing:?}");
    assert_eq!(hear(&system, &signer, "[]").await, 400);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_of_the_oldest_of_many_agencies_is_found_by_the_schedule() {
    let system = System::start(Setup { relays: 2, ..Setup::default() }).await;
    let market = &system.sandbox.marketplace;
    let agency = |number: usize| Resource::Company(format!("HLagency{number}"));
    let of = |number: usize| Resource::Location(format!("HLof{number}"));
    let agencies = (1..=8).map(|number| {
        let location = Location { id: of(number).id().to_owned(), name: "A location".to_owned() };
        (agency(number).id().to_owned(), vec![location])
    });
    market.change(|options| options.agencies = agencies.collect());
    for number in 1..=8 {
        system.install(&agency(number)).await;
    }
    becomes(&system, &of(8), 200).await;
    for unknown in [of(1), of(99)] {
        let answer = system.get(&unknown, "/contacts/").await;
        assert_eq!(answer.refusal(), (503, "refresh_in_progress".to_owned()));
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    }
    system.refresh(&scheduled_event()).await.expect("a summary");
    becomes(&system, &of(1), 200).await;
    // A search that meets a change of what it has read concludes nothing, and the next tick goes on.
    for _ in 0..3 {
        if system.get(&of(99), "/contacts/").await.status == 404 {
            break;
        }
        system.refresh(&scheduled_event()).await.expect("a summary");
    }
    // A relay may remember its earlier answer for as long as its Retry-After has said.
    becomes(&system, &of(99), 404).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agencys_locations_work_from_the_first_call_until_the_agencys_uninstall() {
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

    let at = shared::domain::clock::Clock::system().now().rfc3339();
    let notice = json!({"type": "UNINSTALL", "appId": app_id(&system), "companyId": company().id(), "timestamp": at,
        "webhookId": "w1"});
    assert_eq!(hear(&system, &signer, &notice.to_string()).await, 200);
    let told = Instant::now();
    loop {
        let asked = told.elapsed();
        let answers = ten_called(&system).await;
        if answers.iter().all(|answer| answer.refusal() == (410, "revoked".to_owned())) {
            break;
        }
        assert!(asked < NOTICED, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    }
    system.end().await;
}
