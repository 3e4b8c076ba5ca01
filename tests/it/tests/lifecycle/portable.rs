//! Installations that another system has held: an import replaces nothing that may be newer, and a pause stops every
//! renewal but the replay of a lost answer.

use std::time::Duration;

use futures_util::future::join_all;
use it::world::{HOME, Process, World, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::RefreshTokenState;
use shared::domain::clock::Millis;
use shared::domain::grant::Grant;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::install::Uninstalled;
use shared::install::portable::{Imported, Portable, Rules};
use shared::seal::pair::Pair;
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::token::TokenError;
use shared::token::breaker::Breaker;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    an_import_replaces_nothing_that_may_be_newer,
    an_import_at_the_same_time_by_several_stores_once,
    a_pause_ends_only_when_an_operator_ends_it,
    a_lost_answer_is_asked_for_during_a_pause,
);

/// An installation that the platform has granted to another system.
async fn elsewhere(world: &World, process: &Process, resource: &Resource) -> Portable {
    let grant: Grant = world.consent(process, resource).await;
    let now = world.clock.now();
    Portable {
        resource: resource.clone(),
        company: grant.company.clone(),
        scope: grant.scope.clone(),
        installed_at: now,
        pair: Some(Pair::granted(&grant, None, now)),
    }
}

async fn import(process: &Process, new: &Portable, replace: bool) -> Imported {
    let rules = Rules { replace, dry_run: false, home: Some(HOME) };
    process.installations.import(new, rules).await.expect("an answer")
}

/// Renews the stored pair, as the schedule does.
async fn renew(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Due, world.deadline()).await
}

async fn an_import_replaces_nothing_that_may_be_newer(world: World) {
    let process = world.teller().await;
    let (l1, l2, l3) = (location("P1"), location("P2"), location("P3"));
    let first = elsewhere(&world, &process, &l1).await;
    let dry = Rules { dry_run: true, ..Rules::default() };
    assert_eq!(process.installations.import(&first, dry).await.expect("an answer"), Imported::Stored);
    assert_eq!(world.table.installation(&l1).await.expect("a table"), None, "nothing was written");
    assert_eq!(import(&process, &first, false).await, Imported::Stored);
    assert_eq!(import(&process, &first, true).await, Imported::Same);
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.outbox.len(), stored.home.as_deref()), (Status::Active, 0, Some(HOME)));
    assert_eq!(
        (&stored.scope, &stored.company, stored.installed_at),
        (&first.scope, &first.company, first.installed_at)
    );
    assert_eq!(world.event_bridge.events().len(), 0, "an import is no news for a customer");

    // After a renewal the imported pair is spent.
    world.advance(Duration::from_mins(1));
    let renewed = process.refresher.refresh(&l1, stored.version, Why::Operator, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let renewed = world.stored(&l1).await;
    assert_eq!(import(&process, &first, false).await, Imported::KeptStored);
    assert_eq!(world.stored(&l1).await, renewed);
    let of_unknown_age = Pair::received("an-unknown-token".into(), None, None);
    let unknown = Portable { pair: Some(of_unknown_age), ..first.clone() };
    assert_eq!(import(&process, &unknown, false).await, Imported::KeptStored);
    let minted = Portable { pair: None, ..first.clone() };
    assert_eq!(import(&process, &minted, false).await, Imported::KeptStored, "its own grant stays");

    // A later grant of the other system is newer.
    world.advance(Duration::from_mins(1));
    let second = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &second, false).await, Imported::Stored);
    let newer = world.stored(&l1).await;
    assert_eq!(newer.version, renewed.version.reinstalled());
    let portable = Portable::of(&process.vault, &newer).await.expect("it opens").expect("an installation");
    let tokens = |portable: &Portable| {
        let pair = portable.pair.clone().expect("a pair");
        (
            pair.access.expose().to_owned(),
            pair.refresh.expect("a token").expose().to_owned(),
            pair.issued_at,
            pair.expires_at,
        )
    };
    assert_eq!(tokens(&portable), tokens(&second));

    // An uninstalled app comes back only if the operator says so, and the same uninstall then changes nothing.
    world.advance(Duration::from_secs(1));
    let uninstalled_at = world.clock.now();
    process.installations.uninstall(&l1, uninstalled_at).await.expect("revoked");
    assert_eq!(import(&process, &second, false).await, Imported::KeptUninstalled);
    assert!(Portable::of(&process.vault, &world.stored(&l1).await).await.is_err(), "it has no token");
    assert_eq!(import(&process, &second, true).await, Imported::Stored);
    let repeated = process.installations.uninstall(&l1, uninstalled_at).await.expect("an answer");
    assert_eq!(repeated, Uninstalled::Older);

    // A location that only a caller has named, and a location whose token is minted, get a grant of their own.
    world.table.keep_placeholder(&l2, world.clock.now()).await.expect("a table");
    let placeholder = Portable::of(&process.vault, &world.stored(&l2).await).await.expect("readable");
    assert!(placeholder.is_none(), "no installation");
    let of_company = Portable { resource: l3.clone(), company: Some("C1".to_owned()), pair: None, ..first };
    assert_eq!(import(&process, &of_company, false).await, Imported::Stored);
    assert_eq!(import(&process, &of_company, false).await, Imported::Same);
    assert!(world.stored(&l3).await.minted().is_some_and(|minted| !minted.is_placeholder));
    for resource in [&l2, &l3] {
        let own = elsewhere(&world, &process, resource).await;
        assert_eq!(import(&process, &own, false).await, Imported::Stored);
        let stored = world.stored(resource).await;
        assert!(stored.minted().is_none() && stored.schedule().due_at.is_some(), "{stored:?}");
    }
    world.end().await;
}

async fn an_import_at_the_same_time_by_several_stores_once(world: World) {
    let l1 = location("P4");
    let processes = join_all((0..4).map(|_| world.process())).await;
    let new = elsewhere(&world, &processes[0], &l1).await;
    let imports = processes.iter().cycle().take(16).map(|process| import(process, &new, false));
    let outcomes = join_all(imports).await;
    let count = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    assert_eq!((count(Imported::Stored), count(Imported::Same)), (1, 15), "{outcomes:?}");
    assert_eq!(world.stored(&l1).await.version.epoch, 1);
    world.end().await;
}

async fn a_pause_ends_only_when_an_operator_ends_it(world: World) {
    let l1 = location("P5");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let open = |reason, until| OpenBreaker { reason, until, fingerprint: None };
    let forever = Millis(i64::MAX);
    let breaker = Breaker::new(world.table.clone(), world.clock.clone());
    world.table.pause(world.clock.now()).await.expect("a table");
    // Neither a pause nor an open breaker hides or ends the other.
    for reason in [BreakerReason::WrongClient, BreakerReason::MassRefusal] {
        world.table.open_breaker(&open(reason, forever)).await.expect("a table");
        let state = world.table.app_state().await.expect("a table");
        assert_eq!((state.breaker.map(|open| open.reason), state.paused_at), (Some(reason), Some(world.clock.now())));
    }
    assert!(breaker.stops_minting().await.expect("a table"));
    world.table.close_breaker().await.expect("a table");
    let state = world.table.app_state().await.expect("a table");
    assert_eq!((state.breaker, state.paused_at), (None, Some(world.clock.now())));
    // A process keeps the state of the breaker for 2 s.
    world.advance(Duration::from_secs(3));
    assert!(!breaker.stops_minting().await.expect("a table"));
    let version = world.stored(&l1).await.version;
    let refused = process.refresher.refresh(&l1, version, Why::Operator, world.deadline()).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::Misconfigured("paused"))), "{refused:?}");
    process.tokens.access(&l1, world.deadline()).await.expect("the access token is valid");
    world.advance(Duration::from_hours(1));
    assert_eq!((world.presented(), world.stored(&l1).await.version), (0, version));
    assert!(world.table.end_pause().await.expect("a table"));
    assert!(!world.table.end_pause().await.expect("a table"), "it has ended");
    world.advance(Duration::from_secs(3));
    let renewed = process.refresher.refresh(&l1, version, Why::Operator, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    world.end().await;
}

async fn a_lost_answer_is_asked_for_during_a_pause(world: World) {
    let (l1, l2, l3) = (location("PA1"), location("PA2"), location("PA3"));
    let process = world.process().await;
    for resource in [&l1, &l2, &l3] {
        world.install(&process, resource).await;
    }
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(4));
    for resource in [&l1, &l2] {
        let lost = renew(&world, &process, resource).await;
        assert!(matches!(lost, Refreshed::Failed(TokenError::Unanswered { .. })), "{lost:?}");
    }
    world.table.pause(world.clock.now()).await.expect("a table");
    world.advance(Duration::from_secs(3));
    let renewed = renew(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "the platform repeats the answer: {renewed:?}");
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    let presented = world.presented();
    // No other token is presented, nor one whose answer is not repeated any more.
    world.advance(Duration::from_secs(30));
    for resource in [&l2, &l3] {
        let refused = renew(&world, &process, resource).await;
        assert!(matches!(refused, Refreshed::Failed(TokenError::Misconfigured("paused"))), "{refused:?}");
    }
    assert_eq!(world.presented(), presented);
    assert!(world.table.end_pause().await.expect("a table"));
    world.advance(Duration::from_secs(3));
    world.end_without(&[&l2]).await;
}
