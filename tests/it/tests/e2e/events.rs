//! Events that a team's own functions receive on the bus about changes outside the relay.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use it::dynamo::{Engine, Kind};
use it::outside::{Setup, System, company, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::whole::scheduled_event;
use serde_json::{Value, json};
use shared::domain::clock::Clock;

/// Sends the marketplace's webhook about an uninstall of the app from the location.
async fn uninstall(system: &System, signer: &Ed25519KeyPair) {
    let app_id = system.sandbox.marketplace.options().client_id;
    let app_id = app_id.split('-').next().expect("the part before the dash").to_owned();
    let notice = json!({"type": "UNINSTALL", "appId": app_id, "locationId": location(1).id(),
        "companyId": company().id(), "timestamp": Clock::system().now().rfc3339(), "webhookId": "w1"});
    let signature = STANDARD.encode(signer.sign(notice.to_string().as_bytes()));
    let post = system.request(Method::POST, "/webhooks/marketplace").header("x-ghl-signature", signature);
    let heard = post.header("content-type", "application/json").body(notice.to_string()).send().await.expect("heard");
    assert_eq!(heard.status(), 200, "{heard:?}");
}

async fn each_is_told_on(store: Option<String>) {
    let signer = Ed25519KeyPair::generate().expect("a key");
    let der: PublicKeyX509Der<'_> = signer.public_key().as_der().expect("a public key");
    let environment = vec![("WEBHOOK_PUBLIC_KEYS", STANDARD.encode(der.as_ref()))];
    let system = System::start(Setup { relays: 1, store, environment, ..Setup::default() }).await;
    let here = location(1);
    let force = json!({ "resource": here, "force": true });

    system.install(&here).await;
    system.sandbox.marketplace.set_active(here.clone(), false);
    system.sandbox.marketplace.expire_access_tokens();
    assert_eq!(system.get(&here, "/echo").await.refusal(), (424, "suspended".to_owned()));
    system.refresh(&force).await.expect("a summary");
    system.sandbox.marketplace.set_active(here.clone(), true);
    system.refresh(&force).await.expect("a summary");
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    system.sandbox.marketplace.fault(Endpoint::Refresh, refusal, Some(1));
    system.refresh(&force).await.expect("a summary");
    uninstall(&system, &signer).await;

    let all = system.sandbox.event_bridge.events();
    let (told, webhooks): (Vec<_>, Vec<_>) = all.into_iter().partition(|put| put.source == "hoopai.relay");
    assert_eq!(webhooks.iter().map(|put| &*put.detail_type).collect::<Vec<_>>(), ["UNINSTALL"]);
    let names: Vec<_> = told.iter().map(|put| (put.detail_type.as_str(), put.detail["epoch"].as_u64())).collect();
    let expected = [
        ("Installed", Some(1)),
        ("Suspended", Some(1)),
        ("Resumed", Some(1)),
        ("NeedsReauthorization", Some(1)),
        ("Uninstalled", Some(2)),
    ];
    assert_eq!(names, expected);
    for put in &told {
        assert_eq!(put.detail["resource"], json!({ "location": here.id() }));
        assert_eq!(put.detail["company"], json!(company().id()));
        let at = put.detail["at"].as_str().expect("an instant");
        assert!(time::OffsetDateTime::parse(at, &time::format_description::well_known::Rfc3339).is_ok(), "{at}");
        let link = format!("{}/oauth/install", system.sandbox.gateway.url());
        let expected = if put.detail_type == "NeedsReauthorization" { json!(link) } else { Value::Null };
        assert_eq!(put.detail["reinstall_url"], expected);
    }
    system.refresh(&scheduled_event()).await.expect("a summary");
    assert_eq!(system.sandbox.event_bridge.events().len(), told.len() + 1, "and the schedule adds nothing");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_published_once() {
    each_is_told_on(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_published_once_on_dynamodb_local() {
    let name = "events::each_event_is_published_once_on_dynamodb_local";
    let Some(engine) = Engine::start(Kind::Local, name).await else { return };
    each_is_told_on(Some(engine.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_calls_publish_no_events() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    system.install(&location(1)).await;
    let told = system.sandbox.event_bridge.requests();
    for _ in 0..5 {
        assert_eq!(system.get(&location(1), "/echo").await.status, 200);
    }
    assert_eq!(system.sandbox.event_bridge.requests(), told);
    system.end().await;
}
