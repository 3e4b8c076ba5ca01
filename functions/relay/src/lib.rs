//! The `relay` function: events in, answers out.
//!
//! [`event`] says which of the two kinds an event is. [`http`] is API Gateway's payload 2.0, [`direct`] an invocation
//! by another function, single or in a batch. Both make of an event a request of [`shared::relay`] and of its answer
//! what the sender expects. An event that cannot be read is answered, too: only a bug is a function error.

pub mod direct;
pub mod event;
#[cfg(test)]
mod fuzz;
pub mod gateway;
pub mod http;
pub mod pairs;
pub mod size;

use std::convert::Infallible;
use std::sync::Arc;

use lambda_runtime::layers::TracingLayer;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Error, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde_json::value::RawValue;
use shared::app::App;
use shared::config::Function;
use shared::relay::Relay;

use crate::event::Event;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    // Boxed, here and below: the SDK's futures are nested so deeply that the compiler gives up on the layout of them
    // all in one.
    let relay = Arc::new(Relay::new(Box::pin(App::start(Function::Relay)).await?)?);
    let serve = service_fn(move |event: LambdaEvent<Box<RawValue>>| {
        let relay = relay.clone();
        Box::pin(async move { Ok::<_, Infallible>(answer(&relay, &event).await) })
    });
    Runtime::new(serve).layer(MapRequestLayer::new(readable)).layer(TracingLayer::new()).run_concurrent().await
}

async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    match Event::of(&event.payload) {
        Event::Http => http::answer(relay, event).await,
        Event::Direct => direct::answer(relay, event).await,
    }
}

/// An event that is no JSON would be a function error before any code of ours sees it. `null` is malformed, too, and
/// gets an answer. So is every event that is no object: a list would be read as an object's members in their order.
fn readable(mut invocation: LambdaInvocation) -> LambdaInvocation {
    if !serde_json::from_slice(&invocation.body).is_ok_and(is_object) {
        invocation.body = "null".into();
    }
    invocation
}

/// Whether JSON is an object. Serde would take a list for one, too.
pub(crate) fn is_object(json: &RawValue) -> bool {
    json.get().starts_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_becomes_an_event_that_can_be_answered() {
        for (body, expected) in [
            (&b"{\"a\": 1}"[..], &b"{\"a\": 1}"[..]),
            (b" \n{} ", b" \n{} "),
            (b"", b"null"),
            (b"[{}]", b"null"),
            (b"{bad", b"null"),
            (b"{} {}", b"null"),
            (b"\"\xff\"", b"null"),
        ] {
            let (parts, ()) = ::http::Response::new(()).into_parts();
            let invocation = LambdaInvocation { parts, body: body.into(), context: lambda_runtime::Context::default() };
            assert_eq!(readable(invocation).body, expected, "{body:?}");
        }
    }
}
