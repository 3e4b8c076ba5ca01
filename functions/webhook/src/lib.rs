//! The `webhook` function: receives the platform's webhooks, applies installs and uninstalls, and publishes all of them.
//!
//! `POST /webhooks/marketplace` → [`route`] → [`signature`] (of the body's bytes as sent) → [`webhook`] (the event, its
//! app and its resources) → the claim of the webhook → the change of installations → the bus → the mark of the webhook →
//! [`response`] (the status). If the bus does not take an event, the event goes to the overflow queue, whose messages this
//! function publishes later ([`overflow`]).
//!
//! A 200 means that the platform need not send the webhook again. A 429 makes the platform send the webhook again; no
//! other status does. So every failure on our side is answered 429: a failed write, a panic and a time-out.

pub mod event;
pub mod family;
pub mod listener;
pub mod overflow;
pub mod response;
pub mod route;
pub mod signature;
pub mod webhook;

use std::sync::Arc;

use lambda_runtime::Error;
use shared::app::App;
use shared::config::WebhookConfig;
use shared::lambda::serve::serve;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// The configuration is missing or malformed, or the Runtime API cannot be reached.
pub async fn run() -> Result<(), Error> {
    let WebhookConfig { app, settings } = App::configure("webhook", WebhookConfig::read)?;
    let alias = app.gateway_alias.clone();
    let listener = Listener::new(Box::pin(App::of(app)).await?, settings);
    let function = Arc::new((alias, listener));
    serve(move |event| {
        let function = function.clone();
        async move {
            let (alias, listener) = &*function;
            event::answer(alias, listener, event).await
        }
    })
    .await
}
