//! Faults that tests inject into the fake platform: the fault, the endpoint, and the number of requests.

use std::{fmt, time::Duration};

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::server::hang_up;

/// The endpoint at which a fault is injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /oauth/token`, any grant.
    Token,
    /// `POST /oauth/token` with `grant_type=authorization_code`.
    Exchange,
    /// `POST /oauth/token` with `grant_type=refresh_token`.
    Refresh,
    /// `POST /oauth/locationToken`.
    Mint,
    /// `GET /oauth/installedLocations`.
    InstalledLocations,
    /// Every resource of the API.
    Api,
}

/// A fault. If `processed` is true, the platform does its work before it fails: a refresh token, for example, is
/// rotated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The connection is closed without an answer.
    HangUp {
        /// True if the platform does its work.
        processed: bool,
    },
    /// No answer comes for so long that every client gives up.
    Stall {
        /// True if the platform does its work.
        processed: bool,
    },
    /// The platform sends this answer instead of the true one.
    Answer {
        /// True if the platform does its work.
        processed: bool,
        /// HTTP status.
        status: u16,
        /// Body, sent unchanged.
        body: String,
        /// Content type; `application/json` if absent.
        #[serde(default)]
        content_type: Option<String>,
    },
    /// A 429 with `Retry-After`. The platform does not do its work.
    ComeBack {
        /// `Retry-After`, in seconds.
        seconds: u64,
    },
    /// The true answer, cut off in the middle of its JSON body.
    Truncated,
    /// The true answer without one member of its JSON object.
    Without {
        /// Name of the member.
        field: String,
    },
    /// The true answer with one member of its JSON object changed or added.
    With {
        /// Name of the member.
        field: String,
        /// Its new value.
        value: Value,
    },
    /// The true answer, sent late. The platform does its work before the wait, so the work is done even if the client
    /// no longer waits.
    Late {
        /// Length of the wait in milliseconds.
        millis: u64,
    },
    /// The platform starts its work late.
    Delay {
        /// Length of the delay in milliseconds.
        millis: u64,
    },
}

impl Fault {
    /// A fault that closes the connection after the platform has rotated the token.
    pub fn answer_lost() -> Self {
        Self::HangUp { processed: true }
    }

    /// A refusal as JSON, with the platform's usual body.
    pub fn refusal(status: u16, message: &str) -> Self {
        let body = json!({ "statusCode": status, "message": message }).to_string();
        Self::Answer { processed: false, status, body, content_type: None }
    }

    /// A 429 without `Retry-After` and without any other header that names a time.
    pub fn throttled() -> Self {
        Self::refusal(429, "Too Many Requests")
    }

    /// The 401 with which the token endpoint refuses a wrong client secret.
    pub fn wrong_client() -> Self {
        let body = json!({ "error": "UnAuthorized!", "error_description": "Invalid client credentials!" }).to_string();
        Self::Answer { processed: false, status: 401, body, content_type: None }
    }

    /// The 401 of the API, with the given text.
    pub fn unauthorized(message: &str) -> Self {
        Self::refusal(401, message)
    }

    /// A 200 whose body is an HTML page, as a proxy between client and platform sends it.
    pub fn html_200(processed: bool) -> Self {
        let body = "<!DOCTYPE html><title>Just a moment...</title>".to_owned();
        Self::Answer { processed, status: 200, body, content_type: Some("text/html; charset=utf-8".to_owned()) }
    }

    /// The block page of the CDN in front of the platform. The platform has not seen the request.
    pub fn block_page() -> Self {
        let body = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>".to_owned();
        Self::Answer { processed: false, status: 403, body, content_type: Some("text/html; charset=UTF-8".to_owned()) }
    }

    /// A refusal as JSON, in the envelope of API v3.
    pub fn refusal_v3(status: u16, message: &str) -> Self {
        let error =
            json!({ "code": "ERR_1234", "message": message, "details": {}, "resolution": "see the documentation" });
        Self::Answer { processed: false, status, body: json!({ "error": error }).to_string(), content_type: None }
    }

    /// The true answer with another value of `expires_in`, of any JSON type.
    pub fn expires_in(value: Value) -> Self {
        Self::With { field: "expires_in".to_owned(), value }
    }

    /// An answer for another customer's location.
    pub fn other_location(id: &str) -> Self {
        Self::With { field: "locationId".to_owned(), value: json!(id) }
    }

    /// Returns true if the platform does its work in spite of this fault.
    pub(crate) fn lets_work_happen(&self) -> bool {
        match self {
            Self::HangUp { processed } | Self::Stall { processed } | Self::Answer { processed, .. } => *processed,
            Self::ComeBack { .. } => false,
            Self::Truncated | Self::Without { .. } | Self::With { .. } | Self::Late { .. } | Self::Delay { .. } => true,
        }
    }
}

/// A wait that is longer than any client's time-out, but ends by itself.
const FOREVER: Duration = Duration::from_mins(2);

/// The answer of the platform before a fault is applied.
#[derive(Debug, Clone)]
pub(crate) struct PlatformAnswer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) headers: Vec<(String, String)>,
}

impl PlatformAnswer {
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", value.to_string())
    }

    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, content_type: content_type.to_owned(), body: body.into(), headers: Vec::new() }
    }

    /// A refusal with the body `{"statusCode":…,"message":…}`.
    pub(crate) fn refusal(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "statusCode": status, "message": message }))
    }

    fn map_json(mut self, change: impl FnOnce(&mut Value)) -> Self {
        if let Ok(mut value) = serde_json::from_slice(&self.body) {
            change(&mut value);
            self.body = value.to_string().into();
        }
        self
    }

    pub(crate) fn into_response(self) -> Response {
        let mut builder = Response::builder().status(self.status).header("content-type", self.content_type);
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        builder.body(self.body.into()).unwrap_or_else(|_| hang_up())
    }
}

/// Applies a fault to the true answer. There is no true answer if the platform did not do its work.
pub(crate) async fn strike(fault: Option<Fault>, truth: Option<PlatformAnswer>) -> Response {
    let plain = truth.unwrap_or_else(|| PlatformAnswer::refusal(500, "no answer"));
    let answer = match fault {
        None | Some(Fault::Delay { .. }) => plain,
        Some(Fault::HangUp { .. }) => return hang_up(),
        Some(Fault::Stall { .. }) => {
            tokio::time::sleep(FOREVER).await;
            return hang_up();
        }
        Some(Fault::Answer { status, body, content_type, .. }) => PlatformAnswer {
            headers: plain.headers,
            ..PlatformAnswer::new(status, content_type.as_deref().unwrap_or("application/json; charset=utf-8"), body)
        },
        Some(Fault::ComeBack { seconds }) => {
            let mut refused = PlatformAnswer::refusal(429, "Too Many Requests");
            refused.headers.push(("retry-after".to_owned(), seconds.to_string()));
            refused
        }
        Some(Fault::Truncated) => PlatformAnswer { body: plain.body.slice(..plain.body.len() / 2), ..plain },
        Some(Fault::Without { field }) => plain.map_json(|value| {
            if let Some(members) = value.as_object_mut() {
                members.remove(&field);
            }
        }),
        Some(Fault::With { field, value: new }) => plain.map_json(|value| {
            if let Some(members) = value.as_object_mut() {
                members.insert(field, new);
            }
        }),
        Some(Fault::Late { millis }) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            plain
        }
    };
    answer.into_response()
}

/// A planned fault, which applies to the next requests at an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The endpoint.
    pub at: Endpoint,
    /// The fault.
    pub fault: Fault,
    /// The number of requests that get the fault. If absent, the fault applies until it is removed.
    #[serde(default)]
    pub times: Option<u32>,
}

impl fmt::Display for Plan {
    /// Writes a text such as `refresh: the answer is lost, 2×`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", format!("{:?}", self.at).to_lowercase())?;
        match &self.fault {
            Fault::HangUp { processed: true } => out.write_str("the answer is lost")?,
            Fault::HangUp { processed: false } => out.write_str("the request is lost")?,
            Fault::Stall { .. } => out.write_str("no answer for minutes")?,
            Fault::Answer { status, .. } => write!(out, "the answer is {status}")?,
            Fault::ComeBack { seconds } => write!(out, "the answer is 429, come back in {seconds} s")?,
            Fault::Truncated => out.write_str("the answer is cut off")?,
            Fault::Without { field } => write!(out, "the answer has no {field}")?,
            Fault::With { field, .. } => write!(out, "the answer has another {field}")?,
            Fault::Late { millis } => write!(out, "the answer comes {millis} ms late")?,
            Fault::Delay { millis } => write!(out, "the work begins {millis} ms late")?,
        }
        self.times.map_or(Ok(()), |times| write!(out, ", {times}×"))
    }
}

/// All planned faults, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Plans(Vec<Plan>);

impl Plans {
    pub(crate) fn add(&mut self, plan: Plan) {
        self.0.push(plan);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn forget(&mut self, at: Endpoint, fault: &Fault) {
        if let Some(index) = self.0.iter().position(|plan| plan.at == at && plan.fault == *fault) {
            self.0.remove(index);
        }
    }

    /// Returns the fault of the first plan for any of these endpoints, and uses the plan once.
    pub(crate) fn take(&mut self, endpoints: &[Endpoint]) -> Option<Fault> {
        let index = self.0.iter().position(|plan| endpoints.contains(&plan.at))?;
        let plan = &mut self.0[index];
        let fault = plan.fault.clone();
        match &mut plan.times {
            None => {}
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => {
                self.0.remove(index);
            }
        }
        Some(fault)
    }

    pub(crate) fn list(&self) -> &[Plan] {
        &self.0
    }
}
