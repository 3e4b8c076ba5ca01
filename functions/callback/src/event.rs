//! What a browser sends, and what it is answered, in API Gateway's payload 2.0.

use std::collections::BTreeMap;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::domain::clock::Millis;
pub use shared::lambda::gateway::{Request, RequestContext, RequestLine};

/// Whether the browser fetches the page before anyone asked for it (Fetch standard, `Sec-Purpose`; older browsers say
/// `Purpose` or `X-Moz`).
#[must_use]
pub fn is_prefetch(request: &Request) -> bool {
    ["sec-purpose", "purpose", "x-purpose", "x-moz"]
        .iter()
        .filter_map(|name| request.header(name))
        .any(|value| value.contains("prefetch") || value.contains("prerender") || value.contains("preview"))
}

/// The longest time that a request is on its way from API Gateway to this function, which is the longest that API Gateway
/// waits for an answer.
const LONGEST_WAY: Duration = Duration::from_secs(30);

/// Where a request comes from, and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The network address, as API Gateway has seen it; empty where it is not told.
    pub address: String,
    /// `User-Agent`; empty where there is none.
    pub user_agent: String,
    /// When API Gateway received it. The present where it does not tell, or an instant that cannot be.
    pub arrived_at: Millis,
}

impl Sender {
    /// Reads what API Gateway says of a request. Nothing of it is needed to answer, so what is odd counts as absent.
    #[must_use]
    pub fn read(event: &str, request: &Request, now: Millis) -> Self {
        #[derive(Default, Deserialize)]
        struct Event {
            #[serde(rename = "requestContext")]
            context: Context,
        }
        #[derive(Default, Deserialize)]
        struct Context {
            #[serde(rename = "timeEpoch", default)]
            time_epoch: serde_json::Value,
            http: Http,
        }
        #[derive(Default, Deserialize)]
        struct Http {
            #[serde(rename = "sourceIp", default)]
            source_ip: serde_json::Value,
        }
        let Event { context } = serde_json::from_str(event).unwrap_or_default();
        let told = context.time_epoch.as_i64().map(Millis);
        Self {
            address: context.http.source_ip.as_str().unwrap_or_default().to_owned(),
            user_agent: request.header("user-agent").unwrap_or_default().to_owned(),
            arrived_at: told.filter(|at| *at <= now && now.since(*at) <= LONGEST_WAY).unwrap_or(now),
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
    fn a_sender_is_what_the_gateway_says_and_nothing_odd() {
        let now = Millis(1_800_000_000_000);
        for (time, at) in [
            (json!(now.0 - 700), now - Duration::from_millis(700)),
            (json!(now.0 + 1), now),
            (json!(1_583_348_638_390_i64), now),
            (json!("soon"), now),
            (json!(null), now),
        ] {
            let http = json!({"method": "GET", "sourceIp": "192.0.2.1"});
            let event = json!({
                "rawPath": "/oauth/callback",
                "headers": {"user-agent": "Firefox"},
                "requestContext": {"http": http, "timeEpoch": time},
            });
            let request = Request::read(&event.to_string()).expect("a request");
            let sender = Sender::read(&event.to_string(), &request, now);
            let expected = Sender { address: "192.0.2.1".into(), user_agent: "Firefox".into(), arrived_at: at };
            assert_eq!(sender, expected, "{time}");
        }
        let event = json!({"rawPath": "/", "requestContext": {"http": {"method": "GET", "sourceIp": 7}}}).to_string();
        let request = Request::read(&event).expect("a request");
        let nothing = Sender { address: String::new(), user_agent: String::new(), arrived_at: now };
        assert_eq!(Sender::read(&event, &request, now), nothing);
    }

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
