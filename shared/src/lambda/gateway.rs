//! API Gateway's payload 2.0 (Developer Guide, "Lambda proxy integrations"), taken apart here and not by `lambda_http`.
//!
//! That crate builds an `http::Uri` from the `Host` header, path and query, and panics where they do not make one;
//! all three are in the hands of whoever calls. Here they are text, and what a function does with them is decided one
//! by one. The `Host` header is not even read.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

/// A request, as far as the functions look at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The path as API Gateway has decoded it, with the stage's prefix if the URL had it.
    pub raw_path: String,
    /// The query without its question mark, still encoded.
    pub raw_query_string: Option<String>,
    /// Cookies, each as `name=value`.
    pub cookies: Option<Vec<String>>,
    /// Headers, by their names in lower case; repeated ones are joined with commas.
    pub headers: Option<HashMap<String, String>>,
    /// The body as text or base64.
    pub body: Option<String>,
    /// Which of them.
    pub is_base64_encoded: Option<bool>,
    /// What API Gateway itself says of the request.
    pub request_context: RequestContext,
}

/// The part of a request that comes from API Gateway and not from the caller.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestContext {
    /// The API's own domain.
    pub domain_name: Option<String>,
    /// The stage; `$default` has no prefix in the path.
    pub stage: Option<String>,
    /// The request line.
    pub http: RequestLine,
    /// What an authorizer found, if one ran.
    pub authorizer: Option<Authorizer>,
}

/// The request line.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RequestLine {
    /// The method, in capitals.
    pub method: String,
}

/// What an authorizer found.
#[derive(Clone, Debug, Deserialize)]
pub struct Authorizer {
    /// That of `AWS_IAM`.
    pub iam: Option<Iam>,
}

/// Who signed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Iam {
    /// The signer's ARN.
    pub user_arn: Option<String>,
}

/// Not a payload 2.0 request.
#[derive(Debug, thiserror::Error)]
#[error("not an HTTP event of payload version 2.0")]
pub struct NotARequest;

/// A body that says it is base64 and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event's body is not base64")]
pub struct NotBase64;

impl Request {
    /// Reads an event.
    ///
    /// # Errors
    /// [`NotARequest`], without the parser's words: they may quote what was sent.
    pub fn read(event: &str) -> Result<Self, NotARequest> {
        serde_json::from_str(event).map_err(|_| NotARequest)
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

    /// The method as it came.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.request_context.http.method
    }

    /// The ARN of who signed the request, if API Gateway's authorizer ran.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        self.request_context.authorizer.as_ref()?.iam.as_ref()?.user_arn.as_deref()
    }

    /// How long the body can be at most once decoded, in bytes.
    #[must_use]
    pub fn body_limit(&self) -> usize {
        let length = self.body.as_deref().unwrap_or_default().len();
        if self.is_base64_encoded == Some(true) { length / 4 * 3 } else { length }
    }

    /// The body's bytes as they were sent, taken out.
    ///
    /// # Errors
    /// [`NotBase64`].
    pub fn take_body(&mut self) -> Result<Bytes, NotBase64> {
        let body = self.body.take().unwrap_or_default();
        if self.is_base64_encoded != Some(true) {
            return Ok(body.into());
        }
        STANDARD.decode(body).map(Bytes::from).map_err(|_| NotBase64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(members: &Value) -> Result<Request, NotARequest> {
        let mut event = json!({"rawPath": "/oauth/install", "requestContext": {"http": {"method": "GET"}}});
        for (name, value) in members.as_object().expect("an object") {
            event[name] = value.clone();
        }
        Request::read(&event.to_string())
    }

    #[test]
    fn what_is_no_request_is_an_error_and_no_panic() {
        for event in ["", "null", "{}", "[1]", r#"{"rawPath": 7}"#, r#"{"requestContext": {}}"#] {
            assert!(Request::read(event).is_err(), "{event}");
        }
    }

    #[test]
    fn headers_that_are_no_headers_do_no_harm() -> Result<(), NotARequest> {
        let hostile = json!({"headers": {"host": "a b:99999/\u{1}[", "x\n": "y\r\n"}, "rawQueryString": "a=\u{7f} {"});
        assert_eq!(request(&hostile)?.query(), "a=\u{7f} {");
        let nulls =
            json!({"headers": null, "cookies": null, "rawQueryString": null, "body": null, "isBase64Encoded": null});
        let mut nothing = request(&nulls)?;
        assert_eq!((nothing.header("x"), nothing.query()), (None, ""));
        assert_eq!(nothing.take_body(), Ok(Bytes::new()));
        Ok(())
    }

    #[test]
    fn cookies_are_found_apart_and_in_their_header() -> Result<(), NotARequest> {
        let both = request(&json!({"cookies": ["a=1"], "headers": {"Cookie": "b=2; c=3"}}))?;
        assert_eq!(both.cookies().collect::<Vec<_>>(), ["a=1", "b=2", "c=3"]);
        Ok(())
    }

    #[test]
    fn the_body_is_the_bytes_that_were_sent() -> Result<(), NotARequest> {
        let of = |body: &str, base64: bool| request(&json!({"body": body, "isBase64Encoded": base64}));
        assert_eq!(of("{ \"a\" : 1 }\n", false)?.take_body(), Ok(Bytes::from_static(b"{ \"a\" : 1 }\n")));
        assert_eq!(of("/wAK", true)?.take_body(), Ok(Bytes::from_static(b"\xff\x00\n")));
        assert_eq!((of("/wAK", true)?.body_limit(), of("/wAK", false)?.body_limit()), (3, 4));
        assert_eq!(of("%", true)?.take_body(), Err(NotBase64));
        Ok(())
    }
}
