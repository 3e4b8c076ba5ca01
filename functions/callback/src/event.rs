//! API Gateway's payload 2.0, taken apart here and not by `lambda_http`.
//!
//! That crate builds an `http::Uri` from the `Host` header, path and query, and panics where they do not make one;
//! all three are in the hands of whoever calls. Here they are text, and what this function does with them is decided
//! one by one. The `Host` header is not even read.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// A request, as far as this function looks at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The path as it was sent, with the stage's prefix if the URL had it.
    pub raw_path: String,
    /// The query without its question mark, still encoded.
    #[serde(default)]
    pub raw_query_string: Option<String>,
    /// Cookies, each as `name=value`.
    #[serde(default)]
    pub cookies: Option<Vec<String>>,
    /// Headers, by their names in lower case; repeated ones are joined with commas.
    #[serde(default)]
    pub headers: Option<HashMap<String, String>>,
    /// What API Gateway itself says of the request.
    pub request_context: RequestContext,
}

/// The part of a request that comes from API Gateway and not from the caller.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestContext {
    /// The API's own domain.
    #[serde(default)]
    pub domain_name: Option<String>,
    /// The stage; `$default` has no prefix in the path.
    #[serde(default)]
    pub stage: Option<String>,
    /// The request line.
    pub http: RequestLine,
}

/// The request line.
#[derive(Clone, Debug, Deserialize)]
pub struct RequestLine {
    /// The method, in capitals.
    pub method: String,
}

/// Not a payload 2.0 request.
#[derive(Debug, thiserror::Error)]
#[error("not an HTTP event of payload version 2.0")]
pub struct NotARequest;

impl Request {
    /// Reads an event.
    ///
    /// # Errors
    /// [`NotARequest`], without the parser's words: they may quote what was sent.
    pub fn read(event: Value) -> Result<Self, NotARequest> {
        serde_json::from_value(event).map_err(|_| NotARequest)
    }

    /// A header's value, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All cookies, each as `name=value`, whether the gateway set them apart or left them in their header.
    pub fn cookies(&self) -> impl Iterator<Item = &str> {
        let apart = self.cookies.iter().flatten().map(String::as_str);
        let header = self.header("cookie").unwrap_or_default().split(';').map(str::trim);
        apart.chain(header)
    }

    /// The query, still encoded.
    #[must_use]
    pub fn query(&self) -> &str {
        self.raw_query_string.as_deref().unwrap_or_default()
    }

    /// Whether a browser fetches the page before anyone asked for it (Fetch standard, `Sec-Purpose`; older browsers
    /// say `Purpose` or `X-Moz`).
    #[must_use]
    pub fn is_prefetch(&self) -> bool {
        ["sec-purpose", "purpose", "x-purpose", "x-moz"]
            .iter()
            .filter_map(|name| self.header(name))
            .any(|value| value.contains("prefetch") || value.contains("prerender") || value.contains("preview"))
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

    fn request(members: &Value) -> Result<Request, NotARequest> {
        let mut event = json!({"rawPath": "/oauth/install", "requestContext": {"http": {"method": "GET"}}});
        for (name, value) in members.as_object().expect("an object") {
            event[name] = value.clone();
        }
        Request::read(event)
    }

    #[test]
    fn what_is_no_request_is_an_error_and_no_panic() {
        for event in [json!(null), json!({}), json!([1]), json!({"rawPath": 7}), json!({"requestContext": {}})] {
            assert!(Request::read(event.clone()).is_err(), "{event}");
        }
    }

    #[test]
    fn headers_that_are_no_headers_do_no_harm() -> Result<(), NotARequest> {
        let hostile = json!({"headers": {"host": "a b:99999/\u{1}[", "x\n": "y\r\n"}, "rawQueryString": "a=\u{7f} {"});
        assert_eq!(request(&hostile)?.query(), "a=\u{7f} {");
        assert!(request(&json!({"headers": null, "cookies": null, "rawQueryString": null})).is_ok());
        Ok(())
    }

    #[test]
    fn cookies_are_found_apart_and_in_their_header() -> Result<(), NotARequest> {
        let both = request(&json!({"cookies": ["a=1"], "headers": {"Cookie": "b=2; c=3"}}))?;
        assert_eq!(both.cookies().collect::<Vec<_>>(), ["a=1", "b=2", "c=3"]);
        Ok(())
    }

    #[test]
    fn a_prefetch_is_known_by_its_header() -> Result<(), NotARequest> {
        assert!(request(&json!({"headers": {"Sec-Purpose": "prefetch;prerender"}}))?.is_prefetch());
        assert!(request(&json!({"headers": {"x-moz": "prefetch"}}))?.is_prefetch());
        assert!(!request(&json!({"headers": {"sec-fetch-mode": "navigate"}}))?.is_prefetch());
        Ok(())
    }
}
