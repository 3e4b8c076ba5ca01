//! A proxy that counts the calls to a store and the capacity that the calls consume. The proxy asks the store to report
//! the consumed capacity in each answer, so nothing here computes capacity units.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use sandbox::server::{Server, WhenClientLeaves};
use serde_json::{Value, json};

/// Calls and capacity units, indexes included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Number of calls by operation.
    pub calls: BTreeMap<String, u64>,
    /// Number of calls by operation and item, and with failed conditions apart. Records of calls are one item.
    pub items: BTreeMap<String, u64>,
    /// Capacity units of writes.
    pub write_units: f64,
    /// Capacity units of reads.
    pub read_units: f64,
}

/// The proxy. Dropping the proxy ends it.
#[derive(Debug)]
pub struct Meter {
    state: Arc<Metered>,
    server: Server,
}

#[derive(Debug)]
struct Metered {
    store: String,
    client: reqwest::Client,
    reading: Mutex<Reading>,
}

impl Meter {
    /// Starts a proxy in front of the store at `store`.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn before(store: &str) -> Self {
        let (store, client) = (store.to_owned(), reqwest::Client::new());
        let state = Arc::new(Metered { store, client, reading: Mutex::default() });
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&state));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
        Self { state, server }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The consumption since the last call of this function.
    pub fn take(&self) -> Reading {
        std::mem::take(&mut *self.state.reading.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn pass_on(State(state): State<Arc<Metered>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let mut request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let reads = ["GetItem", "BatchGetItem", "Query", "Scan"].contains(&operation.as_str());
    if reads || operation == "UpdateItem" {
        request["ReturnConsumedCapacity"] = json!("TOTAL");
    }
    let mut sent = state.client.post(&state.store).body(request.to_string());
    for name in ["x-amz-target", "content-type", "authorization", "x-amz-date"] {
        if let Some(value) = headers.get(name) {
            sent = sent.header(name, value);
        }
    }
    let key = request["Key"]["pk"]["S"].as_str().unwrap_or_default();
    let item = if key.starts_with("call#") { "call" } else { key };
    let mut label = format!("{operation} {item}");
    let Ok(answer) = sent.send().await else { return refused() };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let Ok(bytes) = answer.bytes().await else { return refused() };
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let consumed = &answer["ConsumedCapacity"];
    let units: f64 = match consumed {
        Value::Array(tables) => tables.iter().filter_map(|table| table["CapacityUnits"].as_f64()).sum(),
        one => one["CapacityUnits"].as_f64().unwrap_or(0.0),
    };
    let mut reading = state.reading.lock().unwrap_or_else(PoisonError::into_inner);
    if reads {
        reading.read_units += units;
    } else {
        reading.write_units += units;
    }
    *reading.calls.entry(operation).or_default() += 1;
    if status == StatusCode::BAD_REQUEST {
        label.push_str(" failed");
    }
    *reading.items.entry(label).or_default() += 1;
    drop(reading);
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    for name in ["content-type", "x-amzn-requestid", "date"] {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

fn refused() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
