//! Many processes want the same expired token at the same time.

use futures_util::future::join_all;
use it::proxy::Call;
use sandbox::marketplace::grants::Rotation;
use serde_json::Value;

use crate::scene::{Scene, direct_answer, until};

const READERS: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_processes_and_one_expired_token_make_one_post() {
    let scene = Scene::set(Rotation::FamilyRevoking).await;
    let names: Vec<_> = (1..=READERS).map(|number| format!("relay-{number}")).collect();
    let processes = join_all(names.iter().map(|name| scene.begin("relay", "relay", name))).await;
    scene.has_started("relay", READERS).await;
    // All of them have seen that the token is expired, and all of them try to claim.
    let gates: Vec<_> = processes.iter().map(|process| process.proxy.hold(Call::Claim)).collect();
    let calls: Vec<_> = (1..=READERS).map(|_| scene.invoke("relay", "relay")).collect();
    join_all(gates.iter().map(it::proxy::Gate::reached)).await;
    gates.iter().for_each(it::proxy::Gate::open);
    for call in calls {
        assert_eq!(direct_answer(&call.await.expect("no panic")), (200, Value::Null));
    }
    let served =
        until(|| async { scene.logged("outcome", "answered") >= usize::try_from(READERS).expect("few") }).await;
    assert!(served, "each has written its line");
    assert_eq!(scene.logged("outcome", "refreshed"), 1);
    let outcomes: Vec<_> = scene.presented().into_iter().map(|request| request.outcome).collect();
    assert_eq!(outcomes, ["granted"], "one POST");
    let stored = scene.stored().await;
    assert_eq!((stored.status().as_str(), stored.version.generation), ("Active", 2));
    scene.assert_usable().await;
    scene.end();
}
