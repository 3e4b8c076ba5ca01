//! The webhooks that one process accepts in a second, against a bare function that verifies the signature and sends the
//! event to the bus.

use std::time::Instant;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{encoding::AsDer as _, encoding::PublicKeyX509Der};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sandbox::event_bridge::{self, EventBridge};
use sandbox::events::EventBus;
use sandbox::process::Program;
use serde_json::{Value, json};
use shared::domain::clock::Clock;

use crate::pairs::{alternate, rate};
use crate::report::{Row, Target};
use crate::store::Store;
use crate::system::{Distances, Functions, System, Through, location};

/// The platform's key, and the number of webhooks so far: no two are equal.
struct Sender {
    key: Ed25519KeyPair,
    sent: usize,
}

impl Sender {
    /// Signed webhooks as events of API Gateway.
    fn webhooks(&mut self, count: usize) -> Vec<Bytes> {
        (0..count).map(|_| self.webhook()).collect()
    }

    fn webhook(&mut self) -> Bytes {
        self.sent += 1;
        let body = json!({
            "type": "ContactCreate", "appId": "bench", "locationId": location(0).id(), "id": "sx6wyHhbFdRXh302LLNR",
            "webhookId": format!("webhook-{:07}", self.sent), "timestamp": Clock::system().now().rfc3339(),
            "firstName": "Ada", "lastName": "Lovelace", "email": "ada@example.com", "phone": "+15555550100",
            "tags": ["customer"], "dateAdded": "2026-01-02T03:04:05.678Z", "country": "US", "source": "form",
        });
        let body = body.to_string();
        let signature = STANDARD.encode(self.key.sign(body.as_bytes()));
        let event = json!({
            "version": "2.0", "rawPath": "/webhooks/marketplace", "body": body, "isBase64Encoded": false,
            "headers": { "content-type": "application/json", "x-ghl-signature": signature },
            "requestContext": { "stage": "$default", "http": { "method": "POST" } },
        });
        event.to_string().into()
    }
}

/// The rate without and with the record by which an event is published once.
pub(crate) async fn rate_of_one(store: &Store, functions: &Functions, bare: &std::path::Path, quick: bool) -> Vec<Row> {
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    let bus = EventBridge::start(EventBus::default()).await.expect("a bus");
    let mut sender = Sender { key: Ed25519KeyPair::generate().expect("a key"), sent: 0 };
    let public_key: PublicKeyX509Der<'_> = sender.key.public_key().as_der().expect("a key");
    let common = [
        ("AWS_ENDPOINT_URL_EVENTBRIDGE", bus.url()),
        ("EVENT_BUS_NAME", event_bridge::NAME.to_owned()),
        ("WEBHOOK_PUBLIC_KEYS", STANDARD.encode(public_key.as_ref())),
    ];
    let table = [("RAW_TABLE", system.table.name.to_string())];
    let (pairs, batch) = if quick { (3, 50) } else { (30, 200) };
    let mut rows = Vec::new();
    for (name, what, dedupe, raw) in [
        ("webhooks.rate", "webhooks accepted a second, WEBHOOK_DEDUPE=off, against verify and send", "off", &[][..]),
        ("webhooks.rate.once", "the same with WEBHOOK_DEDUPE=on, against two writes, verify and send", "on", &table),
    ] {
        let raw_environment = [common.as_slice(), raw].concat();
        let raw = system.start(Program::Path(bare.to_owned()), "verify", &raw_environment);
        let own = [common.as_slice(), &[("WEBHOOK_DEDUPE", dedupe.to_owned())]].concat();
        let webhook = system.start(Program::Path(functions.bootstrap("webhook")), "webhook", &own);
        let accepted = async |function, events: Vec<Bytes>| {
            let began = Instant::now();
            for event in events {
                let answer: Value = serde_json::from_slice(&system.invoke(function, event).await).expect("JSON");
                assert_eq!(answer["statusCode"], 200, "{function}: {answer}");
            }
            rate(batch, began.elapsed())
        };
        for function in ["verify", "webhook"] {
            accepted(function, sender.webhooks(batch)).await;
        }
        let before = bus.events().len();
        let events = std::cell::RefCell::new(&mut sender);
        let next = || events.borrow_mut().webhooks(batch);
        let ratio =
            alternate(pairs, async || accepted("verify", next()).await, async || accepted("webhook", next()).await);
        let ratio = ratio.await;
        assert_eq!(bus.events().len() - before, 2 * pairs * batch, "each is on the bus once");
        rows.push(Row::ratio(name, store.name, what, Target::AtLeast(0.9), &ratio, "/s"));
        raw.end().await;
        webhook.end().await;
    }
    rows
}
