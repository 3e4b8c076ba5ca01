//! The parts of a browser's request that the pages need, and the common headers of the responses.

use std::time::Duration;

use http::header::{CACHE_CONTROL, COOKIE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderName, HeaderValue, StatusCode};
use lambda_http::{Body, Request, Response};
use shared::domain::clock::Millis;
use shared::lambda::gateway::{self, header};

/// Returns true if the browser fetches the page before the user opens it (Fetch standard, `Sec-Purpose`; older browsers
/// send `Purpose` or `X-Moz`).
pub fn is_prefetch(request: &Request) -> bool {
    ["sec-purpose", "purpose", "x-purpose", "x-moz"]
        .iter()
        .filter_map(|name| header(request, name))
        .any(|value| value.contains("prefetch") || value.contains("prerender") || value.contains("preview"))
}

/// All cookies of a request, each as `name=value`.
pub fn cookies(request: &Request) -> impl Iterator<Item = &str> {
    let lines = request.headers().get_all(COOKIE).iter().filter_map(|line| std::str::from_utf8(line.as_bytes()).ok());
    lines.flat_map(|line| line.split(';')).map(str::trim)
}

/// The longest time between the arrival at API Gateway and the arrival here: API Gateway's own time-out.
const MAX_TRANSIT: Duration = Duration::from_secs(30);

/// The client of a request, and the time of the request's arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The network address that API Gateway reports. Empty if absent.
    pub address: String,
    /// The `User-Agent`. Empty if absent.
    pub user_agent: String,
    /// The time at which API Gateway received the request. The current time if that is absent or implausible.
    pub arrived_at: Millis,
}

impl Sender {
    /// Reads the context that API Gateway adds to a request. Every member is optional: a malformed member counts as
    /// absent.
    pub fn read(request: &Request, now: Millis) -> Self {
        let context = gateway::context(request);
        let received = context.map(|context| Millis(context.time_epoch));
        Self {
            address: context.and_then(|context| context.http.source_ip.clone()).unwrap_or_default(),
            user_agent: header(request, "user-agent").unwrap_or_default().to_owned(),
            arrived_at: received.filter(|at| *at <= now && now.since(*at) <= MAX_TRANSIT).unwrap_or(now),
        }
    }
}

/// A response with the headers that every response of this function has. They forbid browsers and proxies to store the
/// page, guess its type, frame it, index it, or send its URL to the next site.
pub fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Adds a header to a response. Drops a value that HTTP does not allow.
pub fn with_header(mut response: Response<Body>, name: HeaderName, value: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().append(name, value);
    } else {
        tracing::warn!(%name, "a response header has a value that HTTP does not allow");
    }
    response
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lambda_http::Context;
    use serde_json::{Value, json};

    /// The request of an event for `/oauth/callback`, with these members and this context.
    pub(crate) fn request(members: &Value, context: &Value) -> Request {
        let mut event = json!({
            "rawPath": "/oauth/callback",
            "requestContext": { "domainName": "connect.example.com", "http": { "method": "GET" } },
        });
        for (name, value) in members.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        for (name, value) in context.as_object().into_iter().flatten() {
            event["requestContext"][name] = value.clone();
        }
        let event = serde_json::value::to_raw_value(&event).expect("JSON");
        gateway::read(&event, Context::default()).expect("a request")
    }

    #[test]
    fn a_sender_is_read_and_implausible_times_are_ignored() {
        let now = Millis(1_800_000_000_000);
        for (time, at) in
            [(now.0 - 700, now - Duration::from_millis(700)), (now.0 + 1, now), (1_583_348_638_390_i64, now), (0, now)]
        {
            let context = json!({ "http": { "method": "GET", "sourceIp": "192.0.2.1" }, "timeEpoch": time });
            let request = request(&json!({ "headers": { "user-agent": "Firefox" } }), &context);
            let expected = Sender { address: "192.0.2.1".into(), user_agent: "Firefox".into(), arrived_at: at };
            assert_eq!(Sender::read(&request, now), expected, "{time}");
        }
        let nothing = Sender { address: String::new(), user_agent: String::new(), arrived_at: now };
        assert_eq!(Sender::read(&request(&json!({}), &json!({})), now), nothing);
    }

    #[test]
    fn a_prefetch_is_recognised_by_its_header() {
        for (name, value, expected) in [
            ("Sec-Purpose", "prefetch;prerender", true),
            ("x-moz", "prefetch", true),
            ("sec-fetch-mode", "navigate", false),
        ] {
            let request = request(&json!({ "headers": { name: value } }), &json!({}));
            assert_eq!(is_prefetch(&request), expected, "{name}: {value}");
        }
    }

    #[test]
    fn cookies_are_read_from_both_forms() {
        let apart = request(&json!({ "cookies": ["a=1", "b=\u{e9}", "c=3; d=4"] }), &json!({}));
        assert_eq!(cookies(&apart).collect::<Vec<_>>(), ["a=1", "b=\u{e9}", "c=3", "d=4"]);
        let in_header = request(&json!({ "headers": { "Cookie": "b=2; c=3" } }), &json!({}));
        assert_eq!(cookies(&in_header).collect::<Vec<_>>(), ["b=2", "c=3"]);
        assert_eq!(cookies(&request(&json!({}), &json!({}))).count(), 0);
    }

    #[test]
    fn a_header_value_that_http_does_not_allow_is_dropped() {
        let plain = || response(StatusCode::OK, Body::Empty);
        assert_eq!(with_header(plain(), COOKIE, "a").headers().len(), plain().headers().len() + 1);
        assert_eq!(with_header(plain(), COOKIE, "a\nb: c").headers().len(), plain().headers().len());
    }
}
