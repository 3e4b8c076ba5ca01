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

use lambda_runtime::layers::TracingLayer;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Error, LambdaEvent, LambdaInvocation, Runtime, service_fn};
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
    let serve = service_fn(move |event: LambdaEvent<Value>| {
        let listener = listener.clone();
        Box::pin(async move { Ok::<_, Infallible>(listener.answer(event.payload, &event.context.request_id).await) })
    });
    Runtime::new(serve).layer(MapRequestLayer::new(readable)).layer(TracingLayer::new()).run_concurrent().await
}

/// An event that is no JSON would be a function error before any code of ours sees it. `null` is no request either, and
/// is answered.
fn readable(mut invocation: LambdaInvocation) -> LambdaInvocation {
    if serde_json::from_slice::<Value>(&invocation.body).is_err() {
        invocation.body = "null".into();
    }
    invocation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_becomes_an_event_that_can_be_answered() {
        for (body, expected) in [
            (&b" {\"a\": 1}"[..], &b" {\"a\": 1}"[..]),
            (b"", b"null"),
            (b"{bad", b"null"),
            (b"{} {}", b"null"),
            (b"\"\xff\"", b"null"),
            (b"\"\\ud800\"", b"null"),
            (b"1e999", b"null"),
        ] {
            let (parts, ()) = ::http::Response::new(()).into_parts();
            let invocation = LambdaInvocation { parts, body: body.into(), context: lambda_runtime::Context::default() };
            let body = readable(invocation).body;
            assert_eq!(body, expected);
            assert!(serde_json::from_slice::<Value>(&body).is_ok());
        }
    }
}
