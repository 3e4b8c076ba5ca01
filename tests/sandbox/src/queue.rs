//! SQS on this machine: queues at one endpoint, and the pollers that deliver their messages to a function as Lambda
//! does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State as Shared},
    response::Response,
    routing::post,
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    aws_json::{answer, error, operation},
    clock::Clock,
    identity,
    lock::lock,
    process::{ACCOUNT, REGION},
    runtime_api::{Invocation, RuntimeApi},
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

/// Name of the first queue.
const RESCUE: &str = "rescue";

/// A message and its current state.
#[derive(Debug, Clone)]
pub struct Message {
    /// Id, which never changes.
    pub id: String,
    /// Body.
    pub body: String,
    /// Number of times that the message was received.
    pub receives: u32,
    /// Message attributes, as `SendMessage` has them.
    pub attributes: Value,
    /// Group id.
    pub group: Option<String>,
    receipt: String,
    visible_at: Instant,
    sent_ms: u64,
}

#[derive(Debug)]
struct State {
    messages: Vec<Message>,
    dead: Vec<Message>,
    visibility: Duration,
    most_receives: u32,
    sent: u64,
    failing: bool,
    /// Name of the dead-letter queue. Without one, dead messages are kept aside.
    dead_letters: Option<String>,
}

#[derive(Debug)]
struct Shelf {
    name: String,
    state: Mutex<State>,
    arrived: Notify,
    clock: Clock,
}

/// The queues of an endpoint, by name, and the number of requests to each, by operation.
#[derive(Debug, Default)]
struct Shelves(Mutex<BTreeMap<String, Arc<Shelf>>>, Mutex<BTreeMap<(String, String), u64>>);

/// A queue. Dropping the handles of all queues of an endpoint ends the endpoint.
#[derive(Debug, Clone)]
pub struct Queue {
    shelf: Arc<Shelf>,
    shelves: Arc<Shelves>,
    server: Arc<Server>,
}

impl Queue {
    /// Starts an endpoint on a free port with one empty queue, the rescue queue. A received message becomes visible
    /// again after `visibility`, unless a request changes that time. After the fifth receive the message is dead.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(visibility: Duration) -> Result<Self, StartError> {
        let shelves = Arc::<Shelves>::default();
        // The JSON protocol posts to `/`, independent of the queue's URL.
        let router = Router::new().route("/", post(serve)).fallback(serve);
        let router = router.layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&shelves));
        let server = Arc::new(Server::start(0, router, WhenClientLeaves::Cancel).await?);
        Ok(Self { shelf: shelves.add(RESCUE, visibility), shelves, server })
    }

    /// Adds an empty queue to the same endpoint.
    #[must_use]
    pub fn another(&self, name: &str, visibility: Duration) -> Self {
        let (shelves, server) = (Arc::clone(&self.shelves), Arc::clone(&self.server));
        Self { shelf: shelves.add(name, visibility), shelves, server }
    }

    /// Sets the number of receives after which a message is dead.
    pub fn allow_receives(&self, most: u32) {
        self.state().most_receives = most;
    }

    /// Makes `other` the dead-letter queue of this queue.
    pub fn redrive_to(&self, other: &Self) {
        self.state().dead_letters = Some(other.shelf.name.clone());
    }

    /// Returns the number of requests to this queue, with those of the pollers: all of them, by operation.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        let counts = lock(&self.shelves.1);
        let own = counts.iter().filter(|((queue, _), _)| *queue == self.shelf.name);
        own.map(|((_, operation), count)| (operation.clone(), *count)).collect()
    }

    /// Returns the base URL, for `AWS_ENDPOINT_URL_SQS`.
    pub fn endpoint(&self) -> String {
        self.server.url()
    }

    /// Returns the queue's URL.
    pub fn url(&self) -> String {
        format!("{}/{ACCOUNT}/{}", self.server.url(), self.shelf.name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shelf.state)
    }

    /// Returns the messages that are neither deleted nor dead.
    pub fn messages(&self) -> Vec<Message> {
        self.state().messages.clone()
    }

    /// Returns the number of messages that are neither deleted nor dead.
    pub fn depth(&self) -> usize {
        self.state().messages.len()
    }

    /// Returns the dead messages, which were received too often.
    pub fn dead_letters(&self) -> Vec<Message> {
        self.state().dead.clone()
    }

    /// Returns the number of all messages that were ever sent.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// Makes the endpoint close every connection of a request to this queue if `failing` is true.
    pub fn fail(&self, failing: bool) {
        self.state().failing = failing;
    }

    /// Receives at most `most` messages, as a consumer does, and returns their number. A message that was received too
    /// often is dead then.
    pub async fn receive(&self, most: usize) -> usize {
        self.shelf.receive(most, None, Duration::ZERO).await.len()
    }

    /// Puts a message on the queue.
    pub fn send(&self, body: impl Into<String>) {
        self.shelf.send(New { body: body.into(), ..New::default() });
    }

    /// Puts a message of a group on the queue. Returns its id.
    pub fn send_in_group(&self, body: impl Into<String>, group: &str) -> String {
        self.shelf.send(New { body: body.into(), group: Some(group.to_owned()), ..New::default() }).id
    }

    /// Makes SQS deliver every message again that is on the queue now, although it is in flight (a duplicate delivery).
    pub fn duplicate(&self) {
        for message in &mut self.state().messages {
            message.visible_at = Instant::now();
        }
    }

    /// Deletes all messages.
    pub fn purge(&self) {
        self.state().messages.clear();
    }

    /// Delivers messages to a function, up to ten at a time, until the poller is dropped. `alias` is the alias that the
    /// event source mapping names, if any.
    pub fn deliver_to(&self, runtime: &RuntimeApi, function: &str, alias: Option<&str>) -> Poller {
        let invocation = Invocation { qualifier: alias.map(str::to_owned), ..Invocation::default() };
        let (queue, lambda, function) = (Arc::clone(&self.shelf), runtime.clone(), function.to_owned());
        let shelves = Arc::clone(&self.shelves);
        Poller(tokio::spawn(async move {
            loop {
                let batch = queue.receive(10, None, Duration::from_secs(20)).await;
                shelves.count(&queue.name, "ReceiveMessage");
                if batch.is_empty() {
                    continue;
                }
                let event =
                    json!({ "Records": batch.iter().map(|message| record(&queue.name, message)).collect::<Vec<_>>() });
                let answer = lambda.invoke(&function, event.to_string(), invocation.clone()).await;
                let failed = answer.map_or(Failed::All, |answer| Failed::of(&answer, &batch));
                let done: Vec<_> = batch.iter().filter(|message| !failed.has(&message.id)).collect();
                if !done.is_empty() {
                    shelves.count(&queue.name, "DeleteMessageBatch");
                }
                for message in done {
                    queue.delete(&message.receipt);
                }
            }
        }))
    }
}

/// Delivers messages to a function until the poller is dropped.
#[derive(Debug)]
pub struct Poller(JoinHandle<()>);

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn record(queue: &str, message: &Message) -> Value {
    let mut attributes = json!({});
    for (name, value) in message.attributes.as_object().into_iter().flatten() {
        attributes[name] = json!({ "stringValue": value["StringValue"], "dataType": value["DataType"] });
    }
    let mut record = json!({
        "messageId": message.id,
        "receiptHandle": message.receipt,
        "body": message.body,
        "attributes": {
            "ApproximateReceiveCount": message.receives.to_string(),
            "SentTimestamp": message.sent_ms.to_string(),
            "SenderId": "AROAEXAMPLE:sandbox",
            "ApproximateFirstReceiveTimestamp": message.sent_ms.to_string(),
        },
        "messageAttributes": attributes,
        "md5OfBody": md5_of(&message.body),
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn(queue),
        "awsRegion": REGION,
    });
    if let Some(group) = &message.group {
        record["attributes"]["MessageGroupId"] = json!(group);
    }
    record
}

/// The messages of a batch that stay on the queue, derived from the function's answer as Lambda derives them.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    None,
    Some(Vec<String>),
    All,
}

impl Failed {
    /// Parses the function's answer. An answer without the list, or with an empty list, means success. An answer that
    /// cannot be parsed, or an identifier that is empty or unknown, fails the whole batch.
    fn of(answer: &[u8], batch: &[Message]) -> Self {
        let Ok(answer) = serde_json::from_slice::<Value>(answer) else { return Self::All };
        match &answer["batchItemFailures"] {
            Value::Null => Self::None,
            Value::Array(items) => {
                let ids: Option<Vec<String>> = items
                    .iter()
                    .map(|item| item["itemIdentifier"].as_str().map(str::to_owned))
                    .map(|id| id.filter(|id| batch.iter().any(|message| message.id == *id)))
                    .collect();
                match ids {
                    Some(ids) if ids.is_empty() => Self::None,
                    Some(ids) => Self::Some(ids),
                    None => Self::All,
                }
            }
            _ => Self::All,
        }
    }

    fn has(&self, id: &str) -> bool {
        match self {
            Self::None => false,
            Self::Some(ids) => ids.iter().any(|failed| failed == id),
            Self::All => true,
        }
    }
}

impl Shelves {
    fn add(&self, name: &str, visibility: Duration) -> Arc<Shelf> {
        let state = State {
            messages: Vec::new(),
            dead: Vec::new(),
            visibility,
            most_receives: 5,
            sent: 0,
            failing: false,
            dead_letters: None,
        };
        let (state, arrived, clock) = (Mutex::new(state), Notify::new(), Clock::default());
        let shelf = Arc::new(Shelf { name: name.to_owned(), state, arrived, clock });
        lock(&self.0).insert(name.to_owned(), Arc::clone(&shelf));
        shelf
    }

    fn count(&self, queue: &str, operation: &str) {
        *lock(&self.1).entry((queue.to_owned(), operation.to_owned())).or_default() += 1;
    }

    /// Moves the dead messages of a queue back to it. The dead-letter queue of `NAME` is `NAME-failures`.
    fn redrive(&self, arn: &str) -> Response {
        let name = arn.rsplit(':').next().and_then(|name| name.strip_suffix(FAILURES));
        let Some(shelf) = name.and_then(|name| self.find(name)) else {
            return error(StatusCode::NOT_FOUND, "ResourceNotFoundException", "no such dead-letter queue");
        };
        let dead = std::mem::take(&mut lock(&shelf.state).dead);
        for message in dead {
            shelf.send(New { body: message.body, ..New::default() });
        }
        answer(StatusCode::OK, &json!({ "TaskHandle": identity::uuid() }))
    }

    /// Returns the queue with this URL.
    fn find(&self, url: &str) -> Option<Arc<Shelf>> {
        lock(&self.0).get(url.rsplit('/').next()?).cloned()
    }
}

/// A message to be sent.
#[derive(Debug, Default)]
struct New {
    body: String,
    attributes: Value,
    group: Option<String>,
    delay: Duration,
}

impl New {
    /// Reads a request, or an entry of a batch. `None` if SQS would refuse it.
    fn read(request: &Value) -> Option<Self> {
        let attributes = request["MessageAttributes"].as_object().into_iter().flatten().map(|(name, attribute)| {
            let length = |member: &str| attribute[member].as_str().map_or(0, str::len);
            name.len() + length("DataType") + length("StringValue")
        });
        let room = LARGEST.checked_sub(attributes.sum())?;
        let body = request["MessageBody"].as_str().filter(|text| !text.is_empty() && text.len() <= room)?;
        let delay = request["DelaySeconds"].as_u64().unwrap_or_default();
        (delay <= 900).then(|| Self {
            body: body.to_owned(),
            attributes: request["MessageAttributes"].clone(),
            group: request["MessageGroupId"].as_str().map(str::to_owned),
            delay: Duration::from_secs(delay),
        })
    }
}

impl Shelf {
    /// Sends the entries of a batch.
    fn send_all(&self, entries: &Value) -> Value {
        let (mut sent, mut failed) = (Vec::new(), Vec::new());
        for entry in entries.as_array().map(Vec::as_slice).unwrap_or_default() {
            match New::read(entry) {
                Some(new) => {
                    let message = self.send(new);
                    let md5 = md5_of(&message.body);
                    sent.push(json!({ "Id": entry["Id"], "MessageId": message.id, "MD5OfMessageBody": md5 }));
                }
                None => failed.push(json!({ "Id": entry["Id"], "SenderFault": true, "Code": "InvalidParameterValue" })),
            }
        }
        json!({ "Successful": sent, "Failed": failed })
    }

    fn send(&self, new: New) -> Message {
        let New { body, attributes, group, delay } = new;
        let message = Message {
            id: identity::uuid(),
            body,
            attributes,
            group,
            receives: 0,
            receipt: String::new(),
            visible_at: Instant::now() + delay,
            sent_ms: self.clock.now_ms(),
        };
        let mut state = lock(&self.state);
        state.sent += 1;
        state.messages.push(message.clone());
        drop(state);
        self.arrived.notify_waiters();
        message
    }

    fn delete(&self, receipt: &str) {
        lock(&self.state).messages.retain(|message| message.receipt != receipt || receipt.is_empty());
    }

    /// Waits for at least one message, for at most `wait`.
    async fn receive(&self, most: usize, visibility: Option<Duration>, wait: Duration) -> Vec<Message> {
        let deadline = Instant::now() + wait;
        loop {
            let arrived = self.arrived.notified();
            let batch = self.take(most, visibility);
            let left = deadline.saturating_duration_since(Instant::now());
            if !batch.is_empty() || left.is_zero() {
                return batch;
            }
            // No notification comes when an invisible message becomes visible, so this looks again after a moment.
            let _looked_again = tokio::time::timeout(left.min(Duration::from_millis(200)), arrived).await;
        }
    }

    fn take(&self, most: usize, visibility: Option<Duration>) -> Vec<Message> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let visibility = visibility.unwrap_or(state.visibility);
        let most_receives = state.most_receives;
        let spent = |message: &Message| message.visible_at <= now && message.receives >= most_receives;
        let dead: Vec<Message> = state.messages.extract_if(.., |message| spent(message)).collect();
        state.dead.extend(dead);
        let visible = state.messages.iter_mut().filter(|message| message.visible_at <= now).take(most);
        visible
            .map(|message| {
                message.receives += 1;
                message.receipt = shared::domain::random::hex::<24>();
                message.visible_at = now + visibility;
                message.clone()
            })
            .collect()
    }

    /// Sets the times, counted from now, after which messages are visible again. A message that is not in flight is
    /// refused.
    fn change_visibility(&self, entries: &Value) -> Value {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let (mut changed, mut failed) = (Vec::new(), Vec::new());
        for entry in entries.as_array().map(Vec::as_slice).unwrap_or_default() {
            let receipt = entry["ReceiptHandle"].as_str().filter(|receipt| !receipt.is_empty());
            let in_flight =
                |message: &&mut Message| Some(message.receipt.as_str()) == receipt && now < message.visible_at;
            match (state.messages.iter_mut().find(in_flight), entry["VisibilityTimeout"].as_u64()) {
                (Some(message), Some(seconds)) => {
                    message.visible_at = now + Duration::from_secs(seconds);
                    changed.push(json!({ "Id": entry["Id"] }));
                }
                _ => failed.push(json!({
                    "Id": entry["Id"],
                    "SenderFault": true,
                    "Code": "MessageNotInflight",
                    "Message": "as SQS says",
                })),
            }
        }
        json!({ "Successful": changed, "Failed": failed })
    }

    fn dead_attributes(&self) -> Value {
        json!({ "Attributes": {
            "ApproximateNumberOfMessages": lock(&self.state).dead.len().to_string(),
            "ApproximateNumberOfMessagesNotVisible": "0",
            "ApproximateNumberOfMessagesDelayed": "0",
            "QueueArn": queue_arn(&format!("{}{FAILURES}", self.name)),
        }})
    }

    fn attributes(&self) -> Value {
        let now = Instant::now();
        let state = lock(&self.state);
        let visible = state.messages.iter().filter(|message| message.visible_at <= now).count();
        let mut answer = json!({ "Attributes": {
            "ApproximateNumberOfMessages": visible.to_string(),
            "ApproximateNumberOfMessagesNotVisible": (state.messages.len() - visible).to_string(),
            "ApproximateNumberOfMessagesDelayed": "0",
            "VisibilityTimeout": state.visibility.as_secs().to_string(),
            "QueueArn": queue_arn(&self.name),
        }});
        if let Some(name) = &state.dead_letters {
            let policy = json!({ "deadLetterTargetArn": queue_arn(name), "maxReceiveCount": state.most_receives });
            answer["Attributes"]["RedrivePolicy"] = json!(policy.to_string());
        }
        answer
    }
}

/// The end of the name of a queue's dead-letter queue.
const FAILURES: &str = "-failures";
/// The most bytes of a message (Amazon SQS Developer Guide, "Message quotas").
const LARGEST: usize = 1024 * 1024;

async fn serve(Shared(shelves): Shared<Arc<Shelves>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return error(StatusCode::BAD_REQUEST, "InvalidMessageContents", "not JSON");
    };
    if operation(&headers) == Some("StartMessageMoveTask") {
        return shelves.redrive(request["SourceArn"].as_str().unwrap_or_default());
    }
    let dead_of = request["QueueUrl"].as_str().and_then(|url| shelves.find(url.strip_suffix(FAILURES)?));
    if let (Some("GetQueueAttributes"), Some(shelf)) = (operation(&headers), dead_of) {
        return answer(StatusCode::OK, &shelf.dead_attributes());
    }
    let named = request["QueueUrl"].as_str().or_else(|| request["QueueName"].as_str());
    let Some(shelf) = named.and_then(|url| shelves.find(url)) else {
        let code = "AWS.SimpleQueueService.NonExistentQueue";
        return error(StatusCode::BAD_REQUEST, code, "The specified queue does not exist.");
    };
    if lock(&shelf.state).failing {
        return hang_up();
    }
    shelves.count(&shelf.name, operation(&headers).unwrap_or_default());
    let seconds = |name: &str| request[name].as_u64().map(Duration::from_secs);
    let value = match operation(&headers) {
        Some("SendMessage") => {
            let Some(new) = New::read(&request) else {
                return error(StatusCode::BAD_REQUEST, "InvalidParameterValue", "the body or the delay");
            };
            let message = shelf.send(new);
            json!({ "MessageId": message.id, "MD5OfMessageBody": md5_of(&message.body) })
        }
        Some("SendMessageBatch") => shelf.send_all(&request["Entries"]),
        Some("GetQueueUrl") => {
            let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
            json!({ "QueueUrl": format!("http://{host}/{ACCOUNT}/{}", shelf.name) })
        }
        Some("ReceiveMessage") => {
            let most = request["MaxNumberOfMessages"].as_u64().and_then(|most| usize::try_from(most).ok());
            let wait = seconds("WaitTimeSeconds").unwrap_or_default();
            let batch = shelf.receive(most.unwrap_or(1), seconds("VisibilityTimeout"), wait).await;
            json!({ "Messages": batch.iter().map(|message| json!({
                "MessageId": message.id,
                "ReceiptHandle": message.receipt,
                "Body": message.body,
                "MD5OfBody": md5_of(&message.body),
                "Attributes": { "ApproximateReceiveCount": message.receives.to_string() },
            })).collect::<Vec<_>>() })
        }
        Some("DeleteMessage") => {
            shelf.delete(request["ReceiptHandle"].as_str().unwrap_or_default());
            json!({})
        }
        Some("DeleteMessageBatch") => {
            let mut deleted = Vec::new();
            for entry in request["Entries"].as_array().map(Vec::as_slice).unwrap_or_default() {
                shelf.delete(entry["ReceiptHandle"].as_str().unwrap_or_default());
                deleted.push(json!({ "Id": entry["Id"] }));
            }
            json!({ "Successful": deleted })
        }
        Some("ChangeMessageVisibilityBatch") => shelf.change_visibility(&request["Entries"]),
        Some("GetQueueAttributes") => shelf.attributes(),
        _ => {
            return error(StatusCode::BAD_REQUEST, "AWS.SimpleQueueService.UnsupportedOperation", "not in the sandbox");
        }
    };
    answer(StatusCode::OK, &value)
}

fn queue_arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

fn md5_of(body: &str) -> String {
    format!("{:x}", md5::compute(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_answers_are_read_as_lambda_reads_them() {
        let message = |id: &str| Message {
            id: id.to_owned(),
            body: String::new(),
            attributes: Value::Null,
            group: None,
            receives: 1,
            receipt: String::new(),
            visible_at: Instant::now(),
            sent_ms: 0,
        };
        let batch = [message("a"), message("b")];
        for (answer, expected) in [
            ("null", Failed::None),
            ("{}", Failed::None),
            (r#"{"batchItemFailures":[]}"#, Failed::None),
            (r#"{"batchItemFailures":null}"#, Failed::None),
            (r#"{"batchItemFailures":[{"itemIdentifier":"b"}]}"#, Failed::Some(vec!["b".into()])),
            (r#"{"batchItemFailures":[{"itemIdentifier":"c"}]}"#, Failed::All),
            (r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#, Failed::All),
            (r#"{"batchItemFailures":[{"id":"a"}]}"#, Failed::All),
            ("not json", Failed::All),
        ] {
            assert_eq!(Failed::of(answer.as_bytes(), &batch), expected, "{answer}");
        }
    }
}
