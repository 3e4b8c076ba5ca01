//! API Gateway's payload 2.0 (Developer Guide, "Lambda proxy integrations") as the relay reads it, and its routes.
//!
//! The relay passes paths and bodies on byte for byte and answers with all that the platform sent, so it does not use
//! `lambda_http` (docs/decisions/lambda-http.md). It reads neither the `Host` header nor the cookies.

use std::collections::HashMap;

use ::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use shared::domain::problem::Problem;
use shared::domain::resource::Kind;
use shared::lambda::gateway;
use shared::request::path::Path;

/// An event of API Gateway's HTTP API. A member that is `null` counts as absent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpEvent {
    /// The path as API Gateway has decoded it, with the stage's prefix if the URL had it.
    raw_path: String,
    /// The query without its question mark, still encoded.
    raw_query_string: Option<String>,
    /// Header names in lower case. API Gateway joins the values of repeated headers with commas.
    headers: Option<HashMap<String, String>>,
    body: Option<String>,
    is_base64_encoded: Option<bool>,
    request_context: RequestContext,
}

/// The part of an event that comes from API Gateway and not from the caller.
#[derive(Clone, Debug, Deserialize)]
struct RequestContext {
    stage: Option<String>,
    http: RequestLine,
    authorizer: Option<Authorizer>,
}

#[derive(Clone, Debug, Deserialize)]
struct RequestLine {
    method: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Authorizer {
    iam: Option<Iam>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Iam {
    user_arn: Option<String>,
}

/// The authentication of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// A bearer key, which the relay checks.
    Key,
    /// A SigV4 signature, which API Gateway checks.
    Iam,
}

/// The target of an event. Texts are as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A request for the platform.
    Relay {
        /// The authentication of the sender.
        auth: AuthMethod,
        /// Location or company.
        kind: Kind,
        /// Its id.
        id: &'a str,
        /// The platform's path, with its first slash.
        path: &'a str,
    },
    /// A request for the status of an installation.
    Status {
        /// The authentication of the sender.
        auth: AuthMethod,
        /// Location or company.
        kind: Kind,
        /// Its id.
        id: &'a str,
    },
    /// A request for the platform that names its resource itself, as the platform's own clients do.
    Api {
        /// The platform's path, with its first slash.
        path: &'a str,
    },
    /// None of the relay's.
    Unknown,
}

impl HttpEvent {
    /// # Errors
    /// [`Problem`] for a member that is missing or of the wrong type.
    pub fn read(json: &str) -> Result<Self, Problem> {
        serde_json::from_str(json).map_err(|e| Problem::invalid_request(format!("the event is malformed: {e}")))
    }

    /// The method as it came.
    pub fn method(&self) -> &str {
        &self.request_context.http.method
    }

    /// The query as it came.
    pub fn query(&self) -> &str {
        self.raw_query_string.as_deref().unwrap_or_default()
    }

    /// The ARN of the signer, if API Gateway's IAM authorizer ran.
    pub fn principal(&self) -> Option<&str> {
        self.request_context.authorizer.as_ref()?.iam.as_ref()?.user_arn.as_deref()
    }

    /// The value of the `Authorization` header as it came.
    pub fn authorization(&self) -> Option<&str> {
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.as_str())
    }

    /// The headers of a request for the platform's `path`.
    ///
    /// # Errors
    /// A header that would be read and cannot be one.
    pub fn headers(&self, path: &Path) -> Result<HeaderMap, Problem> {
        let headers = self.headers.iter().flatten();
        crate::headers::read(headers.map(|(name, value)| (name.as_str(), value.as_str())), path)
    }

    /// The body as it was sent.
    ///
    /// # Errors
    /// A body that is said to be base64 and is not.
    pub fn into_body(self) -> Result<Bytes, Problem> {
        let body = self.body.unwrap_or_default();
        if self.is_base64_encoded != Some(true) {
            return Ok(body.into());
        }
        let bytes = STANDARD.decode(body).map_err(|_| Problem::invalid_request("the event's body is not base64"))?;
        Ok(bytes.into())
    }

    /// The route of the path, with or without its stage.
    pub fn route(&self) -> Route<'_> {
        gateway::route(&self.raw_path, self.request_context.stage.as_deref(), route).unwrap_or(Route::Unknown)
    }
}

fn route(path: &str) -> Option<Route<'_>> {
    if let Some(path) = gateway::below(path, "api") {
        return Some(Route::Api { path });
    }
    let (auth, rest) = match path.strip_prefix("/iam") {
        Some(rest) => (AuthMethod::Iam, rest),
        None => (AuthMethod::Key, path),
    };
    let kinds = [("/relay/locations/", Kind::Location), ("/relay/companies/", Kind::Company)];
    let (kind, rest) = kinds.into_iter().find_map(|(prefix, kind)| Some((kind, rest.strip_prefix(prefix)?)))?;
    let (id, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match path {
        "" | "/" => Some(Route::Status { auth, kind, id }),
        _ => Some(Route::Relay { auth, kind, id, path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::domain::problem::Code;

    fn event(path: &str, stage: &str) -> HttpEvent {
        let event = serde_json::json!({
            "version": "2.0", "rawPath": path, "rawQueryString": "a=%2F&a=b",
            "requestContext": {"stage": stage, "http": {"method": "GET", "path": path}},
        });
        HttpEvent::read(&event.to_string()).expect("an event")
    }

    #[test]
    fn routes_are_found_with_and_without_a_stage() {
        let relay = |auth, kind, id, path| Route::Relay { auth, kind, id, path };
        let (location, company) = (Kind::Location, Kind::Company);
        for (path, stage, expected) in [
            ("/relay/locations/L1/contacts/", "$default", relay(AuthMethod::Key, location, "L1", "/contacts/")),
            ("/relay/companies/C1/x", "$default", relay(AuthMethod::Key, company, "C1", "/x")),
            ("/iam/relay/locations/L1/x", "$default", relay(AuthMethod::Iam, location, "L1", "/x")),
            ("/prod/relay/locations/L1/x", "prod", relay(AuthMethod::Key, location, "L1", "/x")),
            ("/relay/locations/L1/x", "prod", relay(AuthMethod::Key, location, "L1", "/x")),
            ("/relay/relay/locations/L1/x", "relay", relay(AuthMethod::Key, location, "L1", "/x")),
            ("/relay/locations/L1/x", "relay", relay(AuthMethod::Key, location, "L1", "/x")),
            ("/iam/relay/locations/L1/x", "iam", relay(AuthMethod::Key, location, "L1", "/x")),
            ("/relay/locations/L1//x", "$default", relay(AuthMethod::Key, location, "L1", "//x")),
            ("/relay/locations/L1/../../x", "$default", relay(AuthMethod::Key, location, "L1", "/../../x")),
            ("/relay/locations/L1@e/x", "$default", relay(AuthMethod::Key, location, "L1@e", "/x")),
            ("/relay/locations/L1", "$default", Route::Status { auth: AuthMethod::Key, kind: location, id: "L1" }),
            ("/relay/companies/C1/", "$default", Route::Status { auth: AuthMethod::Key, kind: company, id: "C1" }),
            ("/iam/relay/companies/C1", "$default", Route::Status { auth: AuthMethod::Iam, kind: company, id: "C1" }),
            ("/relay/locations/", "$default", Route::Status { auth: AuthMethod::Key, kind: location, id: "" }),
            ("/api/contacts/1", "$default", Route::Api { path: "/contacts/1" }),
            ("/prod/api/contacts/1", "prod", Route::Api { path: "/contacts/1" }),
            ("/api//contacts", "$default", Route::Api { path: "//contacts" }),
            ("/apix/contacts", "$default", Route::Unknown),
            ("/prodx/relay/locations/L1/x", "prod", Route::Unknown),
            ("/relay", "$default", Route::Unknown),
            ("/", "$default", Route::Unknown),
            ("", "", Route::Unknown),
            ("//relay/locations/L1/x", "", Route::Unknown),
        ] {
            assert_eq!(event(path, stage).route(), expected, "{path} at {stage}");
        }
    }

    #[test]
    fn more_headers_than_can_be_held_are_refused() {
        let headers: serde_json::Map<_, _> = (0..40_000).map(|n| (format!("x-{n}"), "".into())).collect();
        let event = serde_json::json!({
            "rawPath": "/", "headers": headers, "requestContext": {"http": {"method": "GET"}},
        });
        let path = Path::parse("/").expect("a safe path");
        let refused = HttpEvent::read(&event.to_string()).expect("an event").headers(&path).expect_err("too many");
        assert_eq!(refused.code, Code::InvalidRequest);
    }

    #[test]
    fn the_signer_is_who_the_authorizer_names() {
        let principal = |authorizer: serde_json::Value| {
            let event = serde_json::json!({
                "rawPath": "/", "requestContext": {"http": {"method": "GET"}, "authorizer": authorizer},
            });
            HttpEvent::read(&event.to_string()).expect("an event").principal().map(str::to_owned)
        };
        assert_eq!(principal(serde_json::json!({"iam": {"userArn": "arn:x"}})), Some("arn:x".to_owned()));
        for none in [
            serde_json::json!(null),
            serde_json::json!({}),
            serde_json::json!({"iam": null}),
            serde_json::json!({"jwt": {}}),
        ] {
            assert_eq!(principal(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        let event = HttpEvent::read(
            r#"{"rawPath":"/","rawQueryString":null,"headers":null,"body":null,"isBase64Encoded":null,
            "requestContext":{"stage":null,"http":{"method":"GET"},"authorizer":null}}"#,
        )
        .expect("as if none of them were there");
        let path = Path::parse("/").expect("a safe path");
        assert_eq!((event.query(), event.headers(&path).expect("none").len()), ("", 0));
        assert!(event.into_body().expect("none").is_empty());
    }

    #[test]
    fn bodies_are_decoded_once() {
        let body = |body: &str, base64: bool| {
            let event = serde_json::json!({
                "rawPath": "/", "requestContext": {"http": {"method": "POST"}}, "body": body, "isBase64Encoded": base64,
            });
            HttpEvent::read(&event.to_string()).expect("an event").into_body()
        };
        assert_eq!(&body("AP8=", true).expect("bytes")[..], [0, 255]);
        assert_eq!(&body("AP8=", false).expect("text")[..], b"AP8=");
        assert!(body("%", true).is_err());
    }

    #[test]
    fn what_is_malformed_is_an_invalid_request() {
        for json in [
            r#"{"rawPath":"/"}"#,
            r#"{"requestContext":{"http":{"method":"GET"}}}"#,
            r#"{"rawPath":7,"requestContext":{"http":{"method":"GET"}}}"#,
            r#"{"rawPath":"/","requestContext":{"http":{"method":"GET"}},"headers":[]}"#,
            r#"{"rawPath":"/","requestContext":{}}"#,
        ] {
            assert_eq!(HttpEvent::read(json).map(|_| ()).expect_err(json).code, Code::InvalidRequest, "{json}");
        }
    }
}
