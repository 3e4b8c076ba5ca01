//! What a browser sends, and what it is answered, in API Gateway's payload 2.0.

use std::collections::BTreeMap;

use serde::Serialize;
pub use shared::gateway::{Request, RequestContext, RequestLine};

/// Whether the browser fetches the page before anyone asked for it (Fetch standard, `Sec-Purpose`; older browsers say
/// `Purpose` or `X-Moz`).
#[must_use]
pub fn is_prefetch(request: &Request) -> bool {
    ["sec-purpose", "purpose", "x-purpose", "x-moz"]
        .iter()
        .filter_map(|name| request.header(name))
        .any(|value| value.contains("prefetch") || value.contains("prerender") || value.contains("preview"))
}

/// An answer in the form of payload 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The status code.
    pub status_code: u16,
    /// Headers by their names in lower case.
    pub headers: BTreeMap<&'static str, String>,
    /// `Set-Cookie` values.
    pub cookies: Vec<String>,
    /// The body, always text.
    pub body: String,
    /// Whether the body is base64; it never is.
    pub is_base64_encoded: bool,
}

impl Answer {
    /// An answer with the headers that every answer of this function has: nothing of it is kept, guessed at, framed,
    /// indexed, or told to the next site.
    #[must_use]
    pub fn new(status: http::StatusCode) -> Self {
        let headers = BTreeMap::from([
            ("cache-control", "no-store".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("x-frame-options", "DENY".to_owned()),
            ("x-robots-tag", "noindex, nofollow".to_owned()),
        ]);
        Self {
            status_code: status.as_u16(),
            headers,
            cookies: Vec::new(),
            body: String::new(),
            is_base64_encoded: false,
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: String) -> Self {
        self.body = body;
        self
    }

    /// The same with a cookie.
    #[must_use]
    pub fn cookie(mut self, cookie: String) -> Self {
        self.cookies.push(cookie);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_prefetch_is_known_by_its_header() {
        for (name, value, expected) in [
            ("Sec-Purpose", "prefetch;prerender", true),
            ("x-moz", "prefetch", true),
            ("sec-fetch-mode", "navigate", false),
        ] {
            let context = json!({"http": {"method": "GET"}});
            let event = json!({"rawPath": "/oauth/install", "requestContext": context, "headers": {name: value}});
            let request = Request::read(&event.to_string()).expect("a request");
            assert_eq!(is_prefetch(&request), expected, "{name}: {value}");
        }
    }
}
