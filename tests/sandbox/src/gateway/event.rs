//! The event (payload 2.0) that API Gateway builds from a request.
//!
//! Some details of the format matter to a relay and are easily missed. The path of the event is *decoded* and ends at a
//! decoded question mark, while the query string stays as the client sent it. A body is text only for a few content
//! types, so a form, or a body without a content type, arrives as base64. Cookies are not among the headers, but in a
//! separate list. (Function URLs use the same payload, but keep the path encoded.)

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, Method, Uri, header};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::process::ACCOUNT;

/// A request as the gateway received it.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target, not decoded.
    pub uri: &'a Uri,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Body.
    pub body: &'a [u8],
    /// Address of the client.
    pub peer: IpAddr,
}

/// The identity of a signer. The sandbox uses the access key id as the name of the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iam {
    access_key: String,
}

impl Iam {
    /// Returns the owner of an access key whose signature was checked.
    pub fn of(access_key: String) -> Self {
        Self { access_key }
    }

    /// Returns the ARN of the session that the signer is given.
    pub fn user_arn(&self) -> String {
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/sandbox", self.access_key)
    }

    fn context(&self) -> Value {
        let session = format!("AROASANDBOX:{}", self.access_key);
        json!({ "iam": {
            "accessKey": self.access_key,
            "accountId": ACCOUNT,
            "callerId": session,
            "cognitoIdentity": null,
            "principalOrgId": "o-sandbox",
            "userArn": self.user_arn(),
            "userId": session,
        }})
    }
}

/// Builds the event of a request.
pub fn of(incoming: &Incoming<'_>, route_key: &str, parameters: &BTreeMap<String, String>, iam: Option<&Iam>) -> Value {
    let Incoming { method, uri, headers, body, peer } = *incoming;
    let path = decoded_path(uri.path());
    let host = text(headers, &header::HOST).unwrap_or_default();
    let domain = host.rsplit_once(':').map_or(host, |(domain, _port)| domain);
    let now = OffsetDateTime::now_utc();
    let mut context = json!({
        "routeKey": route_key,
        "accountId": ACCOUNT,
        "stage": "$default",
        "requestId": shared::domain::random::hex::<8>(),
        "apiId": "sandbox",
        "domainName": domain,
        "domainPrefix": domain.split('.').next(),
        "time": common_log_time(now),
        "timeEpoch": now.unix_timestamp() * 1000 + i64::from(now.millisecond()),
        "http": {
            "method": method.as_str(),
            "path": path,
            "protocol": "HTTP/1.1",
            "sourceIp": peer.to_string(),
            "userAgent": text(headers, &header::USER_AGENT).unwrap_or_default(),
        },
    });
    if let Some(iam) = iam {
        context["authorizer"] = iam.context();
    }
    let mut event = json!({
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": path,
        "rawQueryString": uri.query().unwrap_or_default(),
        "headers": joined(headers, host, peer),
        "requestContext": context,
        "isBase64Encoded": false,
    });
    let cookies: Vec<&str> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split("; "))
        .collect();
    if !cookies.is_empty() {
        event["cookies"] = json!(cookies);
    }
    if let Some(query) = uri.query().filter(|query| !query.is_empty()) {
        event["queryStringParameters"] = query_parameters(query);
    }
    if !parameters.is_empty() {
        event["pathParameters"] = json!(parameters);
    }
    if !body.is_empty() {
        match std::str::from_utf8(body) {
            Ok(text) if is_text(headers) => event["body"] = json!(text),
            _ => {
                event["body"] = json!(STANDARD.encode(body));
                event["isBase64Encoded"] = json!(true);
            }
        }
    }
    event
}

/// Formats a time such as `23/Nov/2026:14:00:11 +0000`.
fn common_log_time(at: OffsetDateTime) -> String {
    let month = &at.month().to_string()[..3];
    let (hour, minute, second) = at.to_hms();
    format!("{:02}/{month}/{}:{hour:02}:{minute:02}:{second:02} +0000", at.day(), at.year())
}

fn decoded_path(path: &str) -> String {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    decoded.split('?').next().unwrap_or_default().to_owned()
}

/// Returns the headers of the event. Names are in lower case, as always in the `http` crate, and several values are
/// joined by commas. Cookies and the headers of the connection are left out.
fn joined(headers: &HeaderMap, host: &str, peer: IpAddr) -> Value {
    const OF_THE_CONNECTION: [HeaderName; 5] =
        [header::COOKIE, header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE];
    let mut map = Map::new();
    for name in headers.keys().filter(|name| !OF_THE_CONNECTION.contains(name)) {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        map.insert(name.to_string(), json!(values.join(",")));
    }
    let came_through = map.get("x-forwarded-for").and_then(Value::as_str).map(|came| format!("{came}, {peer}"));
    map.insert("x-forwarded-for".to_owned(), json!(came_through.unwrap_or_else(|| peer.to_string())));
    map.insert("x-forwarded-proto".to_owned(), json!("http"));
    map.insert("x-forwarded-port".to_owned(), json!(host.rsplit_once(':').map_or("80", |(_, port)| port)));
    Value::Object(map)
}

fn query_parameters(query: &str) -> Value {
    let mut joined: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        joined
            .entry(name.into_owned())
            .and_modify(|known| {
                known.push(',');
                known.push_str(&value);
            })
            .or_insert_with(|| value.to_string());
    }
    json!(joined)
}

/// Returns true if the body is text. The content types were observed on the real service; its documentation only says
/// "binary".
fn is_text(headers: &HeaderMap) -> bool {
    let content_type = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || matches!(essence.as_str(), "application/json" | "application/xml" | "application/javascript")
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn event(target: &str, headers: &[(&'static str, &'static str)], body: &[u8]) -> Value {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let uri: Uri = target.parse().expect("a target");
        let peer = IpAddr::from([127, 0, 0, 1]);
        let incoming = Incoming { method: &Method::POST, uri: &uri, headers: &map, body, peer };
        of(&incoming, "ANY /api/{path+}", &BTreeMap::new(), Some(&Iam::of("billing".to_owned())))
    }

    #[test]
    fn the_query_stays_as_it_was_and_the_path_does_not() {
        let event = event("/api/a%20b/%C3%A9%3Fcut?tag=a&tag=b%2Cc&empty=&x=%F0%9F%8C%B2+y", &[], b"");
        assert_eq!(event["rawPath"], "/api/a b/é");
        assert_eq!(event["rawQueryString"], "tag=a&tag=b%2Cc&empty=&x=%F0%9F%8C%B2+y");
        assert_eq!(event["queryStringParameters"]["tag"], "a,b,c");
        assert_eq!(event["queryStringParameters"]["x"], "🌲 y");
        assert_eq!(event.get("body"), None);
    }

    #[test]
    fn headers_are_joined_and_cookies_moved() {
        let headers =
            [("host", "127.0.0.1:7000"), ("cookie", "a=1; b=2"), ("cookie", "c=3"), ("x-tag", "one"), ("x-tag", "two")];
        let event = event("/api/x", &headers, b"");
        assert_eq!(event["headers"]["x-tag"], "one,two");
        assert_eq!(event["headers"].get("cookie"), None);
        assert_eq!(event["cookies"], json!(["a=1", "b=2", "c=3"]));
        assert_eq!(event["requestContext"]["domainName"], "127.0.0.1");
        assert_eq!(event["requestContext"]["stage"], "$default");
    }

    #[test]
    fn only_a_few_content_types_are_text() {
        for (content_type, body, base64) in [
            ("application/json; charset=utf-8", &b"{}"[..], false),
            ("text/plain", b"x", false),
            ("text/plain", b"\xff", true),
            ("application/x-www-form-urlencoded", b"a=1", true),
            ("application/problem+json", b"{}", true),
            ("application/octet-stream", b"x", true),
        ] {
            let event = event("/api/x", &[("content-type", content_type)], body);
            assert_eq!(event["isBase64Encoded"], base64, "{content_type}");
            let expected = if base64 { STANDARD.encode(body) } else { String::from_utf8_lossy(body).into_owned() };
            assert_eq!(event["body"], expected, "{content_type}");
        }
        assert_eq!(event("/api/x", &[], b"x")["isBase64Encoded"], true, "without a content type");
    }

    #[test]
    fn a_signature_names_its_role() {
        let event = event("/iam/relay/locations/L1/x", &[], b"");
        let arn = &event["requestContext"]["authorizer"]["iam"]["userArn"];
        assert_eq!(arn, "arn:aws:sts::000000000000:assumed-role/billing/sandbox");
    }
}
