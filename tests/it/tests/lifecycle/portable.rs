//! Installations that another system has held: an import replaces nothing that this system was granted, `--replace` loses
//! no token, and a pause stops every renewal but the replay of a lost answer.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use it::proxy::{Call, Fault as ProxyFault};
use it::world::{HOME, Process, World, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::RefreshTokenState;
use serde_json::json;
use shared::domain::clock::Millis;
use shared::domain::grant::Grant;
use shared::domain::installation::{Installation, StandbyPair, installation_key};
use shared::domain::resource::Resource;
use shared::domain::status::{LeaseOwner, Status, TokenVersion};
use shared::install::Uninstalled;
use shared::install::portable::{ImportError, Imported, Portable, Rules};
use shared::seal::pair::{Pair, PairRole};
use shared::table::Write;
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::table::installation::{Claim, Import, LEASE, NewInstallation, Release};
use shared::table::minted::MintSource;
use shared::token::TokenError;
use shared::token::breaker::Breaker;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    an_import_replaces_nothing_that_may_be_newer,
    a_copy_is_replaced_by_a_newer_one_until_it_is_renewed,
    a_token_that_was_imported_once_replaces_nothing_later,
    a_replaced_pair_is_kept_and_takes_over_if_the_new_one_is_refused,
    an_import_does_not_replace_a_pair_that_is_being_renewed,
    a_pair_that_was_granted_before_an_import_and_comes_after_it_is_kept,
    lines_with_and_without_an_access_token_are_compared_by_the_time_of_their_grant,
    a_pair_that_does_not_open_is_replaced_on_request,
    an_import_fails_if_a_lease_or_a_standby_pair_came_in_between,
    imports_and_renewals_at_the_same_time_lose_no_token,
    an_import_that_begins_an_installation_again_is_news,
    an_import_at_the_same_time_by_several_stores_once,
    a_pause_ends_only_when_an_operator_ends_it,
    a_lost_answer_is_asked_for_during_a_pause,
    a_tick_during_a_pause_looks_only_for_lost_answers,
    an_answered_refusal_leaves_no_doubt,
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
    let rules = Rules { replace, home: Some(HOME), ..Rules::default() };
    process.installations.import(new, rules).await.expect("an answer")
}

/// Renews the stored pair, as the schedule does.
async fn renew(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Due, world.deadline()).await
}

/// A claim of the stored installation by `owner`.
fn claim<'a>(world: &World, resource: &'a Resource, version: TokenVersion, owner: &'a LeaseOwner) -> Claim<'a> {
    let now = world.clock.now();
    Claim {
        resource,
        version,
        owner,
        now,
        lease_ends_at: now + LEASE,
        given_up_too: false,
        forced_before: None,
        doubted: false,
        minting: false,
    }
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
    let refreshed = renew(&world, &process, &l1).await;
    assert!(matches!(refreshed, Refreshed::Renewed(_)), "{refreshed:?}");
    let renewed = world.stored(&l1).await;
    assert_eq!(import(&process, &first, false).await, Imported::ImportedBefore);
    assert_eq!(world.stored(&l1).await, renewed);
    let of_unknown_age = Pair::received("an-unknown-token".into(), None, None, None, world.clock.now());
    let unknown = Portable { pair: Some(of_unknown_age), ..first.clone() };
    assert_eq!(import(&process, &unknown, false).await, Imported::KeptStored);
    let minted = Portable { pair: None, ..first.clone() };
    for replace in [false, true] {
        assert_eq!(import(&process, &minted, replace).await, Imported::KeptStored, "its own grant stays");
    }

    // This system was granted the pair. The operator may know that a grant of the other system is newer.
    world.advance(Duration::from_mins(1));
    let second = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &second, false).await, Imported::KeptStored);
    assert_eq!(world.stored(&l1).await, renewed);
    assert_eq!(import(&process, &second, true).await, Imported::Stored);
    let newer = world.stored(&l1).await;
    assert_eq!(newer.version, renewed.version.next(), "a renewal of this epoch may still come");
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
    process.installations.uninstall(&l1, world.clock.now()).await.expect("revoked");
    world.advance(Duration::from_secs(1));
    let third = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &third, false).await, Imported::Stored, "it was installed again after the uninstall");

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

async fn a_copy_is_replaced_by_a_newer_one_until_it_is_renewed(world: World) {
    let l1 = location("PC1");
    let process = world.process().await;
    let first = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &first, false).await, Imported::Stored);
    world.advance(Duration::from_hours(1));
    let second = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &second, false).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 1, "no pair is dropped: the times may be wrong");
    assert_eq!(import(&process, &first, false).await, Imported::Same);
    // Two tokens of unknown age cannot be compared.
    world.advance(Duration::from_hours(1));
    let third = elsewhere(&world, &process, &l1).await;
    let refresh = third.pair.and_then(|pair| pair.refresh).expect("a token");
    let third = Portable { pair: Some(Pair::received(refresh, None, None, None, world.clock.now())), ..second };
    assert_eq!(import(&process, &third, false).await, Imported::KeptStored);
    assert_eq!(import(&process, &third, true).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 2);
    let due_at = world.stored(&l1).await.schedule().due_at;
    assert!(due_at.is_some_and(|at| at <= world.clock.now()), "without a spread, it is due now: {due_at:?}");
    world.end().await;
}

async fn a_token_that_was_imported_once_replaces_nothing_later(world: World) {
    let (l1, l2) = (location("PO1"), location("PO2"));
    let process = world.process().await;
    let mut line = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &line, false).await, Imported::Stored);
    let renewed = renew(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    // The time of the line is wrong: it is a later one in each export of the other system.
    world.advance(Duration::from_hours(1));
    if let Some(pair) = &mut line.pair {
        pair.expires_at = world.clock.now() + Duration::from_hours(24);
    }
    for replace in [false, true] {
        assert_eq!(import(&process, &line, replace).await, Imported::ImportedBefore);
    }
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));

    // A location whose own grant was refused is minted from its company's token. The spent grant does not come back.
    let own = elsewhere(&world, &process, &l2).await;
    assert_eq!(import(&process, &own, false).await, Imported::Stored);
    let (version, owner) = (world.stored(&l2).await.version, LeaseOwner::new());
    let claimed = world.table.claim(&claim(&world, &l2, version, &owner)).await.expect("a table");
    assert!(claimed.is_applied());
    let source = MintSource { company: "C1", epoch: 1 };
    let minted = world.table.become_minted(&l2, version, &owner, source, world.clock.now()).await.expect("a table");
    assert!(minted.is_applied());
    assert_eq!(import(&process, &own, false).await, Imported::ImportedBefore);
    assert!(world.stored(&l2).await.minted().is_some());
    let other = elsewhere(&world, &process, &l2).await;
    assert_eq!(import(&process, &other, false).await, Imported::Stored);
    world.end().await;
}

async fn a_replaced_pair_is_kept_and_takes_over_if_the_new_one_is_refused(world: World) {
    let l1 = location("PR1");
    let process = world.process().await;
    let line = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &line, false).await, Imported::Stored);
    let renewed = renew(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let live = world.open_current(&world.stored(&l1).await).expect("a token");
    let spent = Pair::received("of-an-old-file".into(), None, None, None, world.clock.now());
    let line = Portable { pair: Some(spent), ..line };
    assert_eq!(import(&process, &line, true).await, Imported::Stored);
    let stored = world.stored(&l1).await;
    let [standby] = stored.standby() else { panic!("one standby pair: {stored:?}") };
    assert_eq!(world.open_standby(&stored, standby).expose(), live.expose());
    assert!(stored.may_need_standby());
    // Again, now with the standby pair's own token.
    let back = Portable {
        pair: Some(Pair::received(live.expose().into(), None, None, None, world.clock.now())),
        ..line.clone()
    };
    assert_eq!(import(&process, &back, false).await, Imported::Same);
    assert_eq!(import(&process, &back, true).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 1, "no second one of the same pair");
    assert_eq!(import(&process, &line, true).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 1);
    let presented = world.presented();
    let promoted = renew(&world, &process, &l1).await;
    assert!(matches!(promoted, Refreshed::Moved), "{promoted:?}");
    let renewed = renew(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!(world.presented(), presented + 2);
    assert!(!world.stored(&l1).await.may_need_standby());
    world.end().await;
}

async fn an_import_does_not_replace_a_pair_that_is_being_renewed(world: World) {
    let l1 = location("PL1");
    let process = world.process().await;
    let first = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &first, false).await, Imported::Stored);
    world.advance(Duration::from_mins(1));
    let newer = elsewhere(&world, &process, &l1).await;
    let (version, owner) = (world.stored(&l1).await.version, LeaseOwner::new());
    let claimed = world.table.claim(&claim(&world, &l1, version, &owner)).await.expect("a table");
    assert!(claimed.is_applied());
    let leased = world.stored(&l1).await;
    for replace in [false, true] {
        assert_eq!(import(&process, &newer, replace).await, Imported::KeptLeased);
        assert_eq!(import(&process, &first, replace).await, Imported::Same, "nothing is to be written");
    }
    assert_eq!(world.stored(&l1).await, leased);
    // The holder has died, and the platform repeats its answer for a while.
    world.advance(LEASE);
    for replace in [false, true] {
        assert_eq!(import(&process, &newer, replace).await, Imported::KeptLeased);
    }
    // The token may be spent. Its successor may be known to nobody.
    world.advance(Duration::from_mins(1));
    assert_eq!(import(&process, &newer, false).await, Imported::KeptStored);
    assert_eq!(import(&process, &newer, true).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 1, "the pair in doubt stays");
    // An answer was lost a moment ago.
    let lost = location("PL2");
    world.install(&process, &lost).await;
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(2));
    let refreshed = renew(&world, &process, &lost).await;
    assert!(matches!(refreshed, Refreshed::Failed(TokenError::Unanswered { .. })), "{refreshed:?}");
    assert_eq!(world.stored(&lost).await.status(), Status::Uncertain);
    let old = Portable { resource: lost.clone(), ..newer };
    assert_eq!(import(&process, &old, true).await, Imported::KeptLeased);
    world.advance(Duration::from_secs(3));
    let replayed = renew(&world, &process, &lost).await;
    assert!(matches!(replayed, Refreshed::Renewed(_)), "{replayed:?}");
    world.end().await;
}

async fn a_pair_that_was_granted_before_an_import_and_comes_after_it_is_kept(world: World) {
    let l1 = location("PG1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    // The platform has granted a pair, and the table does not take it. The pair waits on the rescue queue.
    let presented = world.presented();
    process.proxy.always(Call::Commit, ProxyFault::Unavailable);
    world.market.fault(Endpoint::Refresh, Fault::Late { millis: 300 }, Some(1));
    let time = async {
        until("the token is presented", async || world.presented() > presented).await;
        world.advance(LEASE.saturating_sub(Duration::from_secs(2)));
    };
    let (renewed, ()) = tokio::join!(renew(&world, &process, &l1), time);
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    process.proxy.heal();
    assert_eq!((world.status(&l1).await, world.queue.sent()), (Status::Refreshing, 1));
    // Long afterwards an operator stores a line of an old file all the same.
    world.advance(Duration::from_mins(10));
    let spent = Portable {
        resource: l1.clone(),
        company: None,
        scope: None,
        installed_at: world.clock.now(),
        pair: Some(Pair::received("of-an-old-file".into(), None, None, None, world.clock.now())),
    };
    assert_eq!(import(&process, &spent, true).await, Imported::Stored);
    assert_eq!(world.stored(&l1).await.standby().len(), 1);
    // The message arrives, and its pair is kept beside the spent one.
    world.refresh(&process, world.rescued()).await;
    world.queue.purge();
    assert_eq!(world.stored(&l1).await.standby().len(), 2);
    for expected in ["promoted", "renewed"] {
        let refreshed = renew(&world, &process, &l1).await;
        assert_eq!(matches!(refreshed, Refreshed::Renewed(_)), expected == "renewed", "{refreshed:?}");
    }
    assert!(!world.stored(&l1).await.may_need_standby());
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.end().await;
}

async fn lines_with_and_without_an_access_token_are_compared_by_the_time_of_their_grant(world: World) {
    let l1 = location("PM1");
    let process = world.process().await;
    let now = world.clock.now();
    let granted = |token: &str, hours_ago: u64, with_access: bool, with_expiry: bool| {
        let at = now - Duration::from_hours(hours_ago);
        let access = with_access.then(|| format!("access-of-{token}").into());
        let expires_at = with_expiry.then(|| at + Duration::from_hours(24));
        let issued_at = (!with_expiry).then_some(at);
        Portable {
            resource: l1.clone(),
            company: None,
            scope: None,
            installed_at: at,
            pair: Some(Pair::received(token.into(), access, expires_at, issued_at, now)),
        }
    };
    for (token, hours_ago, with_access, with_expiry, expected) in [
        ("t2", 6, false, false, Imported::Stored),
        ("t1", 9, true, true, Imported::KeptStored),
        ("t3", 5, true, true, Imported::Stored),
        ("t1", 9, false, true, Imported::KeptStored),
        ("t4", 4, false, true, Imported::Stored),
        ("t5", 4, true, false, Imported::KeptStored),
        ("t6", 3, true, false, Imported::Stored),
    ] {
        let line = granted(token, hours_ago, with_access, with_expiry);
        assert_eq!(import(&process, &line, false).await, expected, "{token}");
    }
    // The pairs of an installation are bounded.
    let mut outcomes = Vec::new();
    for number in 0..9 {
        outcomes.push(import(&process, &granted(&format!("u{number}"), 0, true, true), true).await);
    }
    assert_eq!((outcomes[4], outcomes[5]), (Imported::Stored, Imported::KeptFull), "{outcomes:?}");
    assert_eq!(world.stored(&l1).await.standby().len(), 8);
    world.end().await;
}

async fn a_pair_that_does_not_open_is_replaced_on_request(world: World) {
    let (l1, l2) = (location("PX1"), location("PX2"));
    let process = world.process().await;
    world.install(&process, &l1).await;
    // Sealed tokens do not open in another item, as after the loss of a sealing key.
    let key = world.stored(&l1).await.key();
    let items = world.items().await;
    let mut item = items.into_iter().find(|item| item["pk"].as_s().is_ok_and(|pk| *pk == key)).expect("stored");
    item.insert("pk".to_owned(), AttributeValue::S(installation_key(&l2)));
    world.put(item).await;
    let line = elsewhere(&world, &process, &l2).await;
    let error = process.installations.import(&line, Rules::default()).await.expect_err("it does not open");
    assert!(matches!(error, ImportError::Vault(_)), "{error}");
    assert_eq!(import(&process, &line, true).await, Imported::Stored);
    let renewed = renew(&world, &process, &l2).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    world.end().await;
}

async fn an_import_fails_if_a_lease_or_a_standby_pair_came_in_between(world: World) {
    let l1 = location("PB1");
    let process = world.process().await;
    let line = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &line, false).await, Imported::Stored);
    world.advance(Duration::from_mins(1));
    let (now, owner, sealer) = (world.clock.now(), LeaseOwner::new(), process.vault.sealer().await.expect("keys"));
    let store = async |seen: &Installation| {
        let new = NewInstallation {
            resource: &l1,
            owner: &owner,
            installed_at: now,
            due_at: now,
            company: None,
            home: None,
            scope: None,
            details: None,
            now,
        };
        let pair = line.pair.as_ref().expect("a pair");
        let pair = pair.seal(&sealer, &l1, Import::version(Some(seen)), PairRole::Current);
        let import = Import { pair: &pair, refresh_sha256: None, standby: &[] };
        world.table.import(&new, Some(seen), &import, None).await.expect("a table")
    };
    let seen = world.stored(&l1).await;
    let holder = LeaseOwner::new();
    let claimed = world.table.claim(&claim(&world, &l1, seen.version, &holder)).await.expect("a table");
    assert!(claimed.is_applied());
    let leased = world.stored(&l1).await;
    assert_eq!(leased.version, seen.version, "the control: the version alone does not tell");
    assert!(matches!(store(&seen).await, Write::Conflict(_)), "a lease was claimed");
    world.advance(LEASE);
    let next = LeaseOwner::new();
    let claimed = world.table.claim(&claim(&world, &l1, seen.version, &next)).await.expect("a table");
    assert!(claimed.is_applied());
    assert!(matches!(store(&leased).await, Write::Conflict(_)), "another lease was claimed");
    let leased = world.stored(&l1).await;
    let standby = StandbyPair {
        owner: LeaseOwner::new(),
        generation: seen.version.generation,
        granted_from: seen.granted_from,
        pair: line.pair.as_ref().expect("a pair").seal(&sealer, &l1, seen.version, PairRole::Standby),
    };
    let added = world.table.add_standby(&leased, &standby, now).await.expect("a table");
    assert!(added.is_applied());
    assert!(matches!(store(&leased).await, Write::Conflict(_)), "a standby pair was added");
    // A whole renewal without a known answer fits between the read and the write.
    let read = world.stored(&l1).await;
    world.advance(LEASE);
    let last = LeaseOwner::new();
    let claimed = world.table.claim(&claim(&world, &l1, seen.version, &last)).await.expect("a table");
    assert!(claimed.is_applied());
    let to = Release {
        status: Status::Uncertain,
        due_at: Some(now),
        failures: 1,
        retry_at: None,
        finding: None,
        now: world.clock.now(),
    };
    let released = world.table.release(&l1, seen.version, &last, to, None).await.expect("a table");
    assert!(released.is_applied());
    assert!(matches!(store(&read).await, Write::Conflict(_)), "another status");
    let read = world.stored(&l1).await;
    let last = LeaseOwner::new();
    world.advance(Duration::from_secs(1));
    let claimed = world.table.claim(&claim(&world, &l1, seen.version, &last)).await.expect("a table");
    assert!(claimed.is_applied());
    let released = world.table.release(&l1, seen.version, &last, to, None).await.expect("a table");
    assert!(released.is_applied());
    assert_eq!((read.version, read.status()), (seen.version, world.stored(&l1).await.status()), "the control");
    assert!(matches!(store(&read).await, Write::Conflict(_)), "the token was presented again");
    assert!(matches!(store(&world.stored(&l1).await).await, Write::Applied(_)), "the control");
    world.end().await;
}

async fn imports_and_renewals_at_the_same_time_lose_no_token(world: World) {
    let processes = join_all((0..2).map(|_| world.process())).await;
    let all: Vec<_> = (0..20).map(|number| location(&format!("PT{number}"))).collect();
    for resource in &all {
        let line = elsewhere(&world, &processes[0], resource).await;
        assert_eq!(import(&processes[0], &line, false).await, Imported::Stored);
        let renewed = renew(&world, &processes[0], resource).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    }
    world.advance(Duration::from_mins(1));
    // A token that the platform does not know, as of an old file.
    let spent = |resource: &Resource| Portable {
        resource: resource.clone(),
        company: None,
        scope: None,
        installed_at: world.clock.now(),
        pair: Some(Pair::received(format!("spent-{resource}").into(), None, None, None, world.clock.now())),
    };
    let outcomes = join_all(all.iter().map(async |resource| {
        let spent = spent(resource);
        tokio::join!(renew(&world, &processes[0], resource), import(&processes[1], &spent, true)).1
    }))
    .await;
    let is_expected = |outcome: &Imported| matches!(outcome, Imported::Stored | Imported::KeptLeased);
    assert!(outcomes.iter().all(is_expected), "{outcomes:?}");
    // The platform does not answer a spent token again: only pairs that were kept are left.
    world.advance(Duration::from_mins(1));
    world.end().await;
}

async fn an_import_that_begins_an_installation_again_is_news(world: World) {
    let (l1, l2) = (location("PN1"), location("PN2"));
    let process = world.teller().await;
    let names = || -> Vec<String> { world.event_bridge.events().iter().map(|put| put.detail_type.clone()).collect() };
    let first = elsewhere(&world, &process, &l1).await;
    assert_eq!(import(&process, &first, false).await, Imported::Stored);
    assert_eq!(names(), [""; 0]);
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("revoked");
    assert_eq!(names(), ["Uninstalled"]);
    assert_eq!(import(&process, &first, true).await, Imported::Stored);
    assert_eq!(names(), ["Uninstalled", "Installed"]);

    // The end that was reported stays reported until a renewal reports the opposite.
    let copy = elsewhere(&world, &process, &l2).await;
    assert_eq!(import(&process, &copy, false).await, Imported::Stored);
    let suspended = Fault::refusal(400, "Location is not active");
    world.market.fault(Endpoint::Refresh, suspended, Some(1));
    let refused = renew(&world, &process, &l2).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::Suspended { .. })), "{refused:?}");
    assert_eq!(names()[2..], ["Suspended"]);
    world.advance(Duration::from_mins(1));
    let newer = elsewhere(&world, &process, &l2).await;
    assert_eq!(import(&process, &newer, false).await, Imported::Stored);
    assert_eq!(names()[2..], ["Suspended"]);
    let renewed = renew(&world, &process, &l2).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!(names()[2..], ["Suspended", "Resumed"]);
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

async fn a_tick_during_a_pause_looks_only_for_lost_answers(world: World) {
    let all: Vec<_> = (0..5).map(|number| location(&format!("PW{number}"))).collect();
    let process = world.process().await;
    for resource in &all {
        world.install(&process, resource).await;
    }
    world.advance(Duration::from_hours(20));
    // The holder of a lease has died. Its installation becomes due last of all.
    let (dead, others) = all.split_first().expect("five");
    let (version, owner) = (world.stored(dead).await.version, LeaseOwner::new());
    let claimed = world.table.claim(&claim(&world, dead, version, &owner)).await.expect("a table");
    assert!(claimed.is_applied());
    world.table.pause(world.clock.now()).await.expect("a table");
    world.advance(LEASE);
    let tick = world.refresh(&process, json!({})).await;
    let counts = ["refreshed", "failed", "left", "due"].map(|name| tick[name].as_u64().expect("a number"));
    assert_eq!(counts, [1, 0, 4, 5], "{tick}");
    assert_eq!((world.presented(), world.status(dead).await), (1, Status::Active));
    for resource in others {
        assert_eq!(world.logged(resource, "message", "the token was not renewed"), 0);
    }
    assert!(world.table.end_pause().await.expect("a table"));
    world.advance(Duration::from_secs(3));
    let tick = world.refresh(&process, json!({})).await;
    assert_eq!(tick["refreshed"], 4, "{tick}");
    world.end().await;
}

async fn an_answered_refusal_leaves_no_doubt(world: World) {
    let (l1, l2) = (location("PD1"), location("PD2"));
    let process = world.process().await;
    let in_doubt = async |resource: &Resource| {
        let overview = world.table.overview(resource).await.expect("a table").expect("stored");
        let stored = world.stored(resource).await;
        assert_eq!(stored.is_in_doubt(), overview.in_doubt);
        (stored.status(), stored.is_in_doubt())
    };
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
    }
    // The queue does not say if a granted pair waits there, so nothing is concluded from the refusal.
    process.proxy.always(Call::Queue, ProxyFault::AccessDenied);
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let refused = renew(&world, &process, &l1).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::InProgress { .. })), "{refused:?}");
    assert_eq!(in_doubt(&l1).await, (Status::Uncertain, false));
    process.proxy.heal();
    // An answer that is lost later is in doubt again.
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(4));
    world.advance(Duration::from_hours(1));
    for resource in [&l1, &l2] {
        let lost = renew(&world, &process, resource).await;
        assert!(matches!(lost, Refreshed::Failed(TokenError::Unanswered { .. })), "{lost:?}");
        assert_eq!(in_doubt(resource).await, (Status::Uncertain, true));
    }
    world.advance(Duration::from_secs(3));
    for resource in [&l1, &l2] {
        let renewed = renew(&world, &process, resource).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        assert_eq!(in_doubt(resource).await, (Status::Active, false));
    }
    world.end().await;
}
