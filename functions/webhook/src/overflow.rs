//! The consumer of the overflow queue: publishes events that the bus did not take when they arrived.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use shared::domain::clock::Millis;
use shared::events::platform::{PlatformEvent, PlatformEvents};
use tokio::time::Instant;

use crate::webhook::Webhook;

/// Publishes the events of these messages until `deadline`. Returns the messages that SQS must deliver again (Lambda
/// Developer Guide, "Implementing partial batch responses"). Without a bus, all messages stay on the queue.
pub async fn drain(
    events: Option<&PlatformEvents>,
    messages: &[SqsMessage],
    now: Millis,
    deadline: Instant,
) -> SqsBatchResponse {
    let (mut ids, mut readable, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for message in messages {
        // Lambda takes an empty id as a failure of the whole batch.
        let id = message.message_id.clone().unwrap_or_default();
        if let Some(event) = event(message, now) {
            ids.push(id);
            readable.push(event);
        } else {
            tracing::error!(alarm = "events", message = id, "a message of the overflow queue is not an event");
            failed.push(id);
        }
    }
    let published = if let Some(events) = events {
        events.publish_all(readable, deadline).await
    } else {
        tracing::error!(alarm = "events", "the overflow queue has events, but there is no bus");
        vec![false; readable.len()]
    };
    failed.extend(ids.into_iter().zip(published).filter(|(_, is_published)| !is_published).map(|(id, _)| id));
    let oldest = messages.iter().filter_map(sent_at).min().unwrap_or(now);
    tracing::info!(
        messages = messages.len(),
        failed = failed.len(),
        OldestOverflowAge = now.since(oldest).as_secs(),
        "events of the overflow queue"
    );
    let mut answer = SqsBatchResponse::default();
    answer.set_failures(failed);
    answer
}

/// The event of a message. Its body is the body of the webhook.
fn event(message: &SqsMessage, now: Millis) -> Option<PlatformEvent> {
    let body = message.body.as_deref()?;
    Some(Webhook::accepted(body.as_bytes()).ok()?.platform_event(body, sent_at(message).unwrap_or(now)))
}

/// The time at which a message was sent (Amazon SQS API Reference, `ReceiveMessage`).
fn sent_at(message: &SqsMessage) -> Option<Millis> {
    message.attributes.get("SentTimestamp")?.parse().ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_that_is_not_published_stays_on_the_queue() {
        let message = |id: &str, body: &str| {
            let mut message = SqsMessage::default();
            message.message_id = Some(id.to_owned());
            message.body = Some(body.to_owned());
            message
        };
        let messages = [message("m1", r#"{"type":"ContactCreate"}"#), message("m2", "{}"), message("m3", "")];
        let answer = drain(None, &messages, Millis(1), Instant::now()).await;
        let failed: Vec<_> = answer.batch_item_failures.iter().map(|failed| &*failed.item_identifier).collect();
        assert_eq!(failed, ["m2", "m3", "m1"]);
    }
}
