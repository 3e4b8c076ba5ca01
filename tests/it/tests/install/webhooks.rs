//! Uninstalls that the marketplace reports by webhook.

use std::time::Duration;

use sandbox::marketplace::grants::Resource as Grantee;
use sandbox::secrets::Failure as SecretFailure;
use serde_json::json;
use shared::domain::status::Status;

use crate::{LOCATION, World};

#[tokio::test]
async fn an_uninstall_revokes_older_installations_only() {
    let world = World::new().await;
    assert_eq!(world.hear(&world.uninstall(world.clock.now())).await, (200, "unknown".into()));
    let before = world.clock.now() - Duration::from_mins(1);
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);

    assert_eq!(world.hear(&world.uninstall(before)).await, (200, "superseded".into()));
    assert_eq!(world.status(LOCATION).await, Some(Status::Active), "a late webhook of an earlier uninstall");

    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.hear(&world.uninstall(world.clock.now())).await, (200, "stored".into()));
    assert_eq!(world.status(LOCATION).await, Some(Status::Revoked));

    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    assert_eq!(world.status(LOCATION).await, Some(Status::Active), "installed again");
}

#[tokio::test]
async fn an_uninstall_dated_in_the_future_is_checked_with_the_platform() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    world.clock.advance(Duration::from_secs(1));
    let tomorrow = world.uninstall(world.clock.now() + Duration::from_hours(24));
    assert_eq!(world.hear(&tomorrow).await, (200, "superseded".into()), "the platform takes the token");
    world.marketplace.uninstall(&Grantee::Location("HLlocation000000001".into()));
    assert_eq!(world.hear(&tomorrow).await, (200, "stored".into()));
    let (table, now) = (world.table().await, world.clock.now());
    assert!(table.contains(&format!("\"revoked_at\": N(\"{now}\")")), "{table}");
}

#[tokio::test]
async fn a_webhook_that_could_not_be_stored_is_processed_when_it_is_repeated() {
    let world = World::new().await;
    let webhook = world.uninstall(world.clock.now());
    world.secrets.fail(Some(SecretFailure::AccessDenied));
    assert_eq!(world.hear(&webhook).await.0, 429, "whether it is for this app is not known");
    world.secrets.fail(None);
    world.dynamo.client().delete_table().table_name("relay").send().await.expect("gone");
    assert_eq!(world.hear(&webhook).await.0, 429);
    let foreign = json!({"type": "UNINSTALL", "appId": "another", "locationId": "HLlocation000000001"});
    assert_eq!(world.hear(&foreign).await, (403, "foreign_app".into()));
}
