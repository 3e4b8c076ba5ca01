//! Requests of API Gateway (HTTP API, payload version 2.0) as requests of `lambda_http`, and responses as its answers.
//!
//! `lambda_http` 1.3.2 panics when it converts an event with a malformed `Host`, domain, query or base64 body. A
//! stranger controls the `Host` header and the query. [`read`] refuses or removes each of these before the conversion,
//! so that an event never panics. The relay reads its events itself: docs/decisions/lambda-http.md.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HOST, SET_COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use lambda_http::aws_lambda_events::apigw::{
    ApiGatewayV2httpRequest, ApiGatewayV2httpRequestContext, ApiGatewayV2httpResponse,
};
use lambda_http::request::{LambdaRequest, RequestContext};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The highest number of bytes that API Gateway accepts for the request line and all headers (API Gateway Developer
/// Guide, "Quotas for configuring and running an HTTP API"). API Gateway cannot have sent a larger event.
const LONGEST_HEAD: usize = 10_240;

/// An event that is not an HTTP request of payload version 2.0. It does not quote the event, which may hold secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP request of payload version 2.0")]
pub struct NotARequest;

/// Converts an event. The request has no `Host` header, because the sender of the event chose that text. [`context`]
/// has the API's own domain.
///
/// The body is [`Body::Text`] or [`Body::Binary`] with exactly the bytes that were sent. Headers that HTTP does not
/// allow are left out.
///
/// # Errors
/// [`NotARequest`], also for a path without its first slash, and for a query that has a character which no query may
/// have.
pub fn read(event: &RawValue, lambda: Context) -> Result<Request, NotARequest> {
    let mut event: Map<String, Value> = serde_json::from_str(event.get()).map_err(|_| NotARequest)?;
    if let Some(Value::Object(headers)) = event.get_mut("headers") {
        headers.retain(|name, value| is_read(name, value));
        if headers.len() > LONGEST_HEAD {
            return Err(NotARequest);
        }
    }
    let mut event: ApiGatewayV2httpRequest = serde_json::from_value(event.into()).map_err(|_| NotARequest)?;
    let path = event.raw_path.as_deref().unwrap_or_default();
    let query = event.raw_query_string.as_deref().unwrap_or_default();
    if !path.starts_with('/') || path.len() + query.len() > LONGEST_HEAD || !is_query(query) {
        return Err(NotARequest);
    }
    let body = body(event.body.take(), event.is_base64_encoded)?;
    // The conversion builds a URI from host, path and query. A path and a checked query without a host are always
    // valid.
    let domain_name = event.request_context.domain_name.take();
    let mut request = Request::from(LambdaRequest::ApiGatewayV2(event)).with_lambda_context(lambda);
    *request.body_mut() = body;
    if let Some(RequestContext::ApiGatewayV2(context)) = request.extensions_mut().get_mut() {
        context.domain_name = domain_name;
    }
    Ok(request)
}

/// Returns true for a header that HTTP allows and that is not `Host`.
fn is_read(name: &str, value: &Value) -> bool {
    let is_named = HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| name != HOST);
    is_named && value.as_str().is_some_and(|value| HeaderValue::from_str(value).is_ok())
}

/// Returns true for a query that `http::Uri` accepts and leaves unchanged.
fn is_query(query: &str) -> bool {
    PathAndQuery::try_from(format!("/?{query}")).is_ok_and(|parsed| parsed.query() == Some(query))
}

fn body(body: Option<String>, is_base64: bool) -> Result<Body, NotARequest> {
    match body {
        None => Ok(Body::Empty),
        Some(text) if is_base64 => STANDARD.decode(text).map(Body::Binary).map_err(|_| NotARequest),
        Some(text) => Ok(Body::Text(text)),
    }
}

/// The context that API Gateway wrote for a request of [`read`].
pub fn context(request: &Request) -> Option<&ApiGatewayV2httpRequestContext> {
    match request.request_context_ref()? {
        RequestContext::ApiGatewayV2(context) => Some(context),
        _ => None,
    }
}

/// The stage that received a request, such as `$default`.
pub fn stage(request: &Request) -> Option<&str> {
    context(request)?.stage.as_deref()
}

/// The value of a header. [`None`] for one that is missing or not UTF-8.
pub fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    std::str::from_utf8(request.headers().get(name)?.as_bytes()).ok()
}

/// The answer to an event, with the response's body byte for byte. Each `Set-Cookie` header becomes one of `cookies`.
///
/// Any other header must occur once: payload 2.0 has one value for a name.
pub fn answer(response: Response<Body>) -> ApiGatewayV2httpResponse {
    let (mut parts, body) = response.into_parts();
    let mut answer = ApiGatewayV2httpResponse::default();
    let cookies = parts.headers.get_all(SET_COOKIE).iter();
    answer.cookies = cookies.filter_map(|cookie| cookie.to_str().ok()).map(str::to_owned).collect();
    parts.headers.remove(SET_COOKIE);
    answer.status_code = parts.status.as_u16().into();
    answer.headers = parts.headers;
    answer.is_base64_encoded = matches!(body, Body::Binary(_));
    answer.body = (body != Body::Empty).then_some(body);
    answer
}

/// Finds the route of a path that may begin with its stage.
///
/// The URL of a stage begins with its name, unless the stage is `$default` or a custom domain hides it. A stage can
/// have the name of a route's first segment, so a path that leads nowhere below the stage is tried as a whole.
pub fn route<'a, R>(raw_path: &'a str, stage: Option<&str>, find: impl Fn(&'a str) -> Option<R>) -> Option<R> {
    let below_stage = stage.and_then(|stage| below(raw_path, stage));
    below_stage.and_then(&find).or_else(|| find(raw_path))
}

/// The rest of a path that begins with `/PREFIX/`, with its first slash. [`None`] for an empty prefix.
pub fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix('/')?.strip_prefix(prefix)?;
    (rest.starts_with('/') && !prefix.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read_with(members: &Value) -> Result<Request, NotARequest> {
        let mut event = json!({
            "version": "2.0",
            "rawPath": "/oauth/install",
            "requestContext": { "stage": "prod", "domainName": "x.example", "http": { "method": "GET" } },
        });
        for (name, value) in members.as_object().expect("an object") {
            event[name] = value.clone();
        }
        read_text(&event.to_string())
    }

    fn read_text(event: &str) -> Result<Request, NotARequest> {
        let event = RawValue::from_string(event.to_owned()).map_err(|_| NotARequest)?;
        read(&event, Context::default())
    }

    #[test]
    fn an_event_that_is_no_request_is_an_error() {
        for event in [
            "null",
            "{}",
            "[1]",
            r#"{"rawPath": 7}"#,
            r#"{"requestContext": {}}"#,
            r#"{"rawPath": "/", "requestContext": {"http": {"method": 7}}}"#,
            r#"{"rawPath": "/", "requestContext": {"http": {"method": "GET / HTTP/1.1"}}}"#,
        ] {
            assert!(read_text(event).is_err(), "{event}");
        }
        for bad in [
            json!({ "rawPath": "" }),
            json!({ "rawPath": null }),
            json!({ "rawPath": "oauth/install" }),
            json!({ "rawPath": ":99999/" }),
            json!({ "rawPath": format!("/{}", "\u{1}".repeat(LONGEST_HEAD)) }),
            json!({ "rawQueryString": "a".repeat(LONGEST_HEAD) }),
            json!({ "headers": (0..40_000).map(|n| (format!("x-{n}"), "".into())).collect::<Map<_, _>>() }),
            json!({ "body": "%", "isBase64Encoded": true }),
        ] {
            assert!(read_with(&bad).is_err(), "{bad:.100}");
        }
    }

    #[test]
    fn a_hostile_query_is_refused_and_any_other_stays_as_it_is() {
        for hostile in ["a=\"", "<script>", "a>b", "code=a b", "a\u{7f}\u{1}", "a\r\nb", "code=a#b", "#", "a=\t"] {
            assert!(read_with(&json!({ "rawQueryString": hostile })).is_err(), "{hostile:?}");
        }
        for query in ["a=%2F&a=b+c", "a=b?c/d", "%22%3C%zz", "{a}|^`\\[0]", "a=ä", "?"] {
            let request = read_with(&json!({ "rawQueryString": query })).expect(query);
            assert_eq!(request.uri().query(), Some(query));
        }
        for none in [json!(null), json!("")] {
            assert_eq!(read_with(&json!({ "rawQueryString": none })).expect("a request").uri().query(), None);
        }
    }

    #[test]
    fn a_hostile_host_is_not_read_and_the_domain_is_the_gateways() {
        for hostile in ["a b", "[::1", "x:99999", "evil.example", "a\u{1}b", "", "user@h", "é\\"] {
            let headers = json!({ "Host": hostile, "X-Forwarded-Proto": hostile, "x": "y" });
            let request = read_with(&json!({ "headers": headers })).expect(hostile);
            assert_eq!((header(&request, "host"), header(&request, "x")), (None, Some("y")), "{hostile}");
            assert_eq!(request.uri(), "/prod/oauth/install", "{hostile}");
            assert_eq!(context(&request).and_then(|context| context.domain_name.as_deref()), Some("x.example"));
        }
        let odd = json!({ "domainName": "[x:99999", "stage": "../ ?", "http": { "method": "GET" } });
        let request = read_with(&json!({ "requestContext": odd })).expect("a request");
        assert_eq!((stage(&request), request.raw_http_path()), (Some("../ ?"), "/oauth/install"));
    }

    #[test]
    fn a_header_that_http_does_not_allow_does_no_harm() {
        let headers =
            json!({ "x\n": "y", "x-a": "y\r\nz", "x-b": 7, "x-c": ["d"], "ä": "", "User-Agent": "Fire\u{e9}" });
        let request = read_with(&json!({ "headers": headers })).expect("a request");
        assert_eq!((request.headers().len(), header(&request, "user-agent")), (1, Some("Fire\u{e9}")));
        let nulls = json!({ "headers": null, "cookies": null, "body": null });
        assert_eq!(read_with(&nulls).expect("a request").body(), &Body::Empty);
    }

    #[test]
    fn the_body_has_the_bytes_that_were_sent() -> Result<(), NotARequest> {
        let sent = |body: &str, base64: bool| -> Result<Vec<u8>, NotARequest> {
            let headers = json!({ "content-type": "application/json; charset=utf-16" });
            let event = json!({ "body": body, "isBase64Encoded": base64, "headers": headers });
            Ok(read_with(&event)?.into_body().to_vec())
        };
        assert_eq!(sent("{ \"a\" : \"\u{feff}é\" }\n", false)?, "{ \"a\" : \"\u{feff}é\" }\n".as_bytes());
        assert_eq!(sent("/wAK", true)?, b"\xff\x00\n");
        assert_eq!(sent("/wAK", false)?, b"/wAK");
        Ok(())
    }

    #[test]
    fn an_answer_is_the_response_unchanged() {
        let response = Response::builder()
            .status(303)
            .header("location", "/")
            .header("content-type", "text/html; charset=iso-8859-1")
            .header("set-cookie", "a=1; HttpOnly")
            .header("set-cookie", "b=2");
        let json = |body| serde_json::to_value(answer(body)).expect("JSON");
        let answered = json(response.body(Body::Text("\u{feff}é".to_owned())).expect("a response"));
        let headers = json!({ "location": "/", "content-type": "text/html; charset=iso-8859-1" });
        assert_eq!((&answered["statusCode"], &answered["headers"]), (&json!(303), &headers));
        assert_eq!(answered["cookies"], json!(["a=1; HttpOnly", "b=2"]));
        assert_eq!((&answered["body"], &answered["isBase64Encoded"]), (&json!("\u{feff}é"), &json!(false)));
        let binary = json(Response::new(Body::Binary(vec![0xff, 0])));
        assert_eq!((&binary["body"], &binary["isBase64Encoded"]), (&json!("/wA="), &json!(true)));
        assert_eq!(json(Response::new(Body::Empty)).get("body"), None);
    }

    #[test]
    fn a_route_is_found_with_and_without_its_stage() {
        let find = |path: &'static str, stage| route(path, stage, |path| path.strip_prefix("/relay/"));
        for (path, stage, found) in [
            ("/relay/x", None, Some("x")),
            ("/relay/x", Some("$default"), Some("x")),
            ("/relay/x", Some("prod"), Some("x")),
            ("/prod/relay/x", Some("prod"), Some("x")),
            ("/relay/x", Some("relay"), Some("x")),
            ("/relay/relay/x", Some("relay"), Some("x")),
            ("/other/relay/x", Some("prod"), None),
            ("/prodx/relay/x", Some("prod"), None),
            ("//relay/x", Some(""), None),
            ("prod/relay/x", Some("prod"), None),
            ("", Some("prod"), None),
        ] {
            assert_eq!(find(path, stage), found, "{path} at {stage:?}");
        }
    }

    proptest! {
        /// Checks that any event converts or is refused. A panic fails the test.
        #[test]
        fn no_event_panics(
            path in "/[a-z/.%#?\\\\@:\\[\\]\"<>{}|^` \\t\\n\\x00é\u{ff0f}]{0,20}|.{0,20}",
            query in "[a-z=&%#?\"<>{}|^`\\\\ \\x00\\x7fé]{0,20}|.{0,20}",
            host in ".{0,20}",
            stage in "[a-z/.$:@ ]{0,8}|.{0,8}",
            body in ".{0,20}",
            base64 in any::<bool>(),
        ) {
            let context = json!({ "stage": stage, "domainName": host, "http": { "method": "GET" } });
            let event = json!({
                "rawPath": path, "rawQueryString": query, "headers": { "host": host, "x-forwarded-proto": host },
                "cookies": [host], "requestContext": context, "body": body, "isBase64Encoded": base64,
            });
            if let Ok(request) = read_with(&event) {
                prop_assert_eq!(request.raw_http_path(), path);
                prop_assert_eq!(request.uri().query().unwrap_or_default(), query);
            }
        }
    }
}
