//! The webhook function, and a sender of webhooks with the platform's signature.

use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use it::proxy::Proxy;
use it::world::{World, answered};
use serde_json::{Value, json};
use shared::domain::clock::{Clock, Millis};
use webhook::listener::Listener;

/// The webhook function, and the key that signs webhooks as the platform does.
pub(crate) struct Sender {
    pub(crate) listener: Listener,
    pub(crate) signer: Ed25519KeyPair,
    pub(crate) app_id: String,
    pub(crate) proxy: Proxy,
    pub(crate) clock: Clock,
}

/// The webhook function's time-out.
const INVOCATION: Duration = Duration::from_secs(15);

impl Sender {
    pub(crate) async fn new(world: &World) -> Self {
        let signer = Ed25519KeyPair::generate().expect("a key");
        let public_key = signer.public_key().as_ref().try_into().expect("32 bytes");
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), &[]).await;
        let app_id = world.market.options().client_id.split('-').next().unwrap_or_default().to_owned();
        Self { listener: Listener::new(app, vec![public_key]), signer, app_id, proxy, clock: world.clock.clone() }
    }

    pub(crate) fn notice(&self, kind: &str, at: Millis, id: &str, members: &Value) -> Value {
        let mut notice = json!({ "type": kind, "appId": self.app_id, "timestamp": at.rfc3339(), "webhookId": id });
        notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        notice
    }

    pub(crate) async fn send(&self, notice: &Value) -> (u16, String) {
        let body = notice.to_string();
        self.send_bytes(&body, &STANDARD.encode(self.signer.sign(body.as_bytes()))).await
    }

    /// Repeats a webhook while the function asks for a repetition, as the platform does.
    pub(crate) async fn send_until_taken(&self, notice: &Value) -> (u16, String) {
        let mut heard = self.send(notice).await;
        for _ in 0..9 {
            if heard.0 != 429 {
                break;
            }
            heard = self.send(notice).await;
        }
        heard
    }

    pub(crate) async fn send_bytes(&self, body: &str, signature: &str) -> (u16, String) {
        let event = json!({
            "version": "2.0",
            "rawPath": "/webhooks/marketplace",
            "headers": {"x-ghl-signature": signature},
            "requestContext": {"stage": "$default", "http": {"method": "POST"}},
            "body": body,
            "isBase64Encoded": false,
        });
        let answer: Value = answered(&self.listener, &event, "request", self.clock.now() + INVOCATION).await;
        let body: Value = serde_json::from_str(answer["body"].as_str().expect("text")).expect("JSON");
        let status = answer["statusCode"].as_u64().and_then(|status| status.try_into().ok()).expect("a status");
        (status, body["outcome"].as_str().unwrap_or_default().to_owned())
    }
}

pub(crate) fn reply(status: u16, outcome: &str) -> (u16, String) {
    (status, outcome.to_owned())
}
