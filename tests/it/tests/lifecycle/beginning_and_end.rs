//! Installs and uninstalls arrive in any order, and during a refresh.

use std::time::Duration;

use it::proxy::Call;
use it::world::{World, grantee, location};
use shared::domain::status::Status;
use shared::install::Uninstalled;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    a_delayed_uninstall_does_not_end_a_newer_installation,
    an_uninstall_during_a_refresh_is_not_undone,
    an_install_during_a_refresh_is_not_undone,
    an_uninstalled_location_can_be_installed_again,
    an_uninstall_of_an_unknown_location_is_reported_as_unknown,
);

async fn a_delayed_uninstall_does_not_end_a_newer_installation(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.advance(Duration::from_mins(1));
    let uninstalled_at = world.clock.now();
    world.advance(Duration::from_mins(1));
    world.install(&process, &l1).await;
    let before = world.stored(&l1).await;
    let told = process.installations.uninstall(&l1, uninstalled_at).await.expect("a table");
    assert_eq!((told, world.stored(&l1).await), (Uninstalled::Older, before));
    world.end().await;
}

async fn an_uninstall_during_a_refresh_is_not_undone(world: World) {
    let l1 = location("L1");
    let (holder, webhook) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.advance(Duration::from_mins(1));
    let commit = holder.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        world.market.uninstall(&grantee(&l1));
        let told = webhook.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
        assert_eq!(told, Uninstalled::Done);
        commit.open();
    };
    let version = world.stored(&l1).await.version;
    let refreshed = holder.refresher.refresh(&l1, version, Why::Due, world.deadline());
    let (late, ()) = tokio::join!(refreshed, story);
    assert!(matches!(late, Refreshed::Moved), "{late:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.epoch), (Status::Revoked, 2));
    assert_eq!(
        (stored.access(), stored.standby().len(), stored.schedule().due_at),
        (None, 0, None),
        "the tokens are erased"
    );
    let read = holder.tokens.access(&l1, world.deadline()).await;
    assert!(matches!(read, Err(TokenError::Revoked)), "{read:?}");
    world.end().await;
}

async fn an_install_during_a_refresh_is_not_undone(world: World) {
    let l1 = location("L1");
    let (holder, callback) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.advance(Duration::from_mins(1));
    let commit = holder.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        world.install(&callback, &l1).await;
        commit.open();
    };
    let version = world.stored(&l1).await.version;
    let refreshed = holder.refresher.refresh(&l1, version, Why::Due, world.deadline());
    let (late, ()) = tokio::join!(refreshed, story);
    assert!(matches!(late, Refreshed::Moved), "{late:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.epoch, stored.version.generation), (Status::Active, 2, 2));
    assert_eq!(stored.standby(), [], "a pair of an earlier epoch is history");
    world.end().await;
}

async fn an_uninstalled_location_can_be_installed_again(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.advance(Duration::from_mins(1));
    world.market.uninstall(&grantee(&l1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
    world.advance(Duration::from_mins(1));
    world.install(&process, &l1).await;
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.epoch), (Status::Active, 3));
    process.tokens.access(&l1, world.deadline()).await.expect("a token");
    world.end().await;
}

async fn an_uninstall_of_an_unknown_location_is_reported_as_unknown(world: World) {
    let process = world.process().await;
    let told = process.installations.uninstall(&location("L9"), world.clock.now()).await.expect("a table");
    assert_eq!(told, Uninstalled::Unknown);
    assert_eq!(world.items().await, []);
    world.end().await;
}
