//! Secrets Manager on this machine: four operations in memory. The emulator counts requests and can be made to fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Bytes, extract::State as Shared, response::Response, routing::post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::{
    aws_json::{self, answer},
    identity,
    lock::lock,
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

/// The way in which the endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The status 500, after which the SDK retries.
    Unavailable,
    /// `AccessDeniedException`, after which the SDK does not retry.
    AccessDenied,
    /// The connection is closed.
    HangUp,
}

#[derive(Debug, Default)]
struct State {
    secrets: BTreeMap<String, Secret>,
    requests: BTreeMap<String, u64>,
    failure: Option<Failure>,
}

/// The versions of a secret by their ids, and the version that each label is on.
#[derive(Debug, Clone, Default)]
struct Secret {
    versions: BTreeMap<String, Version>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Version {
    value: String,
    /// Seconds since the Unix epoch.
    made_at: f64,
}

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";

impl Secret {
    fn label(&mut self, label: &str, version: &str) {
        if label == CURRENT
            && let Some(before) = self.labels.get(CURRENT).cloned()
        {
            self.labels.insert(PREVIOUS.to_owned(), before);
        }
        self.labels.insert(label.to_owned(), version.to_owned());
    }

    fn current(&self) -> Option<(&str, &Version)> {
        let id = self.labels.get(CURRENT)?;
        Some((id, self.versions.get(id)?))
    }
}

/// The endpoint. Dropping the handle ends the endpoint.
#[derive(Debug)]
pub struct Secrets {
    state: Arc<Mutex<State>>,
    server: Server,
}

/// A handle that sets secrets of an endpoint.
#[derive(Debug, Clone)]
pub struct Writer(Arc<Mutex<State>>);

impl Writer {
    /// Returns the current string of a secret.
    pub fn get(&self, id: &str) -> Option<String> {
        lock(&self.0).secrets.get(id)?.current().map(|(_, version)| version.value.clone())
    }

    /// Sets a secret's string; see [`Secrets::put`].
    pub fn put(&self, id: &str, value: impl Into<String>) {
        lock(&self.0).put(id, value.into(), &identity::uuid(), &[CURRENT]);
    }
}

impl Secrets {
    /// Starts an empty endpoint on a free port.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self, StartError> {
        let state = Arc::<Mutex<State>>::default();
        let router = Router::new().route("/", post(serve)).with_state(Arc::clone(&state));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await?;
        Ok(Self { state, server })
    }

    /// Returns the base URL, for `AWS_ENDPOINT_URL_SECRETS_MANAGER`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns a handle with which code that does not own the endpoint can set secrets.
    pub fn writer(&self) -> Writer {
        Writer(Arc::clone(&self.state))
    }

    /// Sets a secret's string, as a new current version.
    pub fn put(&self, id: &str, value: impl Into<String>) {
        self.state().put(id, value.into(), &identity::uuid(), &[CURRENT]);
    }

    /// Removes a secret. Later requests for it get `ResourceNotFoundException`.
    pub fn remove(&self, id: &str) {
        self.state().secrets.remove(id);
    }

    /// Returns a secret's string.
    pub fn get(&self, id: &str) -> Option<String> {
        self.state().secrets.get(id)?.current().map(|(_, version)| version.value.clone())
    }

    /// Moves the creation times of a secret's versions into the past by `by`.
    pub fn age(&self, id: &str, by: Duration) {
        for version in self.state().secrets.get_mut(id).into_iter().flat_map(|secret| secret.versions.values_mut()) {
            version.made_at -= by.as_secs_f64();
        }
    }

    /// Makes every request fail with `failure`. With `None`, requests work again.
    pub fn fail(&self, failure: Option<Failure>) {
        self.state().failure = failure;
    }

    /// Returns the number of requests for one secret, including failed ones.
    pub fn requests_for(&self, id: &str) -> u64 {
        self.state().requests.get(id).copied().unwrap_or_default()
    }

    /// Returns the number of all requests.
    pub fn requests(&self) -> u64 {
        self.state().requests.values().sum()
    }
}

impl State {
    fn put(&mut self, id: &str, value: String, version: &str, labels: &[&str]) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let secret = self.secrets.entry(id.to_owned()).or_default();
        secret.versions.insert(version.to_owned(), Version { value, made_at: since.as_secs_f64() });
        for label in labels {
            secret.label(label, version);
        }
    }
}

async fn serve(Shared(state): Shared<Arc<Mutex<State>>>, headers: HeaderMap, body: Bytes) -> Response {
    if body.len() > aws_json::LARGEST_REQUEST {
        return aws_json::error(StatusCode::BAD_REQUEST, "InvalidParameterException", "too large");
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let asked = request["SecretId"].as_str().unwrap_or_default();
    let mut state = lock(&state);
    // A full ARN also names the secret. The ARN ends with the name, a dash, and six more characters.
    let id = state.secrets.keys().find(|name| *name == asked || arn(name) == asked).cloned();
    let id = id.unwrap_or_else(|| asked.to_owned());
    *state.requests.entry(id.clone()).or_default() += 1;
    match state.failure {
        Some(Failure::Unavailable) => {
            return aws_json::error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServiceError", "out of order");
        }
        Some(Failure::AccessDenied) => {
            return aws_json::error(StatusCode::BAD_REQUEST, "AccessDeniedException", "not authorized");
        }
        Some(Failure::HangUp) => return hang_up(),
        None => {}
    }
    let operation = aws_json::operation(&headers).unwrap_or_default();
    if operation == "PutSecretValue" {
        let Some(value) = request["SecretString"].as_str() else {
            return aws_json::error(StatusCode::BAD_REQUEST, "InvalidParameterException", "SecretString is missing");
        };
        let version = request["ClientRequestToken"].as_str().map_or_else(identity::uuid, str::to_owned);
        let labels: Vec<&str> =
            request["VersionStages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        state.put(&id, value.to_owned(), &version, if labels.is_empty() { &[CURRENT] } else { &labels });
        return answer(StatusCode::OK, &described(&id, &version));
    }
    let Some(secret) = state.secrets.get_mut(&id) else {
        let message = "Secrets Manager can't find the specified secret.";
        return aws_json::error(StatusCode::BAD_REQUEST, "ResourceNotFoundException", message);
    };
    if operation == "UpdateSecretVersionStage" {
        return move_label(&id, secret, &request);
    }
    let Some((version, held)) = secret.current() else {
        let message = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT";
        return aws_json::error(StatusCode::BAD_REQUEST, "ResourceNotFoundException", message);
    };
    let mut value = described(&id, version);
    match operation {
        "GetSecretValue" => {
            value["SecretString"] = json!(held.value);
            value["VersionStages"] = json!([CURRENT]);
            value["CreatedDate"] = json!(held.made_at);
        }
        "DescribeSecret" => {
            value["VersionIdsToStages"] = json!({ version: [CURRENT] });
        }
        _ => return aws_json::error(StatusCode::BAD_REQUEST, "InvalidRequestException", "not in the sandbox"),
    }
    answer(StatusCode::OK, &value)
}

/// Moves a label from one version to another. If the label is on a version, the request must name it.
fn move_label(id: &str, secret: &mut Secret, request: &Value) -> Response {
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    let (label, to, from) = (text("VersionStage"), text("MoveToVersionId"), text("RemoveFromVersionId"));
    let known = secret.versions.contains_key(to);
    let is_named = secret.labels.get(label).is_none_or(|on| on == from);
    if !known || !is_named {
        let message = "the label is not on the version that is named, or there is no such version";
        return aws_json::error(StatusCode::BAD_REQUEST, "InvalidParameterException", message);
    }
    secret.label(label, to);
    answer(StatusCode::OK, &json!({ "ARN": arn(id), "Name": id }))
}

fn arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:{}:{}:secret:{name}-AbCdEf", crate::process::REGION, crate::process::ACCOUNT)
}

fn described(id: &str, version: &str) -> Value {
    json!({ "ARN": arn(id), "Name": id, "VersionId": version })
}
