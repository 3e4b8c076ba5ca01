//! Random events: no event panics, and an accepted request goes to the platform only.
//!
//! `PROPTEST_CASES=1000000 cargo test --workspace --lib -- fuzz` tries more of them.

use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::request::path::{Path, Query, target_uri};
use url::Url;

use crate::event::EventKind;
use crate::gateway::{HttpEvent, Route};
use crate::{direct, http};

/// Pieces of paths, queries, headers and JSON with a special meaning.
const PIECES: [&str; 44] = [
    "/",
    "//",
    "\\",
    "..",
    ".",
    "%2e",
    "%2f",
    "%5c",
    "%25",
    "%00",
    "%",
    "\t",
    "\0",
    "\r\n",
    "@",
    ":",
    "?",
    "#",
    "&",
    "=",
    ";",
    " ",
    "a",
    "ä",
    "\u{2028}",
    "\u{ff0f}",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "L1",
    "relay",
    "locations",
    "companies",
    "api",
    "iam",
    "oauth",
    "locationId",
    "locationId=L1",
    "prod",
    "null",
    "1e999",
    "evil.example",
];

fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..10).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

fn routed() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec!["", "/relay/locations/L1", "/iam/relay/companies/C1", "/api", "/prod/api"]);
    (start, odd()).prop_map(|(start, rest)| format!("{start}{rest}"))
}

/// Any JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        odd().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null)
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(odd(), inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn expect_within_platform(path: &Path, query: &Query) {
    let base = Url::parse("https://platform.example:8443/base").expect("a URL");
    let uri = target_uri(&base, path, query).expect("what is accepted can be sent");
    assert_eq!(uri.authority().map(ToString::to_string).as_deref(), Some("platform.example:8443"));
    let url = Url::parse(&uri.to_string()).expect("a URL by the other standard, too");
    assert_eq!((url.host_str(), url.port()), (Some("platform.example"), Some(8443)));
    assert_eq!(url.path(), uri.path(), "nothing is folded");
    assert!(url.path().starts_with("/base/"), "{url}");
}

fn expect_no_escape(event: &HttpEvent) {
    let path = match event.route() {
        Route::Relay { path, .. } | Route::Api { path } => Path::parse(path),
        Route::Status { .. } | Route::Unknown => return,
    };
    let Ok(path) = path else { return };
    if let Ok(request) = http::untargeted(path, event.clone()) {
        expect_within_platform(&request.path, &request.query);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(500)))]

    #[test]
    fn events_of_the_gateway(
        path in routed(), query in odd(), name in odd(), value in odd(), body in odd(), base64 in any::<bool>(),
        method in prop_oneof![Just("POST".to_owned()), odd()],
    ) {
        let event = json!({
            "version": "2.0", "rawPath": path, "rawQueryString": query, "headers": { name: value }, "body": body,
            "isBase64Encoded": base64, "requestContext": { "stage": "prod", "http": { "method": method } },
        });
        expect_no_escape(&HttpEvent::read(&event.to_string()).expect("each member is what it should be"));
    }

    #[test]
    fn direct_invocations(
        path in prop_oneof![Just("/x".to_owned()), odd()], query in any_json(), headers in any_json(), body in any_json(),
        wait in any::<i64>(), member in odd(), more in any_json(), with_more in any::<bool>(),
    ) {
        let mut event = json!({
            "resource": { "location": "L1" }, "method": "POST", "path": path, "query": query, "headers": headers,
            "body": body, "wait_ms": wait,
        });
        if with_more {
            event[member] = more;
        }
        let raw = serde_json::value::to_raw_value(&event).expect("JSON");
        let _either = EventKind::of(&raw);
        if let Ok(request) = direct::read(&raw) {
            expect_within_platform(&request.path, &request.query);
        }
    }

    #[test]
    fn anything_else(text in odd(), json in any_json()) {
        for text in [text, json.to_string()] {
            let Ok(raw) = RawValue::from_string(text) else { continue };
            let _either = EventKind::of(&raw);
            let _refused_or_not = direct::read(&raw);
            if let Ok(event) = HttpEvent::read(raw.get()) {
                expect_no_escape(&event);
            }
        }
    }
}
