//! A failure of the platform, of the secrets or of an AWS service is answered with a documented code and within the
//! invocation's time. No request that may have been executed is sent again.

use std::time::{Duration, Instant};

use http::Method;
use it::outside::{Setup, location, route, send};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::runtime_api::Invocation;
use sandbox::secrets::Failure;
use sandbox::whole::{APP_SECRET, CALLER_ALIAS, SEALING_SECRET, caller_entry};
use serde_json::{Value, json};

use super::bad_input::{expect, expect_works, get, installed};

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_platform_have_documented_codes() {
    let mut system = installed(Setup::default()).await;
    let platform = |fault: Fault, times: u32| system.sandbox.marketplace.fault(Endpoint::Api, fault, Some(times));

    platform(Fault::HangUp { processed: false }, 1);
    expect_works(&system).await;
    platform(Fault::HangUp { processed: true }, 1);
    let post =
        send(system.relay(Method::POST, &route(&location(1), "/contacts/")).body(r#"{"firstName":"Once"}"#)).await;
    expect(&post, 502, "platform_unreachable");
    let contacts = system.get(&location(1), "/contacts/").await.body;
    assert_eq!(
        String::from_utf8_lossy(&contacts).matches("Once").count(),
        1,
        "what may have been done is not done twice"
    );

    platform(Fault::HangUp { processed: false }, 3);
    expect(&system.get(&location(1), "/echo").await, 502, "platform_unreachable");
    platform(Fault::refusal(503, "maintenance"), 3);
    let answer = system.get(&location(1), "/echo").await;
    assert_eq!((answer.status, answer.source()), (503, "platform"), "its own answer is passed on");

    platform(Fault::Stall { processed: false }, 1);
    let began = Instant::now();
    let invocation =
        Invocation { qualifier: Some(CALLER_ALIAS.into()), timeout: Duration::from_secs(4), trace_id: None };
    let answer =
        system.sandbox.runtime.invoke_json("relay", &get("/echo"), invocation).await.expect("an answer in time");
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(504), &json!("platform_timeout")), "{answer}");
    assert!(began.elapsed() > Duration::from_secs(2), "it was not given up at once");
    expect_works(&system).await;

    // Nothing listens on port 1.
    system.start_apart("relay", "relay-astray", &[("API_URL", "http://127.0.0.1:1")]).await;
    let answer = system.invoke_as("relay-astray", get("/echo").to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(502), &json!("platform_unreachable")), "{answer}");

    let refreshes = system.refreshes();
    system.sandbox.marketplace.expire_access_tokens();
    system.sandbox.marketplace.fault(Endpoint::Refresh, Fault::HangUp { processed: false }, Some(1));
    expect_works(&system).await;
    assert!(system.refreshes() > refreshes, "renewed, in spite of the lost connection");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_secrets_are_answered_as_misconfigured() {
    let mut system = installed(Setup { relays: 1, ..Setup::default() }).await;
    expect_works(&system).await;
    let good = |secret: &str| system.sandbox.secrets.get(secret).expect("a secret");
    let (app, sealing) = (good(APP_SECRET), good(SEALING_SECRET));
    let callers = json!({ "callers": [caller_entry(&system.sandbox.caller_key)] }).to_string();

    for (function, variable, value, whole) in [
        ("relay-without-callers", "CALLERS_SECRET_ID", None, callers.clone()),
        ("relay-without-keys", "SEALING_SECRET_ID", None, sealing.clone()),
        (
            "relay-with-bad-callers",
            "CALLERS_SECRET_ID",
            Some(r#"{"callers":[{"id":"a","kyes":["k-hush-hush-1"]}]}"#),
            callers.clone(),
        ),
        ("relay-with-bad-keys", "SEALING_SECRET_ID", Some(r#"{"current":"k1","k1":"hush-hush-2"}"#), sealing.clone()),
    ] {
        let id = format!("secret-of-{function}");
        if let Some(value) = value {
            system.sandbox.secrets.put(&id, value);
        }
        system.start_apart("relay", function, &[(variable, &id)]).await;
        let answer = system.invoke_as(function, get("/echo").to_string(), None).await;
        assert_eq!(
            (&answer["status"], &answer["body"]["code"]),
            (&json!(503), &json!("misconfigured")),
            "{function}: {answer}"
        );
        assert!(!answer.to_string().contains(&id), "a caller is not told names: {answer}");
        system.sandbox.secrets.put(&id, whole);
        let answer = system.invoke_as(function, get("/echo").to_string(), None).await;
        assert_eq!(answer["status"], 200, "{function}, once its secret is there: {answer}");
    }
    system.tell("hush-hush-2");
    system.tell("k-hush-hush-1");

    // A process that knows the secret's value continues to use it. A process without the value refuses the call,
    // and does not spend the refresh token.
    system.sandbox.secrets.fail(Some(Failure::AccessDenied));
    expect_works(&system).await;
    system.start_apart("relay", "relay-denied", &[]).await;
    let answer = system.invoke_as("relay-denied", get("/echo").to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(503), &json!("misconfigured")), "{answer}");
    system.sandbox.secrets.fail(None);

    system.sandbox.secrets.put(
        APP_SECRET,
        r#"{"client_id":"6512ab34cd56ef7890ab12cd-lx3kq9ab","client_secret":"a-wrong-client-secret"}"#,
    );
    system.tell("a-wrong-client-secret");
    system.start_apart("relay", "relay-wrong-client", &[]).await;
    let tokens = system.sandbox.marketplace.live_refresh_tokens(&location(1));
    system.sandbox.marketplace.expire_access_tokens();
    let answer = system.invoke_as("relay-wrong-client", get("/echo").to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(503), &json!("misconfigured")), "{answer}");
    assert_eq!(system.sandbox.marketplace.live_refresh_tokens(&location(1)), tokens, "the grant is not touched");
    system.tell(serde_json::from_str::<Value>(&app).expect("JSON")["client_secret"].as_str().expect("a secret"));
    system.sandbox.secrets.put(APP_SECRET, app);
    system.start_apart("relay", "relay-right-again", &[]).await;
    let answer = system.invoke_as("relay-right-again", get("/echo").to_string(), None).await;
    assert_eq!(answer["status"], 200, "the right secret closes the breaker: {answer}");
    assert_eq!(system.get(&location(1), "").await.json()["status"], "Active");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_is_given_up_before_the_invocation_ends() {
    let mut system = installed(Setup::default()).await;
    // A service that accepts connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    for (function, variable) in
        [("relay-no-secrets", "AWS_ENDPOINT_URL_SECRETS_MANAGER"), ("relay-no-store", "AWS_ENDPOINT_URL_DYNAMODB")]
    {
        system.start_apart("relay", function, &[(variable, &url)]).await;
        let invocation =
            Invocation { qualifier: Some(CALLER_ALIAS.into()), timeout: Duration::from_secs(3), trace_id: None };
        let answer = system.sandbox.runtime.invoke_json(function, &get("/echo"), invocation).await;
        let answer = answer.unwrap_or_else(|error| panic!("{function} does not answer in time: {error}"));
        assert_eq!((&answer["status"], &answer["source"]), (&json!(504), &json!("relay")), "{function}: {answer}");
    }
    system.end().await;
}
