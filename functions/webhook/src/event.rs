//! API Gateway's payload 2.0, as far as a webhook needs it, taken apart here and not by `lambda_http`: that crate
//! panics where the `Host` header, the path and the query that someone sent do not make a URI.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::verdict::Refusal;

/// The largest body that is looked at, in bytes. The platform's own have less than a thousandth of it.
pub const LARGEST_BODY: usize = 1024 * 1024;

/// A request, as far as this function looks at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The path as it was sent, with the stage's prefix if the URL had it.
    pub raw_path: String,
    /// Headers, by their names in lower case.
    #[serde(default)]
    pub headers: Option<HashMap<String, String>>,
    /// The body as text or base64.
    #[serde(default)]
    pub body: Option<String>,
    /// Which of them.
    #[serde(default)]
    pub is_base64_encoded: Option<bool>,
    /// What API Gateway itself says of the request.
    pub request_context: RequestContext,
}

/// The part of a request that comes from API Gateway and not from the caller.
#[derive(Clone, Debug, Deserialize)]
pub struct RequestContext {
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
    /// [`NotARequest`], without the parser's words: they may quote the body.
    pub fn read(event: Value) -> Result<Self, NotARequest> {
        serde_json::from_value(event).map_err(|_| NotARequest)
    }

    /// A header's value, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Refuses what is not `POST /webhooks/marketplace`, with or without the stage.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::MethodNotAllowed`].
    pub fn check_route(&self) -> Result<(), Refusal> {
        const PATH: &str = "/webhooks/marketplace";
        let stage = self.request_context.stage.as_deref().unwrap_or_default();
        let prefix = self.raw_path.strip_suffix(PATH).ok_or(Refusal::NotFound)?;
        if !prefix.is_empty() && prefix.strip_prefix('/') != Some(stage) {
            return Err(Refusal::NotFound);
        }
        if self.request_context.http.method == "POST" { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
    }

    /// The body's bytes exactly as they were sent; the signature covers these and no re-serialised form of them.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], or [`Refusal::Malformed`] for a body that says it is base64 and is not.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, Refusal> {
        let body = self.body.as_deref().unwrap_or_default();
        let is_base64_encoded = self.is_base64_encoded == Some(true);
        let longest = if is_base64_encoded { LARGEST_BODY.div_ceil(3) * 4 } else { LARGEST_BODY };
        if body.len() > longest {
            return Err(Refusal::TooLarge);
        }
        if is_base64_encoded {
            STANDARD.decode(body).map(Cow::Owned).map_err(|_| Refusal::Malformed)
        } else {
            Ok(Cow::Borrowed(body.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(method: &str, path: &str, stage: &str) -> Request {
        let context = json!({"stage": stage, "http": {"method": method}});
        Request::read(json!({"rawPath": path, "requestContext": context})).expect("a request")
    }

    #[test]
    fn one_route_is_served_with_and_without_its_stage() {
        for (method, path, stage, expected) in [
            ("POST", "/webhooks/marketplace", "$default", Ok(())),
            ("POST", "/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/prod/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/other/webhooks/marketplace", "prod", Err(Refusal::NotFound)),
            ("POST", "/webhooks/marketplace/", "prod", Err(Refusal::NotFound)),
            ("POST", "", "prod", Err(Refusal::NotFound)),
            ("GET", "/webhooks/marketplace", "prod", Err(Refusal::MethodNotAllowed)),
        ] {
            assert_eq!(request(method, path, stage).check_route(), expected, "{method} {path} {stage}");
        }
    }

    #[test]
    fn the_body_is_the_bytes_that_were_sent() {
        let mut request = request("POST", "/webhooks/marketplace", "$default");
        request.body = Some("{ \"a\" : 1 }\n".into());
        assert_eq!(request.bytes().as_deref(), Ok(b"{ \"a\" : 1 }\n".as_slice()));
        request.is_base64_encoded = Some(true);
        assert_eq!(request.bytes(), Err(Refusal::Malformed));
        request.body = Some(STANDARD.encode(b"\xff\x00\n"));
        assert_eq!(request.bytes().as_deref(), Ok(b"\xff\x00\n".as_slice()));
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        let context = json!({"stage": null, "http": {"method": "POST"}});
        let event =
            json!({"rawPath": "/", "headers": null, "body": null, "isBase64Encoded": null, "requestContext": context});
        let request = Request::read(event).expect("a request");
        assert_eq!((request.header("x"), request.bytes().as_deref()), (None, Ok(&b""[..])));
    }

    #[test]
    fn a_large_body_is_not_even_decoded() {
        let mut request = request("POST", "/webhooks/marketplace", "$default");
        request.body = Some("a".repeat(LARGEST_BODY + 1));
        assert_eq!(request.bytes(), Err(Refusal::TooLarge));
        request.body = Some("a".repeat(LARGEST_BODY));
        assert!(request.bytes().is_ok());
    }
}
