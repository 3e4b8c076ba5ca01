//! The table fails before a refresh token is presented. In that case no request is sent to the platform.

use it::proxy::{Call, Fault};
use it::world::{World, location};
use sandbox::secrets::Failure as SecretsFailure;
use shared::domain::status::Status;
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    while_the_table_cannot_be_written_no_token_is_presented,
    while_the_table_cannot_be_read_no_token_is_presented,
    while_secrets_cannot_be_read_no_token_is_presented,
    a_lease_that_cannot_be_released_expires,
);

async fn while_the_table_cannot_be_written_no_token_is_presented(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.expire();
    let before = world.stored(&l1).await;
    for fault in [Fault::AccessDenied, Fault::Throttled, Fault::Unavailable, Fault::HangUp { applied: false }] {
        process.proxy.always(Call::Write, fault.clone());
        let failed = process.refresher.refresh(&l1, before.version, Why::Due, world.deadline()).await;
        assert!(matches!(failed, Refreshed::Failed(TokenError::Store(_))), "{fault:?}: {failed:?}");
        let failed = process.tokens.access(&l1, world.deadline()).await;
        assert!(matches!(failed, Err(TokenError::Store(_))), "{fault:?}: {failed:?}");
        assert_eq!((world.presented(), world.stored(&l1).await), (0, before.clone()), "{fault:?}");
        process.proxy.heal();
    }
    assert!(process.proxy.struck() >= 8);
    world.end().await;
}

async fn while_the_table_cannot_be_read_no_token_is_presented(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.expire();
    let version = world.stored(&l1).await.version;
    process.proxy.always(Call::Read, Fault::Unavailable);
    let failed = process.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(failed, Refreshed::Failed(TokenError::Store(_))), "without the breaker's state: {failed:?}");
    let failed = process.tokens.access(&l1, world.deadline()).await;
    assert!(matches!(failed, Err(TokenError::Store(_))), "{failed:?}");
    assert_eq!(world.presented(), 0);
    world.end().await;
}

async fn while_secrets_cannot_be_read_no_token_is_presented(world: World) {
    let l1 = location("L1");
    let installer = world.process().await;
    world.install(&installer, &l1).await;
    let before = world.stored(&l1).await;
    for failure in [SecretsFailure::Unavailable, SecretsFailure::AccessDenied, SecretsFailure::HangUp] {
        let cold = world.process().await;
        world.secrets.fail(Some(failure));
        let failed = cold.refresher.refresh(&l1, before.version, Why::Due, world.deadline()).await;
        assert!(matches!(failed, Refreshed::Failed(TokenError::Secret(_))), "{failure:?}: {failed:?}");
        assert_eq!((world.presented(), world.stored(&l1).await), (0, before.clone()), "{failure:?}");
        world.secrets.fail(None);
        let renewed = cold.refresher.refresh(&l1, before.version, Why::Due, before.installed_at).await;
        assert!(matches!(renewed, Refreshed::Failed(TokenError::NoTime)), "no claim near the end: {renewed:?}");
    }
    // A process that has read the secrets once continues to work without Secrets Manager.
    world.secrets.fail(Some(SecretsFailure::AccessDenied));
    let renewed = installer.refresher.refresh(&l1, before.version, Why::Due, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    world.secrets.fail(None);
    world.end().await;
}

async fn a_lease_that_cannot_be_released_expires(world: World) {
    use sandbox::marketplace::faults::{Endpoint, Fault as PlatformFault};
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let version = world.stored(&l1).await.version;
    world.market.fault(Endpoint::Refresh, PlatformFault::answer_lost(), Some(2));
    process.proxy.always(Call::Release, Fault::Unavailable);
    let unknown = process.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(unknown, Refreshed::Failed(TokenError::Unanswered { .. })), "{unknown:?}");
    assert_eq!(world.status(&l1).await, Status::Refreshing);
    process.proxy.heal();
    world.advance(LEASE);
    let summary = world.refresh(&process, serde_json::json!({})).await;
    assert_eq!(summary["refreshed"], 1, "{summary}");
    world.end().await;
}
