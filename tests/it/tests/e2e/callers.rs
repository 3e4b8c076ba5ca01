//! An alias, a principal or an invocation that has no entry in the callers' secret is unauthenticated, for any event.

use http::Method;
use it::outside::{ClientResponse, Setup, System, location, route, send};
use sandbox::runtime_api::{FunctionError, Invocation};
use sandbox::whole::{CALLERS_SECRET, caller_entry};
use serde_json::{Value, json};

use crate::operator::{done, ops, ops_in};
use crate::relay::sign;

const LISTED: &str = "arn:aws:sts::000000000000:assumed-role/billing/s1";

fn billing() -> Value {
    json!({
        "id": "billing", "aliases": ["billing"], "methods": ["GET"],
        "principals": ["arn:aws:sts::000000000000:assumed-role/billing/*"],
    })
}

async fn system(environment: &[(&'static str, &str)]) -> System {
    let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let system = System::start(Setup { callers: vec![billing()], environment, ..Setup::default() }).await;
    system.install(&location(1)).await;
    system
}

fn get(path: &str) -> Value {
    json!({ "resource": location(1), "method": "GET", "path": path })
}

/// An event as API Gateway sends it after its IAM authorizer accepted the request, or as an invoker forges it.
fn signed_event(user_arn: &str, method: &str) -> Value {
    let path = format!("/iam{}", route(&location(1), "/echo"));
    json!({
        "version": "2.0", "rawPath": path, "rawQueryString": "", "headers": {}, "isBase64Encoded": false,
        "requestContext": {
            "stage": "$default", "http": { "method": method, "path": path },
            "authorizer": { "iam": { "userArn": user_arn } },
        },
    })
}

/// Invokes a function by a qualifier, or without one if `qualifier` is `None`.
async fn by(system: &System, function: &str, qualifier: Option<&str>, event: &Value) -> Result<Value, FunctionError> {
    let invocation = Invocation { qualifier: qualifier.map(str::to_owned), ..Invocation::default() };
    system.sandbox.runtime.invoke_json(function, event, invocation).await
}

/// Status and code of a direct answer.
async fn direct(system: &System, qualifier: Option<&str>, event: &Value) -> (Value, Value) {
    let answer = by(system, "relay", qualifier, event).await.expect("an answer");
    (answer["status"].clone(), answer["body"]["code"].clone())
}

/// Status and code of an answer in payload 2.0.
async fn http(system: &System, function: &str, qualifier: Option<&str>, event: &Value) -> (Value, Value) {
    let answer = by(system, function, qualifier, event).await.expect("an answer");
    let body: Value = serde_json::from_str(answer["body"].as_str().unwrap_or_default()).unwrap_or_default();
    (answer["statusCode"].clone(), body["code"].clone())
}

/// Sends a signed request to the gateway. The sandbox takes the id of the access key for the name of a role.
async fn signed_get(system: &System, role: &str) -> ClientResponse {
    let request = system.request(Method::GET, &format!("/iam{}", route(&location(1), "/echo")));
    send(sign(role, request.build().expect("a request"))).await
}

fn nobody() -> (Value, Value) {
    (json!(401), json!("unauthenticated"))
}

fn served() -> (Value, Value) {
    (json!(200), Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_without_an_entry_are_refused() {
    let system = system(&[]).await;
    let before = system.arrived(&location(1));
    for qualifier in [None, Some("$LATEST"), Some("7"), Some("mail"), Some("Billing"), Some("billing2"), Some("live")] {
        assert_eq!(direct(&system, qualifier, &get("/echo")).await, nobody(), "{qualifier:?}");
    }
    let batch = by(&system, "relay", None, &json!({ "requests": [get("/echo"), get("/contacts/")] })).await;
    for response in batch.expect("an answer")["responses"].as_array().expect("answers") {
        assert_eq!(response["status"], 401, "{response}");
    }
    for arn in ["arn:aws:sts::000000000000:assumed-role/mail/s1", "arn:aws:iam::1:root", "billing", ""] {
        assert_eq!(http(&system, "relay", None, &signed_event(arn, "GET")).await, nobody(), "{arn}");
    }
    let unlisted = signed_get(&system, "mail").await;
    assert_eq!(unlisted.refusal(), (401, "unauthenticated".to_owned()));
    // An HTTP event with an alias or a version is not from API Gateway, whatever signer the event names.
    for qualifier in ["billing", "mail", "live", "7"] {
        assert_eq!(
            http(&system, "relay", Some(qualifier), &signed_event(LISTED, "GET")).await,
            nobody(),
            "{qualifier}"
        );
    }
    assert_eq!(system.arrived(&location(1)), before, "nothing was sent");

    assert_eq!(direct(&system, Some("billing"), &get("/echo")).await, served());
    assert_eq!(http(&system, "relay", None, &signed_event(LISTED, "GET")).await, served(), "the control");
    assert_eq!(http(&system, "relay", None, &signed_event(LISTED, "POST")).await, (json!(403), json!("forbidden")));
    let signed = signed_get(&system, "billing").await;
    assert_eq!(signed.status, 200, "{signed:?}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_can_allow_unlisted_identities_and_removing_an_entry_removes_its_rights() {
    let mut system = system(&[]).await;
    let secret = |callers: Value, more: Value| {
        let mut secret = json!({ "callers": callers });
        more.as_object().expect("members").iter().for_each(|(name, value)| secret[name] = value.clone());
        system.sandbox.secrets.put("other-callers", secret.to_string());
    };
    let own = [("CALLERS_SECRET_ID", "other-callers")];
    let of = async |system: &System, function: &str, qualifier: Option<&str>, method: &str| {
        let mut event = get("/echo");
        event["method"] = json!(method);
        let answer = by(system, function, qualifier, &event).await.expect("an answer");
        answer["status"].as_u64().expect("a status")
    };
    secret(json!([billing()]), json!({ "unlisted": "allow" }));
    system.start_apart("relay", "relay-open", &own).await;
    for (qualifier, method, status) in [
        (None, "POST", 200),
        (Some("mail"), "POST", 200),
        (Some("billing"), "GET", 200),
        (Some("billing"), "POST", 403),
    ] {
        assert_eq!(of(&system, "relay-open", qualifier, method).await, status, "{qualifier:?} {method}");
    }
    for (number, wrong) in [json!("deny"), json!(true), json!(null), json!("ALLOW")].into_iter().enumerate() {
        let secret = json!({ "callers": [billing()], "unlisted": wrong });
        system.sandbox.secrets.put("other-callers", secret.to_string());
        let function = format!("relay-wrong-{number}");
        system.start_apart("relay", &function, &own).await;
        assert_eq!(of(&system, &function, Some("billing"), "GET").await, 503, "{wrong}: never open");
        assert_eq!(of(&system, &function, None, "GET").await, 503, "{wrong}: never open");
    }

    assert_eq!(of(&system, "relay", Some("billing"), "GET").await, 200);
    done(&system, &["callers", "remove", "billing", "--yes"]).await;
    system.start_apart("relay", "relay-after", &[]).await;
    for (qualifier, status) in [(Some("billing"), 401), (Some("sandbox"), 200), (None, 401)] {
        assert_eq!(of(&system, "relay-after", qualifier, "GET").await, status, "{qualifier:?}");
        assert_eq!(of(&system, "relay-after", qualifier, "POST").await, status, "{qualifier:?}");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_gateway_alias_http_events_by_other_qualifiers_are_refused() {
    let system = system(&[("GATEWAY_ALIAS", "live")]).await;
    assert_eq!(system.get(&location(1), "/echo").await.status, 200, "the gateway invokes the alias");
    let before = system.arrived(&location(1));
    let event = signed_event(LISTED, "GET");
    for qualifier in [None, Some("$LATEST"), Some("billing"), Some("LIVE"), Some("7")] {
        assert_eq!(http(&system, "relay", qualifier, &event).await, nobody(), "{qualifier:?}");
    }
    assert_eq!(direct(&system, Some("live"), &get("/echo")).await, nobody(), "the gateway sends no such event");
    assert_eq!(direct(&system, None, &get("/echo")).await, nobody());
    assert_eq!(system.arrived(&location(1)), before, "nothing was sent");
    assert_eq!(http(&system, "relay", Some("live"), &event).await, served());
    assert_eq!(direct(&system, Some("billing"), &get("/echo")).await, served());

    // The other functions of the API apply the same rule.
    let event = |method: &str, path: &str| {
        json!({
            "version": "2.0", "rawPath": path, "rawQueryString": "", "headers": {}, "isBase64Encoded": false,
            "requestContext": { "stage": "$default", "domainName": "x.example", "http": { "method": method, "path": path } },
        })
    };
    for (function, event, answered) in
        [("callback", event("GET", "/oauth/install"), 302), ("webhook", event("POST", "/webhooks/marketplace"), 401)]
    {
        for qualifier in [None, Some("billing")] {
            assert_eq!(http(&system, function, qualifier, &event).await, nobody(), "{function} by {qualifier:?}");
        }
        let answer = http(&system, function, Some("live"), &event).await;
        assert_eq!(answer.0, answered, "{function}: {answer:?}");
        assert_ne!(answer, nobody(), "{function}: its own answer");
    }

    // Messages of the queue. The schedule and operators may use any qualifier.
    let records = json!({ "Records": [{ "messageId": "m1", "body": "not a pair", "eventSource": "aws:sqs" }] });
    for qualifier in [None, Some("billing"), Some("7")] {
        let refused = by(&system, "refresh", qualifier, &records).await;
        assert!(matches!(refused, Err(FunctionError::Reported(_))), "{qualifier:?}: {refused:?}");
    }
    let read = by(&system, "refresh", Some("live"), &records).await.expect("an answer");
    assert_eq!(read["batchItemFailures"][0]["itemIdentifier"], "m1", "{read}");
    for qualifier in [None, Some("live")] {
        assert!(by(&system, "refresh", qualifier, &json!({})).await.is_ok(), "a tick by {qualifier:?}");
        let one = json!({ "resource": location(1), "force": true });
        assert!(by(&system, "refresh", qualifier, &one).await.is_ok(), "an operator by {qualifier:?}");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_commands_report_faults_in_callers_entries() {
    let system = System::start(Setup { relays: 0, ..Setup::default() }).await;
    system.install(&location(1)).await;
    for (arguments, word) in [
        (&["(minter)"][..], "the id \"(minter)\""),
        (&["a b"], "the id \"a b\""),
        (&["mail", "--principal", "mail-role"], "principal \"mail-role\""),
        (&["mail", "--principal", "*"], "principal \"*\""),
        (&["mail", "--method", "FETCH"], "method \"FETCH\""),
        (&["mail", "--alias", "7"], "alias \"7\""),
        (&["mail", "--resource", "team:1"], "resource \"team:1\""),
        (&["mail", "--path", "contacts"], "path \"contacts\""),
        (&["mail", "--tool", ""], "tool \"\""),
    ] {
        let said = ops(&system, &[&["callers", "add"], arguments].concat()).await;
        assert!(said.code == 2 && said.err.contains(word) && !said.err.contains("secret"), "{arguments:?}: {said:?}");
    }
    let taken = ops(&system, &["callers", "add", "mail", "--alias", "sandbox"]).await;
    assert!(taken.code == 4 && taken.err.contains("sandbox"), "{taken:?}");
    let live = system.operators_environment().into_iter().chain([("GATEWAY_ALIAS".to_owned(), "live".to_owned())]);
    let gateways = ops_in(&system, live, &["callers", "add", "mail", "--alias", "live"]).await;
    assert!(gateways.code == 2 && gateways.err.contains("alias \"live\""), "{gateways:?}");

    let aliases = async || {
        let said = ops(&system, &["--json", "doctor"]).await;
        let said: Value = serde_json::from_str(&said.out).expect("JSON");
        let all = said["findings"].as_array().expect("findings").clone();
        let about = all
            .into_iter()
            .filter(|finding| ["aliases", "callers"].contains(&finding["what"].as_str().unwrap_or_default()));
        about.map(|finding| format!("{} {}", finding["state"], finding["said"])).collect::<Vec<_>>().join("\n")
    };
    assert!(!aliases().await.contains("warn"), "{}", aliases().await);
    system.sandbox.runtime.create_alias("relay", "Mail");
    assert!(aliases().await.contains("alias Mail: its invocations are answered 401"), "{}", aliases().await);
    done(&system, &["callers", "add", "mail", "--alias", "mail", "--no-key", "--tool", "*_get-*"]).await;
    let told = aliases().await;
    assert!(
        told.contains("differs in case") && told.contains("the alias mail, which the function does not have"),
        "{told}"
    );
    let open = json!({ "callers": [caller_entry(&system.sandbox.caller_key)], "unlisted": "allow" });
    system.sandbox.secrets.put(CALLERS_SECRET, open.to_string());
    let told = aliases().await;
    assert!(told.contains("may make every call"), "{told}");
    let kept = ops(&system, &["callers", "remove", "sandbox", "--yes"]).await;
    assert!(kept.code == 4 && kept.err.contains("unlisted"), "without its entry it could do as much: {kept:?}");
    system.end().await;
}

/// The values of a header that the platform has received, according to its echo.
fn header_of(echo: &Value, name: &str) -> Vec<String> {
    let headers = echo["headers"].as_array().expect("headers").iter();
    headers.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_http_forbids_are_reported_ignored_or_corrected() {
    let system = system(&[]).await;
    let version = format!("hoopai-relay/{}", env!("CARGO_PKG_VERSION"));
    let event = |headers: Value, body: &str| {
        let path = route(&location(1), "/echo");
        let mut event = json!({
            "version": "2.0", "rawPath": path, "rawQueryString": "", "headers": headers, "isBase64Encoded": false, "body": body,
            "requestContext": { "stage": "$default", "http": { "method": "POST", "path": path } },
        });
        event["headers"]["authorization"] = json!(format!("Bearer {}", system.sandbox.caller_key));
        event
    };
    let by_http = async |headers: Value, body: &str| {
        let answer = system.invoke_unqualified(event(headers, body).to_string()).await;
        let body: Value = serde_json::from_str(answer["body"].as_str().expect("text")).expect("JSON");
        (answer["statusCode"].as_u64().expect("a status"), body)
    };
    let by_invocation = async |headers: Value, body: Value| {
        let mut request = get("/echo");
        (request["method"], request["headers"], request["body"]) = (json!("POST"), headers, body);
        let answer = system.invoke(request.to_string(), None).await;
        (answer["status"].as_u64().expect("a status"), answer["body"].clone())
    };

    // Every relayed request has a user agent, however it reaches the relay: the caller's own one, or else the version
    // of the relay.
    for (headers, expected) in [
        (json!({}), &version),
        (json!({ "user-agent": "" }), &version),
        (json!({ "User-Agent": "own/1" }), &"own/1".to_owned()),
    ] {
        for (status, echo) in [by_http(headers.clone(), "").await, by_invocation(headers.clone(), json!("")).await] {
            assert_eq!(status, 200, "{headers}: {echo}");
            assert_eq!(header_of(&echo, "user-agent"), std::slice::from_ref(expected), "{headers}");
        }
    }
    let echo: Value = serde_json::from_slice(&signed_get(&system, "sandbox").await.body).expect("JSON");
    assert_eq!(header_of(&echo, "user-agent"), [version], "signed");

    // A malformed header matters only if the relay passes headers of its kind on.
    for odd in [
        json!({ "x internal": "a" }),
        json!({ "x-internal": "a\u{1}b" }),
        json!({ "x": "a\r\nb: c" }),
        json!({ "cookie": "\u{7f}" }),
    ] {
        for (status, answer) in [by_http(odd.clone(), "").await, by_invocation(odd.clone(), json!("")).await] {
            assert_eq!(status, 200, "{odd}: {answer}");
            assert!(!answer["headers"].to_string().contains("internal"), "{answer}");
        }
    }
    for (odd, name) in
        [(json!({ "Accept": "a\u{1}" }), "accept"), (json!({ "x-request-id": "a\r\nb: c" }), "x-request-id")]
    {
        for (status, answer) in [by_http(odd.clone(), "").await, by_invocation(odd.clone(), json!("")).await] {
            assert_eq!((status, &answer["code"]), (400, &json!("invalid_request")), "{odd}: {answer}");
            assert!(answer["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{answer}");
        }
    }
    let mut odd = event(json!({}), "");
    odd["headers"]["authorization"] = json!("Bearer a\u{1}b");
    let answer = system.invoke_unqualified(odd.to_string()).await;
    assert_eq!(answer["statusCode"], 401, "a key that no header could carry is no key: {answer}");

    // The gateway has unpacked the body but left the header in place.
    let gzip = json!({ "content-type": "application/json", "content-encoding": "gzip", "content-md5": "x" });
    for (status, echo) in
        [by_http(gzip.clone(), r#"{"a":1}"#).await, by_invocation(gzip.clone(), json!({ "a": 1 })).await]
    {
        assert_eq!(status, 200, "{echo}");
        let gone = ["content-encoding", "content-md5"].map(|name| header_of(&echo, name));
        assert_eq!(gone, [Vec::<String>::new(), Vec::new()], "the body is not encoded any more");
    }
    let body = format!(r#"{{"locationId":"{}"}}"#, location(2).id());
    let (status, answer) = by_http(gzip, &body).await;
    assert_eq!((status, &answer["code"]), (403, &json!("forbidden")), "an unpacked body is looked into: {answer}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mcp_endpoint_passes_messages_and_opens_no_stream() {
    let key = "rk_agent_0123456789";
    let agent = json!({
        "id": "agent", "keys_sha256": [sandbox::whole::sha256_hex(key)], "aliases": ["agent"],
        "tools": ["contacts_get-contact", "*_list-*"],
    });
    let system = System::start(Setup { callers: vec![agent], relays: 1, ..Setup::default() }).await;
    system.tell(key);
    system.install(&location(1)).await;
    let call = |name: &str| json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": name } });
    let paths = [route(&location(1), "/mcp/"), "/api/mcp/".to_owned()];
    let send_to = async |path: &str, method: Method, bearer: &str, body: &str| -> ClientResponse {
        let request = system.request(method, path).bearer_auth(bearer).header("locationId", location(1).id());
        let request = request.header("accept", "application/json, text/event-stream").header("mcp-session-id", "s-1");
        let request = request.header("mcp-protocol-version", "2025-06-18").header("last-event-id", "7");
        send(request.header("content-type", "application/json").body(body.to_owned())).await
    };
    for path in &paths {
        let own = &system.sandbox.caller_key;
        let answer = send_to(path, Method::POST, own, &call("contacts_delete-contact").to_string()).await;
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
        assert_eq!(answer.header("content-type"), "text/event-stream");
        assert_eq!(answer.header("mcp-session-id"), "session-of-the-platform");
        assert_eq!(answer.header("mcp-protocol-version"), "2025-06-18");
        let body = String::from_utf8(answer.body.to_vec()).expect("text");
        let data =
            body.strip_prefix("event: message\ndata: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("whole");
        let echo: Value = serde_json::from_str(data).expect("JSON");
        for (name, value) in [("mcp-session-id", "s-1"), ("mcp-protocol-version", "2025-06-18"), ("last-event-id", "7")]
        {
            assert_eq!(header_of(&echo, name), [value], "{name}");
        }
        let before = system.arrived(&location(1));
        let stream = send_to(path, Method::GET, own, "").await;
        assert_eq!(stream.refusal(), (405, "method_not_offered".to_owned()), "{stream:?}");
        assert_eq!(stream.header("allow"), "POST, DELETE");
        let anonymous = send(system.request(Method::GET, path)).await;
        assert_eq!(anonymous.refusal(), (401, "unauthenticated".to_owned()));
        assert_eq!(system.arrived(&location(1)), before, "nothing was sent");

        let forbidden = (403, "forbidden".to_owned());
        let twice =
            r#"{"method":"tools/call","params":{"name":"contacts_get-contact","name":"contacts_delete-contact"}}"#;
        for body in [
            call("contacts_delete-contact").to_string(),
            json!([call("contacts_get-contact"), call("contacts_delete-contact")]).to_string(),
            json!([[call("contacts_get-contact")]]).to_string(),
            twice.to_owned(),
            "{".to_owned(),
            String::new(),
        ] {
            assert_eq!(send_to(path, Method::POST, key, &body).await.refusal(), forbidden, "{body}");
        }
        assert_eq!(system.arrived(&location(1)), before, "nothing was sent");
        for body in [
            call("contacts_get-contact").to_string(),
            call("calendars_list-events").to_string(),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string(),
            json!([call("contacts_get-contact"), { "jsonrpc": "2.0", "method": "notifications/initialized" }])
                .to_string(),
        ] {
            let answer = send_to(path, Method::POST, key, &body).await;
            assert_eq!((answer.status, answer.source()), (200, "platform"), "{body}: {answer:?}");
        }
        assert_eq!(send_to(path, Method::DELETE, key, "").await.status, 200, "the end of a session");
    }
    // On other paths the relay does not pass on the headers of MCP.
    let answer = send(system.relay(Method::GET, &route(&location(1), "/echo")).header("mcp-session-id", "s-1")).await;
    assert_eq!(header_of(&answer.json(), "mcp-session-id"), Vec::<String>::new());
    let direct = json!({ "resource": location(1), "method": "GET", "path": "/mcp/" });
    let answer = system.invoke(direct.to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(405), &json!("method_not_offered")), "{answer}");
    system.end().await;
}
