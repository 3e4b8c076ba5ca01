//! The writes that may change the state of an installation, in every state and on real engines. An engine must apply
//! exactly the writes that the table of legal moves ([`Transition`]) allows.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::world::{HOME, World, location};
use shared::domain::clock::Millis;
use shared::domain::installation::{Installation, SealedAccess, SealedPair, StandbyPair, installation_key};
use shared::domain::resource::Resource;
use shared::domain::status::{LeaseOwner, Status, Transition};
use shared::table::installation::{Claim, LEASE, NewInstallation, Release, Renewal};
use shared::table::minted::{InstallNotice, MintSource};
use shared::table::{Item, Write};

it::stories!(
    each_write_follows_the_table_of_legal_moves,
    a_standby_pair_is_not_added_to_a_location_that_was_minted_meanwhile,
);

/// The owner of the lease of an item that [`in_state`] makes.
fn holder() -> LeaseOwner {
    "holder".to_owned().into()
}

/// The item of an active installation, changed to another state. In the state `refreshing` its lease has expired.
fn in_state(active: &Item, status: Status, now: Millis) -> Item {
    let mut item = active.clone();
    let mut set = |name: &str, value| item.insert(name.to_owned(), value);
    let number = |at: Millis| AttributeValue::N(at.to_string());
    set("status", AttributeValue::S(status.as_str().to_owned()));
    match status {
        Status::Refreshing => {
            set("attempt", AttributeValue::S(holder().as_str().to_owned()));
            set("lease_ends_at", number(now));
            set("claimed_from", AttributeValue::S(Status::Active.as_str().to_owned()));
        }
        Status::Revoked => {
            set("revoked_at", number(now - Duration::from_millis(1)));
            for name in
                ["access_token", "refresh_token", "access_issued_at", "access_expires_at", "due_at", "due_shard"]
            {
                item.remove(name);
            }
        }
        Status::Active | Status::Uncertain | Status::Suspended | Status::Blocked | Status::NeedsReauthorization => {}
    }
    item
}

fn sealed(now: Millis) -> SealedPair {
    let access_expires_at = now + Duration::from_hours(24);
    SealedPair {
        access: SealedAccess { token: b"a".to_vec(), issued_at: now, expires_at: access_expires_at },
        refresh: Some(b"r".to_vec()),
    }
}

/// Makes the write. Returns true if the write was applied.
async fn apply(world: &World, seen: &Installation, transition: Transition) -> bool {
    let (table, resource, version, now) = (&world.table, &seen.resource, seen.version, world.clock.now());
    let (owner, pair) = (LeaseOwner::new(), sealed(now));
    let claim = |given_up_too| Claim {
        resource,
        version,
        owner: &owner,
        now,
        lease_ends_at: now + LEASE,
        given_up_too,
        forced_before: None,
        doubted: false,
        minting: false,
    };
    let answer = match transition {
        Transition::Claim => table.claim(&claim(false)).await,
        Transition::ClaimByOperator => table.claim(&claim(true)).await,
        Transition::StoreToken => {
            let renewal = Renewal { owner: &owner, pair: &pair, due_at: now, event: None };
            table.commit(resource, version, renewal).await
        }
        Transition::AddStandby => {
            let generation = version.generation;
            let standby = StandbyPair { owner: owner.clone(), generation, granted_from: generation, pair };
            table.add_standby(seen, &standby, now).await
        }
        Transition::Release(status) => {
            let to = Release { status, due_at: Some(now), failures: 1, retry_at: None, finding: None, now };
            table.release(resource, version, &holder(), to, None).await
        }
        Transition::Install => {
            let new = NewInstallation {
                resource,
                owner: &owner,
                installed_at: now,
                due_at: now,
                company: None,
                home: Some(HOME),
                scope: None,
                details: None,
                now,
            };
            table.install(&new, Some(version), &pair, None).await
        }
        Transition::InstallNotice => {
            let notice = InstallNotice { company: Some("C1"), at: now, event: None, now };
            return table.record_install_notice(resource, notice).await.expect("a table").is_applied();
        }
        Transition::Uninstall => table.uninstall(resource, now, None, None, now).await,
    };
    answer.expect("a table").is_applied()
}

async fn each_write_follows_the_table_of_legal_moves(world: World) {
    use Transition::{AddStandby, Claim, ClaimByOperator, Install, InstallNotice, Release, StoreToken, Uninstall};
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let key = AttributeValue::S(installation_key(&l1));
    let active = world.items().await.into_iter().find(|item| item["pk"] == key).expect("an installation");
    let releases = Status::ALL.iter().copied().map(Release).filter(|release| release.is_legal(Status::Refreshing));
    let others = [Claim, ClaimByOperator, StoreToken, AddStandby, Install, InstallNotice, Uninstall];
    for transition in releases.chain(others) {
        for &from in Status::ALL {
            world.put(in_state(&active, from, world.clock.now())).await;
            let seen = world.stored(&l1).await;
            assert_eq!(seen.status(), from);
            let is_applied = apply(&world, &seen, transition).await;
            let stored = world.stored(&l1).await;
            if let Some(to) = transition.from(from) {
                assert_eq!((is_applied, stored.status()), (true, to), "{transition:?} of {from}");
                continue;
            }
            assert_eq!(stored, seen, "{transition:?} of {from}");
            // A release or an uninstall that finds the item in its target state takes that for its own earlier try.
            let is_found = match transition {
                Release(to) => to == from,
                Uninstall => from == Status::Revoked,
                _ => false,
            };
            assert_eq!(is_applied, is_found, "{transition:?} of {from}");
        }
    }
    world.put(active).await;
    world.end().await;
}

async fn a_standby_pair_is_not_added_to_a_location_that_was_minted_meanwhile(world: World) {
    let l1 = location("L1");
    let company = Resource::company("HLcompany0000000001").expect("an id");
    let process = world.process().await;
    world.install(&process, &company).await;
    world.install(&process, &l1).await;
    let now = world.clock.now();
    let key = AttributeValue::S(installation_key(&l1));
    let active = world.items().await.into_iter().find(|item| item["pk"] == key).expect("an installation");
    world.put(in_state(&active, Status::Refreshing, now)).await;
    let seen = world.stored(&l1).await;
    let source = MintSource { company: company.id(), epoch: 1 };
    let minted = world.table.become_minted(&l1, seen.version, &holder(), source, now).await.expect("a table");
    assert!(minted.is_applied());
    let generation = seen.version.generation;
    let standby = StandbyPair { owner: LeaseOwner::new(), generation, granted_from: generation, pair: sealed(now) };
    let added = world.table.add_standby(&seen, &standby, now).await.expect("a table");
    let Write::Conflict(stored) = added else { panic!("the next minted token would erase the pair: {added:?}") };
    assert!(stored.minted().is_some());
    world.put(active).await;
    world.end().await;
}
