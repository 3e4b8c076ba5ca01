//! Two processes and one refresh token: every process that is granted a pair keeps that pair, even if another process
//! holds the lease by then.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::proxy::Call;
use it::world::{HOME, Process, World, location, until};
use sandbox::marketplace::grants::{RefreshTokenState, Rotation};
use shared::domain::clock::{Clock, Millis};
use shared::domain::installation::Installation;
use shared::domain::redacted::Redacted;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::platform::token_endpoint::Outcome;
use shared::table::installation::LEASE;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    a_grant_commits_after_its_lease_and_undoes_the_rivals_refusal,
    a_rivals_refusal_does_not_mark_what_was_committed_meanwhile,
    the_second_grant_of_one_generation_becomes_a_standby_pair,
    all_of_three_grants_of_one_generation_are_kept,
    a_grant_that_comes_after_a_standby_pair_took_over_is_kept,
    several_standby_pairs_are_tried_in_turn,
    a_standby_pair_that_comes_while_another_takes_over_is_kept,
    a_promotion_that_loses_the_race_is_not_counted,
    a_standby_pair_makes_a_waiting_installation_due_at_once,
    a_grant_that_comes_after_its_location_was_minted_is_kept,
    a_standby_pair_is_tried_before_the_installation_is_marked,
    a_standby_pair_replaces_a_refused_pair,
    an_unrelated_write_between_claim_and_commit_does_not_stop_the_commit,
    a_process_thawed_after_twenty_minutes_sends_nothing,
);

async fn refresh(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Due, world.deadline()).await
}

async fn a_grant_commits_after_its_lease_and_undoes_the_rivals_refusal(world: World) {
    let l1 = location("L1");
    let (holder, rival) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    let commit = holder.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        world.advance(LEASE);
        let refused = refresh(&world, &rival, &l1).await;
        assert!(matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { .. })), "{refused:?}");
        assert_eq!(world.status(&l1).await, Status::NeedsReauthorization);
        commit.open();
    };
    let (renewed, ()) = tokio::join!(refresh(&world, &holder, &l1), story);
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.generation), (Status::Active, 2));
    assert!(stored.schedule().due_at.is_some(), "the schedule sees it again");
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.end().await;
}

async fn a_rivals_refusal_does_not_mark_what_was_committed_meanwhile(world: World) {
    let l1 = location("L1");
    let (holder, rival) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    let commit = holder.proxy.hold(Call::Commit);
    let settle = rival.proxy.hold(Call::Release);
    let rivals = async {
        commit.reached().await;
        world.advance(LEASE);
        refresh(&world, &rival, &l1).await
    };
    let order = async {
        settle.reached().await;
        commit.open();
        until("the grant is stored", async || world.status(&l1).await == Status::Active).await;
        settle.open();
    };
    let (renewed, refused, ()) = tokio::join!(refresh(&world, &holder, &l1), rivals, order);
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert!(matches!(refused, Refreshed::Moved), "{refused:?}");
    assert_eq!(world.status(&l1).await, Status::Active);
    assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    world.end().await;
}

async fn the_second_grant_of_one_generation_becomes_a_standby_pair(world: World) {
    let l1 = location("L1");
    let (holder, rival) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    let commit = holder.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        world.advance(LEASE);
        let renewed = refresh(&world, &rival, &l1).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        commit.open();
    };
    let (late, ()) = tokio::join!(refresh(&world, &holder, &l1), story);
    assert!(matches!(late, Refreshed::Moved), "{late:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.generation), (Status::Active, 2));
    let standby_token = |stored: &Installation| {
        let [standby] = stored.standby() else { panic!("{:?}", stored.standby()) };
        world.open_standby(stored, standby).expose().to_owned()
    };
    let first = standby_token(&stored);
    assert_eq!(world.market.refresh_token_state(&first), RefreshTokenState::Live);
    // Another presentation may have killed a grant of the current pair meanwhile, so the standby pair stays until it is
    // tried.
    assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Renewed(_)));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.version.generation, standby_token(&stored) == first), (3, true));
    world.end().await;
}

/// Begins a refresh whose commit waits at the gate. Its lease expires before `meanwhile` runs.
async fn with_late_grant<T>(
    world: &World,
    holder: &Process,
    resource: &Resource,
    meanwhile: impl Future<Output = T>,
) -> (Refreshed, T) {
    let commit = holder.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        world.advance(LEASE);
        let done = meanwhile.await;
        commit.open();
        done
    };
    tokio::join!(Box::pin(refresh(world, holder, resource)), Box::pin(story))
}

async fn all_of_three_grants_of_one_generation_are_kept(world: World) {
    let l1 = location("L1");
    let (one, two) = (world.process().await, world.process().await);
    world.install(&one, &l1).await;
    // Each process is granted a pair within the platform's grace period of 30 s, because the clock of the third process
    // is ahead. The pair of the third process is stored first.
    let three = world.process_by(Clock::manual(world.clock.now() + LEASE * 2)).await;
    let commit = two.proxy.hold(Call::Commit);
    let first_of_two = async {
        commit.reached().await;
        let (version, deadline) = (world.stored(&l1).await.version, world.deadline() + LEASE);
        let third = three.refresher.refresh(&l1, version, Why::Due, deadline).await;
        commit.open();
        third
    };
    let both = async { tokio::join!(Box::pin(refresh(&world, &two, &l1)), Box::pin(first_of_two)) };
    let (first, (second, third)) = Box::pin(with_late_grant(&world, &one, &l1, both)).await;
    assert!(matches!(third, Refreshed::Renewed(_)), "{third:?}");
    assert!(matches!((&first, &second), (Refreshed::Moved, Refreshed::Moved)), "{first:?} {second:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.version.generation, stored.standby().len(), world.presented()), (2, 2, 3));
    assert_ne!(stored.standby()[0].owner, stored.standby()[1].owner);
    world.end().await;
}

async fn a_grant_that_comes_after_a_standby_pair_took_over_is_kept(world: World) {
    let l1 = location("L1");
    let (holder, rival) = (world.process().await, world.process().await);
    keep_an_older_install_as_standby(&world, &rival, &l1).await;
    let takes_over = async {
        assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Renewed(_)));
        spend_the_current_token(&world, &rival, &l1).await;
        assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Moved), "the standby pair takes over");
    };
    let (late, ()) = with_late_grant(&world, &holder, &l1, takes_over).await;
    assert!(matches!(late, Refreshed::Moved), "{late:?}");
    // The generation has grown by two, but the current pair is a promoted standby pair, which is no younger than the
    // late pair.
    let stored = world.stored(&l1).await;
    assert_eq!((stored.version.generation, stored.standby().len()), (3, 1));
    world.end().await;
}

/// Installs `count` older grants after a newer one, so that the newest grant is the current pair and the others are
/// standby pairs.
async fn with_standby_pairs(world: &World, process: &Process, resource: &Resource, count: usize) {
    let mut older = Vec::new();
    for _ in 0..count {
        older.push((world.clock.now(), world.consent(process, resource).await));
        world.advance(Duration::from_secs(1));
    }
    world.install(process, resource).await;
    for (at, grant) in older {
        world.advance(Duration::from_secs(1));
        process.installations.install(&grant, at, HOME).await.expect("kept");
    }
    assert_eq!(world.stored(resource).await.standby().len(), count, "none takes another's place");
}

async fn several_standby_pairs_are_tried_in_turn(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    with_standby_pairs(&world, &process, &l1, 3).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    // Every pair dies except the one that was granted first, which the product tries last.
    let stored = world.stored(&l1).await;
    let current = world.open_current(&stored).expect("a token");
    let others = stored.standby()[1..].iter().map(|standby| world.open_standby(&stored, standby));
    for token in others.chain([current]) {
        present(&process, &l1, &token).await;
    }
    for left in [2, 1, 0] {
        let moved = refresh(&world, &process, &l1).await;
        assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
        assert_eq!(world.stored(&l1).await.standby().len(), left);
    }
    let renewed = refresh(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    world.end().await;
}

async fn a_standby_pair_that_comes_while_another_takes_over_is_kept(world: World) {
    let l1 = location("L1");
    let (process, callback) = (world.process().await, world.process().await);
    let earliest = world.clock.now();
    let third = world.consent(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    keep_an_older_install_as_standby(&world, &process, &l1).await;
    spend_the_current_token(&world, &process, &l1).await;
    let promote = process.proxy.hold(Call::Promote);
    let story = async {
        promote.reached().await;
        callback.installations.install(&third, earliest, HOME).await.expect("kept");
        promote.open();
    };
    let (moved, ()) = tokio::join!(refresh(&world, &process, &l1), story);
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.version.generation, stored.standby().len()), (2, 1), "one took over, one stays");
    assert_eq!(process.proxy.calls(Call::Promote), 2, "the first write did not know of the other pair");
    world.end().await;
}

async fn a_promotion_that_loses_the_race_is_not_counted(world: World) {
    let l1 = location(&format!("L{}", shared::domain::random::hex::<8>()));
    let (slow, rival) = (world.process().await, world.process().await);
    with_standby_pairs(&world, &slow, &l1, 2).await;
    spend_the_current_token(&world, &slow, &l1).await;
    let promoted = || world.logged(&l1, "outcome", "promoted");
    let before = promoted();
    let promote = slow.proxy.hold(Call::Promote);
    let story = async {
        promote.reached().await;
        world.advance(LEASE);
        assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Moved));
        assert_eq!(promoted() - before, 1, "the rival's");
        promote.open();
    };
    let (late, ()) = tokio::join!(refresh(&world, &slow, &l1), story);
    assert!(matches!(late, Refreshed::Moved), "{late:?}");
    assert_eq!(promoted() - before, 1, "what was not done is not told");
    assert_eq!(world.stored(&l1).await.standby().len(), 1, "and the other pair stays");
    world.end().await;
}

async fn a_standby_pair_makes_a_waiting_installation_due_at_once(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    let earlier = world.clock.now();
    let older = world.consent(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    // The platform refuses the token, but no mark is set. Now no process may present the token for some minutes.
    world.queue.send("a pair of somebody's");
    spend_the_current_token(&world, &process, &l1).await;
    refresh(&world, &process, &l1).await;
    assert!(world.stored(&l1).await.schedule().retry_at.is_some());
    world.queue.purge();
    process.installations.install(&older, earlier, HOME).await.expect("kept");
    for _ in 0..2 {
        world.refresh(&process, serde_json::json!({})).await;
    }
    assert_eq!(
        (world.status(&l1).await, world.refresh_token_state(&l1).await),
        (Status::Active, Some(RefreshTokenState::Live))
    );
    world.end().await;
}

async fn a_grant_that_comes_after_its_location_was_minted_is_kept(world: World) {
    let l1 = location("L1");
    let company = Resource::company("HLcompany0000000001").expect("an id");
    let (holder, rival) = (world.process().await, world.process().await);
    world.install(&rival, &company).await;
    world.install(&rival, &l1).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    for minted in [false, true] {
        let meanwhile = async {
            assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Moved), "to be minted");
            if minted {
                world.expire();
                rival.tokens.access(&l1, world.deadline()).await.expect("minted");
            }
            assert!(world.stored(&l1).await.minted().is_some());
        };
        let (late, ()) = with_late_grant(&world, &holder, &l1, meanwhile).await;
        holder.proxy.heal();
        assert!(matches!(late, Refreshed::Renewed(_)), "{late:?}");
        assert_eq!(world.stored(&l1).await.minted(), None, "a grant of its own");
        assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live));
    }
    world.end().await;
}

/// Installs twice. The second grant is stored first, so the first grant becomes a standby pair.
async fn keep_an_older_install_as_standby(world: &World, process: &Process, resource: &Resource) {
    let earlier = world.clock.now();
    let older = world.consent(process, resource).await;
    world.advance(Duration::from_secs(1));
    world.install(process, resource).await;
    process.installations.install(&older, earlier, HOME).await.expect("kept as a standby pair");
    assert!(!world.stored(resource).await.standby().is_empty());
}

async fn present(process: &Process, resource: &Resource, token: &Redacted) -> Outcome {
    let connection = process.endpoint.new_connection().await.expect("a connection");
    process.endpoint.present(resource, token, connection, None, Millis(i64::MAX)).await
}

/// Presents the current refresh token without a trace in the table, as the user of a copied database would.
async fn spend_the_current_token(world: &World, process: &Process, resource: &Resource) {
    world.market.change(|options| options.rotation = Rotation::Strict);
    let stored = world.stored(resource).await;
    let token = world.open_current(&stored).expect("a token");
    present(process, resource, &token).await;
    assert_eq!(world.refresh_token_state(resource).await, Some(RefreshTokenState::Dead));
}

async fn a_standby_pair_is_tried_before_the_installation_is_marked(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    keep_an_older_install_as_standby(&world, &process, &l1).await;
    spend_the_current_token(&world, &process, &l1).await;
    world.expire();
    let access = process.tokens.access(&l1, world.deadline()).await.expect("the standby pair lives");
    assert!(world.market.takes_access_token(access.token.expose()));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version.generation, stored.standby().len()), (Status::Active, 3, 0));
    world.end().await;
}

async fn a_standby_pair_replaces_a_refused_pair(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    let earlier = world.clock.now();
    let older = world.consent(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    spend_the_current_token(&world, &process, &l1).await;
    let refused = refresh(&world, &process, &l1).await;
    assert!(
        matches!(refused, Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: Some(_) })),
        "{refused:?}"
    );
    process.installations.install(&older, earlier, HOME).await.expect("kept as a standby pair");
    assert_eq!(world.status(&l1).await, Status::Uncertain, "there is hope again");
    let summary = world.refresh(&process, serde_json::json!({})).await;
    assert_eq!(summary["due"], 1, "{summary}");
    let summary = world.refresh(&process, serde_json::json!({})).await;
    assert_eq!(summary["refreshed"], 1, "{summary}");
    assert_eq!(world.status(&l1).await, Status::Active);
    world.end().await;
}

async fn an_unrelated_write_between_claim_and_commit_does_not_stop_the_commit(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let commit = process.proxy.hold(Call::Commit);
    let story = async {
        commit.reached().await;
        let note = world.table.client.update_item().table_name(&*world.table.name);
        note.key("pk", AttributeValue::S(world.stored(&l1).await.key()))
            .update_expression("SET note = :note, tried_at = :zero, home = :note")
            .expression_attribute_values(":note", AttributeValue::S("somebody else's".into()))
            .expression_attribute_values(":zero", AttributeValue::N("0".into()))
            .send()
            .await
            .expect("written");
        commit.open();
    };
    let (renewed, ()) = tokio::join!(refresh(&world, &process, &l1), story);
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!(world.stored(&l1).await.version.generation, 2);
    assert_eq!(world.presented(), 1);
    world.end().await;
}

async fn a_process_thawed_after_twenty_minutes_sends_nothing(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let (frozen, other) = (world.process().await, world.process().await);
    world.install(&frozen, &l1).await;
    world.install(&frozen, &l2).await;
    let claim = frozen.proxy.hold_answer(Call::Claim);
    let story = async {
        claim.reached().await;
        for resource in [&l1, &l2] {
            until("it is claimed", async || world.status(resource).await == Status::Refreshing).await;
        }
        world.advance(Duration::from_mins(20));
        assert!(matches!(refresh(&world, &other, &l2).await, Refreshed::Renewed(_)));
        claim.open();
    };
    let (one, two, ()) = tokio::join!(refresh(&world, &frozen, &l1), refresh(&world, &frozen, &l2), story);
    assert!(matches!(one, Refreshed::Failed(TokenError::NoTime)), "{one:?}");
    assert!(matches!(two, Refreshed::Moved), "the other's pair is there to be read: {two:?}");
    assert_eq!(world.presented(), 1, "the other process's");
    assert_eq!(world.stored(&l2).await.version.generation, 2);
    world.end().await;
}
