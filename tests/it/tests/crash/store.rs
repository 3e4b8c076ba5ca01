//! The table is down. If it is down before the POST, no request is sent; if it is down after the 200, the pair waits on
//! the rescue queue.

use it::proxy::{Call, Fault};
use sandbox::marketplace::grants::Rotation;
use serde_json::{Value, json};

use crate::scene::{Scene, Story, direct_answer, together, until};

/// The table cannot be written, in one of several ways, when a process tries to claim the lease.
async fn before_the_post(fault: Fault) {
    let scene = Scene::set(Rotation::Strict).await;
    let relay = scene.start("relay", "relay").await;
    relay.proxy.always(Call::Write, fault);
    let (status, problem) = scene.call().await;
    assert_eq!((status, &problem["code"]), (503, &json!("store_unavailable")), "{problem}");
    assert!(relay.proxy.calls(Call::Claim) > 0, "it tried");
    assert_eq!(scene.presented().len(), 0, "no POST");
    relay.proxy.heal();
    // If the store has applied the claim all the same, no process uses that lease, so the story waits for its end.
    scene.lease_is_over().await;
    assert_eq!(scene.call().await, (200, Value::Null));
    assert_eq!(scene.presented().len(), 1);
    scene.assert_usable().await;
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_presented_while_the_table_cannot_be_written() {
    let stories: Vec<Story<()>> = vec![
        ("read-only".to_owned(), Box::pin(before_the_post(Fault::AccessDenied))),
        ("throttled".to_owned(), Box::pin(before_the_post(Fault::Throttled))),
        ("down".to_owned(), Box::pin(before_the_post(Fault::HangUp { applied: false }))),
        ("answers lost".to_owned(), Box::pin(before_the_post(Fault::HangUp { applied: true }))),
        ("hangs".to_owned(), Box::pin(before_the_post(Fault::Stall { applied: false }))),
    ];
    together(stories).await;
}

/// The table goes down for all processes after the platform's 200. It recovers after the process that held the pair has
/// died.
async fn after_the_200(reinstalled: bool) {
    let scene = Scene::set(Rotation::Strict).await;
    let (doomed, refresh) = tokio::join!(scene.start("relay", "doomed"), scene.start("refresh", "refresh"));
    let down = Fault::HangUp { applied: false };
    doomed.proxy.always(Call::Commit, down.clone());
    doomed.proxy.always(Call::Grant, down.clone());
    refresh.proxy.always(Call::Store, down);
    let answered = scene.invoke("relay", "doomed").await.expect("no panic");
    assert_eq!(direct_answer(&answered), (200, Value::Null), "the caller has its answer");
    assert!(doomed.proxy.calls(Call::Commit) > 3, "it tried until the end of the lease");
    doomed.is_killed().await;
    assert_eq!(scene.sandbox.queue.sent(), 1, "the pair is on the queue");
    assert_eq!(scene.logged("alarm", "rescued"), 1, "an alarm is raised");
    assert!(until(|| async { scene.logged("alarm", "rescue") > 1 }).await, "it comes again while the table is down");
    assert_eq!(scene.stored().await.version.generation, 1);
    if reinstalled {
        scene.install().await;
    }
    let before = scene.stored().await;
    refresh.proxy.heal();
    let gone = || async { scene.sandbox.queue.messages().is_empty() };
    assert!(until(gone).await, "the pair leaves the queue");
    assert_eq!(scene.sandbox.queue.dead_letters().len(), 0);
    let stored = scene.stored().await;
    if reinstalled {
        assert_eq!(stored, before, "what is older than the installation is dropped");
    } else {
        assert_eq!((stored.status().as_str(), stored.version.generation), ("Active", 2));
    }
    assert_eq!(scene.presented().len(), 1);
    let _relay = scene.start("relay", "relay").await;
    scene.assert_usable().await;
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_granted_while_the_table_is_down_is_stored_from_the_queue() {
    let stories: Vec<Story<()>> = vec![
        ("committed when it is back".to_owned(), Box::pin(after_the_200(false))),
        ("dropped after a newer install".to_owned(), Box::pin(after_the_200(true))),
    ];
    together(stories).await;
}
