//! The function `relay`: it translates between events and calls of [`shared::relay`].
//!
//! [`event`] recognises the two kinds of events. [`http`] reads and answers events of API Gateway (payload 2.0), [`direct`]
//! invocations by other functions, single or in a batch. A malformed event gets an answer, too: only a bug is a function
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

use crate::event::EventKind;

/// The head start of the first poll for an invocation. Making the clients takes several times as long as the poll, and
/// would compete with it for the process's memory map and for a processor.
const POLL_FIRST: Duration = Duration::from_millis(1);

/// Serves events until the process ends. It fails if the configuration is missing or malformed, or if the Runtime API
/// cannot be reached.
pub async fn run() -> Result<(), Error> {
    let config = App::configure("relay", RelayConfig::read)?;
    let ready: Arc<SetOnce<Relay>> = Arc::default();
    let in_advance = !starts_for_a_call();
    let preparing = prepare(config, ready.clone());
    let mut preparing = Some(tokio::spawn(async move {
        if !in_advance {
            tokio::time::sleep(POLL_FIRST).await;
        }
        // On a thread of its own, because reading certificates blocks the thread.
        tokio::task::spawn_blocking(|| Handle::current().block_on(preparing)).await
    }));
    // A process that starts in advance is not billed for its start, and may be frozen as soon as it polls. So it prepares
    // before it polls.
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

/// Makes the relay, and then reads its secrets. A call that arrives meanwhile waits for them.
async fn prepare(config: RelayConfig, ready: Arc<SetOnce<Relay>>) -> Result<(), StartError> {
    let relay = Relay::new(Box::pin(App::of(config.app)).await?, &config.callers_secret_id);
    if ready.set(relay).is_ok() {
        Box::pin(ready.wait().await.fetch_secrets()).await;
    }
    Ok(())
}

async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    match EventKind::of(&event.payload) {
        EventKind::Http => http::answer(relay, event).await,
        EventKind::Direct => direct::answer(relay, event).await,
    }
}
