//! The platform has taken the refresh token, and its answer is lost.

use it::proxy::Call;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Rotation;
use serde_json::{Value, json};

use crate::scene::{Scene, Story, grantee, together, until};

fn bad_gateway() -> Fault {
    let body = "<html><title>502 Bad Gateway</title></html>".to_owned();
    Fault::Answer { processed: true, status: 502, body, content_type: Some("text/html".to_owned()) }
}

/// One answer is lost. The product presents the token once more at once.
async fn once(fault: Fault, rotation: Rotation) {
    let scene = Scene::set(rotation).await;
    let _relay = scene.start("relay", "relay").await;
    scene.sandbox.marketplace.fault(Endpoint::Refresh, fault, Some(1));
    let (status, problem) = scene.call().await;
    assert_eq!(scene.presented().len(), 2, "once more, at once");
    if rotation == Rotation::AlwaysForgiving {
        assert_eq!((status, problem), (200, Value::Null));
    } else {
        // Only the platform's own refusal of the token is a reason to mark the installation.
        assert_eq!((status, &problem["code"]), (424, &json!("reauthorization_required")));
        assert_eq!(scene.presented()[1].status, Some(400));
        assert_eq!(scene.status().await, "NeedsReauthorization");
        scene.install().await;
    }
    scene.assert_usable().await;
    scene.end();
}

/// All answers are lost for a while. Each claim makes at most two presentations, and the installation is never marked.
async fn for_a_while(fault: Fault) {
    let scene = Scene::set(Rotation::AlwaysForgiving).await;
    let (relay, _refresh) = tokio::join!(scene.start("relay", "relay"), scene.start("refresh", "refresh"));
    scene.sandbox.marketplace.fault(Endpoint::Refresh, fault, None);
    let (status, problem) = scene.call().await;
    assert_eq!((status, &problem["code"]), (503, &json!("refresh_in_progress")), "{problem}");
    assert!(problem["reinstall_url"].is_null());
    assert_eq!(scene.presented().len(), 2 * relay.proxy.calls(Call::Claim), "twice a claim");
    assert_eq!(scene.status().await, "Uncertain");
    scene.sandbox.marketplace.clear_faults();
    assert!(!scene.sandbox.marketplace.live_refresh_tokens(&grantee()).is_empty());
    // An operator forces the refresh, because the schedule's next try may come after the platform's grace period.
    assert_eq!(scene.refresh_by_force().await["refreshed"], 1);
    scene.assert_usable().await;
    scene.end();
}

/// Both answers of a claim time out. The next claim receives the third answer, in the same call or in another one.
async fn twice_in_time_outs() {
    let scene = Scene::set(Rotation::AlwaysForgiving).await;
    let relay = scene.start("relay", "relay").await;
    scene.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Stall { processed: true }, Some(2));
    let served = until(|| async {
        let (status, problem) = scene.call().await;
        assert!(status == 200 || problem["code"] == "refresh_in_progress", "{problem}");
        status == 200
    });
    assert!(served.await, "it is served before long");
    assert_eq!((relay.proxy.calls(Call::Claim), scene.presented().len()), (2, 3));
    scene.assert_usable().await;
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_answer_is_requested_again_and_never_marks_the_installation() {
    let stall = Fault::Stall { processed: true };
    let stories: Vec<Story<()>> = vec![
        ("reset, forgiving".to_owned(), Box::pin(once(Fault::answer_lost(), Rotation::AlwaysForgiving))),
        ("502, forgiving".to_owned(), Box::pin(once(bad_gateway(), Rotation::AlwaysForgiving))),
        ("time-out, forgiving".to_owned(), Box::pin(once(stall, Rotation::AlwaysForgiving))),
        ("reset, strict".to_owned(), Box::pin(once(Fault::answer_lost(), Rotation::Strict))),
        ("reset, family-revoking".to_owned(), Box::pin(once(Fault::answer_lost(), Rotation::FamilyRevoking))),
        ("resets".to_owned(), Box::pin(for_a_while(Fault::answer_lost()))),
        ("502s".to_owned(), Box::pin(for_a_while(bad_gateway()))),
        ("time-outs".to_owned(), Box::pin(twice_in_time_outs())),
    ];
    together(stories).await;
}
