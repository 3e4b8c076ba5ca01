//! Two processes and one refresh token: whoever is granted a pair keeps it, whoever holds the lease by then.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::proxy::Call;
use it::world::{HOME, Process, World, location, until};
use sandbox::marketplace::grants::{Rotation, Standing};
use shared::installation::state::Status;
use shared::resource::Resource;
use shared::table::installation::{Installation, LEASE};
use shared::token::pair::Slot;
use shared::token::refresh::{Failure, Refreshed, Why};

it::stories!(
    a_grant_commits_after_its_lease_and_undoes_the_rivals_refusal,
    a_rivals_refusal_does_not_mark_what_was_committed_meanwhile,
    a_grant_that_comes_second_is_parked,
    a_parked_pair_is_tried_before_a_human_is_asked,
    a_pair_parked_beside_a_refused_one_takes_its_place,
    an_unrelated_write_between_claim_and_commit_does_no_harm,
    thawed_after_twenty_minutes_nothing_is_sent,
);

async fn refresh(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let lineage = world.stored(resource).await.lineage;
    process.refresher.refresh(resource, lineage, Why::Due, world.deadline()).await
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
        assert!(matches!(refused, Refreshed::Failed(Failure::NeedsReauthorization(_))), "{refused:?}");
        assert_eq!(world.status(&l1).await, Status::NeedsReauthorization);
        commit.open();
    };
    let (renewed, ()) = tokio::join!(refresh(&world, &holder, &l1), story);
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status, stored.lineage.generation), (Status::Active, 2));
    assert!(stored.due_at.is_some(), "the schedule sees it again");
    assert_eq!(world.standing(&l1).await, Some(Standing::Live));
    world.end().await;
}

async fn a_rivals_refusal_does_not_mark_what_was_committed_meanwhile(world: World) {
    let l1 = location("L1");
    let (holder, rival) = (world.process().await, world.process().await);
    world.install(&holder, &l1).await;
    world.market.change(|options| options.rotation = Rotation::Strict);
    let commit = holder.proxy.hold(Call::Commit);
    let settle = rival.proxy.hold(Call::Settle);
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
    assert_eq!(world.standing(&l1).await, Some(Standing::Live));
    world.end().await;
}

async fn a_grant_that_comes_second_is_parked(world: World) {
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
    assert_eq!((stored.status, stored.lineage.generation), (Status::Active, 2));
    let parked = |stored: &Installation| {
        let pair = stored.alternate.as_ref().expect("a parked pair");
        world.open(stored, Slot::Alternate, pair).expect("it opens").expose().to_owned()
    };
    let first = parked(&stored);
    assert_eq!(world.market.standing(&first), Standing::Live);
    // A grant of the current pair may have been killed by another presentation since: the parked pair stays until it
    // is tried, sealed again for each new lineage.
    assert!(matches!(refresh(&world, &rival, &l1).await, Refreshed::Renewed(_)));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.lineage.generation, parked(&stored) == first), (3, true));
    world.end().await;
}

/// Installs twice, in such an order that the second grant is stored first and the first one is parked beside it.
async fn park_an_older_install(world: &World, process: &Process, resource: &Resource) {
    let earlier = world.clock.now();
    let older = world.consent(process, resource).await;
    world.advance(Duration::from_secs(1));
    world.install(process, resource).await;
    process.installations.install(&older, earlier, HOME).await.expect("parked");
    assert!(world.stored(resource).await.alternate.is_some());
}

/// Uses the current refresh token behind everybody's back, as a copy of the database elsewhere would.
async fn spend_the_current_token(world: &World, process: &Process, resource: &Resource) {
    world.market.change(|options| options.rotation = Rotation::Strict);
    let stored = world.stored(resource).await;
    let token = stored.pair.as_ref().and_then(|pair| world.open(&stored, Slot::Current, pair)).expect("a token");
    process.endpoint.present(resource, &token).await;
    assert_eq!(world.standing(resource).await, Some(Standing::Dead));
}

async fn a_parked_pair_is_tried_before_a_human_is_asked(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    park_an_older_install(&world, &process, &l1).await;
    spend_the_current_token(&world, &process, &l1).await;
    world.expire();
    let access = process.tokens.access(&l1, world.deadline()).await.expect("the parked pair lives");
    assert!(world.market.takes_access_token(access.token.expose()));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status, stored.lineage.generation, stored.alternate), (Status::Active, 3, None));
    world.end().await;
}

async fn a_pair_parked_beside_a_refused_one_takes_its_place(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    let earlier = world.clock.now();
    let older = world.consent(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    spend_the_current_token(&world, &process, &l1).await;
    let refused = refresh(&world, &process, &l1).await;
    assert!(matches!(refused, Refreshed::Failed(Failure::NeedsReauthorization(Some(_)))), "{refused:?}");
    process.installations.install(&older, earlier, HOME).await.expect("parked");
    assert_eq!(world.status(&l1).await, Status::Uncertain, "there is hope again");
    let summary = world.refresh(&process, serde_json::json!({})).await;
    assert_eq!(summary["due"], 1, "{summary}");
    let summary = world.refresh(&process, serde_json::json!({})).await;
    assert_eq!(summary["refreshed"], 1, "{summary}");
    assert_eq!(world.status(&l1).await, Status::Active);
    world.end().await;
}

async fn an_unrelated_write_between_claim_and_commit_does_no_harm(world: World) {
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
    assert_eq!(world.stored(&l1).await.lineage.generation, 2);
    assert_eq!(world.presented(), 1);
    world.end().await;
}

async fn thawed_after_twenty_minutes_nothing_is_sent(world: World) {
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
    assert!(matches!(one, Refreshed::Failed(Failure::NoTime)), "{one:?}");
    assert!(matches!(two, Refreshed::Moved), "the other's pair is there to be read: {two:?}");
    assert_eq!(world.presented(), 1, "the other process's");
    assert_eq!(world.stored(&l2).await.lineage.generation, 2);
    world.end().await;
}
