//! The `callback` function: the only one that an agency's admin ever sees.
//!
//! | route | what it does | module |
//! |---|---|---|
//! | `GET /oauth/install` | sends the browser to the authorization page, or asks to which | [`authorize`], [`state`], [`browser`] |
//! | `GET /oauth/callback`, `GET /oauth/callback/{any}` | exchanges the code, stores the installation, 303 | [`redirect`] |
//! | `GET /oauth/done` | says that it worked | [`pages`] |
//!
//! Everything that can go wrong is one [`failure::Failure`], which knows its status and its words. No page repeats
//! anything that came with a request: pages are made of failures and configuration only.

pub mod accent;
pub mod authorize;
pub mod browser;
pub mod done;
pub mod event;
pub mod failure;
pub mod installer;
pub mod pages;
pub mod public_url;
pub mod query;
pub mod redirect;
pub mod route;
pub mod state;
pub mod words;

use std::convert::Infallible;
use std::sync::Arc;

use lambda_runtime::layers::TracingLayer;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Error, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde_json::Value;
use shared::app::App;
use shared::config::Function;

use crate::installer::Installer;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    // Boxed, here and below: the SDK's futures are nested so deeply that the compiler gives up on the layout of them
    // all in one.
    let installer = Arc::new(Installer::new(Box::pin(App::start(Function::Callback)).await?));
    let serve = service_fn(move |event: LambdaEvent<Value>| {
        let installer = installer.clone();
        Box::pin(async move { Ok::<_, Infallible>(installer.answer(event.payload, &event.context.request_id).await) })
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
