//! The promise about limits on AWS's own test double, too: its conditions are evaluated by other code.

use it::dynamo::{Engine, Kind};

use crate::limits::storm_on;

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_keep_a_hundred_in_any_ten_seconds() {
    let name = "dynamodb_local::four_processes_keep_a_hundred_in_any_ten_seconds";
    let Some(engine) = Engine::start(Kind::Local, name).await else { return };
    storm_on("DynamoDB Local", Some(engine.url())).await;
}
