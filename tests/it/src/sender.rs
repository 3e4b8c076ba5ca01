//! The webhook function, and a sender of webhooks with the platform's signature.

use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shared::config::WebhookSettings;
use shared::domain::clock::{Clock, Millis};
use webhook::listener::Listener;

use crate::proxy::Proxy;
use crate::world::{World, answered};

/// The webhook function, and the key that signs webhooks as the platform does.
pub struct Sender {
    /// The function.
    pub listener: Listener,
    /// The platform's key.
    pub signer: Ed25519KeyPair,
    /// The id of the app that the webhooks are about.
    pub app_id: String,
    /// The proxy between the function and AWS.
    pub proxy: Proxy,
    clock: Clock,
}

/// The webhook function's time-out.
const INVOCATION: Duration = Duration::from_secs(15);

impl Sender {
    /// The function with the platform's key and without a bus.
    pub async fn new(world: &World) -> Self {
        Self::with(world, &[], WebhookSettings::default()).await
    }

    /// The function with further environment variables, and with the platform's key besides those of `settings`.
    ///
    /// # Panics
    /// If the function does not start.
    pub async fn with(world: &World, further: &[(&'static str, &str)], settings: WebhookSettings) -> Self {
        let signer = Ed25519KeyPair::generate().expect("a key");
        let public_key = signer.public_key().as_ref().try_into().expect("32 bytes");
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), further).await;
        let app_id = world.market.options().client_id.split('-').next().unwrap_or_default().to_owned();
        let mut settings = settings;
        settings.public_keys.push(public_key);
        Self { listener: Listener::new(app, settings), signer, app_id, proxy, clock: world.clock.clone() }
    }

    /// A webhook of this app with the members that all of its webhooks have.
    ///
    /// # Panics
    /// If `members` is not an object.
    #[must_use]
    pub fn notice(&self, kind: &str, at: Millis, id: &str, members: &Value) -> Value {
        let mut notice = json!({ "type": kind, "appId": self.app_id, "timestamp": at.rfc3339(), "webhookId": id });
        notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        notice
    }

    /// Sends a webhook with the signature of the platform's key. Returns the status and the outcome.
    pub async fn send(&self, notice: &Value) -> (u16, String) {
        self.send_text(&notice.to_string()).await
    }

    /// Sends a body with the signature of the platform's key.
    pub async fn send_text(&self, body: &str) -> (u16, String) {
        self.send_bytes(body, &STANDARD.encode(self.signer.sign(body.as_bytes()))).await
    }

    /// Repeats a webhook while the function asks for a repetition, as the platform does.
    pub async fn send_until_taken(&self, notice: &Value) -> (u16, String) {
        let mut heard = self.send(notice).await;
        for _ in 0..9 {
            if heard.0 != 429 {
                break;
            }
            heard = self.send(notice).await;
        }
        heard
    }

    /// Sends a body with this Ed25519 signature.
    pub async fn send_bytes(&self, body: &str, signature: &str) -> (u16, String) {
        self.send_with(body, &json!({ "x-ghl-signature": signature })).await
    }

    /// Sends a body with these headers.
    ///
    /// # Panics
    /// If the answer is not one of the function.
    pub async fn send_with(&self, body: &str, headers: &Value) -> (u16, String) {
        let event = json!({
            "version": "2.0",
            "rawPath": "/webhooks/marketplace",
            "headers": headers,
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

/// A status and an outcome.
#[must_use]
pub fn reply(status: u16, outcome: &str) -> (u16, String) {
    (status, outcome.to_owned())
}
