//! The responses to webhooks. The platform sends a webhook again that was answered 429, perhaps also after other refusals.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use serde_json::json;

/// When the platform may send again, in seconds.
const RETRY_AFTER_SECONDS: u32 = 30;

/// The outcome of a webhook that is answered 200, because sending it again could add nothing. The outcome of several
/// locations is the last one in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acknowledgement {
    /// Nothing had to be done.
    Ignored,
    /// Of something that this system has never known.
    Unknown,
    /// Overtaken by a newer installation, so without effect.
    Superseded,
    /// Dealt with when it came the first time.
    Repeated,
    /// Stored.
    Stored,
}

/// Why nothing was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such route.
    NotFound,
    /// Not a `POST`.
    MethodNotAllowed,
    /// A body larger than any webhook.
    TooLarge,
    /// No signature, or one that no known key made. Everything up to here is said to anyone.
    NotSigned,
    /// Signed, but not JSON of a known form.
    Malformed,
    /// Signed, but for another app. Not 401: the signature is good, and no other signature would help.
    ForeignApp,
    /// It could not be stored or judged, or the app's own id is not to be had; please send it again.
    TryAgain,
}

impl Refusal {
    /// The status code.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotSigned => StatusCode::UNAUTHORIZED,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::ForeignApp => StatusCode::FORBIDDEN,
            Self::TryAgain => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "payload_too_large",
            Self::NotSigned => "not_signed",
            Self::Malformed => "malformed",
            Self::ForeignApp => "foreign_app",
            Self::TryAgain => "try_again",
        }
    }

    fn header(self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::MethodNotAllowed => Some((ALLOW, HeaderValue::from_static("POST"))),
            Self::TryAgain => Some((RETRY_AFTER, RETRY_AFTER_SECONDS.into())),
            // RFC 9110 section 11.6.1: a 401 names what would be accepted.
            Self::NotSigned => Some((WWW_AUTHENTICATE, HeaderValue::from_static("X-GHL-Signature"))),
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
        }
    }
}

/// The name of a verdict, in answers, in the log and in its metric.
#[must_use]
pub fn name(verdict: Result<Acknowledgement, Refusal>) -> &'static str {
    verdict.map_or_else(Refusal::name, Acknowledgement::name)
}

/// The response to a verdict: a JSON object of one member, `outcome`.
#[must_use]
pub fn response(verdict: Result<Acknowledgement, Refusal>, request_id: &str) -> Response<Body> {
    let (status, header) = match verdict {
        Ok(_) => (StatusCode::OK, None),
        Err(refusal) => (refusal.status(), refusal.header()),
    };
    let mut response = Response::new(Body::Text(json!({ "outcome": name(verdict) }).to_string()));
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
    fn verdicts_have_the_contracts_statuses() {
        for (verdict, status, header) in [
            (Ok(Acknowledgement::Stored), 200, None),
            (Ok(Acknowledgement::Superseded), 200, None),
            (Ok(Acknowledgement::Repeated), 200, None),
            (Ok(Acknowledgement::Unknown), 200, None),
            (Ok(Acknowledgement::Ignored), 200, None),
            (Err(Refusal::NotSigned), 401, Some("www-authenticate")),
            (Err(Refusal::Malformed), 400, None),
            (Err(Refusal::ForeignApp), 403, None),
            (Err(Refusal::TooLarge), 413, None),
            (Err(Refusal::TryAgain), 429, Some("retry-after")),
            (Err(Refusal::MethodNotAllowed), 405, Some("allow")),
            (Err(Refusal::NotFound), 404, None),
        ] {
            let response = response(verdict, "id");
            assert_eq!(response.status(), status, "{verdict:?}");
            for (name, value) in [
                ("content-type", "application/json"),
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("relay-request-id", "id"),
            ] {
                assert_eq!(response.headers()[name], value, "{verdict:?}");
            }
            assert_eq!(response.headers().len(), 4 + usize::from(header.is_some()), "{verdict:?}");
            assert!(header.is_none_or(|name| response.headers().contains_key(name)), "{verdict:?}");
        }
        assert_eq!(response(Err(Refusal::TryAgain), "\n").headers()["retry-after"], "30");
    }
}
