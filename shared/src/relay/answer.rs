//! The answer to a caller: the platform's response or the relay's refusal. The header `Relay-AnswerSource` says which.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use super::headers;
use super::refused::Refused;
use crate::domain::clock::Millis;
use crate::domain::problem::Code;
use crate::http_client::Reply;
use crate::idempotency::RecordedAnswer;
use crate::request::mcp;
use crate::request::path::Path;

/// The origin of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// The platform. The relay passed its response on.
    Platform,
    /// The relay itself.
    Relay,
}

impl AnswerSource {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Relay => "relay",
        }
    }
}

/// An answer to a caller.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The origin.
    pub source: AnswerSource,
    /// The headers, `Relay-AnswerSource` among them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    fn new(source: AnswerSource, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Self {
        headers.insert(headers::SOURCE, HeaderValue::from_static(source.as_str()));
        Self { status, source, headers, body }
    }

    /// The platform's response to a request for `path`, with the headers that may pass.
    pub fn of_platform(reply: &Reply, path: &Path) -> Self {
        Self::new(
            AnswerSource::Platform,
            reply.status,
            headers::from_platform(&reply.headers, path),
            reply.body.clone(),
        )
    }

    /// The answer to an earlier request with the same idempotency key.
    pub fn replayed(recorded: RecordedAnswer) -> Self {
        let mut answer = Self::of_record(recorded);
        answer.headers.insert(headers::REPLAYED, HeaderValue::from_static("true"));
        answer
    }

    /// A recorded answer, as it was.
    pub fn of_record(recorded: RecordedAnswer) -> Self {
        let source = if recorded.is_of_platform { AnswerSource::Platform } else { AnswerSource::Relay };
        let mut kept = recorded.headers;
        if recorded.body.is_none() {
            kept.insert(headers::BODY_OMITTED, HeaderValue::from_static("true"));
            kept.remove(CONTENT_ENCODING);
        }
        Self::new(source, recorded.status, kept, recorded.body.unwrap_or_default())
    }

    /// The form in which the answer is recorded.
    pub fn recorded(&self, attempts: u32) -> RecordedAnswer {
        let (status, is_of_platform) = (self.status, self.source == AnswerSource::Platform);
        let (headers, body) = (self.headers.clone(), Some(self.body.clone()));
        RecordedAnswer { status, is_of_platform, headers, body, attempts }
    }

    /// A JSON document of the relay.
    pub fn json(document: &Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self::new(AnswerSource::Relay, StatusCode::OK, headers, document.to_string().into())
    }

    /// A refusal as a problem document (RFC 9457). `Retry-After` counts from `now`.
    pub fn refused(refused: &Refused, now: Millis) -> Self {
        let problem = &refused.problem;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(at) = problem.retry_at {
            headers::set_retry_after(&mut headers, at, now);
        }
        if problem.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // A 405 must name the offered methods (RFC 9110 section 15.5.6).
        if problem.code == Code::MethodNotOffered {
            headers.insert(ALLOW, HeaderValue::from_static(mcp::OFFERED));
        }
        Self::new(AnswerSource::Relay, problem.code.status(), headers, problem.to_json().to_string().into())
    }

    /// Adds the id of the invocation, as `Relay-Request-Id`.
    #[must_use]
    pub fn with_request_id(mut self, request_id: &str) -> Self {
        if let Ok(id) = HeaderValue::try_from(request_id) {
            self.headers.insert(headers::REQUEST_ID, id);
        }
        self
    }
}
