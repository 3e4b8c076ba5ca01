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
use shared::config::Function;
use shared::serve::serve_http;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let app = Box::pin(App::start(Function::Webhook)).await?;
    let alias = app.config.gateway_alias.clone();
    serve_http(alias, Listener::new(app)).await
}
