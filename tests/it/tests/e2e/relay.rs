//! The relay passes requests and answers on unchanged, for every way in which a request can reach the relay.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use it::outside::{ClientResponse, Setup, System, company, location, route, send};
use sandbox::gateway::signature::Signable;
use sandbox::whole::sha256_hex;
use serde_json::{Value, json};

/// JSON that every JSON reader and writer would change: spaces, order, digits of a number, an escape, a repeated name.
const JSON: &str = "{ \"z\" :1.10, \"a\":\"\\u00e9\\/\",\n \"big\": 12345678901234567890123, \"z\": [ ] }";
/// A query with every part that a careless parser changes.
const QUERY: &str = "tag=a&tag=b%2Cc&tag=&empty=&flag&plus=a+b&enc=%E2%9C%93%20%26%3D&lower=%2f&&tag=a";

async fn system() -> System {
    let callers = vec![
        json!({
            "id": "billing", "aliases": ["billing"], "methods": ["GET"], "resources": ["location:*"],
            "principals": ["arn:aws:sts::*:assumed-role/billing/*"],
        }),
        json!({ "id": "twin", "keys_sha256": [sha256_hex("rk_old_key_of_twin"), sha256_hex("rk_new_key_of_twin")] }),
    ];
    let system = System::start(Setup { relays: 2, callers, ..Setup::default() }).await;
    system.tell("rk_old_key_of_twin");
    system.tell("rk_new_key_of_twin");
    system.install(&location(1)).await;
    system
}

/// Signs a request with AWS credentials. The sandbox takes the access key for a role's name.
pub(crate) fn sign(role: &str, mut request: reqwest::Request) -> reqwest::RequestBuilder {
    let authority = request.url().authority().to_owned();
    request.headers_mut().insert("host", authority.parse().expect("a value"));
    let (method, uri) =
        (request.method().clone(), request.url()[url::Position::BeforePath..].parse().expect("a target"));
    let signable = Signable { method: &method, uri: &uri, headers: request.headers(), body: b"" };
    for (name, value) in signable.signed(role, SystemTime::now()).expect("signed") {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    reqwest::RequestBuilder::from_parts(reqwest::Client::new(), request)
}

/// The platform's echo of the request. Panics if the answer is not the platform's own.
fn echoed(answer: &ClientResponse) -> Value {
    assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    answer.json()
}

fn body_of(echo: &Value) -> Vec<u8> {
    STANDARD.decode(echo["body_base64"].as_str().expect("a body")).expect("base64")
}

fn header_of<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().expect("headers").iter();
    headers.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}

fn every_byte() -> Vec<u8> {
    (0..=255).chain((0..=254).rev()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http() {
    let system = system().await;
    let here = |path: &str| route(&location(1), path);

    let echo = echoed(&system.get(&location(1), &format!("/echo/a-b/c.d/?{QUERY}")).await);
    assert_eq!(
        (&echo["method"], &echo["path"], &echo["query"]),
        (&json!("GET"), &json!("/echo/a-b/c.d/"), &json!(QUERY))
    );
    assert_eq!((&echo["resource"], &echo["authorization"]), (&json!({"location": location(1).id()}), &json!(1)));
    assert!(body_of(&echo).is_empty());

    for (method, content_type, body) in [
        (Method::POST, "application/json", JSON.as_bytes().to_vec()),
        (Method::PUT, "application/octet-stream", every_byte()),
        (Method::PATCH, "application/x-www-form-urlencoded", b"a=1&a=2+3&%C3%A9".to_vec()),
        (Method::DELETE, "text/plain; charset=utf-8", "é".as_bytes().to_vec()),
        (Method::POST, "application/json", Vec::new()),
    ] {
        let request = system.relay(method.clone(), &here("/echo")).header("content-type", content_type);
        let echo = echoed(&send(request.body(body.clone())).await);
        assert_eq!(echo["method"], method.as_str());
        assert_eq!(body_of(&echo), body, "{method} {content_type}");
        assert_eq!(header_of(&echo, "content-type"), [content_type]);
    }

    let answer = system.get(&location(1), "/bytes").await;
    assert_eq!((answer.status, answer.source()), (200, "platform"));
    assert_eq!(answer.body, every_byte(), "a binary answer");
    assert_eq!(answer.header("content-type"), "application/octet-stream");

    let answer = send(system.relay(Method::HEAD, &here("/echo"))).await;
    assert_eq!((answer.status, answer.source(), answer.body.len()), (200, "platform", 0));
    assert_eq!(
        system.sandbox.marketplace.api_requests(&location(1)).last().map(|seen| seen.method.clone()),
        Some("HEAD".into())
    );

    for status in [204, 301, 404, 422, 500] {
        let answer = system.get(&location(1), &format!("/status/{status}")).await;
        assert_eq!((answer.status, answer.source()), (status, "platform"), "the platform's own status");
    }

    let contact = send(system.relay(Method::POST, &here("/contacts/")).body(r#"{"firstName":"Grace"}"#)).await;
    assert_eq!((contact.status, contact.source()), (201, "platform"));
    let id = contact.json()["contact"]["id"].as_str().expect("an id").to_owned();
    let read = system.get(&location(1), &format!("/contacts/{id}")).await;
    assert_eq!(read.json()["contact"]["firstName"], "Grace");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_headers_are_passed_on_and_limits_are_returned() {
    let system = system().await;
    let request = system.relay(Method::GET, &route(&location(1), "/echo"));
    let request = request
        .header("cookie", "session=of-the-caller")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-internal", "of-the-caller")
        .header("relay-wait-ms", "5")
        .header("accept-language", "fr")
        .header("idempotency-key", "once");
    let answer = send(request).await;
    let echo = echoed(&answer);
    assert_eq!(echo["authorization"], 1, "the platform's token, and nothing of the caller's");
    for gone in ["cookie", "x-forwarded-for", "x-forwarded-proto", "x-internal", "relay-wait-ms", "connection"] {
        assert!(header_of(&echo, gone).is_empty(), "{gone} went on: {echo}");
    }
    assert!(!echo.to_string().contains("of-the-caller"), "{echo}");
    assert!(!echo.to_string().contains(&system.sandbox.caller_key), "the caller's key went on");
    assert_eq!(header_of(&echo, "accept-language"), ["fr"]);
    assert_eq!(header_of(&echo, "idempotency-key"), ["once"]);
    assert_eq!(header_of(&echo, "version"), ["2021-07-28"], "added, because it was absent");
    let platform = system.sandbox.marketplace.url();
    assert_eq!(header_of(&echo, "host"), [platform.trim_start_matches("http://")]);

    let request = system.relay(Method::GET, &route(&location(1), "/echo")).header("version", "2021-04-15");
    assert_eq!(header_of(&echoed(&send(request).await), "version"), ["2021-04-15"], "the caller's own");

    for (name, value) in [("x-ratelimit-max", "100"), ("x-ratelimit-limit-daily", "200000")] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    for name in ["x-ratelimit-remaining", "x-ratelimit-daily-remaining", "x-ratelimit-daily-reset"] {
        assert!(answer.header(name).parse::<u64>().is_ok(), "{name} of {answer:?}");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_direct_invocation() {
    let system = system().await;
    let id = location(1).id().to_owned();

    let written = format!(
        r#"{{"resource":{{"location":"{id}"}},"method":"POST","path":"/echo","query":{{"limit":20,"tag":["a","b,c",""]}},"headers":{{"Version":"2021-04-15"}},"body":{JSON}}}"#
    );
    let answer = system.invoke(written, None).await;
    assert_eq!((&answer["status"], &answer["source"]), (&json!(200), &json!("platform")), "{answer}");
    assert!(answer["headers"]["relay-request-id"].is_string(), "{answer}");
    let echo = &answer["body"];
    assert_eq!(String::from_utf8(body_of(echo)).expect("text"), JSON, "byte for byte");
    assert_eq!(echo["query"], "limit=20&tag=a&tag=b%2Cc&tag=");
    assert_eq!(header_of(echo, "content-type"), ["application/json"]);
    assert_eq!(header_of(echo, "version"), ["2021-04-15"]);

    let one = |more: Value| {
        let mut request = json!({ "resource": { "location": id }, "method": "GET", "path": "/echo" });
        more.as_object().expect("members").iter().for_each(|(name, value)| request[name] = value.clone());
        request
    };
    let raw = system.invoke(one(json!({ "query": QUERY })).to_string(), None).await;
    assert_eq!(raw["body"]["query"], QUERY);
    let text = system.invoke(one(json!({ "method": "POST", "body": "as it is" })).to_string(), None).await;
    assert_eq!(body_of(&text["body"]), b"as it is");
    let bytes = one(json!({ "method": "PUT", "body_base64": STANDARD.encode(every_byte()) }));
    assert_eq!(body_of(&system.invoke(bytes.to_string(), None).await["body"]), every_byte());
    let bytes = system.invoke(one(json!({ "path": "/bytes" })).to_string(), None).await;
    assert_eq!(STANDARD.decode(bytes["body_base64"].as_str().expect("bytes")).expect("base64"), every_byte());
    assert_eq!(bytes.get("body"), None);

    let before = system.arrived(&location(1));
    let numbered = |number: usize| one(json!({ "path": format!("/echo/{number}") }));
    let mut requests: Vec<Value> = (0..30).map(numbered).collect();
    requests[7] = json!({ "resource": { "location": id }, "method": "GET" });
    requests[8] = one(json!({ "resource": { "location": "HLnobody" } }));
    requests[9] = json!("nonsense");
    let answer = system.invoke(json!({ "requests": requests }).to_string(), None).await;
    let responses = answer["responses"].as_array().expect("answers");
    assert_eq!(responses.len(), 30);
    for (number, response) in responses.iter().enumerate() {
        let expected = match number {
            7 | 9 => (400, "relay"),
            8 => (404, "relay"),
            _ => (200, "platform"),
        };
        assert_eq!(
            (&response["status"], &response["source"]),
            (&json!(expected.0), &json!(expected.1)),
            "{number}: {response}"
        );
        if expected.0 == 200 {
            assert_eq!(response["body"]["path"], format!("/echo/{number}"), "in order");
        }
    }
    assert_eq!(system.arrived(&location(1)), before + 27, "the bad ones have sent nothing");

    let get = one(json!({})).to_string();
    let post = one(json!({ "method": "POST" })).to_string();
    let agency = one(json!({ "resource": company() })).to_string();
    for (alias, request, status, code) in [
        (None, &post, 200, Value::Null),
        (Some("somebody"), &post, 401, json!("unauthenticated")),
        (Some("Billing"), &get, 401, json!("unauthenticated")),
        (Some("billing"), &get, 200, Value::Null),
        (Some("billing"), &post, 403, json!("forbidden")),
        (Some("billing"), &agency, 403, json!("forbidden")),
    ] {
        let answer = system.invoke(request.clone(), alias).await;
        assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(status), &code), "{alias:?}: {answer}");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_signed_routes() {
    let system = system().await;
    system.install(&company()).await;
    for resource in [location(1), company()] {
        let before = system.arrived(&resource);
        let answer = system.get(&resource, "").await;
        assert_eq!((answer.status, answer.source()), (200, "relay"), "{answer:?}");
        let status = answer.json();
        assert_eq!(status["resource"], json!(resource), "{status}");
        assert_eq!(status["status"], "Active", "{status}");
        for instant in ["/token_expires_at", "/quota/burst/resets_at", "/quota/daily/resets_at"] {
            let instant = status.pointer(instant).and_then(Value::as_str).expect(instant);
            let read = time::OffsetDateTime::parse(instant, &time::format_description::well_known::Rfc3339);
            assert!(read.is_ok(), "{instant}");
        }
        let quota = &status["quota"];
        assert_eq!((&quota["burst"]["limit"], &quota["burst"]["remaining"]), (&json!(100), &json!(100)), "{status}");
        assert_eq!(quota["daily"]["limit"], 200_000, "{status}");
        for secret in system.secrets() {
            assert!(!status.to_string().contains(&secret), "{status}");
        }
        assert_eq!(system.arrived(&resource), before, "the platform is not asked");
    }
    assert_eq!(system.get(&location(1), "/contacts/").await.status, 200);
    let status = system.get(&location(1), "").await.json();
    assert_eq!(
        (&status["quota"]["burst"]["remaining"], &status["quota"]["daily"]["remaining"]),
        (&json!(99), &json!(199_999))
    );
    assert_eq!(system.get(&location(2), "").await.refusal(), (404, "not_installed".to_owned()));
    let agency = system.get(&company(), &format!("/companies/{}", company().id())).await;
    assert_eq!((agency.status, agency.source()), (200, "platform"), "{agency:?}");

    let signed = |role: &str, method: Method, path: &str| {
        let request = system.request(method, &format!("/iam{}", route(&location(1), path))).build().expect("a request");
        sign(role, request)
    };
    let echo = echoed(&send(signed("billing", Method::GET, "/echo")).await);
    assert_eq!(echo["authorization"], 1);
    assert_eq!(send(signed("billing", Method::GET, "")).await.status, 200);
    let refused = send(signed("billing", Method::POST, "/echo")).await;
    assert_eq!(refused.refusal(), (403, "forbidden".to_owned()), "its entry names no POST");
    let unlisted = send(signed("deploy", Method::POST, "/echo")).await;
    assert_eq!(unlisted.refusal(), (401, "unauthenticated".to_owned()), "IAM let it in, and no entry names it");
    let mut forged = signed("billing", Method::GET, "/echo").build().expect("a request");
    forged.url_mut().set_query(Some("more=1"));
    let client = reqwest::Client::new();
    assert_eq!(client.execute(forged).await.expect("an answer").status(), 403, "signed for something else");
    assert_eq!(
        system
            .browse(&format!("{}/iam{}", system.sandbox.gateway.url(), route(&location(1), "/echo")), None)
            .await
            .status,
        403
    );

    for key in ["rk_old_key_of_twin", "rk_new_key_of_twin"] {
        let answer = send(system.request(Method::GET, &route(&location(1), "/echo")).bearer_auth(key)).await;
        assert_eq!(answer.status, 200, "both keys of a rotation are taken");
    }
    system.end().await;
}
