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

use std::sync::Arc;

use lambda_runtime::{Error, LambdaEvent};
use serde_json::value::RawValue;
use shared::app::App;
use shared::config::Function;
use shared::relay::Relay;
use shared::serve::serve;

use crate::event::Event;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let relay = Arc::new(Relay::new(Box::pin(App::start(Function::Relay)).await?)?);
    let answer = move |event: LambdaEvent<Box<RawValue>>| {
        let relay = relay.clone();
        async move { answer(&relay, &event).await }
    };
    serve(answer).await
}

async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    match Event::of(&event.payload) {
        Event::Http => http::answer(relay, event).await,
        Event::Direct => direct::answer(relay, event).await,
    }
}
