//! What a webhook is answered. The platform sends again what was answered with 429, perhaps also after other refusals.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

/// When the platform may send again, in seconds.
const RETRY_AFTER: u32 = 30;

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

    fn header(self) -> Option<(&'static str, String)> {
        match self {
            Self::MethodNotAllowed => Some(("allow", "POST".into())),
            Self::TryAgain => Some(("retry-after", RETRY_AFTER.to_string())),
            // RFC 9110 section 11.6.1: a 401 names what would be accepted.
            Self::NotSigned => Some(("www-authenticate", "X-GHL-Signature".into())),
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

/// An answer in the form of payload 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The status code.
    pub status_code: u16,
    /// Headers by their names in lower case.
    pub headers: BTreeMap<&'static str, String>,
    /// A JSON object of one member, `outcome`.
    pub body: String,
    /// Whether the body is base64; it never is.
    pub is_base64_encoded: bool,
}

/// The name of a verdict, in answers, in the log and in its metric.
#[must_use]
pub fn name(verdict: Result<Acknowledgement, Refusal>) -> &'static str {
    verdict.map_or_else(Refusal::name, Acknowledgement::name)
}

/// Makes an answer of a verdict.
#[must_use]
pub fn answer(verdict: Result<Acknowledgement, Refusal>, request_id: &str) -> Answer {
    let (status, name, header) = match verdict {
        Ok(done) => (StatusCode::OK, done.name(), None),
        Err(refusal) => (refusal.status(), refusal.name(), refusal.header()),
    };
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("relay-request-id", request_id.to_owned()),
    ];
    Answer {
        status_code: status.as_u16(),
        headers: headers.into_iter().chain(header).collect(),
        body: json!({ "outcome": name }).to_string(),
        is_base64_encoded: false,
    }
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
            let answer = answer(verdict, "id");
            assert_eq!(answer.status_code, status, "{verdict:?}");
            assert!(header.is_none_or(|name| answer.headers.contains_key(name)), "{verdict:?}");
        }
    }
}
