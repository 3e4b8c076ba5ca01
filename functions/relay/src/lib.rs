//! The function `relay`: it translates between events and calls of [`shared::relay`].
//!
//! [`event`] recognises the kinds of events. [`http`] reads and answers events of API Gateway (payload 2.0), [`direct`]
//! invocations by other functions, single or in a batch, and [`queue`] messages of the queue of calls. A malformed event
//! gets an answer, too: only a bug is a function
//! error.

#[cfg(test)]
mod canary;
pub mod direct;
pub mod event;
#[cfg(test)]
mod fuzz;
pub mod gateway;
mod headers;
pub mod http;
pub mod pairs;
pub mod queue;
pub mod size;

use std::sync::Arc;

use lambda_runtime::{Error, LambdaEvent};
use serde_json::value::RawValue;
use shared::app::App;
use shared::config::RelayConfig;
use shared::lambda::serve::serve;
use shared::relay::Relay;

use crate::event::EventKind;
use crate::queue::Door;

/// Serves events until the process ends. It fails if the configuration is missing or malformed, or if the Runtime API
/// cannot be reached.
///
/// Everything that a first call needs is made before the first poll for an event. Until then Lambda runs a process at
/// full speed; from then on it gives the process a part of a processor, according to the function's memory.
pub async fn run() -> Result<(), Error> {
    let config = App::configure("relay", RelayConfig::read)?;
    let app = Box::pin(App::of(config.app)).await?;
    let door = config.queue.map(|queue| Door::new(&app, queue));
    let relay = Relay::new(app, &config.callers_secret_id);
    let function = Arc::new(Function { relay, door });
    Box::pin(function.relay.prepare()).await;
    serve(move |event: LambdaEvent<Box<RawValue>>| {
        let function = function.clone();
        async move { answer(&function, &event).await }
    })
    .await
}

/// The parts of the function.
struct Function {
    relay: Relay,
    /// The queue door, if there is a queue of calls.
    door: Option<Door>,
}

async fn answer(Function { relay, door }: &Function, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    match EventKind::of(&event.payload) {
        EventKind::Http => http::answer(relay, event).await,
        EventKind::Direct => direct::answer(relay, event).await,
        EventKind::Queue => Box::pin(queue::answer(relay, door.as_ref(), event)).await,
    }
}
