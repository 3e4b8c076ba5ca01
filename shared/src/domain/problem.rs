//! The relay's own refusals: `application/problem+json` (RFC 9457). Each has its status code here.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::domain::clock::Millis;

/// The longest detail, in bytes. A parser's message may quote unreadable input of any length, which must not make the
/// answer large.
const LONGEST_DETAIL: usize = 300;

/// The reason for a refusal by the relay itself, sent to callers as `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller sent no key, or an unknown key.
    Unauthenticated,
    /// The caller is known, but may not do this.
    Forbidden,
    /// The resource has no known installation.
    NotInstalled,
    /// The app was uninstalled from the resource.
    Revoked,
    /// The grant is no longer valid. A human must install the app again.
    ReauthorizationRequired,
    /// The platform has paused the location.
    Suspended,
    /// The burst limit of the resource or of the caller is reached.
    BurstLimited,
    /// The daily limit of the resource is reached.
    DailyLimited,
    /// The relay does not offer this method, even if the platform does.
    MethodNotOffered,
    /// The request itself is malformed.
    InvalidRequest,
    /// A request with the same idempotency key is in progress.
    IdempotencyInProgress,
    /// The outcome of the request with the same idempotency key is unknown, and the request is not sent again.
    IdempotencyUnknown,
    /// Another request has the same idempotency key.
    IdempotencyConflict,
    /// The request names no resource.
    ResourceUnclear,
    /// The request names two different resources.
    ResourceConflict,
    /// The request or the answer is larger than Lambda can carry.
    PayloadTooLarge,
    /// The connection to the platform failed or was broken.
    PlatformUnreachable,
    /// Another process is renewing the token, and did not finish in time.
    RefreshInProgress,
    /// The table does not answer.
    StoreUnavailable,
    /// A secret is missing or malformed, or the platform refuses the app's credentials.
    Misconfigured,
    /// The platform did not answer before the deadline.
    PlatformTimeout,
}

impl Code {
    /// The value of `code` in the answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotInstalled => "not_installed",
            Self::Revoked => "revoked",
            Self::ReauthorizationRequired => "reauthorization_required",
            Self::Suspended => "suspended",
            Self::BurstLimited => "burst_limited",
            Self::DailyLimited => "daily_limited",
            Self::MethodNotOffered => "method_not_offered",
            Self::InvalidRequest => "invalid_request",
            Self::IdempotencyInProgress => "idempotency_in_progress",
            Self::IdempotencyUnknown => "idempotency_unknown",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::ResourceUnclear => "resource_unclear",
            Self::ResourceConflict => "resource_conflict",
            Self::PayloadTooLarge => "payload_too_large",
            Self::PlatformUnreachable => "platform_unreachable",
            Self::RefreshInProgress => "refresh_in_progress",
            Self::StoreUnavailable => "store_unavailable",
            Self::Misconfigured => "misconfigured",
            Self::PlatformTimeout => "platform_timeout",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotInstalled => StatusCode::NOT_FOUND,
            Self::Revoked => StatusCode::GONE,
            Self::ReauthorizationRequired | Self::Suspended => StatusCode::FAILED_DEPENDENCY,
            Self::BurstLimited | Self::DailyLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotOffered => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidRequest | Self::ResourceUnclear | Self::ResourceConflict => StatusCode::BAD_REQUEST,
            Self::IdempotencyInProgress | Self::IdempotencyUnknown => StatusCode::CONFLICT,
            Self::IdempotencyConflict => StatusCode::UNPROCESSABLE_ENTITY,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::PlatformUnreachable => StatusCode::BAD_GATEWAY,
            Self::RefreshInProgress | Self::StoreUnavailable | Self::Misconfigured => StatusCode::SERVICE_UNAVAILABLE,
            Self::PlatformTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Unauthenticated => "The caller is not known",
            Self::Forbidden => "The caller may not do this",
            Self::NotInstalled => "The app is not installed there",
            Self::Revoked => "The app was uninstalled there",
            Self::ReauthorizationRequired => "The app must be installed again",
            Self::Suspended => "The platform has paused this location",
            Self::BurstLimited => "Too many requests at once",
            Self::DailyLimited => "Too many requests today",
            Self::MethodNotOffered => "The relay does not offer this method there",
            Self::InvalidRequest => "The request is malformed",
            Self::IdempotencyInProgress => "A request with this idempotency key is in progress",
            Self::IdempotencyUnknown => "The outcome of the request with this idempotency key is unknown",
            Self::IdempotencyConflict => "Another request has this idempotency key",
            Self::ResourceUnclear => "The request names no location or company",
            Self::ResourceConflict => "The request names different locations or companies",
            Self::PayloadTooLarge => "The payload is too large",
            Self::PlatformUnreachable => "The platform cannot be reached",
            Self::RefreshInProgress => "The token is being renewed",
            Self::StoreUnavailable => "The relay's table does not answer",
            Self::Misconfigured => "The relay is not configured correctly",
            Self::PlatformTimeout => "The platform did not answer in time",
        }
    }
}

/// A refusal as sent to the caller. Details for the operator go to the log only.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The reason for the refusal.
    pub code: Code,
    /// One sentence with the cause and the remedy.
    pub detail: String,
    /// The earliest time at which a retry can succeed. Sent as `Retry-After` (seconds, rounded up) and
    /// `Relay-Retry-After-Ms`.
    pub retry_at: Option<Millis>,
    /// Further members of the JSON object, such as `reinstall_url`.
    pub members: Map<String, Value>,
}

impl Problem {
    /// A refusal without further members. The detail is cut off after 300 bytes.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > LONGEST_DETAIL {
            detail.truncate(detail.floor_char_boundary(LONGEST_DETAIL));
            detail.push('…');
        }
        Self { code, detail, retry_at: None, members: Map::new() }
    }

    /// The refusal of a malformed request. The detail is cut off after 300 bytes.
    pub fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// The same refusal, with a retry possible at `at`.
    #[must_use]
    pub fn retry_at(mut self, at: Millis) -> Self {
        self.retry_at = Some(at);
        self
    }

    /// The same refusal, with one more member.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    /// The JSON object.
    pub fn to_json(&self) -> Value {
        let mut object = self.members.clone();
        object.insert("type".into(), json!(format!("urn:hoopai-relay:problem:{}", self.code.as_str())));
        object.insert("title".into(), json!(self.code.title()));
        object.insert("status".into(), json!(self.code.status().as_u16()));
        object.insert("code".into(), json!(self.code.as_str()));
        object.insert("detail".into(), json!(self.detail));
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_a_sentence_however_much_it_quotes() {
        let short = "ä".repeat(LONGEST_DETAIL / 2);
        assert_eq!(Problem::new(Code::InvalidRequest, &*short).detail, short);
        let long = format!("a{}", "ä".repeat(1_000_000));
        let detail = Problem::new(Code::InvalidRequest, &*long).detail;
        assert!(detail.len() < LONGEST_DETAIL + '…'.len_utf8() && detail.ends_with("ä…"), "{detail}");
    }
}
