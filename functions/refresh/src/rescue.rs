//! The consumer of the rescue queue: stores token pairs that could not be stored when they were granted. SQS moves a
//! message that was delivered a thousand times to the dead-letter queue.

use std::time::Duration;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use futures_util::future::join_all;
use shared::app::App;
use shared::token::rescue::{LostWrite, RescueError, Rescued, redelivery};

/// Time limit for one pair. If the table hangs, the pair must be tried again soon.
const TIME_LIMIT: Duration = Duration::from_secs(8);

/// Stores each pair by the conditional write that failed earlier. A pair that still cannot be stored is delivered again
/// within seconds, because its message gets a shorter visibility time-out.
///
/// Returns the messages that SQS must deliver again (Lambda Developer Guide, "Implementing partial batch responses").
pub async fn run(app: &App, messages: Vec<SqsMessage>) -> SqsBatchResponse {
    let stored = join_all(messages.iter().map(|message| store_in_time(app, message))).await;
    let failed: Vec<&SqsMessage> = messages.iter().zip(stored).filter(|(_, stored)| !stored).map(|(m, _)| m).collect();
    if let Some(queue) = &app.rescue {
        let mut redeliveries = Vec::new();
        for message in &failed {
            redeliveries
                .extend(message.receipt_handle.as_deref().map(|receipt| (receipt, redelivery(receives(message)))));
        }
        queue.deliver_again(&redeliveries).await;
    }
    let mut answer = SqsBatchResponse::default();
    // Lambda takes an empty id as a failure of the whole batch.
    answer.set_failures(failed.into_iter().map(|message| message.message_id.clone().unwrap_or_default()));
    answer
}

/// Number of deliveries of a message, including this one (Amazon SQS API Reference, `ReceiveMessage`). 1 if absent.
fn receives(message: &SqsMessage) -> u32 {
    message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1)
}

async fn store_in_time(app: &App, message: &SqsMessage) -> bool {
    let body = message.body.as_deref().unwrap_or_default();
    let error = match tokio::time::timeout(TIME_LIMIT, Box::pin(store(app, body))).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    let (message_id, receives) = (&message.message_id, receives(message));
    tracing::error!(
        alarm = "rescue",
        message = message_id,
        receives,
        error,
        "a token pair from the rescue queue could not be stored; the queue delivers it again"
    );
    false
}

async fn store(app: &App, body: &str) -> Result<(), RescueError> {
    let rescued: Rescued = serde_json::from_str(body).map_err(|_| RescueError::Unreadable)?;
    let outcome = match rescued.write {
        LostWrite::Commit { epoch, generation } => app.refresher.commit_rescued(&rescued, epoch, generation).await?,
        LostWrite::Install { .. } => app.installations.install_rescued(&rescued).await.map(|()| "stored")?,
    };
    tracing::info!(resource = %rescued.resource, outcome, "a token pair from the rescue queue was processed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_deliveries_is_read_from_the_message() {
        for (count, expected) in [(None, 1), (Some("12"), 12), (Some("often"), 1)] {
            let mut message = SqsMessage::default();
            message.attributes.extend(count.map(|count| ("ApproximateReceiveCount".to_owned(), count.to_owned())));
            assert_eq!(receives(&message), expected, "{count:?}");
        }
    }
}
