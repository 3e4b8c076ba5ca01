//! A deployment without AWS: the table, secrets and queues of `template.yaml` on DynamoDB Local and moto, the functions
//! with the environment that the template sets, and the documented commands as an operator types them.

use std::time::Duration;

use http::Method;
use it::outside::{ClientResponse, PATIENCE, Setup, System, location, route, send};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};

use crate::operator::{done, ops};

/// Follows the README: sets the client secret, then adds a caller. Returns the caller's key.
async fn put_into_service(system: &System) -> String {
    let deployment = system.deployment.as_ref().expect("it is deployed");
    let secret = system.sandbox.marketplace.options().client_secret;
    let printed = deployment.type_in(deployment.output("PutClientSecret"), &format!("{secret}\n")).await;
    assert!(!printed.contains(&secret), "{printed}");
    let sealing = deployment.output("SealingSecretArn");
    let read = format!("aws secretsmanager get-secret-value --secret-id {sealing} --query SecretString --output text");
    let keys: Value = serde_json::from_str(&deployment.type_in(&read, "").await).expect("the documented form");
    assert_eq!(keys["current"], "k1");
    system.tell(keys["k1"].as_str().expect("a generated key"));
    let added = done(system, &["callers", "add", "billing"]).await;
    let key = added["key"].as_str().expect("a key").to_owned();
    system.tell(&key);
    key
}

async fn call(system: &System, key: &str, number: usize) -> ClientResponse {
    send(system.request(Method::GET, &route(&location(number), "/echo")).bearer_auth(key)).await
}

fn expect_served(answer: &ClientResponse) {
    assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_commands_put_a_deployment_into_service_and_operate_it() {
    let name = "deployment::the_documented_commands_put_a_deployment_into_service_and_operate_it";
    let Some(mut system) = System::deployed(Setup { relays: 0, ..Setup::default() }, name).await else { return };
    let deployment = system.deployment.as_ref().expect("it is deployed");
    assert_eq!(deployment.output("CallbackUrl"), format!("{}/oauth/callback", system.sandbox.gateway.url()));

    let early = system.sandbox.install(location(1)).await.expect("an answer");
    assert_eq!(early, 500, "misconfigured until the client secret is there");
    let ill = ops(&system, &["doctor"]).await;
    assert!(ill.code == 5 && ill.out.contains("FAIL  app secret"), "{ill:?}");

    let key = put_into_service(&system).await;
    // A process reads the callers when it starts, and notices a change within a minute.
    system.start_apart("relay", "relay", &[]).await;
    let deployment = system.deployment.as_ref().expect("it is deployed");
    for number in 1..=3 {
        system.install(&location(number)).await;
        expect_served(&call(&system, &key, number).await);
    }
    system.sandbox.marketplace.expire_access_tokens();
    expect_served(&call(&system, &key, 1).await);
    assert_eq!(system.refreshes(), 1);
    assert_eq!(call(&system, "rk_000000000000", 1).await.refusal(), (401, "unauthenticated".to_owned()));

    let healthy = ops(&system, &["doctor"]).await;
    assert_eq!(healthy.code, 0, "{healthy:?}");
    assert!(healthy.out.contains("warn  deletion protection: off"), "a first deployment: {healthy:?}");
    let lines = system.sandbox.logs.lines();
    let written =
        |namespace: &str| lines.iter().any(|line| line.line.contains(&format!(r#""Namespace":"{namespace}""#)));
    assert!(written("HoopaiRelay/hoopai-relay") && !written("HoopaiRelay"), "metrics are in the stack's own namespace");
    assert_eq!(done(&system, &["list"]).await["installations"].as_array().map(Vec::len), Some(3));
    let resource = location(2).to_string();
    assert_eq!(done(&system, &["refresh", &resource]).await["summary"]["refreshed"], 1);
    assert_eq!(done(&system, &["sealing", "rotate"]).await["sealed"], 3);
    let listed = done(&system, &["sealing", "list"]).await;
    assert_eq!(listed["keys"][0], json!({ "id": "k1", "state": "old", "values": 0 }));
    for number in 1..=3 {
        expect_served(&call(&system, &key, number).await);
    }
    let rotated = done(&system, &["callers", "rotate", "billing"]).await;
    system.tell(rotated["key"].as_str().expect("a key"));
    assert_eq!(done(&system, &["callers", "retire", "billing"]).await["ended"], 1);

    // The client secret changes. The function still has the old one, is refused, and reads the secret again.
    let newer = r#"a-new-"client\secret"-0123456789"#;
    system.tell(newer);
    system.sandbox.marketplace.change(|options| options.client_secret = newer.to_owned());
    deployment.type_in(deployment.output("PutClientSecret"), &format!("{newer}\n")).await;
    assert_eq!(done(&system, &["refresh", &resource]).await["summary"]["refreshed"], 1);

    done(&system, &["revoke", &resource, "--yes"]).await;
    let refused = async || call(&system, &key, 2).await.refusal() == (410, "revoked".to_owned());
    let revoked = tokio::time::Instant::now();
    loop {
        // A call that begins later than this time must be refused, even if it takes long on a busy machine.
        let asked = revoked.elapsed();
        if refused().await {
            break;
        }
        assert!(asked < Duration::from_secs(10), "every process notices within 10 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_cannot_be_stored_is_stored_from_the_queue_later() {
    let name = "deployment::a_pair_that_cannot_be_stored_is_stored_from_the_queue_later";
    let Some(mut system) = System::deployed(Setup { relays: 0, ..Setup::default() }, name).await else { return };
    let key = put_into_service(&system).await;
    system.start_apart("relay", "relay", &[]).await;
    let deployment = system.deployment.as_ref().expect("it is deployed");
    system.install(&location(1)).await;
    // The table goes down while the platform's answer is under way.
    system.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Delay { millis: 3_000 }, Some(1));
    let one = json!({ "resource": location(1), "force": true });
    let renewal = system.refresh(&one);
    let cut = async {
        let resource = location(1).to_string();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while done(&system, &["show", &resource]).await["status"] != "Refreshing" {
            assert!(tokio::time::Instant::now() < deadline, "it is claimed");
        }
        system.store.cut();
    };
    let (renewed, ()) = tokio::join!(renewal, cut);
    assert_eq!(renewed.expect("a summary")["refreshed"], 1);
    let waiting = ops(&system, &["doctor"]).await;
    assert!(waiting.out.contains("1 token pairs wait to be stored"), "{waiting:?}");
    system.store.mend();

    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest())
        .region(aws_sdk_sqs::config::Region::new("us-east-1"))
        .credentials_provider(aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "test"))
        .http_client(shared::http_client::aws())
        .endpoint_url(&system.operators_environment()["AWS_ENDPOINT_URL_SQS"]);
    let (sqs, queue) = (aws_sdk_sqs::Client::from_conf(config.build()), deployment.output("RescueQueueUrl"));
    let policy = aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy;
    let attributes = sqs.get_queue_attributes().queue_url(queue).attribute_names(policy.clone()).send().await;
    let attributes = attributes.expect("an answer").attributes.expect("attributes");
    let redrive: Value = serde_json::from_str(&attributes[&policy]).expect("JSON");
    assert!(redrive["deadLetterTargetArn"].as_str().is_some_and(|arn| arn.contains("RescueFailures")), "{redrive}");
    let received = sqs.receive_message().queue_url(queue).send().await.expect("an answer");
    let message = received.messages().first().expect("the pair");
    let record = json!({ "messageId": message.message_id(), "body": message.body(), "eventSource": "aws:sqs" });
    let answer = system.refresh(&json!({ "Records": [record] })).await.expect("an answer");
    assert_eq!(answer, json!({ "batchItemFailures": [] }));
    let resource = location(1).to_string();
    let shown = done(&system, &["show", &resource]).await;
    assert_eq!((&shown["status"], &shown["generation"]), (&json!("Active"), &json!(2)), "{shown}");
    expect_served(&call(&system, &key, 1).await);
    assert_eq!(done(&system, &["refresh", &resource]).await["summary"]["refreshed"], 1, "the pair is the live one");
    system.end().await;
}
