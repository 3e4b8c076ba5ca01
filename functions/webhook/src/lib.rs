//! The `webhook` function: hears from the marketplace where the app was installed and uninstalled.
//!
//! `POST /webhooks/marketplace` → [`event`] (the route, the body's bytes as sent) → [`signature`] (Ed25519 over those
//! bytes) → [`notice`] (what is told, of which app and resource) → the store → [`verdict`] (the status).
//!
//! A 200 says that nothing is left to be told: what could not be stored is answered with 429, which makes the platform
//! send it again. No other answer does, so a fault of ours, a panic and a lack of time are answered with 429, too.

pub mod event;
pub mod listener;
pub mod notice;
pub mod signature;
pub mod verdict;

use lambda_runtime::Error;
use shared::app::App;
use shared::config::WebhookConfig;
use shared::lambda::serve::serve_http;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let WebhookConfig { app, public_keys } = App::configure("webhook", WebhookConfig::read)?;
    let alias = app.gateway_alias.clone();
    serve_http(alias, Listener::new(Box::pin(App::of(app)).await?, public_keys)).await
}
