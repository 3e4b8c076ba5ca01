//! The `relay` function: events in, answers out.
//!
//! [`event`] says which of the two kinds an event is. [`http`] is API Gateway's payload 2.0, [`direct`] an invocation
//! by another function, single or in a batch. Both make of an event a request of [`shared::relay`] and of its answer
//! what the sender expects. An event that cannot be read is answered, too: only a bug is a function error.

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
pub mod size;

use std::sync::Arc;
use std::time::Duration;

use lambda_runtime::{Error, LambdaEvent};
use serde_json::value::RawValue;
use shared::app::{App, StartError};
use shared::config::{RelayConfig, starts_for_a_call};
use shared::lambda::serve::serve;
use shared::relay::Relay;
use tokio::runtime::Handle;
use tokio::sync::SetOnce;

use crate::event::Event;

/// The head start of the first poll, which takes less. Making the clients takes several times as long, and would compete
/// with it for the process's memory map and for a processor.
const POLL_FIRST: Duration = Duration::from_millis(1);

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let config = App::configure("relay", RelayConfig::read)?;
    let ready: Arc<SetOnce<Relay>> = Arc::default();
    let in_advance = !starts_for_a_call();
    let preparing = prepare(config, ready.clone());
    let mut preparing = Some(tokio::spawn(async move {
        if !in_advance {
            tokio::time::sleep(POLL_FIRST).await;
        }
        // On a thread of its own, since reading certificates keeps a thread busy.
        tokio::task::spawn_blocking(|| Handle::current().block_on(preparing)).await
    }));
    // Time until a call comes is free, and a process may be frozen as soon as it has asked for one.
    if in_advance && let Some(preparing) = preparing.take() {
        preparing.await???;
    }
    let answer = move |event: LambdaEvent<Box<RawValue>>| {
        let ready = ready.clone();
        async move { answer(ready.wait().await, &event).await }
    };
    let failing = async {
        match preparing {
            None => std::future::pending().await,
            Some(preparing) => match preparing.await {
                Ok(Ok(Ok(()))) => std::future::pending().await,
                Ok(Ok(Err(error))) => Error::from(error),
                Ok(Err(panicked)) | Err(panicked) => Error::from(panicked),
            },
        }
    };
    tokio::select! {
        served = serve(answer) => served,
        error = failing => Err(error),
    }
}

/// Makes the relay, and then reads its secrets, which the first call waits for if it comes meanwhile.
async fn prepare(config: RelayConfig, ready: Arc<SetOnce<Relay>>) -> Result<(), StartError> {
    let relay = Relay::new(Box::pin(App::of(config.app)).await?, &config.callers_secret_id);
    if ready.set(relay).is_ok() {
        Box::pin(ready.wait().await.fetch_secrets()).await;
    }
    Ok(())
}

async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    match Event::of(&event.payload) {
        Event::Http => http::answer(relay, event).await,
        Event::Direct => direct::answer(relay, event).await,
    }
}
