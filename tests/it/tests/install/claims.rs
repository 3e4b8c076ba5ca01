//! The conditional writes that claim a redirect and count exchanges, on each engine, with several processes at once.

use std::time::Duration;

use futures_util::future::join_all;
use it::dynamo::{Engine, Kind};
use shared::domain::clock::Millis;
use shared::domain::redacted::Redacted;
use shared::domain::resource::Kind as ResourceKind;
use shared::domain::status::LeaseOwner;
use shared::table::redirect::{
    Ending, LEASE, MOST_ATTEMPTS, MOST_EXCHANGES, Origin, Progress, RedirectArrival, RedirectId, StoredRedirect,
};
use shared::table::{Table, Write};

/// The stored redirect that a refused claim has found.
fn refused(claim: Write<StoredRedirect>) -> StoredRedirect {
    let Write::Conflict(stored) = claim else { panic!("{claim:?}") };
    stored
}

/// The writes that claim and end a redirect, made by several processes at once on each engine.
async fn one_arrival_claims_a_redirect(engine: &Engine) {
    let table = engine.table().await;
    let now = Millis(1_800_000_000_000);
    let id = RedirectId::of_state(b"nonce");
    let arrival = |code: &str| RedirectArrival { code: code.into(), browser: "b".into(), network: "n".into() };
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();

    // All processes claim at the same time, with two codes. One process claims the redirect, and the others see its
    // code.
    let owners: Vec<_> = tables.iter().map(|_| LeaseOwner::new()).collect();
    let claims = join_all(tables.iter().zip(&owners).enumerate().map(|(number, (table, owner))| {
        let arrival = arrival(if number % 2 == 0 { "even" } else { "odd" });
        let id = &id;
        async move { table.claim_redirect(id, &arrival, owner, now).await.expect("a write") }
    }))
    .await;
    let winners: Vec<_> = (0..12).filter(|number| claims[*number].is_applied()).collect();
    let [winner] = winners[..] else { panic!("{winners:?} have claimed it") };
    let (owner, code) = (&owners[winner], if winner % 2 == 0 { "even" } else { "odd" });
    for lost in claims.into_iter().filter(|claim| !claim.is_applied()).map(refused) {
        assert_eq!((lost.first.code.as_str(), &lost.progress), (code, &Progress::Exchanging));
    }

    // A write that the SDK repeats is recognised as the owner's own. No other process can end the redirect.
    assert!(table.claim_redirect(&id, &arrival(code), owner, now).await.expect("a write").is_applied());
    let another = LeaseOwner::new();
    for ending in [Ending::Connected(ResourceKind::Location), Ending::Failed("x"), Ending::Open("x")] {
        assert!(!table.end_redirect(&id, &another, ending, now).await.expect("a write"), "{ending:?}");
    }
    let progress = |at| {
        let (table, id) = (&table, &id);
        async move { table.redirect(id, at).await.expect("a read").expect("there").progress }
    };
    assert_eq!(progress(now).await, Progress::Exchanging);

    // After the lease has expired the redirect is open again, only for the same code and only a limited number of
    // times.
    let later = now + LEASE;
    assert_eq!(progress(later).await, Progress::Open(None));
    let wrong = table.claim_redirect(&id, &arrival("third"), &another, later).await.expect("a write");
    assert_eq!(refused(wrong).first.code, code);
    assert!(table.claim_redirect(&id, &arrival(code), &another, later).await.expect("a write").is_applied());
    assert!(!table.end_redirect(&id, owner, Ending::Connected(ResourceKind::Company), later).await.expect("a write"));
    assert!(table.end_redirect(&id, &another, Ending::Open("why"), later).await.expect("a write"));
    assert_eq!(progress(later).await, Progress::Open(Some("why".into())));
    let third = LeaseOwner::new();
    assert!(table.claim_redirect(&id, &arrival(code), &third, later).await.expect("a write").is_applied());
    assert_eq!(progress(later).await, Progress::Exchanging);
    assert!(table.end_redirect(&id, &third, Ending::Open("why"), later).await.expect("a write"));
    assert_eq!(progress(later).await, Progress::Failed("why".into()), "{MOST_ATTEMPTS} times and no more");
    let fourth = table.claim_redirect(&id, &arrival(code), &LeaseOwner::new(), later).await.expect("a write");
    assert_eq!(refused(fourth).progress, Progress::Failed("why".into()));

    // A redirect that has ended stays ended.
    let id = RedirectId::of_code(&Redacted::from("code"));
    let owner = LeaseOwner::new();
    assert!(table.claim_redirect(&id, &arrival("c"), &owner, now).await.expect("a write").is_applied());
    assert!(table.end_redirect(&id, &owner, Ending::Connected(ResourceKind::Company), now).await.expect("a write"));
    let much_later = now + Duration::from_hours(1);
    let seen = table.claim_redirect(&id, &arrival("c"), &LeaseOwner::new(), much_later).await.expect("a write");
    assert_eq!(refused(seen).progress, Progress::Connected { kind: ResourceKind::Company, at: now });
}

/// Several processes take the places of one minute at the same time.
async fn places_of_a_minute_are_taken_once_each(engine: &Engine) {
    let table = engine.table().await;
    let now = Millis(1_800_000_000_000);
    let tables: Vec<_> = (0..8).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    let taken = join_all(tables.iter().map(|table| async move {
        let mut places = Vec::new();
        for _ in 0..10 {
            places.extend(table.take_exchange(Origin::Marketplace.name(), MOST_EXCHANGES, now).await.expect("a write"));
        }
        places
    }))
    .await;
    let mut places: Vec<_> = taken.into_iter().flatten().collect();
    assert_eq!(places.len(), usize::try_from(MOST_EXCHANGES).expect("few"), "80 were asked for");
    assert_eq!(table.take_exchange(Origin::Marketplace.name(), MOST_EXCHANGES, now).await.expect("a write"), None);
    assert!(
        table.take_exchange(Origin::Link.name(), MOST_EXCHANGES, now).await.expect("a write").is_some(),
        "links have places of their own"
    );
    let next = now + Duration::from_mins(1);
    assert!(
        table.take_exchange(Origin::Marketplace.name(), MOST_EXCHANGES, next).await.expect("a write").is_some(),
        "the next minute, too"
    );
    table.return_exchange(places.pop().expect("a place")).await.expect("a write");
    assert!(
        table.take_exchange(Origin::Marketplace.name(), MOST_EXCHANGES, now).await.expect("a write").is_some(),
        "one was given back"
    );
    assert_eq!(table.take_exchange(Origin::Marketplace.name(), MOST_EXCHANGES, now).await.expect("a write"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_claims_and_exchange_limit_on_the_embedded_engine() {
    claims_and_places(Kind::Embedded, "redirect_claims_and_exchange_limit_on_the_embedded_engine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_claims_and_exchange_limit_on_dynamodb_local() {
    claims_and_places(Kind::Local, "redirect_claims_and_exchange_limit_on_dynamodb_local").await;
}

async fn claims_and_places(kind: Kind, test: &str) {
    let Some(engine) = Engine::start(kind, test).await else { return };
    one_arrival_claims_a_redirect(&engine).await;
    places_of_a_minute_are_taken_once_each(&engine).await;
}
