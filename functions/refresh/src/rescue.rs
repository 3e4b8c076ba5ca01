//! Messages of the rescue queue: pairs that could not be stored when they were granted.

use serde::Serialize;
use shared::app::App;
use shared::token::rescue::{LostWrite, RescueError, Rescued};

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

/// Stores each pair by the conditional write that it was meant for.
pub async fn run(app: &App, messages: Vec<Message>) -> BatchAnswer {
    let mut answer = BatchAnswer::default();
    for message in messages {
        if let Err(error) = store(app, &message.body).await {
            tracing::error!(alarm = "rescue", message = message.message_id, %error, "a rescued pair is not stored yet");
            answer.batch_item_failures.push(ItemFailure { item_identifier: message.message_id });
        }
    }
    answer
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
