//! Messages of the rescue queue: pairs that could not be stored when they were granted.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use shared::app::App;
use shared::token::rescue::{LostWrite, RescueError, Rescued, redelivery};

use crate::event::Message;

/// The answer to an SQS event: which messages are to come again (Lambda Developer Guide, "Implementing partial batch
/// responses").
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchAnswer {
    batch_item_failures: Vec<ItemFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemFailure {
    item_identifier: String,
}

/// The time that one pair is given. The table may hang, and the pair is to be tried again soon.
const PATIENCE: Duration = Duration::from_secs(8);

/// Stores each pair by the conditional write that it was meant for. Those that cannot be stored yet come again within
/// seconds: their visibility time-out is shortened, and SQS keeps it for what the answer names.
pub async fn run(app: &App, messages: Vec<Message>) -> BatchAnswer {
    let stored = join_all(messages.iter().map(|message| store_in_time(app, message))).await;
    let failed: Vec<&Message> = messages.iter().zip(stored).filter(|(_, stored)| !stored).map(|(m, _)| m).collect();
    if let Some(queue) = &app.rescue {
        let mut again = Vec::new();
        for message in &failed {
            again.extend(message.receipt_handle.as_deref().map(|receipt| (receipt, redelivery(message.receives()))));
        }
        queue.deliver_again(&again).await;
    }
    let failure = |message: &Message| ItemFailure { item_identifier: message.message_id.clone() };
    BatchAnswer { batch_item_failures: failed.into_iter().map(failure).collect() }
}

async fn store_in_time(app: &App, message: &Message) -> bool {
    let error = match tokio::time::timeout(PATIENCE, Box::pin(store(app, &message.body))).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    let (message, receives) = (&message.message_id, message.receives());
    tracing::error!(alarm = "rescue", message, receives, error, "a rescued pair is not stored yet");
    false
}

async fn store(app: &App, body: &str) -> Result<(), RescueError> {
    let rescued: Rescued = serde_json::from_str(body).map_err(|_| RescueError::Unreadable)?;
    let outcome = match rescued.write {
        LostWrite::Commit { epoch, generation } => app.refresher.commit_rescued(&rescued, epoch, generation).await?,
        LostWrite::Install { .. } => app.installations.install_rescued(&rescued).await.map(|()| "stored")?,
    };
    tracing::info!(resource = %rescued.resource, outcome, "a rescued pair");
    Ok(())
}
