//! For every metric that an alarm of the template watches, a built function writes the value that triggers the alarm.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use it::emf::{Datum, metrics};
use it::outside::{Setup, System, location, route, send, until};
use sandbox::event_bridge::Failure;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Resource;
use sandbox::whole::{CALLBACK_PATH, CALLER, SEALING_SECRET, TABLE, scheduled_event, sha256_hex};
use serde_json::{Value, json};
use shared::domain::clock::Clock;

/// Names of our own metrics in the template's alarms.
fn watched() -> Vec<String> {
    let template =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../template.yaml")).expect("a file");
    let lines: Vec<&str> = template.lines().map(str::trim).collect();
    let named = |pair: &[&str]| match pair {
        ["Namespace: !Sub HoopaiRelay/${AWS::StackName}", name] => name.strip_prefix("MetricName: ").map(str::to_owned),
        _ => None,
    };
    lines.windows(2).filter_map(named).collect()
}

fn written(system: &System) -> Vec<Datum> {
    let lines = system.sandbox.logs.lines();
    let read = |line: &str| serde_json::from_str::<Value>(line).map(|line| metrics(&line)).unwrap_or_default();
    lines.iter().flat_map(|line| read(&line.line)).collect()
}

fn answer_500() -> Fault {
    Fault::Answer { processed: false, status: 500, body: "{}".into(), content_type: None }
}

async fn force(system: &System, resource: &Resource) {
    system.refresh(&json!({ "resource": resource, "force": true })).await.expect("a summary");
}

/// Changes the table as if three installations had just been marked, and two more waited for a mark.
async fn pretend_refusals(system: &System) {
    let number = |n: i64| AttributeValue::N(n.to_string());
    let update = system.sandbox.dynamo.client().update_item().table_name(TABLE);
    update
        .key("pk", AttributeValue::S("app#breaker".into()))
        .update_expression("SET marks = :three, taken = :three, marked_at = :now, waiting = :two")
        .expression_attribute_values(":three", number(3))
        .expression_attribute_values(":two", number(2))
        .expression_attribute_values(":now", number(Clock::system().now().0))
        .send()
        .await
        .expect("the table can be written");
}

/// Makes calls that succeed, fail and are refused, an install that fails, and a webhook that fails.
async fn upset_what_is_called(system: &System, key: &str, signer: &Ed25519KeyPair) {
    let market = &system.sandbox.marketplace;
    let here = location(1);
    for n in 1..=3 {
        system.install(&location(n)).await;
    }
    assert_eq!(system.get(&here, "/echo").await.status, 200);
    market.fault(Endpoint::Api, answer_500(), Some(1));
    assert_eq!(system.get(&here, "/echo").await.status, 500);
    for status in [200, 429] {
        let call = system.request(Method::GET, &route(&here, "/echo")).bearer_auth(key);
        assert_eq!(send(call).await.status, status);
    }
    let queued = json!({ "caller": CALLER, "resource": here, "method": "POST", "path": "/status/500" });
    let is_held_up = || {
        let of_queue = [("alarm".to_owned(), "queue".to_owned())].into();
        written(system).iter().any(|datum| datum.name == "Alarm" && datum.dimensions == of_queue)
    };
    system.sandbox.results.fail(true);
    system.sandbox.calls.send_in_group(queued.to_string(), &here.to_string());
    assert!(until(is_held_up).await, "a result that is not taken raises no alarm");
    system.sandbox.results.fail(false);
    assert!(until(|| system.sandbox.results.depth() > 0).await, "the queued call has no result");
    market.fault(Endpoint::Exchange, answer_500(), None);
    let code = market.authorize(location(2));
    let failed = system.browse(&format!("{}{CALLBACK_PATH}?code={code}", system.sandbox.gateway.url()), None).await;
    assert_eq!(failed.status, 503);
    market.clear_faults();
    system.store.cut();
    // The process may have a permit left: the second delivery of the queued call has found a record and sent nothing.
    let _with_a_permit = system.get(&here, "/echo").await;
    assert_eq!(system.get(&here, "/echo").await.status, 503);
    let body = json!({"type": "UNINSTALL", "appId": market.options().client_id.split('-').next(), "locationId": "x",
        "webhookId": "w1"});
    let signature = STANDARD.encode(signer.sign(body.to_string().as_bytes()));
    let heard = system.request(Method::POST, "/webhooks/marketplace").header("x-ghl-signature", signature);
    let heard = heard.body(body.to_string());
    assert_eq!(heard.send().await.expect("an answer").status(), 429);
    assert!(system.refresh(&scheduled_event()).await.is_err(), "nothing is known to be due");
    let depth = || written(system).iter().any(|datum| datum.name == "RescueDepth");
    assert!(until(depth).await, "the rescue queue is looked at whatever the table does");
    system.store.mend();
}

/// Causes single and mass refusals of renewals, a bus that accepts nothing, a waiting pair, and missing keys.
async fn upset_what_is_scheduled(system: &mut System) {
    let market = &system.sandbox.marketplace;
    system.sandbox.event_bridge.fail(Some(Failure::AccessDenied));
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    market.fault(Endpoint::Refresh, refusal, None);
    force(system, &location(3)).await;
    pretend_refusals(system).await;
    force(system, &location(2)).await;
    let an_hour_ago = Clock::system().now().0 - 3_600_000;
    system.set_stored(&location(1), &[("due_at", an_hour_ago)]).await;
    system.sandbox.queue.send("{}");
    let is_told = |system: &System| {
        let lines = system.sandbox.logs.lines();
        lines.iter().any(|line| line.line.contains("could not be sent; the next tick tries again"))
    };
    let mut ticks = 0;
    while !is_told(system) && ticks < 30 {
        system.refresh(&scheduled_event()).await.expect("a summary");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        ticks += 1;
    }
    // Starts another process, which has only the new keys.
    system.sandbox.secrets.put(SEALING_SECRET, json!({ "current": "k2", "k2": "x".repeat(32) }).to_string());
    system
        .sandbox
        .dynamo
        .client()
        .delete_item()
        .table_name(TABLE)
        .key("pk", AttributeValue::S("app#breaker".into()))
        .send()
        .await
        .expect("resumed");
    system.start_apart("refresh", "refresh-new", &[]).await;
    system.invoke_as("refresh-new", json!({ "resource": location(1), "force": true }).to_string(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_an_alarm_watches_is_written() {
    let key = "rk_slow_0123456789";
    let callers = vec![json!({ "id": "slow", "keys_sha256": [sha256_hex(key)], "requests_per_10s": 1 })];
    let signer = Ed25519KeyPair::generate().expect("a key");
    let der: PublicKeyX509Der<'_> = signer.public_key().as_der().expect("a public key");
    let pace = ("TOKEN_REQUESTS_PER_MINUTE", "6000".to_owned());
    let environment = vec![("WEBHOOK_PUBLIC_KEYS", STANDARD.encode(der.as_ref())), pace];
    let mut system = System::start(Setup { relays: 1, callers, environment, ..Setup::default() }).await;
    system.tell(key);
    upset_what_is_called(&system, key, &signer).await;
    upset_what_is_scheduled(&mut system).await;

    let is = |name: &str, dimension: Option<(&str, &str)>, least: f64| {
        written(&system).iter().any(|datum| {
            let dimensions = dimension.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            datum.name == name && datum.dimensions == dimensions && datum.value >= least
        })
    };
    let rings = [
        ("Calls", None, 1.0),
        ("Calls", Some(("outcome", "answered")), 1.0),
        ("Calls", Some(("outcome", "burst_limited")), 1.0),
        ("CallsCompleted", Some(("outcome", "unknown")), 1.0),
        ("PermitsRefused", Some(("limit", "caller")), 1.0),
        ("PlatformErrors", None, 1.0),
        ("PlatformLatency", None, 0.0),
        ("RelayErrors", None, 1.0),
        ("InstallFailures", None, 1.0),
        ("Installs", Some(("outcome", "installed")), 1.0),
        ("WebhookFailures", None, 1.0),
        ("Webhooks", Some(("outcome", "try_again")), 1.0),
        ("Refreshes", Some(("outcome", "needs_reauthorization")), 1.0),
        ("Ticks", None, 1.0),
        ("OldestDueAge", None, 3_600.0),
        ("BreakerOpen", None, 1.0),
        ("TokenPaceUsed", None, 0.0),
        ("RescueDepth", None, 1.0),
        ("Alarm", Some(("alarm", "mass_refusal")), 1.0),
        ("Alarm", Some(("alarm", "events")), 1.0),
        ("Alarm", Some(("alarm", "unseal")), 1.0),
    ];
    for (name, dimension, least) in rings {
        assert!(until(|| is(name, dimension, least)).await, "{name} by {dimension:?} is not written");
    }
    let watched = watched();
    assert!(watched.len() >= 18, "the template is read: {watched:?}");
    for name in watched {
        assert!(rings.iter().any(|(rung, _, _)| *rung == name), "{name} is watched and not written here");
    }
    let calls =
        written(&system).into_iter().filter(|datum| datum.name == "Calls" && datum.dimensions.is_empty()).count();
    let lines = system.sandbox.logs.lines();
    let said = lines.iter().filter(|line| line.line.contains("\"message\":\"relayed\"")).count();
    assert_eq!(calls, said, "a call is one line");
    let key_name = format!(r#""caller":"slow","caller_key":"{}""#, &sha256_hex(key)[..12]);
    assert!(lines.iter().any(|line| line.line.contains(&key_name)), "{key_name}");
    system.end().await;
}
