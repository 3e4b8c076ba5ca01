//! A process is frozen during a refresh, as Lambda freezes an environment. It wakes up after its lease has expired and
//! another process has done the work. The process must then send no further request, and its pair is stored only by
//! compare-and-swap on the version.

use it::front::{End, Front};
use it::proxy::Call;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Rotation;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::scene::{Answered, Process, Scene, Story, direct_answer, grantee, together, until};

/// Three processes: one that freezes, a rival that refreshes after it, and a relay that serves the calls of the story.
struct Three {
    frozen: Process,
    rival: Process,
    _relay: Process,
}

async fn three(scene: &Scene) -> Three {
    let (frozen, rival, relay) =
        tokio::join!(scene.start("relay", "frozen"), scene.start("refresh", "refresh"), scene.start("relay", "relay"));
    Three { frozen, rival, _relay: relay }
}

/// Asserts that the invocation of the frozen process ends with the stored token or with a request to retry, since its
/// wait is overdue by its own clock, too. The next invocation of that process must succeed.
async fn assert_serves(scene: &Scene, invocation: JoinHandle<Answered>) {
    let (status, problem) = direct_answer(&invocation.await.expect("no panic"));
    let again = ["refresh_in_progress", "store_unavailable"].map(Value::from);
    assert!(status == 200 || status == 503 && again.contains(&problem["code"]), "{status} {problem}");
    assert_eq!(direct_answer(&scene.invoke("relay", "frozen").await.expect("no panic")), (200, Value::Null));
}

/// The process is frozen when the answer to its claim arrives.
async fn between_the_claim_and_the_post() {
    let scene = Scene::set(Rotation::FamilyRevoking).await;
    let Three { frozen, rival: _rival, _relay } = three(&scene).await;
    let gate = frozen.proxy.hold_answer(Call::Claim);
    let invocation = scene.invoke("relay", "frozen");
    gate.reached().await;
    frozen.freezes().await;
    scene.lease_is_over().await;
    assert_eq!(scene.tick().await["refreshed"], 1);
    gate.open();
    frozen.thaws().await;
    assert_serves(&scene, invocation).await;
    assert_eq!((scene.presented().len(), scene.stored().await.version.generation), (1, 2), "only the rival's");
    scene.assert_usable().await;
    scene.end();
}

/// The frozen process's POST never arrives. When the process wakes up, the time for an answer is over, and the process
/// must not present the token again.
async fn in_the_post() {
    let scene = Scene::set(Rotation::FamilyRevoking).await;
    let Three { frozen, rival: _rival, _relay } = three(&scene).await;
    scene.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Stall { processed: false }, None);
    let invocation = scene.invoke("relay", "frozen");
    scene.has_presented(1).await;
    frozen.freezes().await;
    scene.sandbox.marketplace.clear_faults();
    scene.lease_is_over().await;
    assert_eq!(scene.tick().await["refreshed"], 1);
    frozen.thaws().await;
    assert_serves(&scene, invocation).await;
    let outcomes: Vec<_> = scene.presented().into_iter().map(|request| request.outcome).collect();
    assert_eq!(outcomes, ["not processed", "granted"], "nothing is sent after the lease");
    assert_eq!(scene.stored().await.version.generation, 2);
    scene.assert_usable().await;
    scene.end();
}

/// The frozen process commits late, on a forgiving platform. The rival's pair is already in the table, so the pair of
/// the frozen process becomes a standby pair.
async fn with_a_commit_that_comes_second() {
    let scene = Scene::set(Rotation::AlwaysForgiving).await;
    let Three { frozen, rival: _rival, _relay } = three(&scene).await;
    let gate = frozen.proxy.hold(Call::Commit);
    let invocation = scene.invoke("relay", "frozen");
    gate.reached().await;
    frozen.freezes().await;
    scene.lease_is_over().await;
    assert_eq!(scene.tick().await["refreshed"], 1);
    let rivals = scene.stored().await;
    gate.open();
    frozen.thaws().await;
    assert_serves(&scene, invocation).await;
    let stored = scene.stored().await;
    assert_eq!(stored.standby().len(), 1, "kept beside the rival's");
    assert_eq!((stored.status().as_str(), scene.presented().len()), ("Active", 2));
    assert_eq!(
        (stored.version, stored.access(), &stored.committed_by),
        (rivals.version, rivals.access(), &rivals.committed_by)
    );
    scene.assert_usable().await;
    assert_eq!(scene.stored().await.standby().len(), 1, "and beside the next, until it is tried");
    scene.end();
}

/// The frozen process commits late, on a strict platform that is just refusing the rival's token. The only live pair is
/// the one of the frozen process. The pair is stored although the rival holds the lease, and the rival's refusal does
/// not mark the installation.
async fn with_a_commit_that_comes_between_a_rival_and_its_refusal() {
    let scene = Scene::set(Rotation::Strict).await;
    let Three { frozen, rival, _relay } = three(&scene).await;
    let gate = frozen.proxy.hold(Call::Commit);
    let invocation = scene.invoke("relay", "frozen");
    gate.reached().await;
    frozen.freezes().await;
    scene.lease_is_over().await;
    // The platform holds back the rival's refusal until the commit has arrived.
    scene.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Stall { processed: true }, None);
    let tick = scene.invoke("refresh", "refresh");
    scene.has_presented(2).await;
    assert_eq!(rival.proxy.calls(Call::Claim), 1, "the rival holds the lease");
    gate.open();
    assert!(until(|| async { scene.stored().await.version.generation == 2 }).await, "the holder's pair is stored");
    scene.sandbox.marketplace.clear_faults();
    frozen.thaws().await;
    assert_serves(&scene, invocation).await;
    let summary = tick.await.expect("no panic").expect("an answer");
    assert_eq!(summary["refreshed"], json!(0), "{summary}");
    assert_eq!((scene.status().await.as_str(), scene.stored().await.version.generation), ("Active", 2));
    assert_eq!(scene.stored().await.standby(), [], "the late commit knows its own write");
    scene.assert_usable().await;
    scene.end();
}

/// The process is frozen when the answer to its permit arrives, and the platform ends the process's connections
/// meanwhile. After the thaw the process finds both events in its sockets at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_arrives_once_after_a_freeze_that_ended_its_connection() {
    let (scene, front) = (Scene::set(Rotation::AlwaysForgiving).await, Front::start().await);
    front.lead_to(&scene.sandbox.marketplace.url());
    let behind = [("API_URL", front.url()), ("SSL_CERT_FILE", front.root_file().display().to_string())];
    let relay = scene.begin_with("relay", "relay", "relay", &behind).await;
    scene.has_started("relay", 1).await;
    assert_eq!(direct_answer(&scene.post("relay").await.expect("no panic")), (201, Value::Null));
    for round in 0..20 {
        let how = if round % 2 == 0 { End::Reset } else { End::Close };
        let gate = relay.proxy.hold_answer(Call::Write);
        let post = scene.post("relay");
        gate.reached().await;
        relay.freezes().await;
        front.end_all(how);
        // The story waits until all connections have ended, and only then lets the answer through.
        assert!(until(|| async { front.open() == 0 }).await, "the connections are ended");
        gate.open();
        relay.proxy.heal();
        relay.thaws().await;
        let posted = direct_answer(&post.await.expect("no panic"));
        assert_eq!(posted, (201, Value::Null), "{how:?}, round {round}");
        let arrived = scene.sandbox.marketplace.api_requests(&grantee()).len();
        assert_eq!(arrived, round + 2, "{how:?}: each POST arrives once");
    }
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_frozen_beyond_its_lease_presents_no_token_and_loses_no_pair() {
    let stories: Vec<Story<()>> = vec![
        ("between the claim and the POST".to_owned(), Box::pin(between_the_claim_and_the_post())),
        ("in the POST".to_owned(), Box::pin(in_the_post())),
        ("commit comes second".to_owned(), Box::pin(with_a_commit_that_comes_second())),
        (
            "commit comes between a rival and its refusal".to_owned(),
            Box::pin(with_a_commit_that_comes_between_a_rival_and_its_refusal()),
        ),
    ];
    together(stories).await;
}
