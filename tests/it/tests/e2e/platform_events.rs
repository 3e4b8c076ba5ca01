//! Webhooks of every type from outside: an event that was answered 200 is on the bus or on the overflow queue, whatever
//! fails meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use it::outside::{PATIENCE, Setup, System, location, until};
use sandbox::event_bridge::Failure;
use sandbox::process::Signal;
use sandbox::runtime_api::Invocation;
use serde_json::{Value, json};
use shared::domain::clock::Clock;

use crate::operator::{done, ops};

const TYPES: [&str; 8] = [
    "ContactCreate",
    "ContactUpdate",
    "InboundMessage",
    "OpportunityStageUpdate",
    "AppointmentCreate",
    "InvoicePaid",
    "NoteCreate",
    "TaskComplete",
];

fn key() -> (Ed25519KeyPair, (&'static str, String)) {
    let signer = Ed25519KeyPair::generate().expect("a key");
    let der: PublicKeyX509Der<'_> = signer.public_key().as_der().expect("a public key");
    let variable = ("WEBHOOK_PUBLIC_KEYS", STANDARD.encode(der.as_ref()));
    (signer, variable)
}

/// The body of the event with this number, as the platform writes it: with its own order of members and escapes.
fn body(number: usize) -> String {
    let kind = TYPES[number % TYPES.len()];
    let id = location(number % 3 + 1);
    format!(
        r#"{{"type":"{kind}", "locationId":"{}","id":"n{number}","note":"\u00e9é🦀 <b>\"{}\"</b>","amount":1.50,"webhookId":"w-{number}"}}"#,
        id.id(),
        "x".repeat(number * 7 % 900),
    )
}

async fn post(system: &System, name: &str, signature: &str, body: &str) -> (u16, String) {
    let post = system.request(Method::POST, "/webhooks/marketplace").header(name, signature);
    let answer = post.body(body.to_owned()).send().await.expect("an answer");
    let status = answer.status().as_u16();
    let outcome: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default();
    (status, outcome["outcome"].as_str().unwrap_or_default().to_owned())
}

async fn send(system: &System, signer: &Ed25519KeyPair, body: &str) -> (u16, String) {
    post(system, "x-ghl-signature", &STANDARD.encode(signer.sign(body.as_bytes())), body).await
}

/// The number of times that each body is on the bus.
fn published(system: &System) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for put in system.sandbox.event_bridge.events().into_iter().filter(|put| put.source == "hoopai.platform") {
        *counts.entry(put.text).or_default() += 1;
    }
    counts
}

/// Returns true if a body is on the bus or on the overflow queue. The consumer of the queue may move it meanwhile.
fn is_kept(system: &System, body: &str) -> bool {
    let is_queued = || system.sandbox.overflow.messages().iter().any(|message| message.body == body);
    published(system).contains_key(body) || is_queued() || published(system).contains_key(body)
}

/// Sends a body as the platform does: again after each answer but a 200. Checks at each 200 that the event is kept.
async fn deliver(system: &System, signer: &Ed25519KeyPair, body: &str, pause: Duration) {
    tokio::time::sleep(pause).await;
    let began = Instant::now();
    loop {
        let (status, outcome) = send(system, signer, body).await;
        if status == 200 {
            assert!(is_kept(system, body), "{outcome}, but it is neither on the bus nor on the queue: {body}");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "never taken: {status} {outcome}, {:?}", system.last_lines());
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..400))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_published_once_however_often_and_fast_it_comes() {
    let (signer, variable) = key();
    let mut system = System::start(Setup { relays: 1, environment: vec![variable], ..Setup::default() }).await;
    system.start_another("webhook").await;
    let stranger = Ed25519KeyPair::generate().expect("a key");
    let bodies: Vec<String> = (0..120).map(body).collect();
    let deliveries = bodies.iter().enumerate().flat_map(|(number, body)| {
        let (system, signer) = (&system, &signer);
        (0..=number % 3).map(move |_| deliver(system, signer, body, Duration::from_millis(fastrand::u64(0..1_500))))
    });
    let forged = bodies.iter().take(20).map(|body| async {
        let forged = body.replace("\"w-", "\"forged-");
        assert_eq!(send(&system, &stranger, &forged).await, (401, "not_signed".to_owned()));
        let signature = STANDARD.encode(signer.sign(body.as_bytes()));
        assert_eq!(post(&system, "x-ghl-signature", &signature, &forged).await.0, 401, "signed for another body");
    });
    tokio::join!(join_all(deliveries), join_all(forged));
    let published = published(&system);
    assert_eq!(published.keys().cloned().collect::<BTreeSet<_>>(), bodies.iter().cloned().collect());
    assert!(published.values().all(|count| *count == 1), "{published:?}");
    for put in system.sandbox.event_bridge.events() {
        let resource = format!("location:{}", put.detail["locationId"].as_str().expect("an id"));
        assert_eq!((&put.detail["type"], &put.resources[..]), (&json!(put.detail_type), &[resource][..]));
    }
    assert_eq!(system.sandbox.overflow.sent(), 0);
    for body in &bodies {
        assert_eq!(send(&system, &signer, body).await, (200, "repeated".to_owned()));
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_lost_whatever_fails() {
    let (signer, variable) = key();
    let mut system = System::start(Setup { relays: 1, environment: vec![variable], ..Setup::default() }).await;
    system.start_more("webhook", 2).await;
    let bodies: Vec<String> = (0..150).map(body).collect();
    for round in 0..3 {
        let some = &bodies[round * 50..(round + 1) * 50];
        let deliveries = some.iter().enumerate().flat_map(|(number, body)| {
            let (system, signer) = (&system, &signer);
            (0..=number % 2).map(move |_| deliver(system, signer, body, Duration::from_millis(fastrand::u64(0..4_000))))
        });
        let faults = async {
            let (bus, pause) = (&system.sandbox.event_bridge, || tokio::time::sleep(Duration::from_millis(400)));
            pause().await;
            bus.fail(Some(Failure::HangUp));
            pause().await;
            bus.fail(Some(Failure::Entries));
            system.store.cut();
            pause().await;
            system.sandbox.overflow.fail(true);
            pause().await;
            bus.fail(Some(Failure::AccessDenied));
            system.store.mend();
            pause().await;
            system.sandbox.overflow.fail(false);
            pause().await;
            bus.fail(None);
            bus.refuse(&[("InboundMessage", "ThrottlingException")]);
            system.store.cut();
            pause().await;
            bus.refuse(&[]);
            system.store.mend();
        };
        // A process is killed in the middle of the traffic. The gateway answers the webhook that it had with 500, and the
        // platform sends that webhook again.
        let doomed = format!("webhook-{}", round + 1);
        let death = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            system.signal(&doomed, Signal::Kill).await;
        };
        tokio::join!(join_all(deliveries), faults, death);
        system.kill(&doomed).await;
        system.start_more("webhook", round + 3).await;
    }
    let drained = until(|| system.sandbox.overflow.messages().is_empty()).await;
    assert!(drained, "{:?}", system.sandbox.overflow.messages());
    assert_eq!(system.sandbox.overflow.dead_letters().len(), 0);
    let published = published(&system);
    assert_eq!(published.keys().cloned().collect::<BTreeSet<_>>(), bodies.iter().cloned().collect());
    assert!(system.sandbox.overflow.sent() > 0, "the faults have struck");
    for line in system.sandbox.logs.lines() {
        let logged: Value = serde_json::from_str(&line.line).unwrap_or_default();
        let is_of_the_sdk = logged["target"].as_str().is_some_and(|target| target.starts_with("aws_"));
        assert!(logged["level"] != "ERROR" || !is_of_the_sdk, "{line:?}");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_queues_alias_drains_the_overflow_queue() {
    let (_, variable) = key();
    let environment = vec![variable, ("GATEWAY_ALIAS", "live".to_owned())];
    let system = System::start(Setup { relays: 1, environment, ..Setup::default() }).await;
    let record = json!({"messageId": "m1", "receiptHandle": "r1", "body": body(1), "eventSource": "aws:sqs"});
    let event = json!({ "Records": [record] });
    let invoke = async |qualifier: Option<&str>, event: &Value| {
        let invocation = Invocation { qualifier: qualifier.map(str::to_owned), ..Invocation::default() };
        system.sandbox.runtime.invoke_json("webhook", event, invocation).await.expect("an answer")
    };
    let whole_batch = json!({"batchItemFailures": [{"itemIdentifier": ""}]});
    assert_eq!(invoke(None, &event).await, whole_batch);
    assert_eq!(invoke(Some("live"), &json!({"Records": [7]})).await, whole_batch);
    assert_eq!(published(&system).len(), 0);
    assert_eq!(invoke(Some("live"), &event).await, json!({"batchItemFailures": []}));
    assert_eq!(published(&system).len(), 1);
    system.sandbox.overflow.send(body(2));
    assert!(until(|| published(&system).len() == 2).await, "the queue's own poller invokes the alias");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_with_a_shared_secret_are_accepted_where_configured() {
    const SECRET: &str = "a-secret-of-the-webhook";
    let environment =
        vec![("WEBHOOK_PUBLIC_KEYS", "none".to_owned()), ("WEBHOOK_SECRET_ID", "webhook-secret".to_owned())];
    let system = System::start(Setup { relays: 1, environment, ..Setup::default() }).await;
    system.tell(SECRET);
    system.sandbox.secrets.put("webhook-secret", json!({"secrets": ["an-older-secret", SECRET]}).to_string());
    let text = body(1);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    let hex = hex::encode(tag.as_ref());
    assert_eq!(post(&system, "x-wl-signature", &hex, &text).await, (200, "published".to_owned()));
    assert_eq!(post(&system, "x-hook-signature", &STANDARD.encode(tag.as_ref()), &text).await.1, "repeated");
    assert_eq!(post(&system, "x-wl-signature", &hex, &body(2)).await, (401, "not_signed".to_owned()));
    let by_key = STANDARD.encode(Ed25519KeyPair::generate().expect("a key").sign(text.as_bytes()));
    assert_eq!(post(&system, "x-ghl-signature", &by_key, &text).await, (401, "not_signed".to_owned()));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_version_and_replays_events() {
    let (signer, variable) = key();
    let system = System::start(Setup { relays: 1, environment: vec![variable], ..Setup::default() }).await;
    for number in 1..=2 {
        system.install(&location(number)).await;
    }
    let app_id = system.sandbox.marketplace.options().client_id;
    let app_id = app_id.split('-').next().expect("the part before the dash");
    let from = Clock::system().now();
    for (kind, members) in [
        ("UPDATE", json!({"versionId": "version-2"})),
        ("PLAN_CHANGE", json!({"currentPlanId": "plan-1", "newPlanId": "plan-2"})),
    ] {
        let mut notice = json!({"type": kind, "appId": app_id, "locationId": location(1).id(), "webhookId": kind});
        notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        assert_eq!(send(&system, &signer, &notice.to_string()).await, (200, "stored".to_owned()));
    }
    let shown = done(&system, &["show", &location(1).to_string()]).await;
    assert_eq!((&shown["version_id"], &shown["plan_id"]), (&json!("version-2"), &json!("plan-2")));
    let listed = done(&system, &["list", "--version", "version-2"]).await;
    let resources: Vec<_> =
        listed["installations"].as_array().expect("a list").iter().map(|one| &one["resource"]).collect();
    assert_eq!(resources, [&json!({"location": location(1).id()})]);

    system.sandbox.event_bridge.create_rule("sync");
    let before = system.sandbox.event_bridge.events().len();
    let to = (Clock::system().now() + Duration::from_mins(1)).rfc3339();
    system.sandbox.event_bridge.lose_answer();
    let replayed = done(&system, &["replay", "--from", &from.rfc3339(), "--to", &to, "--rule", "sync"]).await;
    assert_eq!((&replayed["state"], &replayed["rules"]), (&json!("STARTING"), &json!(["sync"])));
    let again: Vec<_> = system.sandbox.event_bridge.events().split_off(before);
    let kinds: BTreeSet<_> = again.iter().map(|put| &*put.detail_type).collect();
    assert_eq!(kinds, BTreeSet::from(["UPDATE", "Updated", "PLAN_CHANGE", "PlanChanged"]));
    assert!(again.iter().all(|put| put.replay.as_deref() == replayed["replay"].as_str()));
    for wrong in [["replay", "--from", "yesterday", "--to", &*to], ["replay", "--from", &*to, "--to", &*from.rfc3339()]]
    {
        assert_eq!(ops(&system, &wrong).await.code, 2, "{wrong:?}");
    }
    let before = system.sandbox.event_bridge.events().len();
    let unknown = ops(&system, &["replay", "--from", &from.rfc3339(), "--to", &to, "--rule", "sink"]).await;
    assert_eq!(unknown.code, 3);
    assert_eq!(system.sandbox.event_bridge.events().len(), before, "nothing is replayed");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_own_events_follow_calls_of_its_api() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    let market = &system.sandbox.marketplace;
    market.webhooks().send_to(format!("{}/webhooks/marketplace", system.sandbox.gateway.url()));
    system.install(&location(1)).await;
    let contact = json!({"locationId": location(1).id(), "firstName": "Ada"});
    let path = format!("/relay/locations/{}/contacts/", location(1).id());
    let answer = it::outside::send(system.relay(Method::POST, &path).body(contact.to_string())).await;
    assert_eq!(answer.status, 201);
    let is_there = until(|| published(&system).keys().any(|text| text.contains("\"ContactCreate\""))).await;
    assert!(is_there, "{:?}", system.last_lines());
    let message = json!({"type": "SMS", "contactId": "c", "message": "Hello"});
    let path = format!("/relay/locations/{}/conversations/messages", location(1).id());
    let answer = it::outside::send(system.relay(Method::POST, &path).body(message.to_string())).await;
    assert_eq!(answer.status, 200);
    let sent = || system.sandbox.event_bridge.events().into_iter().find(|put| put.detail["message"] == "Hello");
    assert!(until(|| sent().is_some()).await, "{:?}", system.last_lines());
    let sent = sent().expect("on the bus");
    assert_eq!((&*sent.detail_type, &sent.detail["messageType"]), ("OutboundMessage", &json!("SMS")));
    market.send_events(&location(2), 200);
    let wanted =
        || system.sandbox.event_bridge.events().iter().filter(|put| put.text.contains(location(2).id())).count();
    assert!(until(|| wanted() == 200).await, "{} of 200", wanted());
    system.end().await;
}
