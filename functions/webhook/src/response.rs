//! The responses to webhooks. The platform sends a webhook again after a 429, and perhaps after other refusals.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use serde_json::json;

/// `Retry-After` of a 429, in seconds.
const RETRY_AFTER_SECONDS: u32 = 30;

/// The outcome of a webhook that is answered 200: the platform need not send it again. The outcome for several locations
/// is the greatest of theirs in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acknowledgement {
    /// The webhook requires no change.
    Ignored,
    /// The webhook is about a resource that has no installation here.
    Unknown,
    /// A newer installation supersedes the webhook.
    Superseded,
    /// The webhook was received before, and was applied then.
    Repeated,
    /// The change is stored.
    Stored,
    /// The webhook requires no change, and is on the bus.
    Published,
    /// The webhook requires no change, and is on the overflow queue.
    Queued,
}

/// The reason for which a webhook was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The path is no route of this function.
    NotFound,
    /// The method is not `POST`.
    MethodNotAllowed,
    /// The signature is absent, or no known key made it. A sender without a key can get this variant and those above
    /// only.
    NotSigned,
    /// The body is signed, but is not JSON of a known form.
    Malformed,
    /// The body is signed, but is about another app. The status is not 401, because the signature is valid.
    ForeignApp,
    /// The same webhook is being processed. The platform must send it again, because that processing may fail.
    InProgress,
    /// The webhook could not be processed because of a failure on our side. The platform must send it again.
    TryAgain,
}

impl Refusal {
    /// The status code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotSigned => StatusCode::UNAUTHORIZED,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::ForeignApp => StatusCode::FORBIDDEN,
            Self::InProgress | Self::TryAgain => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotSigned => "not_signed",
            Self::Malformed => "malformed",
            Self::ForeignApp => "foreign_app",
            Self::InProgress => "in_progress",
            Self::TryAgain => "try_again",
        }
    }

    fn header(self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::MethodNotAllowed => Some((ALLOW, HeaderValue::from_static("POST"))),
            Self::InProgress | Self::TryAgain => Some((RETRY_AFTER, RETRY_AFTER_SECONDS.into())),
            // RFC 9110 section 11.6.1: a 401 names the authentication schemes.
            Self::NotSigned => Some((WWW_AUTHENTICATE, HeaderValue::from_static("X-GHL-Signature, X-WL-Signature"))),
            _ => None,
        }
    }
}

impl Acknowledgement {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Superseded => "superseded",
            Self::Repeated => "repeated",
            Self::Unknown => "unknown",
            Self::Ignored => "ignored",
            Self::Published => "published",
            Self::Queued => "queued",
        }
    }
}

/// The name of a result in responses, logs and metrics.
pub fn outcome_name(result: Result<Acknowledgement, Refusal>) -> &'static str {
    result.map_or_else(Refusal::name, Acknowledgement::name)
}

/// The response for a result. Its body is a JSON object with one member, `outcome`.
pub fn response(result: Result<Acknowledgement, Refusal>, request_id: &str) -> Response<Body> {
    let (status, header) = match result {
        Ok(_) => (StatusCode::OK, None),
        Err(refusal) => (refusal.status(), refusal.header()),
    };
    let mut response = Response::new(Body::Text(json!({ "outcome": outcome_name(result) }).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(header);
    if let Ok(request_id) = HeaderValue::from_str(request_id) {
        headers.insert("relay-request-id", request_id);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_result_has_its_status_and_headers() {
        for (result, status, header) in [
            (Ok(Acknowledgement::Stored), 200, None),
            (Ok(Acknowledgement::Superseded), 200, None),
            (Ok(Acknowledgement::Repeated), 200, None),
            (Ok(Acknowledgement::Unknown), 200, None),
            (Ok(Acknowledgement::Ignored), 200, None),
            (Ok(Acknowledgement::Published), 200, None),
            (Ok(Acknowledgement::Queued), 200, None),
            (Err(Refusal::NotSigned), 401, Some("www-authenticate")),
            (Err(Refusal::Malformed), 400, None),
            (Err(Refusal::ForeignApp), 403, None),
            (Err(Refusal::InProgress), 429, Some("retry-after")),
            (Err(Refusal::TryAgain), 429, Some("retry-after")),
            (Err(Refusal::MethodNotAllowed), 405, Some("allow")),
            (Err(Refusal::NotFound), 404, None),
        ] {
            let response = response(result, "id");
            assert_eq!(response.status(), status, "{result:?}");
            for (name, value) in [
                ("content-type", "application/json"),
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("relay-request-id", "id"),
            ] {
                assert_eq!(response.headers()[name], value, "{result:?}");
            }
            assert_eq!(response.headers().len(), 4 + usize::from(header.is_some()), "{result:?}");
            assert!(header.is_none_or(|name| response.headers().contains_key(name)), "{result:?}");
        }
        assert_eq!(response(Err(Refusal::TryAgain), "\n").headers()["retry-after"], "30");
    }
}
