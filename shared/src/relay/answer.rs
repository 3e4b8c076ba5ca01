//! What the caller gets: the platform's answer or the relay's refusal, always saying which.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use super::headers;
use super::refused::Refused;
use super::upstream::Reply;
use crate::domain::clock::Millis;
use crate::domain::problem::{Code, Problem};
use crate::request::mcp;
use crate::request::path::Path;

/// Who made an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The platform; the relay only passed it on.
    Platform,
    /// The relay itself.
    Relay,
}

impl Source {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Relay => "relay",
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Who made it.
    pub source: Source,
    /// The headers, `Relay-Source` among them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    fn new(source: Source, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Self {
        headers.insert(headers::SOURCE, HeaderValue::from_static(source.as_str()));
        Self { status, source, headers, body }
    }

    /// The platform's answer to a request for `path`, with the headers that may pass.
    #[must_use]
    pub fn of_platform(reply: &Reply, path: &Path) -> Self {
        Self::new(Source::Platform, reply.status, headers::from_platform(&reply.headers, path), reply.body.clone())
    }

    /// A JSON document of the relay's own.
    #[must_use]
    pub fn json(document: &Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self::new(Source::Relay, StatusCode::OK, headers, document.to_string().into())
    }

    /// A refusal (RFC 9457), with `Retry-After` seen from `now`.
    #[must_use]
    pub fn refusal(problem: &Problem, now: Millis) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(at) = problem.retry_at {
            headers::retry_after(&mut headers, at, now);
        }
        if problem.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // A 405 names the methods that are offered (RFC 9110 section 15.5.6).
        if problem.code == Code::MethodNotOffered {
            headers.insert(ALLOW, HeaderValue::from_static(mcp::OFFERED));
        }
        Self::new(Source::Relay, problem.code.status(), headers, problem.to_json().to_string().into())
    }

    /// The same for a refusal that knows its cause.
    #[must_use]
    pub fn refused(refused: &Refused, now: Millis) -> Self {
        Self::refusal(&refused.problem, now)
    }

    /// The same answer with the invocation's id.
    #[must_use]
    pub fn stamped(mut self, request_id: &str) -> Self {
        if let Ok(id) = HeaderValue::try_from(request_id) {
            self.headers.insert(headers::REQUEST_ID, id);
        }
        self
    }
}
