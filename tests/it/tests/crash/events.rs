//! `kill -9` between the write of a state and the publication of the event about that state.

use it::proxy::Call;
use sandbox::event_bridge::Put;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Rotation;
use serde_json::json;

use crate::scene::{Scene, Story, together, until};

fn published(scene: &Scene, name: &str) -> Vec<Put> {
    scene.sandbox.event_bridge.events().into_iter().filter(|put| put.detail_type == name).collect()
}

/// A process of the function `doomed` marks an installation and dies before or after it publishes the event. Then the
/// schedule runs.
async fn story(doomed: &'static str, struck: Call) {
    let scene = Scene::set(Rotation::Strict).await;
    let (process, _refresh) = tokio::join!(scene.start(doomed, "doomed"), scene.start("refresh", "refresh"));
    assert_eq!(published(&scene, "Installed").len(), 1);
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    scene.sandbox.marketplace.fault(Endpoint::Refresh, refusal, None);
    let gate = process.proxy.hold(struck);
    let invocation = scene.invoke(doomed, "doomed");
    gate.reached().await;
    process.dies(invocation).await;
    assert_eq!(scene.stored().await.status().as_str(), "NeedsReauthorization", "the state is stored first");
    let before = usize::from(struck == Call::Acknowledge);
    assert_eq!(published(&scene, "NeedsReauthorization").len(), before);
    let found = until(|| async {
        scene.tick().await;
        published(&scene, "NeedsReauthorization").len() > before
    });
    assert!(found.await, "the schedule finds it");
    let put = published(&scene, "NeedsReauthorization").pop().expect("an event");
    assert_eq!(put.detail["reinstall_url"], json!(format!("{}/oauth/install", scene.home())));
    assert!(scene.stored().await.outbox.is_empty(), "and acknowledges it");
    scene.tick().await;
    assert_eq!(published(&scene, "NeedsReauthorization").len(), before + 1, "once");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_sends_the_event_of_a_process_that_died_before_sending() {
    let mut stories: Vec<Story<()>> = Vec::new();
    for doomed in ["relay", "refresh"] {
        for struck in [Call::Events, Call::Acknowledge] {
            stories.push((format!("{doomed}, {struck:?}"), Box::pin(story(doomed, struck))));
        }
    }
    together(stories).await;
}
