//! The `webhook` function: hears from the marketplace where the app was installed and uninstalled.
//!
//! `POST /webhooks/marketplace` → [`event`] (payload 2.0, the body's very bytes) → [`signature`] (Ed25519 over those
//! bytes) → [`notice`] (what is told, of which app and resource) → the store → [`verdict`] (the status).
//!
//! A 200 says that nothing is left to be told: what could not be stored is answered with 429, which makes the platform
//! send it again.

pub mod event;
pub mod listener;
pub mod notice;
pub mod signature;
pub mod verdict;

use std::convert::Infallible;
use std::sync::Arc;

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;
use shared::app::App;
use shared::config::Function;

use crate::listener::Listener;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    // Boxed, here and below: the SDK's futures are nested so deeply that the compiler gives up on the layout of them
    // all in one.
    let listener = Arc::new(Listener::new(Box::pin(App::start(Function::Webhook)).await?));
    lambda_runtime::run_concurrent(service_fn(move |event: LambdaEvent<Value>| {
        let listener = listener.clone();
        Box::pin(async move { Ok::<_, Infallible>(listener.answer(event.payload, &event.context.request_id).await) })
    }))
    .await
}
