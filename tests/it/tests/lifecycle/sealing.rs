//! Tokens at rest: a sealed token that was moved to another place or put back does not open, and then no request is
//! sent.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use it::world::{SEALING_SECRET, World, location};
use shared::domain::installation::{Installation, Installed, Life, SealedPair, Source, StandbyPair};
use shared::domain::resource::Resource;
use shared::seal::pair::{Pair, PairRole};
use shared::seal::{Binding, DataKeys, SealError, Sealer};
use shared::table::{Item, Write};
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};
use shared::token::reseal::{Resealed, keys_of, reseal};

it::stories!(
    a_token_copied_from_another_item_does_not_open,
    an_older_token_under_newer_counters_does_not_open,
    sealing_keys_are_rotated_under_traffic,
    resealing_replaces_only_the_value_that_it_read,
    with_an_unknown_sealing_key_no_token_is_presented,
);

async fn item(world: &World, resource: &Resource) -> Item {
    let key = world.stored(resource).await.key();
    let found = world.items().await.into_iter().find(|item| item.get("pk") == Some(&AttributeValue::S(key.clone())));
    found.expect("an item")
}

/// A copy of `into` with the sealed tokens of `from`.
fn with_tokens_of(into: &Item, from: &Item) -> Item {
    let mut mixed = into.clone();
    for name in ["access_token", "refresh_token"] {
        mixed.insert(name.to_owned(), from[name].clone());
    }
    mixed
}

async fn nothing_is_sent(world: &World, resource: &Resource) {
    let process = world.process().await;
    let (before, presented) = (world.stored(resource).await, world.presented());
    let read = process.tokens.access(resource, world.deadline()).await;
    assert!(matches!(read, Err(TokenError::Misconfigured(_))), "{read:?}");
    let refused = process.refresher.refresh(resource, before.version, Why::Due, world.deadline()).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::Misconfigured(_))), "{refused:?}");
    let after = world.stored(resource).await;
    // The failure is counted, so that callers pause for a moment. Nothing else has changed.
    assert_eq!(
        (after.status(), after.version, after.schedule().failures),
        (before.status(), before.version, before.schedule().failures + 1)
    );
    assert_eq!(world.presented(), presented);
}

async fn a_token_copied_from_another_item_does_not_open(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.install(&process, &l2).await;
    let (own, others) = (item(&world, &l1).await, item(&world, &l2).await);
    world.put(with_tokens_of(&own, &others)).await;
    nothing_is_sent(&world, &l1).await;
    world.put(own).await;
    world.end().await;
}

async fn an_older_token_under_newer_counters_does_not_open(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let old = item(&world, &l1).await;
    let version = world.stored(&l1).await.version;
    let renewed = process.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    let new = item(&world, &l1).await;
    world.put(with_tokens_of(&new, &old)).await;
    nothing_is_sent(&world, &l1).await;
    world.put(new).await;
    world.end().await;
}

const BOTH: &str =
    r#"{"current":"k2","k1":"0123456789abcdef0123456789abcdef","k2":"abcdef0123456789abcdef0123456789"}"#;

async fn sealing_keys_are_rotated_under_traffic(world: World) {
    let all: Vec<_> = (0..6).map(|n| location(&format!("S{n}"))).collect();
    let old = world.process().await;
    for resource in &all {
        world.install(&old, resource).await;
    }
    world.advance(Duration::from_secs(10));
    // The old process reads its keys shortly before they change.
    world.advance(Duration::from_secs(40));
    old.installations.ready().await.expect("keys");
    world.secrets.put(SEALING_SECRET, BOTH);
    let new = world.process().await;
    for _ in 0..12 {
        for resource in &all {
            let version = world.stored(resource).await.version;
            let one = new.refresher.refresh(resource, version, Why::Operator, world.deadline());
            let reads = join_all([&old, &new].map(|process| process.tokens.access(resource, world.deadline())));
            let (renewed, reads) = tokio::join!(one, reads);
            assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
            for read in reads {
                let access = read.expect("nothing fails");
                assert!(world.market.takes_access_token(access.token.expose()));
            }
            let version = world.stored(resource).await.version;
            let renewed = old.refresher.refresh(resource, version, Why::Operator, world.deadline()).await;
            assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        }
        world.advance(Duration::from_secs(9));
    }
    // By now every item is sealed with the new key, and the old key can be deleted.
    world.secrets.put(SEALING_SECRET, r#"{"current":"k2","k2":"abcdef0123456789abcdef0123456789"}"#);
    world.advance(Duration::from_mins(1));
    for resource in &all {
        old.tokens.access(resource, world.deadline()).await.expect("nothing fails");
    }
    world.end().await;
}

async fn resealing_replaces_only_the_value_that_it_read(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let table = &world.table;
    let sealer =
        |json: &str| Sealer::new(Binding::to_table(&table.name), DataKeys::parse(json).expect("well formed").into());
    // The installation also gets two standby pairs.
    let before = world.secrets.get(SEALING_SECRET).expect("a secret");
    let first = world.stored(&l1).await;
    let current = first.access().expect("a token");
    let pair = Pair {
        access: "a standby access token".into(),
        refresh: Some("a standby refresh token".into()),
        issued_at: current.issued_at,
        expires_at: current.expires_at,
    };
    let standby_pair = pair.seal(&sealer(&before), &l1, first.version, PairRole::Standby);
    let attempts = ["one", "two"].map(|owner| StandbyPair {
        owner: owner.to_owned().into(),
        generation: first.version.generation,
        granted_from: first.granted_from,
        pair: standby_pair.clone(),
    });
    for standby in &attempts {
        let added = table.add_standby(&first, standby, world.clock.now()).await.expect("a table");
        assert!(matches!(added, Write::Applied(_)), "{added:?}");
    }

    world.secrets.put(SEALING_SECRET, BOTH);
    let (both, seen) = (sealer(BOTH), world.stored(&l1).await);
    let keys = |stored: &Installation| {
        let mut keys = BTreeMap::new();
        keys_of(stored, &mut keys);
        keys
    };
    assert_eq!(keys(&seen), BTreeMap::from([("k1".to_owned(), 6)]));
    assert_eq!(reseal(table, &both, "k2", seen.clone()).await.ok(), Some(Resealed::Done));
    let anew = world.stored(&l1).await;
    assert_eq!((keys(&anew), anew.version), (BTreeMap::from([("k2".to_owned(), 6)]), seen.version));
    assert_eq!(reseal(table, &both, "k2", anew.clone()).await.ok(), Some(Resealed::Already));
    assert_eq!(anew.standby().len(), 2);
    for standby in anew.standby() {
        assert_eq!(world.open_standby(&anew, standby).expose(), "a standby refresh token");
    }

    // The item must not be resealed if its bytes, its standby pair or its version differ from the installation that was
    // read.
    let own = |stored: &Installation| match stored.installed().map(|installed| installed.source.clone()) {
        Some(Source::Own { pair: Some(pair), standby }) => (pair, standby),
        other => panic!("an installation with a grant of its own: {other:?}"),
    };
    let replaced = async |read: &Installation, pair: &SealedPair, standby: &[StandbyPair]| {
        let source = Source::Own { pair: Some(pair.clone()), standby: standby.to_vec() };
        let installed = read.installed().expect("the app is installed").clone();
        let life = Life::Installed(Installed { source: source.clone(), ..installed });
        table.reseal(&Installation { life, ..read.clone() }, &source).await.expect("an answer")
    };
    let ((old, old_standby), (new, new_standby)) = (own(&seen), own(&anew));
    assert!(!replaced(&seen, &old, &old_standby).await);
    assert!(!replaced(&anew, &old, &old_standby).await);
    assert!(!replaced(&anew, &new, &old_standby).await);
    let mixed = [
        SealedPair { access: old.access.clone(), ..new.clone() },
        SealedPair { refresh: old.refresh.clone(), ..new.clone() },
    ];
    for pair in &mixed {
        assert!(!replaced(&anew, pair, &new_standby).await, "each token is compared");
    }
    assert!(replaced(&anew, &new, &new_standby).await, "the control");
    let renewed = process.refresher.refresh(&l1, anew.version, Why::Operator, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    // A process that does not know the new key yet has renewed the pair.
    let newer = world.stored(&l1).await;
    assert!(keys(&newer).contains_key("k1"));
    assert!(!replaced(&anew, &new, &new_standby).await);
    assert_eq!(world.stored(&l1).await, newer, "and it stays");
    assert_eq!(reseal(table, &both, "k2", seen).await.ok(), Some(Resealed::Done), "it looks again");
    let newest = world.stored(&l1).await;
    assert_eq!((keys(&newest).contains_key("k1"), newest.version), (false, newer.version));
    let unknown = sealer(r#"{"current":"k9","k9":"abcdef0123456789abcdef0123456789"}"#);
    let shut = reseal(table, &unknown, "k9", newest).await.expect("an answer");
    assert_eq!(shut, Resealed::DoesNotOpen(SealError::UnknownKey("k2".into())));
    world.end().await;
}

async fn with_an_unknown_sealing_key_no_token_is_presented(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let before = world.secrets.get(SEALING_SECRET).expect("a secret");
    world.secrets.put(SEALING_SECRET, r#"{"current":"k9","k9":"abcdef0123456789abcdef0123456789"}"#);
    nothing_is_sent(&world, &l1).await;
    let cold = world.process().await;
    let reads = world.secrets.requests_for(SEALING_SECRET);
    for _ in 0..10 {
        let read = cold.tokens.access(&l1, world.deadline()).await;
        assert!(matches!(read, Err(TokenError::Misconfigured(_))), "{read:?}");
        world.advance(Duration::from_secs(1));
    }
    let reads = world.secrets.requests_for(SEALING_SECRET) - reads;
    assert!(reads <= 2, "{reads} reads in ten seconds: the first, and once for the unknown key");
    world.secrets.put(SEALING_SECRET, before);
    world.end().await;
}
