//! `EventBridge` on this machine: one bus, which records the events put on it, and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State as Shared},
    response::Response,
    routing::post,
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json, value::RawValue};
use shared::events::platform;

use crate::{
    aws_json::{self, answer, operation},
    events::{Event, EventBus as Bus},
    identity,
    lock::lock,
    process::{ACCOUNT, REGION},
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

/// Name of the bus.
pub const NAME: &str = "lifecycle";
/// Name of its archive.
const ARCHIVE: &str = "events";
/// The most entries of one request.
const MOST: usize = 10;
/// The bytes that the entries of one request stay below.
const TOO_LARGE: usize = 1024 * 1024;

/// An event as it was put on the bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    /// Source of the event.
    pub source: String,
    /// Type of the event.
    pub detail_type: String,
    /// Content of the event, without members that a [`Value`] cannot hold.
    pub detail: Value,
    /// Content of the event as it was sent, byte for byte.
    pub text: String,
    /// The resources that the event is about.
    pub resources: Vec<String>,
    /// The time of the event, in seconds since the Unix epoch.
    pub time: f64,
    /// The name of the replay that put the event on the bus again.
    pub replay: Option<String>,
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
    /// Names of the rules. A rule has no targets here.
    rules: BTreeSet<String>,
    /// Names of the replays.
    replays: BTreeSet<String>,
    /// True if the answer to the next `StartReplay` is lost.
    loses_answer: bool,
    /// Texts and error codes. An entry whose detail contains a text is refused with its error code.
    refused: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    bus: Bus,
}

impl Desk {
    /// Publishes an event of the bus to the sandbox.
    fn tell(&self, put: &Put) {
        let name = put.detail_type.clone();
        self.bus.publish(if put.source == platform::SOURCE {
            Event::Published { name, resources: put.resources.clone() }
        } else {
            Event::Lifecycle { name, detail: put.detail.clone() }
        });
    }
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
        let router =
            Router::new().route("/", post(serve)).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&desk));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await?;
        Ok(Self { desk, server })
    }

    /// Returns the base URL, for `AWS_ENDPOINT_URL_EVENTBRIDGE`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the ARN of the archive of the bus, for `EVENT_ARCHIVE_ARN`.
    #[must_use]
    pub fn archive(&self) -> String {
        arn("archive", ARCHIVE)
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

    /// Adds a rule to the bus.
    pub fn create_rule(&self, name: &str) {
        self.state().rules.insert(name.to_owned());
    }

    /// Loses the answer to the next `StartReplay`.
    pub fn lose_answer(&self) {
        self.state().loses_answer = true;
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
    match operation(&headers) {
        Some("DescribeArchive") => {
            let described =
                json!({ "ArchiveName": ARCHIVE, "EventSourceArn": arn("event-bus", NAME), "State": "ENABLED" });
            return answer(StatusCode::OK, &described);
        }
        Some("DescribeRule") => return describe_rule(&state, &request),
        Some("StartReplay") => {
            let started = replay(&desk, &mut state, &request);
            return if std::mem::take(&mut state.loses_answer) { hang_up() } else { started };
        }
        _ => {}
    }
    let entries = request["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    if operation(&headers) != Some("PutEvents") || entries.is_empty() || entries.len() > MOST {
        return aws_json::error(StatusCode::BAD_REQUEST, "ValidationException", "not a PutEvents of 1 to 10 entries");
    }
    if entries.iter().map(size).sum::<usize>() >= TOO_LARGE {
        return aws_json::error(StatusCode::BAD_REQUEST, "ValidationException", "the entries are too large");
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
                    desk.tell(&put);
                    state.events.push(put);
                    json!({ "EventId": identity::uuid() })
                }
            }
        })
        .collect();
    let failed = answers.iter().filter(|answer| answer["ErrorCode"].is_string()).count();
    answer(StatusCode::OK, &json!({ "FailedEntryCount": failed, "Entries": answers }))
}

fn describe_rule(state: &State, request: &Value) -> Response {
    let name = request["Name"].as_str().unwrap_or_default();
    if state.rules.contains(name) {
        return answer(StatusCode::OK, &json!({ "Name": name, "Arn": arn("rule", &format!("{NAME}/{name}")) }));
    }
    let message = format!("Rule {name} does not exist on EventBus {NAME}.");
    aws_json::error(StatusCode::BAD_REQUEST, "ResourceNotFoundException", &message)
}

/// Puts the events of a time span on the bus again. The real service does so in the background.
fn replay(desk: &Desk, state: &mut State, request: &Value) -> Response {
    let time = |name: &str| request[name].as_f64().unwrap_or_default();
    let (from, to) = (time("EventStartTime"), time("EventEndTime"));
    let name = request["ReplayName"].as_str().unwrap_or_default();
    if !state.replays.insert(name.to_owned()) {
        let message = format!("Replay {name} already exists.");
        return aws_json::error(StatusCode::BAD_REQUEST, "ResourceAlreadyExistsException", &message);
    }
    let archived = state.events.iter().filter(|put| put.replay.is_none() && from <= put.time && put.time < to);
    let again: Vec<Put> = archived.map(|put| Put { replay: Some(name.to_owned()), ..put.clone() }).collect();
    for put in again {
        desk.tell(&put);
        state.events.push(put);
    }
    answer(StatusCode::OK, &json!({ "ReplayArn": arn("replay", name), "State": "STARTING" }))
}

fn arn(kind: &str, name: &str) -> String {
    format!("arn:aws:events:{REGION}:{ACCOUNT}:{kind}/{name}")
}

/// Parses an entry. `None` if the real bus would refuse it: an entry needs a source, a type of at most 128 characters,
/// the bus, and an object as detail.
fn read(entry: &Value) -> Option<Put> {
    let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(text("Detail")?).ok()?;
    let detail_type = text("DetailType").filter(|kind| kind.chars().count() <= 128)?;
    (text("EventBusName")? == NAME).then_some(())?;
    let resources = entry["Resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    Some(Put {
        source: text("Source")?.to_owned(),
        detail_type: detail_type.to_owned(),
        detail: readable(members),
        text: text("Detail")?.to_owned(),
        resources: resources.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        time: entry["Time"].as_f64().unwrap_or_default(),
        replay: None,
    })
}

/// The members that a [`Value`] can hold. The bus checks the grammar only, so a member may hold half of a surrogate pair.
fn readable(members: BTreeMap<String, &RawValue>) -> Value {
    let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
    members.into_iter().filter_map(|(name, raw)| Some((name, value(raw)?))).collect()
}

/// The bytes of an entry, as the bus counts them (Amazon EventBridge User Guide, "`PutEvents` event entry size").
fn size(entry: &Value) -> usize {
    let texts = ["Source", "DetailType", "Detail"].map(|name| entry[name].as_str().map_or(0, str::len));
    let resources = entry["Resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let resources: usize = resources.iter().filter_map(Value::as_str).map(str::len).sum();
    let time = if entry["Time"].is_null() { 0 } else { 14 };
    time + texts.iter().sum::<usize>() + resources
}
