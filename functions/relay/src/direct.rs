//! Direct invocations by other functions: one request, or a batch of up to a hundred.

use ::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use ::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lambda_runtime::LambdaEvent;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::caller::Identity;
use shared::domain::problem::Problem;
use shared::domain::qualifier::InvocationKind;
use shared::domain::resource::Resource;
use shared::lambda::serve::is_object;
use shared::relay::answer::{Answer, AnswerSource};
use shared::relay::headers::drop_untrue_encoding;
use shared::relay::idempotent::fingerprint;
use shared::relay::refused::Refused;
use shared::relay::{Invocation, Relay};
use shared::request::idempotency_key::{IdempotencyKey, MalformedKey};
use shared::request::path::{Path, Query};
use shared::request::{self, Request};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::event::EventKind;
use crate::pairs::Pairs;
use crate::size::{Room, too_large};

/// The most requests of a batch.
const MOST: usize = 100;
/// The most requests of a batch that are under way at once.
const AT_ONCE: usize = 16;
/// The time after which a repeat in a batch may be tried again.
const AFTER_THE_BATCH: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    requests: Vec<Box<RawValue>>,
}

/// The member that makes an event a batch.
#[derive(Deserialize)]
struct Marks {
    requests: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with resource, method and path")]
struct RequestJson {
    resource: Resource,
    method: String,
    path: String,
    query: Option<Box<RawValue>>,
    headers: Option<Pairs>,
    body: Option<Box<RawValue>>,
    body_base64: Option<String>,
    wait_ms: Option<u64>,
    idempotency_key: Option<String>,
}

#[derive(Serialize)]
struct ResponseJson {
    status: u16,
    source: &'static str,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Answers a direct invocation.
pub async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    let invocation = EventKind::Direct.invocation(&event.context, relay.now());
    let direct = Direct { relay, arn: &event.context.invoked_function_arn, invocation: &invocation };
    let payload = event.payload.get();
    let is_batch = serde_json::from_str::<Marks>(payload).is_ok_and(|marks| marks.requests.is_some());
    if !is_batch {
        return direct.one(read(&event.payload), &Room::for_one()).await;
    }
    let batch =
        serde_json::from_str(payload).map_err(|e| Problem::invalid_request(format!("the batch is malformed: {e}")));
    match batch {
        Ok(Batch { requests }) if requests.len() <= MOST => direct.several(&requests).await,
        Ok(_) => direct.refuse(&Problem::invalid_request(format!("a batch has at most {MOST} requests")).into()),
        Err(problem) => direct.refuse(&problem.into()),
    }
}

struct Direct<'a> {
    relay: &'a Relay,
    arn: &'a str,
    invocation: &'a Invocation,
}

impl Direct<'_> {
    async fn several(&self, requests: &[Box<RawValue>]) -> Box<RawValue> {
        let room = Room::for_batch();
        let requests = requests.iter().map(|request| read(request)).collect();
        let calls: Vec<_> = self.keys_once(requests).into_iter().map(|request| self.one(request, &room)).collect();
        let answers: Vec<_> = stream::iter(calls).buffered(AT_ONCE).collect().await;
        raw(&BTreeMap::from([("responses", answers)]))
    }

    /// Refuses each request whose idempotency key an earlier request of the batch has, so that the answer does not depend
    /// on the time that the earlier one takes.
    fn keys_once(&self, requests: Vec<Result<Request, Refused>>) -> Vec<Result<Request, Refused>> {
        let mut earlier = HashMap::new();
        let mut once = |request: Request| {
            let Some(key) = &request.idempotency_key else { return Ok(request) };
            let (place, fingerprint) = ((request.resource.clone(), key.as_str().to_owned()), fingerprint(&request));
            match earlier.get(&place) {
                None => {
                    earlier.insert(place, fingerprint);
                    Ok(request)
                }
                Some(first) if *first == fingerprint => {
                    let now = self.relay.now();
                    Err(Refused::by_request_in_progress(now + AFTER_THE_BATCH, now))
                }
                Some(_) => Err(Refused::by_other_request()),
            }
        };
        requests.into_iter().map(|request| request.and_then(&mut once)).collect()
    }

    async fn one(&self, request: Result<Request, Refused>, room: &Room) -> Box<RawValue> {
        let answer = match self.relay.in_time(self.invocation, Box::pin(self.relayed(request))).await {
            Ok(answer) => answer,
            Err(refused) => return self.refuse(&refused),
        };
        let rendered = render(&answer);
        if room.takes(&rendered) || answer.source == AnswerSource::Relay {
            return rendered;
        }
        self.refuse(&too_large(answer.status).into())
    }

    async fn relayed(&self, request: Result<Request, Refused>) -> Result<Answer, Refused> {
        let request = request?;
        self.relay.check_invocation_kind(InvocationKind::Direct, self.arn)?;
        let callers = self.relay.callers().await?;
        let authorized = callers.authenticate(Identity::Invocation(self.arn))?.authorize(request)?;
        Ok(self.relay.call(&authorized, self.invocation).await)
    }

    fn refuse(&self, refused: &Refused) -> Box<RawValue> {
        render(&self.relay.refuse(refused, self.invocation))
    }
}

/// Reads one request.
pub(crate) fn read(raw: &RawValue) -> Result<Request, Refused> {
    if !is_object(raw) {
        return Err(Problem::invalid_request("the request is malformed: it is no object").into());
    }
    let written: RequestJson = serde_json::from_str(raw.get())
        .map_err(|e| Problem::invalid_request(format!("the request is malformed: {e}")))?;
    let method = request::method(&written.method)
        .ok_or_else(|| Problem::invalid_request("the relay does not offer this method"))?;
    let path = Path::parse(&written.path)?;
    let query = written.query.as_deref().map_or_else(|| Ok(Query::default()), query)?;
    let Pairs(pairs) = written.headers.unwrap_or_default();
    let mut headers = crate::headers::read(pairs.iter().map(|(n, v)| (&**n, &**v)), &path)?;
    let body = body(written.body, written.body_base64, &mut headers)?;
    drop_untrue_encoding(&mut headers, &body);
    let wait = Duration::from_millis(written.wait_ms.unwrap_or_default());
    let idempotency_key = idempotency_key(written.idempotency_key.as_deref(), &headers)?;
    Ok(Request { query, headers, body, wait, idempotency_key, ..Request::new(written.resource, method, path) })
}

/// The key in the member, in the header, or the same key in both.
fn idempotency_key(member: Option<&str>, headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Refused> {
    let header = IdempotencyKey::of_headers(headers)?;
    let Some(member) = member else { return Ok(header) };
    let member = IdempotencyKey::parse(member)?;
    if header.is_some_and(|header| header != member) {
        return Err(MalformedKey::Several.into());
    }
    Ok(Some(member))
}

/// Reads a query: a string, with or without its question mark, or an object of names and values.
fn query(written: &RawValue) -> Result<Query, Refused> {
    let malformed = |error| Problem::invalid_request(format!("query is malformed: {error}"));
    if written.get().starts_with('"') {
        let raw: String = serde_json::from_str(written.get()).map_err(malformed)?;
        return Ok(Query::parse(raw.strip_prefix('?').unwrap_or(&raw))?);
    }
    let Pairs(pairs) = serde_json::from_str(written.get()).map_err(malformed)?;
    Ok(Query::from_pairs(pairs.iter().map(|(n, v)| (&**n, &**v)))?)
}

/// The bytes of a body. JSON is sent byte for byte; if the caller named no content type, it gets the one of JSON.
fn body(json: Option<Box<RawValue>>, base64: Option<String>, headers: &mut HeaderMap) -> Result<Bytes, Problem> {
    match (json, base64) {
        (Some(_), Some(_)) => Err(Problem::invalid_request("a request has body or body_base64, not both")),
        (None, None) => Ok(Bytes::new()),
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|_| Problem::invalid_request("body_base64 is not base64"))?;
            Ok(bytes.into())
        }
        (Some(json), None) => {
            if let Ok(text) = serde_json::from_str::<String>(json.get()) {
                return Ok(text.into());
            }
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            Ok(Box::<str>::from(json).into_string().into())
        }
    }
}

/// Renders an answer for a direct invocation: JSON byte for byte, text as a string, and anything else in base64.
fn render(answer: &Answer) -> Box<RawValue> {
    let (body, body_base64) = json_body(answer);
    let (status, source) = (answer.status.as_u16(), answer.source.as_str());
    raw(&ResponseJson { status, source, headers: header_texts(&answer.headers), body, body_base64 })
}

/// The members `body` and `body_base64` of an answer.
pub(crate) fn json_body(answer: &Answer) -> (Option<Box<RawValue>>, Option<String>) {
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| !answer.headers.contains_key(CONTENT_ENCODING));
    let body = text.map(|text| match is_json(&answer.headers).then(|| RawValue::from_string(text.to_owned())) {
        Some(Ok(json)) => json,
        _ => raw(&text),
    });
    let body_base64 = body.is_none().then(|| STANDARD.encode(&answer.body));
    (body, body_base64)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// Headers in the form of payload 2.0 and of direct invocations: repeated headers are joined with commas (RFC 9110 section
/// 5.2).
pub(crate) fn header_texts(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        texts
            .entry(name.as_str().to_owned())
            .and_modify(|text| {
                text.push_str(", ");
                text.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    texts
}

/// Serializes a value. It has only strings, numbers and string keys, so this cannot fail.
pub(crate) fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("strings, numbers and string keys are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{Method, StatusCode};
    use shared::domain::problem::Code;

    fn request(json: &str) -> Result<Request, Refused> {
        read(&serde_json::from_str::<Box<RawValue>>(json).expect("JSON"))
    }

    #[test]
    fn a_documented_request_is_read() {
        let read = request(
            r#"{"resource":{"location":"L1"},"method":"POST","path":"/contacts/","query":{"limit":"20","tag":["a b","c"]},
            "headers":{"Version":"v3","X":["1","2"]},"body":{"b" : 1.0, "a":"\u00e4"},"wait_ms":1500}"#,
        )
        .expect("complete");
        assert_eq!((read.resource.to_string().as_str(), &read.method), ("location:L1", &Method::POST));
        assert_eq!((read.path.as_str(), read.query.as_str()), ("/contacts/", Some("limit=20&tag=a%20b&tag=c")));
        assert_eq!(read.body, r#"{"b" : 1.0, "a":"\u00e4"}"#, "byte for byte");
        assert_eq!(
            (&read.headers["version"], &read.headers["content-type"]),
            (&"v3".parse().expect("a value"), &"application/json".parse().expect("a value"))
        );
        assert_eq!(read.headers.get_all("x").iter().count(), 2);
        assert_eq!(read.wait, Duration::from_millis(1_500));
        let least = request(r#"{"resource":{"company":"C1"},"method":"GET","path":"/x","query":"a=%2F&a=b+c"}"#)
            .expect("the least");
        assert_eq!((least.query.as_str(), least.body.len(), least.headers.len()), (Some("a=%2F&a=b+c"), 0, 0));
    }

    #[test]
    fn a_key_is_a_member_or_a_header() {
        let of = |members: &str| {
            let json = format!(r#"{{"resource":{{"location":"L1"}},"method":"POST","path":"/x"{members}}}"#);
            request(&json).map(|read| read.idempotency_key.map(|key| key.as_str().to_owned()))
        };
        for (members, key) in [
            ("", None),
            (r#","idempotency_key":null"#, None),
            (r#","idempotency_key":"k""#, Some("k")),
            (r#","headers":{"Idempotency-Key":"k"}"#, Some("k")),
            (r#","idempotency_key":"k","headers":{"idempotency-key":"k"}"#, Some("k")),
        ] {
            assert_eq!(of(members).expect(members).as_deref(), key, "{members}");
        }
        for members in [
            r#","idempotency_key":"""#,
            r#","idempotency_key":"a b""#,
            r#","idempotency_key":7"#,
            r#","headers":{"Idempotency-Key":""}"#,
            r#","headers":{"Idempotency-Key":["k","k"]}"#,
            r#","idempotency_key":"k","headers":{"idempotency-key":"l"}"#,
        ] {
            assert_eq!(of(members).expect_err(members).problem.code, Code::InvalidRequest, "{members}");
        }
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        let read = request(
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","query":null,"headers":null,"body":null,
            "body_base64":null,"wait_ms":null}"#,
        )
        .expect("as if none of them were there");
        assert_eq!((read.query.as_str(), read.headers.len(), read.body.len(), read.wait), (None, 0, 0, Duration::ZERO));
    }

    #[test]
    fn queries_are_text_or_names_and_values() {
        let of = |query: &str| {
            request(&format!(r#"{{"resource":{{"location":"L1"}},"method":"GET","path":"/x","query":{query}}}"#))
        };
        for (query, expected) in [
            (r#""?a=1""#, Some("a=1")),
            (r#""??a=1""#, Some("?a=1")),
            (r#""?""#, None),
            (
                r#"{"lat":1.5,"big":12345678901234567890123,"on":true}"#,
                Some("lat=1.5&big=12345678901234567890123&on=true"),
            ),
        ] {
            assert_eq!(of(query).expect(query).query.as_str(), expected, "{query}");
        }
        let refused = of(r#"{"limit":null}"#).map(|_| ()).expect_err("null is no text");
        let detail = serde_json::to_string(&refused.problem.detail).expect("text");
        assert!(detail.contains("query") && detail.contains("limit") && detail.contains("null"), "{detail}");
    }

    #[test]
    fn an_odd_header_that_goes_nowhere_is_ignored() {
        for headers in [r#"{"a b":"c"}"#, r#"{"a":"b\r\nc: d"}"#, r#"{"cookie":"\u0001"}"#] {
            let json = format!(r#"{{"resource":{{"location":"L1"}},"method":"GET","path":"/x","headers":{headers}}}"#);
            assert!(request(&json).expect(headers).headers.is_empty(), "{headers}");
        }
    }

    #[test]
    fn bodies_are_text_or_bytes() {
        let of =
            |body: &str| request(&format!(r#"{{"resource":{{"location":"L1"}},"method":"PUT","path":"/x",{body}}}"#));
        let text = of(r#""body":"a\u0000ü""#).expect("text");
        assert_eq!((&text.body[..], text.headers.len()), ("a\0ü".as_bytes(), 0));
        assert_eq!(&of(r#""body_base64":"AP8=""#).expect("bytes").body[..], [0, 255]);
        assert_eq!(&of(r#""body":null"#).expect("none").body[..], b"");
        assert_eq!(&of(r#""body":[1, 2]"#).expect("JSON").body[..], b"[1, 2]");
        let encoded = of(r#""body":{"a":1},"headers":{"Content-Encoding":"gzip"}"#).expect("JSON");
        assert!(!encoded.headers.contains_key(CONTENT_ENCODING), "the body is not encoded");
        let encoded = of(r#""body_base64":"H4sIAA==","headers":{"Content-Encoding":"gzip"}"#).expect("bytes");
        assert!(encoded.headers.contains_key(CONTENT_ENCODING));
        assert!(of(r#""body":"a","body_base64":"AA==""#).is_err());
        assert!(of(r#""body_base64":"%""#).is_err());
    }

    /// A request with more headers than a `HeaderMap` can hold. `HeaderMap::append` panics on these.
    fn with_headers(count: usize) -> String {
        let headers: Vec<_> = (0..count).map(|n| format!(r#""x-{n}":"""#)).collect();
        format!(r#"{{"resource":{{"location":"L1"}},"method":"GET","path":"/x","headers":{{{}}}}}"#, headers.join(","))
    }

    #[test]
    fn a_malformed_request_is_refused_as_invalid() {
        for json in [
            "null",
            "7",
            "[]",
            "{}",
            r#"{"resource":{"location":"L1"},"method":"GET"}"#,
            r#"{"resource":{"location":"../x"},"method":"GET","path":"/x"}"#,
            r#"{"resource":{"location":"L1","company":"C1"},"method":"GET","path":"/x"}"#,
            r#"{"resource":{"location":"L1"},"method":"get","path":"/x"}"#,
            r#"{"resource":{"location":"L1"},"method":"TRACE","path":"/x"}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"//x"}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","query":7}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","query":"a#b"}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","headers":{"accept":"b\r\nc: d"}}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","wait_ms":-1}"#,
            r#"{"resource":{"location":"L1"},"method":"GET","path":"/x","waitMs":1}"#,
            &with_headers(40_000),
        ] {
            let refused = request(json).map(|_| ()).expect_err(json);
            assert_eq!(refused.problem.code, Code::InvalidRequest, "{json}");
        }
    }

    #[test]
    fn answers_are_json_text_or_bytes() {
        let answer = |content_type: &'static str, encoding: Option<&'static str>, body: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            encoding.map(|e| headers.insert(CONTENT_ENCODING, HeaderValue::from_static(e)));
            let status = StatusCode::OK;
            render(&Answer { status, source: AnswerSource::Platform, headers, body: Bytes::from_static(body) })
                .get()
                .to_owned()
        };
        for (content_type, encoding, body, expected) in [
            ("application/json; charset=utf-8", None, &b"{\"b\" : 1.0}"[..], r#""body":{"b" : 1.0}"#),
            ("application/problem+json", None, b"null", r#""body":null"#),
            ("application/json", None, b"{broken", r#""body":"{broken""#),
            ("application/json", None, b"", r#""body":"""#),
            ("text/plain", None, b"{}", r#""body":"{}""#),
            ("application/json", Some("gzip"), b"{}", r#""body_base64":"e30=""#),
            ("image/png", None, b"\x89P", r#""body_base64":"iVA=""#),
            ("application/json", None, b"\xff", r#""body_base64":"/w==""#),
        ] {
            let rendered = answer(content_type, encoding, body);
            assert!(rendered.ends_with(&format!("{expected}}}")), "{content_type}: {rendered}");
            assert_eq!(rendered.matches("body").count(), 1, "{rendered}");
        }
        assert!(
            answer("text/plain", None, b"")
                .starts_with(r#"{"status":200,"source":"platform","headers":{"content-type":"text/plain"}"#)
        );
    }

    #[test]
    fn several_headers_of_a_name_are_one() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("link", "<a>"), ("vary", "x"), ("link", "<b>")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let expected = [("link", "<a>, <b>"), ("vary", "x")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(header_texts(&headers), BTreeMap::from(expected));
    }
}
