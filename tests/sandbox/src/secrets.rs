//! Secrets Manager on this machine: three operations in memory, counted, and able to fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
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

/// How the endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 500, which the SDK tries again.
    Unavailable,
    /// `AccessDeniedException`, which it does not.
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

#[derive(Debug, Clone)]
struct Secret {
    value: String,
    version: String,
}

/// The endpoint, which ends when this is dropped.
#[derive(Debug)]
pub struct Secrets {
    state: Arc<Mutex<State>>,
    server: Server,
}

impl Secrets {
    /// Starts it on a free port, empty.
    ///
    /// # Errors
    /// No port.
    pub async fn start() -> Result<Self, StartError> {
        let state = Arc::<Mutex<State>>::default();
        let router = Router::new().route("/", post(serve)).with_state(Arc::clone(&state));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await?;
        Ok(Self { state, server })
    }

    /// Base URL, for `AWS_ENDPOINT_URL_SECRETS_MANAGER`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sets a secret's string; a new version from now on.
    pub fn put(&self, id: &str, value: impl Into<String>) {
        self.state().put(id, value.into());
    }

    /// Takes a secret away: `ResourceNotFoundException` from now on.
    pub fn remove(&self, id: &str) {
        self.state().secrets.remove(id);
    }

    /// A secret's string.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<String> {
        self.state().secrets.get(id).map(|secret| secret.value.clone())
    }

    /// Makes every request fail, or none.
    pub fn fail(&self, failure: Option<Failure>) {
        self.state().failure = failure;
    }

    /// Requests for one secret, failed ones too.
    #[must_use]
    pub fn requests_for(&self, id: &str) -> u64 {
        self.state().requests.get(id).copied().unwrap_or_default()
    }

    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state().requests.values().sum()
    }
}

impl State {
    fn put(&mut self, id: &str, value: String) -> Secret {
        let secret = Secret { value, version: identity::uuid() };
        self.secrets.insert(id.to_owned(), secret.clone());
        secret
    }
}

async fn serve(Shared(state): Shared<Arc<Mutex<State>>>, headers: HeaderMap, body: Bytes) -> Response {
    if body.len() > aws_json::LARGEST_REQUEST {
        return aws_json::error(StatusCode::BAD_REQUEST, "InvalidParameterException", "too large");
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let asked = request["SecretId"].as_str().unwrap_or_default();
    let mut state = lock(&state);
    // A full ARN names the secret too, with six characters of its own behind a dash.
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
        let secret = state.put(&id, value.to_owned());
        return answer(StatusCode::OK, &described(&id, &secret));
    }
    let Some(secret) = state.secrets.get(&id).cloned() else {
        let message = "Secrets Manager can't find the specified secret.";
        return aws_json::error(StatusCode::BAD_REQUEST, "ResourceNotFoundException", message);
    };
    let mut value = described(&id, &secret);
    match operation {
        "GetSecretValue" => {
            value["SecretString"] = json!(secret.value);
            value["VersionStages"] = json!(["AWSCURRENT"]);
            value["CreatedDate"] = json!(1_780_000_000);
        }
        "DescribeSecret" => {
            value["VersionIdsToStages"] = json!({ secret.version: ["AWSCURRENT"] });
        }
        _ => return aws_json::error(StatusCode::BAD_REQUEST, "InvalidRequestException", "not in the sandbox"),
    }
    answer(StatusCode::OK, &value)
}

fn arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:{}:{}:secret:{name}-AbCdEf", crate::process::REGION, crate::process::ACCOUNT)
}

fn described(id: &str, secret: &Secret) -> Value {
    json!({ "ARN": arn(id), "Name": id, "VersionId": secret.version })
}
