//! `EventBridge` on this machine: one bus, which records the events put on it, and can be made to fail.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::{Router, body::Bytes, extract::State as Shared, response::Response, routing::post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::{
    aws_json::{self, answer, operation},
    events::{Event, EventBus as Bus},
    identity,
    lock::lock,
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

/// Name of the bus.
pub const NAME: &str = "lifecycle";
/// The most entries of one request.
const MOST: usize = 10;

/// An event as it was put on the bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    /// Source of the event.
    pub source: String,
    /// Type of the event.
    pub detail_type: String,
    /// Content of the event.
    pub detail: Value,
}

/// The way in which the endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection is closed.
    HangUp,
    /// `AccessDeniedException`.
    AccessDenied,
    /// The request succeeds with 200, but each entry is refused.
    Entries,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Put>,
    requests: u64,
    failure: Option<Failure>,
    /// Texts and error codes. An entry whose detail contains a text is refused with its error code.
    refused: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    bus: Bus,
}

/// The endpoint. Dropping the handle ends the endpoint.
#[derive(Debug)]
pub struct EventBridge {
    desk: Arc<Desk>,
    server: Server,
}

impl EventBridge {
    /// Starts the endpoint on a free port. Events put on the bus are also published to `bus`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(bus: Bus) -> Result<Self, StartError> {
        let desk = Arc::new(Desk { state: Mutex::default(), bus });
        let router = Router::new().route("/", post(serve)).with_state(Arc::clone(&desk));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await?;
        Ok(Self { desk, server })
    }

    /// Returns the base URL, for `AWS_ENDPOINT_URL_EVENTBRIDGE`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.desk.state)
    }

    /// Returns every event that was put on the bus, in the order of arrival.
    pub fn events(&self) -> Vec<Put> {
        self.state().events.clone()
    }

    /// Returns the number of requests, including failed ones.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Refuses entries whose detail contains one of these texts, each text with its error code. Replaces earlier texts.
    pub fn refuse(&self, entries: &[(&str, &str)]) {
        let entries = entries.iter().map(|(text, code)| ((*text).to_owned(), (*code).to_owned()));
        self.state().refused = entries.collect();
    }

    /// Makes every request fail with `failure`. With `None`, requests work again.
    pub fn fail(&self, failure: Option<Failure>) {
        self.state().failure = failure;
    }
}

async fn serve(Shared(desk): Shared<Arc<Desk>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut state = lock(&desk.state);
    state.requests += 1;
    match state.failure {
        Some(Failure::HangUp) => return hang_up(),
        Some(Failure::AccessDenied) => {
            return aws_json::error(StatusCode::BAD_REQUEST, "AccessDeniedException", "not authorized");
        }
        Some(Failure::Entries) | None => {}
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let entries = request["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    if operation(&headers) != Some("PutEvents") || entries.is_empty() || entries.len() > MOST {
        return aws_json::error(StatusCode::BAD_REQUEST, "ValidationException", "not a PutEvents of 1 to 10 entries");
    }
    let refused = |code: &str| json!({ "ErrorCode": code, "ErrorMessage": "refused because the test asked for it" });
    let answers: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let put = read(entry);
            let detail = entry["Detail"].as_str().unwrap_or_default();
            let code = state.refused.iter().find(|(text, _)| detail.contains(text)).map(|(_, code)| code.clone());
            match put {
                _ if state.failure.is_some() => refused("InternalFailure"),
                _ if code.is_some() => refused(&code.unwrap_or_default()),
                None => refused("MalformedDetail"),
                Some(put) => {
                    desk.bus.publish(Event::Lifecycle { name: put.detail_type.clone(), detail: put.detail.clone() });
                    state.events.push(put);
                    json!({ "EventId": identity::uuid() })
                }
            }
        })
        .collect();
    let failed = answers.iter().filter(|answer| answer["ErrorCode"].is_string()).count();
    answer(StatusCode::OK, &json!({ "FailedEntryCount": failed, "Entries": answers }))
}

/// Parses an entry. `None` if the real bus would refuse it: an entry needs a source, a type, the bus, and an object as
/// detail.
fn read(entry: &Value) -> Option<Put> {
    let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    let detail: Value = serde_json::from_str(text("Detail")?).ok()?;
    (text("EventBusName")? == NAME && detail.is_object()).then_some(())?;
    Some(Put { source: text("Source")?.to_owned(), detail_type: text("DetailType")?.to_owned(), detail })
}
