//! The `refresh` function. It has three kinds of events:
//! - A tick of the schedule ([`tick`]): renews the tokens that are due, and runs the companies' tasks ([`companies`]).
//! - A request of an operator: renews one token now, or uninstalls the app ([`uninstall`]).
//! - Messages of the rescue queue ([`rescue`]): stores token pairs that could not be stored when they were granted.

pub mod companies;
pub mod event;
mod paced;
mod reconciliation;
pub mod rescue;
pub mod tick;
pub mod uninstall;

use std::sync::Arc;
use std::time::Duration;

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;
use shared::app::App;
use shared::config::AppConfig;
use shared::domain::clock::Millis;
use shared::domain::qualifier::{InvocationKind, Qualifier};

use crate::event::RefreshEvent;

/// The assumed length of an invocation if the runtime gives no valid deadline.
const DEFAULT_TIME: Duration = Duration::from_mins(1);

/// Serves events until the process is ended.
///
/// # Errors
/// The configuration is missing or malformed, or the Runtime API cannot be reached.
pub async fn run() -> Result<(), Error> {
    let app = Arc::new(Box::pin(App::of(App::configure("refresh", AppConfig::read)?)).await?);
    let serve = service_fn(move |event| {
        let app = app.clone();
        async move { handle(&app, event).await }
    });
    Box::pin(lambda_runtime::run(serve)).await
}

async fn handle(app: &App, event: LambdaEvent<Value>) -> Result<Value, Error> {
    let began = app.clock.now();
    let deadline = deadline(event.context.deadline, began);
    let read = RefreshEvent::read(event.payload)?;
    if matches!(read, RefreshEvent::Rescue(_)) {
        check_queue(app, &event.context.invoked_function_arn)?;
    }
    let answer = match read {
        RefreshEvent::Tick(shards) => serde_json::to_value(tick::run(app, shards, deadline).await?),
        RefreshEvent::One { resource, force } => {
            serde_json::to_value(tick::run_one(app, &resource, force, deadline).await?)
        }
        RefreshEvent::Uninstall { resource, reason } => {
            serde_json::to_value(uninstall::run(app, &resource, &reason, deadline).await)
        }
        RefreshEvent::Rescue(messages) => serde_json::to_value(rescue::run(app, messages).await),
    }?;
    let total_ms = u64::try_from(app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX);
    tracing::info!(%answer, total_ms, "an event was processed");
    Ok(answer)
}

/// Refuses an SQS event that did not come by the alias of the event source. Other events need no such check: they carry
/// no data that this function stores.
fn check_queue(app: &App, invoked_function_arn: &str) -> Result<(), Error> {
    let alias = &app.config.gateway_alias;
    if alias.admits(InvocationKind::Queue, invoked_function_arn) {
        return Ok(());
    }
    let came_by = Qualifier::of(invoked_function_arn);
    Err(format!("an SQS event came by the qualifier {came_by:?}, but GATEWAY_ALIAS is {:?}", alias.name()).into())
}

/// The end of the invocation. A deadline in the past, which a local emulator may send, is replaced by a default.
fn deadline(context: u64, now: Millis) -> Millis {
    let deadline = Millis(i64::try_from(context).unwrap_or(i64::MAX));
    if deadline > now { deadline } else { now + DEFAULT_TIME }
}
