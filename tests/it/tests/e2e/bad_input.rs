//! Every wrong input from outside is answered with an error code of the contract. No function panics, and no data is
//! lost.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use it::outside::{ClientResponse, Setup, System, company, location, route, send, until};
use sandbox::runtime_api::{FunctionError, Invocation};
use sandbox::whole::sha256_hex;
use serde_json::{Value, json};

pub(crate) async fn installed(setup: Setup) -> System {
    let system = System::start(setup).await;
    system.install(&location(1)).await;
    system
}

pub(crate) async fn expect_works(system: &System) {
    let answer = system.get(&location(1), "/echo").await;
    assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
}

pub(crate) fn expect(answer: &ClientResponse, status: u16, code: &str) {
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{answer:?}");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    for trace in ["panicked", "src/", ".rs:", "RUST_BACKTRACE", "aws_sdk", "127.0.0.1"] {
        assert!(!body.contains(trace), "{body}");
    }
}

pub(crate) fn get(path: &str) -> Value {
    json!({ "resource": location(1), "method": "GET", "path": path })
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_limited_to_the_rights_in_their_entries() {
    let keys = [
        "rk_reader_0123456789",
        "rk_contacts_0123456789",
        "rk_one_0123456789",
        "rk_nothing_0123456789",
        "rk_slow_0123456789",
    ];
    let [reader, contacts, one, nothing, slow] = keys;
    let entry = |id: &str, key: &str, more: Value| {
        let mut entry = json!({ "id": id, "keys_sha256": [sha256_hex(key)] });
        more.as_object().expect("members").iter().for_each(|(name, value)| entry[name] = value.clone());
        entry
    };
    let callers = vec![
        entry("reader", reader, json!({ "methods": ["GET", "HEAD"] })),
        entry("contacts", contacts, json!({ "paths": ["/contacts/**"], "resources": ["location:*"] })),
        entry("one", one, json!({ "resources": [format!("location:{}", location(1).id())] })),
        entry("nothing", nothing, json!({ "resources": [], "methods": [], "paths": [] })),
        entry("slow", slow, json!({ "requests_per_10s": 3 })),
    ];
    let system = installed(Setup { callers, ..Setup::default() }).await;
    for key in keys {
        system.tell(key);
    }
    system.install(&location(2)).await;

    let here = |path: &str| route(&location(1), path);
    let before = system.arrived(&location(1));
    for bad in [
        None,
        Some("Bearer wrong-key-0123456789".to_owned()),
        Some(format!("Basic {reader}")),
        Some(format!("Bearer{reader}")),
        Some("Bearer ".to_owned()),
        Some(format!("Bearer {}", sha256_hex(reader))),
        Some(format!("Bearer {reader}x")),
        Some(format!("Bearer {reader}, Bearer {contacts}")),
    ] {
        let request = system.request(Method::GET, &here("/echo"));
        let request = match &bad {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        let answer = send(request).await;
        expect(&answer, 401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer", "{bad:?}");
    }

    let agency = route(&company(), "/companies/x");
    for (key, method, path, status) in [
        (reader, Method::GET, here("/echo"), 200),
        (reader, Method::POST, here("/echo"), 403),
        (reader, Method::GET, here(""), 200),
        (contacts, Method::GET, here("/contacts/"), 200),
        (contacts, Method::POST, here("/contacts/"), 201),
        (contacts, Method::GET, here("/echo"), 403),
        (contacts, Method::GET, here("/contacts/../echo"), 400),
        (contacts, Method::GET, here("/contacts/..;/../echo"), 400),
        (contacts, Method::GET, here("/contactsx"), 403),
        (contacts, Method::GET, agency.clone(), 403),
        (one, Method::GET, here("/echo"), 200),
        (one, Method::GET, route(&location(2), "/echo"), 403),
        (one, Method::GET, route(&location(2), ""), 403),
        (one, Method::GET, agency, 403),
        (nothing, Method::GET, here("/echo"), 403),
        (nothing, Method::GET, here(""), 403),
        (&system.sandbox.caller_key, Method::POST, here("/oauth/token"), 403),
        (&system.sandbox.caller_key, Method::POST, here("/oauth/locationToken"), 403),
    ] {
        // The HTTP client would resolve the dots itself, so such a path is sent as an event of API Gateway.
        let answer = if path.contains("..") {
            event_answer(&system, &path, key).await
        } else {
            let body = if method == Method::POST { "{}" } else { "" };
            let answer = send(system.request(method.clone(), &path).bearer_auth(key).body(body)).await;
            if status == 403 {
                expect(&answer, 403, "forbidden");
            }
            answer.status.into()
        };
        assert_eq!(answer, status, "{key} {method} {path}");
    }
    assert_eq!(system.arrived(&location(1)) - before, 4, "what was refused has sent nothing");

    let mut served = 0;
    for _ in 0..5 {
        let answer = send(system.request(Method::GET, &here("/echo")).bearer_auth(slow)).await;
        if answer.status == 200 {
            served += 1;
        } else {
            expect(&answer, 429, "burst_limited");
            assert!(answer.retry_after() <= Duration::from_secs(11));
            assert_eq!(answer.header("x-ratelimit-max"), "100", "the resource's own limit");
        }
    }
    assert_eq!(served, 3, "a caller's own share");
    expect(&system.get(&location(3), "/echo").await, 404, "not_installed");
    expect(&system.get(&location(9), "").await, 404, "not_installed");
    expect_works(&system).await;
    system.end().await;
}

/// An event as API Gateway sends it, with a path that no HTTP client would send.
fn event(path: &str, key: &str) -> Value {
    json!({
        "version": "2.0", "rawPath": path, "rawQueryString": "", "headers": { "authorization": format!("Bearer {key}") },
        "requestContext": { "stage": "$default", "domainName": "x.example", "http": { "method": "GET", "path": path } },
        "isBase64Encoded": false,
    })
}

async fn event_answer(system: &System, path: &str, key: &str) -> u64 {
    let answer = system.invoke_unqualified(event(path, key).to_string()).await;
    answer["statusCode"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_events_are_answered_with_400() {
    let system = installed(Setup::default()).await;
    let before = system.arrived(&location(1));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!("{{\"resource\":\"{}\"}}", "x".repeat(5 << 20));
    let with = |name: &str, value: Value| {
        let mut request = get("/echo");
        request[name] = value;
        request.to_string()
    };
    for bad in [
        String::new(),
        "not json".to_owned(),
        "\u{fffd}\u{0}".to_owned(),
        "null".to_owned(),
        "7".to_owned(),
        "[]".to_owned(),
        "[1,2]".to_owned(),
        r#"[[{"resource":{"location":"x"},"method":"GET","path":"/"}]]"#.to_owned(),
        r#"[{"location":"x"},"GET","/"]"#.to_owned(),
        "{}".to_owned(),
        deep.clone(),
        huge,
        with("resource", json!({ "location": "../../x" })),
        with("resource", json!({ "team": "x" })),
        with("resource", json!({ "location": "a", "company": "b" })),
        with("method", json!("TRACE")),
        with("method", json!("GET / HTTP/1.1\r\nX: y")),
        with("path", json!("echo")),
        with("path", json!("/../echo")),
        with("path", json!("//evil.example/")),
        with("path", json!("/\\evil.example/")),
        with("path", json!("/echo?x=1")),
        with("query", json!({ "a": { "b": 1 } })),
        with("headers", json!({ "accept": "a\r\nb" })),
        with("body_base64", json!("%")),
        with("wait_ms", json!(-1)),
        with("surprise", json!(1)),
        json!({ "requests": 7 }).to_string(),
        json!({ "requests": vec![get("/echo"); 101] }).to_string(),
    ] {
        let answer = system.invoke(bad.clone(), None).await;
        let short: String = bad.chars().take(80).collect();
        assert_eq!((&answer["status"], &answer["source"]), (&json!(400), &json!("relay")), "{short}: {answer}");
        assert_eq!(answer["body"]["code"], "invalid_request", "{short}: {answer}");
    }
    let mut odd = event("/relay/locations/x/y", &system.sandbox.caller_key);
    odd["requestContext"]["http"] = json!(7);
    for bad in [
        json!({ "rawPath": 7 }),
        json!({ "requestContext": null, "rawPath": "/" }),
        odd,
        event("", ""),
        event("/nothing", "x"),
    ] {
        let answer = system.invoke_unqualified(bad.to_string()).await;
        assert_eq!(
            (&answer["statusCode"], &answer["headers"]["relay-source"]),
            (&json!(400), &json!("relay")),
            "{bad}: {answer}"
        );
    }
    for path in ["/relay/locations/%2e%2e/echo", "/relay/locations/a b/echo", "/relay/locations/x@evil.example/echo"] {
        assert_eq!(event_answer(&system, path, &system.sandbox.caller_key).await, 400, "{path}");
    }
    let listed = json!({ "requests": [[location(1), "GET", "/echo", null, {}, null, null, 0]] });
    let answer = system.invoke(listed.to_string(), None).await;
    assert_eq!(answer["responses"][0]["status"], 400, "a list is no request: {answer}");
    assert_eq!(system.arrived(&location(1)), before, "nothing was sent");

    // An error that quotes much of its request, or a request with too many headers, does not affect the other requests
    // of the batch.
    let mut talkative = get("/echo");
    talkative["wait_ms"] = json!("\\".repeat(1 << 20));
    let mut many = get("/echo");
    many["headers"] = (0..40_000).map(|n| (format!("x-{n}"), json!(""))).collect::<serde_json::Map<_, _>>().into();
    let large = json!({ "resource": location(1), "method": "POST", "path": "/echo", "body": "x".repeat(1 << 20) });
    let batch = json!({ "requests": [talkative, large, many, large, large] });
    let answer = system.invoke(batch.to_string(), None).await;
    let statuses = [0, 1, 2, 3, 4].map(|n| answer["responses"][n]["status"].as_u64());
    assert_eq!(statuses, [400, 200, 400, 200, 200].map(Some), "{answer:.500}");

    // `refresh` answers or reports an error. Its process does not end.
    for bad in ["not json", "7", "[]", r#"{"rawPath":7}"#, r#"{"Records":[7]}"#, deep.as_str()] {
        let answer = system.sandbox.runtime.invoke("refresh", bad.to_owned(), Invocation::default()).await;
        let answered = matches!(answer, Ok(_) | Err(FunctionError::Reported(_)));
        assert!(answered, "refresh does not answer {bad:.20}: {answer:?}");
    }

    // The answer is larger than an invocation can return.
    let large = json!({ "resource": location(1), "method": "POST", "path": "/echo", "body": "x".repeat(5 << 20) });
    let answer = system.invoke(large.to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(413), &json!("payload_too_large")), "{answer}");
    assert_eq!(answer["body"]["platform_status"], 200, "the caller is told that it was carried out");
    expect_works(&system).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_answered_and_wake_nobody() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    let answer = async |function: &str, event: String| {
        let answer = system.sandbox.runtime.invoke(function, event.clone(), Invocation::default()).await;
        let answer = answer.unwrap_or_else(|error| panic!("{function} fails over {event:.200}: {error}"));
        serde_json::from_slice::<Value>(&answer).expect("JSON")
    };
    for (function, method, path, good, content_type) in [
        ("callback", "GET", "/oauth/install", 302, "text/html; charset=utf-8"),
        ("webhook", "POST", "/webhooks/marketplace", 401, "application/json"),
    ] {
        let expect = |status: u64, event: &str, answer: &Value| {
            assert_eq!(answer["statusCode"], status, "{function}, {event:.200}: {answer}");
            if status != 302 {
                assert_eq!(answer["headers"]["content-type"], content_type, "{function}, {event:.200}: {answer}");
            }
            assert!(answer["headers"]["relay-request-id"].is_string(), "{function}, {event:.200}: {answer}");
            assert!(!answer.to_string().contains("evil"), "{function}, {event:.200}: {answer}");
        };
        for (member, value, status) in [
            ("headers", json!({ "host": "evil.example" }), good),
            ("headers", json!({ "Host": "evil b", "x-forwarded-proto": "evil proto" }), good),
            ("headers", json!({ "host": "evil:99999", "x-a\n": "b\r\nc" }), good),
            ("headers", json!({ "host": "[::evil\u{1}" }), good),
            ("cookies", json!(["evil=\u{1}", "=;\"<>", "é"]), good),
            ("body", json!("\u{feff}evil\u{0}"), good),
            ("rawQueryString", json!("x=%22%3Cevil%zz"), good),
            ("rawQueryString", json!("evil=\""), 400),
            ("rawQueryString", json!("<evil>"), 400),
            ("rawQueryString", json!("evil b"), 400),
            ("rawQueryString", json!("evil#b"), 400),
            ("rawQueryString", json!("evil".repeat(100_000)), 400),
            ("rawPath", json!("evil"), 400),
            ("rawPath", json!("@evil.example:x/"), 400),
            ("rawPath", json!("/\\evil\u{0}?#%\"<>/.."), 404),
            ("rawPath", json!(format!("//evil.example{path}")), 404),
            ("rawPath", json!(format!("/x/..{path}")), 404),
            (
                "headers",
                (0..40_000).map(|n| (format!("x-{n}"), json!(""))).collect::<serde_json::Map<_, _>>().into(),
                400,
            ),
            ("isBase64Encoded", json!("evil"), 400),
        ] {
            let mut event = json!({
                "version": "2.0", "rawPath": path, "rawQueryString": "", "headers": {}, "isBase64Encoded": false,
                "requestContext": { "stage": "$default", "domainName": "x.example", "http": { "method": method, "path": path } },
            });
            event[member] = value;
            let event = event.to_string();
            expect(status, &event, &answer(function, event.clone()).await);
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let base64 = r#"{"rawPath":"/","requestContext":{"http":{"method":"GET"}},"body":"%","isBase64Encoded":true}"#;
        for event in ["not json", "7", "null", "[]", "{}", r#"{"rawPath":7}"#, base64, deep.as_str()] {
            expect(400, event, &answer(function, event.to_owned()).await);
        }
    }
    for line in system.sandbox.logs.lines() {
        let is_error = serde_json::from_str::<Value>(&line.line).is_ok_and(|line| line["level"] == "ERROR");
        assert!(!is_error && !line.line.contains("panicked"), "{}: {}", line.worker, line.line);
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_with_503_while_the_store_is_gone_and_work_again_afterwards() {
    let system = installed(Setup { relays: 4, ..Setup::default() }).await;
    expect_works(&system).await;
    let before = (system.arrived(&location(1)), system.refreshes());
    system.store.cut();
    let here = location(1);
    for answer in join_all((0..8).map(|_| system.get(&here, "/echo"))).await {
        expect(&answer, 503, "store_unavailable");
        assert!(answer.retry_after() <= Duration::from_secs(30));
    }
    expect(&system.get(&here, "").await, 503, "store_unavailable");
    assert!(system.refresh(&json!({})).await.is_err(), "a tick that can read nothing says so");
    assert_eq!((system.arrived(&here), system.refreshes()), before, "nothing is sent blind");
    // A granted pair is kept on the rescue queue.
    let back = callback(&system);
    assert_eq!(system.browse(&back, None).await.status, 303);
    assert_eq!(system.sandbox.queue.sent(), 1);

    system.store.mend();
    expect_works(&system).await;
    assert!(until(|| system.sandbox.queue.messages().is_empty()).await, "it is stored once that is possible");
    assert!(system.sandbox.queue.dead_letters().is_empty());
    assert_eq!(system.get(&location(2), "/echo").await.status, 200);
    system.sandbox.marketplace.expire_access_tokens();
    expect_works(&system).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_code_is_presented_while_the_store_is_gone() {
    let environment = vec![("RESCUE_QUEUE_URL", String::new())];
    let system = System::start(Setup { relays: 1, environment, ..Setup::default() }).await;
    system.store.cut();
    let back = callback(&system);
    let page = system.browse(&back, None).await;
    assert_eq!(page.status, 503, "{page:?}");
    assert!(page.header("retry-after").parse::<u32>().is_ok(), "{page:?}");
    system.store.mend();
    assert_eq!(system.browse(&back, None).await.status, 303, "it can still be used");
    assert_eq!(system.get(&location(2), "/echo").await.status, 200);
    system.end().await;
}

/// The URL to which the platform redirects a browser after consent for the second location.
fn callback(system: &System) -> String {
    let code = system.sandbox.marketplace.authorize(location(2));
    format!("{}/oauth/callback?code={code}", system.sandbox.gateway.url())
}
