//! A table that was lost is restored under another name, on `DynamoDB` Local. It has no backups, so the test copies the
//! items.

use std::time::Duration;

use engines::{Engine, Kind};
use it::outside::{Setup, System, location};
use sandbox::dynamo::{client, create_table};
use sandbox::marketplace::grants::Resource;
use sandbox::whole::TABLE;
use serde_json::{Value, json};

use crate::operator::ops_in;

/// The number of installations in the backup.
const BACKED_UP: usize = 20;
/// The number of those that were renewed after the backup.
const RENEWED_SINCE: usize = 5;
const RESTORED: &str = "restored";

async fn invoke(system: &System, function: &str, resource: &Resource, more: &[(&str, Value)]) -> Value {
    let mut event = json!({ "resource": { "location": resource.id() } });
    for (name, value) in more {
        event[name] = value.clone();
    }
    system.invoke_as(function, event.to_string(), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_table_is_restored_under_another_name() {
    let Some(engine) = Engine::start(Kind::Local, "restore::a_lost_table_is_restored_under_another_name").await else {
        return;
    };
    let environment = vec![("SEALING_CONTEXT", "the-stack".to_owned())];
    let setup = Setup { store: Some(engine.url()), environment, locations: BACKED_UP + 1, ..Setup::default() };
    let mut system = System::start(Setup { relays: 1, ..setup }).await;
    let store = client(&engine.url());
    let all: Vec<_> = (1..=BACKED_UP + 1).map(location).collect();
    let (backed_up, newer) = all.split_at(BACKED_UP);
    for resource in backed_up {
        system.install(resource).await;
    }
    let backup = store.scan().table_name(TABLE).consistent_read(true).send().await.expect("read");
    let (since, good) = backed_up.split_at(RENEWED_SINCE);
    for resource in since {
        let summary = invoke(&system, "refresh", resource, &[("force", json!(true))]).await;
        assert_eq!(summary["refreshed"], 1, "{summary}");
    }
    system.install(&newer[0]).await;

    store.delete_table().table_name(TABLE).send().await.expect("deleted");
    create_table(&store, RESTORED).await.expect("a table");
    for item in backup.items() {
        store.put_item().table_name(RESTORED).set_item(Some(item.clone())).send().await.expect("restored");
    }
    // The platform repeats an answer for 30 s only. A restore takes longer.
    system.sandbox.marketplace.advance(Duration::from_mins(10));
    let own = [("TABLE_NAME", RESTORED), ("SEALING_CONTEXT", "the-stack")];
    system.start_apart("refresh", "refresh-restored", &own).await;
    system.start_apart("relay", "relay-restored", &own).await;
    let call = [("method", json!("GET")), ("path", json!("/echo"))];
    for resource in backed_up {
        let answer = invoke(&system, "relay-restored", resource, &call).await;
        assert_eq!(answer["status"], 200, "{resource} with the restored access token: {answer}");
    }
    let unknown = invoke(&system, "relay-restored", &newer[0], &call).await;
    assert_eq!(unknown["status"], 404, "{unknown}");
    let mut renewed = Vec::new();
    for resource in good.iter().chain(since) {
        let summary = invoke(&system, "refresh-restored", resource, &[("force", json!(true))]).await;
        if summary["refreshed"] == 1 {
            renewed.push(resource.clone());
        }
    }
    assert_eq!(renewed, good, "those that were renewed after the backup are lost, and no others");

    // The operator's program looks at the restored table before anything else does. Without the context nothing opens.
    let mut environment = system.operators_environment();
    environment.insert("AWS_ENDPOINT_URL_DYNAMODB".to_owned(), engine.url());
    environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let export = ["export", "--yes", "--recipient", &recipient];
    for command in [&["pause"][..], &export] {
        let said = ops_in(&system, environment.clone(), command).await;
        assert_eq!(said.code, 0, "{said:?}");
    }
    environment.remove("SEALING_CONTEXT");
    let shut = ops_in(&system, environment, &export).await;
    assert!(shut.code == 1 && shut.err.contains("does not open") && shut.out.is_empty(), "{shut:?}");
    system.end().await;
}
