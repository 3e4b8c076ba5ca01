//! The `webhook` function: receives the marketplace's webhooks and applies installs and uninstalls.
//!
//! `POST /webhooks/marketplace` → [`request`] (the route, and the body's bytes as sent) → [`signature`] (of
//! those bytes) → [`webhook`] (the event, its app and its resources) → the table → [`response`] (the status).
//!
//! A 200 means that the platform need not send the webhook again. A 429 makes the platform send the webhook again; no
//! other status does. So every failure on our side is answered 429: a failed write, a panic and a time-out.

pub mod listener;
pub mod request;
pub mod response;
pub mod signature;
pub mod webhook;

use lambda_runtime::Error;
use shared::app::App;
use shared::config::WebhookConfig;
use shared::lambda::serve::serve_http;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// The configuration is missing or malformed, or the Runtime API cannot be reached.
pub async fn run() -> Result<(), Error> {
    let WebhookConfig { app, settings } = App::configure("webhook", WebhookConfig::read)?;
    let alias = app.gateway_alias.clone();
    serve_http(alias, Listener::new(Box::pin(App::of(app)).await?, settings)).await
}
