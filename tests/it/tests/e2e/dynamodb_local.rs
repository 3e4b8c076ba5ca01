//! The burst limit on DynamoDB Local, whose code evaluates conditions independently of the embedded engine.

use it::dynamo::{Engine, Kind};

use crate::limits::storm_on;

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_keep_a_hundred_in_any_ten_seconds() {
    let name = "dynamodb_local::four_processes_keep_a_hundred_in_any_ten_seconds";
    let Some(engine) = Engine::start(Kind::Local, name).await else { return };
    storm_on("DynamoDB Local", Some(engine.url())).await;
}
