//! The requests to SQS and `EventBridge` on behalf of the queue door.

use std::time::Duration;

use aws_sdk_eventbridge::types::{PutEventsRequestEntry, PutEventsResultEntry};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry,
};
use serde_json::Value;
use serde_json::value::RawValue;
use shared::http_client::aws_error::describe;
use tokio::sync::OnceCell;

use super::message::{CARRIED, Carried, Message};
use super::result::LARGEST;

/// The most entries of a request (Amazon SQS API Reference, `SendMessageBatch`; Amazon `EventBridge`, `PutEvents`).
const MOST: usize = 10;

/// The longest reason why a message is no call, in bytes.
const LONGEST_REASON: usize = 500;

/// The queue of calls, and the destination of their results.
pub(super) struct Queues {
    client: Client,
    calls: String,
    results: Results,
    /// The URL of the dead-letter queue, if the queue of calls has one.
    dead_letters: OnceCell<Option<String>>,
}

/// The destination of results.
enum Results {
    Queue(String),
    Bus(aws_sdk_eventbridge::Client, String),
    Nowhere,
}

/// A message that is sent anew.
pub(super) struct Anew<'a> {
    pub(super) message: &'a Message,
    pub(super) carried: Carried,
    pub(super) delay: Duration,
}

impl Queues {
    pub(super) fn new(
        aws: &aws_config::SdkConfig,
        calls: String,
        results: Option<String>,
        bus: Option<String>,
    ) -> Self {
        let results = match (results, bus) {
            (Some(url), _) => Results::Queue(url),
            (None, Some(name)) => Results::Bus(aws_sdk_eventbridge::Client::new(aws), name),
            (None, None) => {
                tracing::warn!("neither RESULTS_QUEUE_URL nor EVENT_BUS_NAME is set: nobody gets the results of calls");
                Results::Nowhere
            }
        };
        Self { client: Client::new(aws), calls, results, dead_letters: OnceCell::new() }
    }

    /// Sets the time until each message is delivered again, by receipt. A message that SQS does not accept is delivered
    /// again after the queue's own visibility time-out.
    pub(super) async fn hide(&self, messages: &[(&Message, Duration)]) {
        for some in messages.chunks(MOST) {
            let entry = |(number, (message, time)): (usize, &(&Message, Duration))| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(number.to_string())
                    .receipt_handle(&message.receipt)
                    .visibility_timeout(i32::try_from(time.as_secs()).unwrap_or(i32::MAX))
                    .build()
                    .expect("an entry with an id and a receipt handle")
            };
            let entries = some.iter().enumerate().map(entry).collect();
            let request = self.client.change_message_visibility_batch().queue_url(&self.calls);
            match request.set_entries(Some(entries)).send().await {
                Ok(answer) if answer.failed().is_empty() => {}
                Ok(answer) => {
                    let code = answer.failed().first().map(aws_sdk_sqs::types::BatchResultErrorEntry::code);
                    tracing::warn!(code, failed = answer.failed().len(), "queued calls are delivered again late");
                }
                Err(error) => tracing::warn!(error = describe(&error), "queued calls are delivered again late"),
            }
        }
    }

    /// Sends messages anew. Returns for each if SQS has taken it.
    pub(super) async fn send_anew(&self, messages: &[Anew<'_>]) -> Vec<bool> {
        let entries = messages.iter().map(|anew| {
            let carried = serde_json::to_string(&anew.carried).expect("strings and numbers are JSON");
            let attribute = MessageAttributeValue::builder().data_type("String").string_value(carried).build();
            SendMessageBatchRequestEntry::builder()
                .message_body(&anew.message.body)
                .set_message_group_id(anew.message.group.clone())
                .delay_seconds(i32::try_from(anew.delay.as_secs()).unwrap_or(900))
                .message_attributes(CARRIED, attribute.expect("an attribute with a type"))
        });
        let sizes = messages.iter().map(|anew| anew.message.body.len() + 1_024);
        self.send(&self.calls, entries.zip(sizes).collect()).await
    }

    /// Sends results. Returns for each if it was taken.
    pub(super) async fn send_results(&self, results: &[(&Message, Box<RawValue>)]) -> Vec<bool> {
        match &self.results {
            Results::Queue(url) => {
                let entry = |(_, result): &(&Message, Box<RawValue>)| {
                    (SendMessageBatchRequestEntry::builder().message_body(result.get()), result.get().len())
                };
                self.send(url, results.iter().map(entry).collect()).await
            }
            Results::Bus(client, name) => {
                let mut taken = Vec::with_capacity(results.len());
                for some in in_groups(results, |(_, result)| result.get().len() + 1_024) {
                    taken.extend(publish(client, name, some).await);
                }
                taken
            }
            Results::Nowhere => vec![true; results.len()],
        }
    }

    async fn send(
        &self,
        url: &str,
        entries: Vec<(aws_sdk_sqs::types::builders::SendMessageBatchRequestEntryBuilder, usize)>,
    ) -> Vec<bool> {
        let mut taken = Vec::with_capacity(entries.len());
        for some in in_groups(&entries, |(_, size)| *size) {
            let numbered = some.iter().enumerate().map(|(number, (entry, _))| {
                entry.clone().id(number.to_string()).build().expect("an entry with an id and a body")
            });
            let request = self.client.send_message_batch().queue_url(url).set_entries(Some(numbered.collect()));
            match request.send().await {
                Ok(answer) => {
                    let is_taken =
                        |number: usize| answer.successful().iter().any(|entry| entry.id() == number.to_string());
                    taken.extend((0..some.len()).map(is_taken));
                    if let Some(failed) = answer.failed().first() {
                        let (code, messages) = (failed.code(), answer.failed().len());
                        tracing::error!(alarm = "queue", queue = url, code, messages, "SQS refuses messages");
                    }
                }
                Err(error) => {
                    let (error, messages) = (describe(&error), some.len());
                    tracing::error!(alarm = "queue", queue = url, error, messages, "SQS does not take messages");
                    taken.extend(some.iter().map(|_| false));
                }
            }
        }
        taken
    }

    /// Moves a message that is no call to the dead-letter queue. Returns true if it is there, or if there is no such
    /// queue.
    pub(super) async fn bury(&self, message: &Message, reason: &str) -> bool {
        let url = match self.dead_letters.get_or_try_init(|| self.find_dead_letters()).await {
            Ok(Some(url)) => url,
            Ok(None) => return true,
            Err(error) => {
                tracing::error!(alarm = "queue", error, "the dead-letter queue is not known");
                return false;
            }
        };
        let attribute = |text: &str| {
            MessageAttributeValue::builder()
                .data_type("String")
                .string_value(text)
                .build()
                .expect("an attribute with a type")
        };
        let sent = self.client.send_message().queue_url(url).message_body(&message.body);
        let reason = accepted(reason);
        let sent = sent.message_attributes("Reason", attribute(&reason));
        let sent = sent.message_attributes("MessageId", attribute(&message.carried.id)).send().await;
        sent.inspect_err(|error| {
            tracing::error!(alarm = "queue", error = describe(error), "the dead-letter queue takes nothing");
        })
        .is_ok()
    }

    /// The URL of the queue that the redrive policy of the calls' queue names.
    async fn find_dead_letters(&self) -> Result<Option<String>, String> {
        let attributes = self.client.get_queue_attributes().queue_url(&self.calls);
        let attributes = attributes.attribute_names(QueueAttributeName::RedrivePolicy).send().await;
        let attributes = attributes.map_err(|error| describe(&error))?;
        let policy = attributes.attributes().and_then(|all| all.get(&QueueAttributeName::RedrivePolicy));
        let policy: Option<Value> = policy.and_then(|text| serde_json::from_str(text).ok());
        let arn = policy.as_ref().and_then(|policy| policy["deadLetterTargetArn"].as_str());
        let Some(name) = arn.and_then(|arn| arn.rsplit(':').next()) else { return Ok(None) };
        let url = self.client.get_queue_url().queue_name(name).send().await.map_err(|error| describe(&error))?;
        Ok(url.queue_url)
    }
}

/// The beginning of a reason, which may quote the message, without the characters that SQS refuses (Amazon SQS API
/// Reference, `SendMessage`).
fn accepted(reason: &str) -> String {
    let is_refused = |c: char| c < ' ' && !"\t\n\r".contains(c) || matches!(c, '\u{fffe}' | '\u{ffff}');
    let text: String = reason.chars().map(|c| if is_refused(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    text[..text.floor_char_boundary(LONGEST_REASON)].to_owned()
}

/// Publishes results as events `CallCompleted`.
async fn publish(client: &aws_sdk_eventbridge::Client, bus: &str, results: &[(&Message, Box<RawValue>)]) -> Vec<bool> {
    let entry = |(_, result): &(&Message, Box<RawValue>)| {
        PutEventsRequestEntry::builder()
            .event_bus_name(bus)
            .source("hoopai.relay")
            .detail_type("CallCompleted")
            .detail(result.get())
            .build()
    };
    match client.put_events().set_entries(Some(results.iter().map(entry).collect())).send().await {
        Ok(answer) => {
            let mut taken: Vec<bool> = answer.entries().iter().map(|entry| entry.error_code().is_none()).collect();
            taken.resize(results.len(), false);
            if let Some(code) = answer.entries().iter().find_map(PutEventsResultEntry::error_code) {
                let refused = answer.failed_entry_count();
                tracing::error!(alarm = "queue", code, refused, "the event bus refuses results");
            }
            taken
        }
        Err(error) => {
            tracing::error!(alarm = "queue", error = describe(&error), "the event bus takes no results");
            vec![false; results.len()]
        }
    }
}

/// Cuts a list into requests: at most [`MOST`] entries each, and at most [`LARGEST`] bytes together. A larger entry is
/// alone.
fn in_groups<T>(entries: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut groups, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let own = size(entry);
        if index > begin && (index - begin == MOST || bytes + own > LARGEST) {
            groups.push(&entries[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += own;
    }
    if begin < entries.len() {
        groups.push(&entries[begin..]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_no_character_that_sqs_refuses() {
        assert_eq!(accepted("unknown field `\u{1}\u{ffff}`\tü"), "unknown field `\u{fffd}\u{fffd}`\tü");
        assert_eq!(accepted(&"x".repeat(LONGEST_REASON + 1)).len(), LONGEST_REASON);
        assert_eq!(accepted(&"€".repeat(LONGEST_REASON)).len(), LONGEST_REASON - 2);
    }

    #[test]
    fn a_request_has_at_most_ten_entries_and_a_mebibyte() {
        let lengths =
            |sizes: &[usize]| in_groups(sizes, |size| *size).iter().map(|group| group.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; 25]), [10, 10, 5]);
        assert_eq!(lengths(&[LARGEST / 2, LARGEST / 2, 1, 1]), [2, 2]);
        assert_eq!(lengths(&[LARGEST * 2, 1, LARGEST]), [1, 1, 1]);
    }
}
