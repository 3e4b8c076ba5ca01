//! The `webhook` function: hears from the marketplace where the app was installed and uninstalled.
//!
//! `POST /webhooks/marketplace` → [`event`] (payload 2.0, the body's very bytes) → [`signature`] (Ed25519 over those
//! bytes) → [`notice`] (what is told, of which app and resource) → the store → [`verdict`] (the status).
//!
//! A 200 says that nothing is left to be told: what could not be stored is answered with 429, which makes the platform
//! send it again. No other answer does, so a fault of ours, a panic and a lack of time are answered with 429, too.

pub mod event;
pub mod listener;
pub mod notice;
pub mod signature;
pub mod verdict;

use std::sync::Arc;

use lambda_runtime::{Error, LambdaEvent};
use serde_json::value::RawValue;
use shared::app::App;
use shared::config::WebhookConfig;
use shared::domain::clock::Millis;
use shared::lambda::serve::serve_http;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let config = App::configure("webhook", WebhookConfig::read)?;
    let alias = config.app.gateway_alias.clone();
    let listener = Arc::new(Listener::new(Box::pin(App::of(config.app)).await?, config.public_keys));
    let answer = move |event: LambdaEvent<Box<RawValue>>| {
        let listener = listener.clone();
        async move {
            let context = &event.context;
            let deadline = Millis(i64::try_from(context.deadline).unwrap_or(i64::MAX));
            listener.answer(event.payload.get(), &context.request_id, deadline).await
        }
    };
    serve_http(alias, answer).await
}
