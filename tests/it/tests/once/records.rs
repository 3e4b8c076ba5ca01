//! The conditional writes of a record, on each engine, with several processes at once.

use std::time::Duration;

use futures_util::future::join_all;
use it::dynamo::{Engine, Kind};
use shared::domain::clock::Millis;
use shared::domain::resource::Resource;
use shared::domain::status::LeaseOwner;
use shared::table::idempotency::{CallId, CallOutcome, CallProgress, Intent, MessageUse, RecordedRequest, StoredCall};
use shared::table::turns::Pattern;
use shared::table::{Table, Write};

const NOW: Millis = Millis(1_800_000_000_000);
const LEASE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_hours(24);

fn request(method: &str) -> RecordedRequest {
    let [caller, resource, path, fingerprint] = ["a", "location:L1", "/contacts/", "f"].map(str::to_owned);
    RecordedRequest { caller, resource, method: method.to_owned(), path, fingerprint }
}

fn intent(request: &RecordedRequest, at: Millis) -> Intent<'_> {
    Intent {
        request,
        is_repeatable: request.method == "PUT",
        lease_ends_at: at + LEASE,
        kept_until: at + DAY,
        message: None,
    }
}

fn id(key: &str) -> CallId {
    CallId::of_key("a", &Resource::location("L1").expect("an id"), key)
}

fn found(claim: Write<StoredCall>) -> CallProgress {
    let Write::Conflict(stored) = claim else { panic!("{claim:?}") };
    stored.progress
}

/// Several processes claim one record at the same time, again and again: before, during and after the lease.
async fn one_of_many_processes_claims_a_record(engine: &Engine) {
    let table = engine.table().await;
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    for (method, after_lease) in [("POST", 0), ("PUT", 1)] {
        let request = request(method);
        let id = id(method);
        let race = |at: Millis| {
            let (id, request, tables) = (&id, &request, &tables);
            async move {
                let owners: Vec<_> = tables.iter().map(|_| LeaseOwner::new()).collect();
                let claims = tables.iter().zip(&owners).map(|(table, owner)| async move {
                    let claim = table.claim_call(id, owner, &intent(request, at), at).await.expect("a write");
                    // The SDK repeats a write whose answer was lost.
                    let again = table.claim_call(id, owner, &intent(request, at), at).await.expect("a write");
                    assert_eq!(claim.is_applied(), again.is_applied());
                    claim
                });
                let claims = join_all(claims).await;
                let winner = (0..12).find(|number| claims[*number].is_applied()).map(|number| owners[number].clone());
                let lost: Vec<_> = claims.into_iter().filter(|claim| !claim.is_applied()).map(found).collect();
                (12 - lost.len(), winner, lost)
            }
        };
        let (winners, first, lost) = race(NOW).await;
        assert_eq!(winners, 1, "{method}");
        assert!(lost.iter().all(|progress| *progress == CallProgress::InFlight(NOW + LEASE)), "{method}: {lost:?}");
        assert_eq!(race(NOW + LEASE - Duration::from_millis(1)).await.0, 0, "{method} within the lease");
        let (winners, second, lost) = race(NOW + LEASE).await;
        assert_eq!(winners, after_lease, "{method} after the lease");
        if winners == 0 {
            assert!(
                lost.iter().all(|progress| *progress == CallProgress::Unknown { since: NOW + LEASE, answer: None }),
                "{lost:?}"
            );
        }
        // A sender that wakes up late ends its own record only.
        let (first, now) = (first.expect("a winner"), NOW + LEASE);
        let answered = CallOutcome::Answered((201, Some(vec![1])));
        let ended = table.end_call(&id, &first, &answered, now + DAY, now).await.expect("a write");
        assert_eq!(ended, second.is_none(), "{method}");
        if let Some(second) = second {
            assert!(table.end_call(&id, &second, &answered, now + DAY, now).await.expect("a write"));
        }
        let (winners, _, lost) = race(now + Duration::from_hours(23)).await;
        assert_eq!(winners, 0);
        assert!(lost.iter().all(|progress| *progress == CallProgress::Answered((201, Some(vec![1])))), "{lost:?}");
        assert_eq!(race(now + DAY).await.0, 1, "{method}: the record has ended");
        let stored = table.call(&id, now + DAY).await.expect("a read").expect("a record");
        assert_eq!(stored.progress, CallProgress::InFlight(now + DAY + LEASE), "nothing of the old record is left");
    }
}

async fn a_released_record_is_free_at_once(engine: &Engine) {
    let table = engine.table().await;
    let (request, owner, id) = (request("POST"), LeaseOwner::new(), id("released"));
    assert!(table.claim_call(&id, &owner, &intent(&request, NOW), NOW).await.expect("a write").is_applied());
    assert!(table.end_call(&id, &owner, &CallOutcome::Released, NOW + DAY, NOW).await.expect("a write"));
    assert_eq!(table.call(&id, NOW).await.expect("a read"), None);
    // The clock of the next sender is behind.
    let behind = NOW - Duration::from_millis(300);
    let next = LeaseOwner::new();
    assert!(table.claim_call(&id, &next, &intent(&request, behind), behind).await.expect("a write").is_applied());
    assert!(!table.end_call(&id, &owner, &CallOutcome::Released, NOW + DAY, NOW).await.expect("a write"));
}

/// Several processes record one request at the same time, some as sent and some as refused.
async fn a_request_is_either_sent_or_recorded_as_unsent(engine: &Engine) {
    let table = engine.table().await;
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    let (request, refused) = (request("POST"), CallOutcome::Answered((404, Some(vec![3]))));
    for round in 0..10 {
        let id = id(&format!("unsent-{round}"));
        let writes = tables.iter().enumerate().map(|(number, table)| {
            let (id, request, refused) = (&id, &request, &refused);
            async move {
                let (owner, intent) = (LeaseOwner::new(), intent(request, NOW));
                if number % 2 == 0 {
                    return table.claim_call(id, &owner, &intent, NOW).await.expect("a write");
                }
                let write = table.record_call(id, &owner, &intent, refused, NOW).await.expect("a write");
                // The SDK repeats a write whose answer was lost.
                let again = table.record_call(id, &owner, &intent, refused, NOW).await.expect("a write");
                assert_eq!(write.is_applied(), again.is_applied());
                write
            }
        });
        let writes = join_all(writes).await;
        let left = table.call(&id, NOW).await.expect("a read").expect("a record").progress;
        let winner = writes.iter().position(Write::is_applied).expect("one");
        let expected = if winner % 2 == 0 {
            CallProgress::InFlight(NOW + LEASE)
        } else {
            CallProgress::Answered((404, Some(vec![3])))
        };
        assert_eq!(left, expected);
        let lost: Vec<_> = writes.into_iter().filter(|write| !write.is_applied()).map(found).collect();
        assert_eq!(lost, vec![expected; 11]);
    }
}

/// A message has used a key and was refused. Others use the key at the same time as its repeated deliveries.
async fn a_key_that_a_message_has_released_is_claimed_once(engine: &Engine) {
    let table = engine.table().await;
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    let request = request("POST");
    let refused = CallOutcome::OfMessage { answer: (404, Some(vec![4])), is_unknown: false };
    for round in 0..10 {
        let id = id(&format!("message-{round}"));
        let of_message = Intent {
            message: Some(MessageUse { id: "m1", key_holds_until: NOW + DAY }),
            kept_until: NOW + DAY * 15,
            ..intent(&request, NOW)
        };
        let owner = LeaseOwner::new();
        assert!(table.record_call(&id, &owner, &of_message, &refused, NOW).await.expect("a write").is_applied());
        let claims = tables.iter().enumerate().map(|(number, table)| {
            let (id, of_message, request) = (&id, &of_message, &request);
            async move {
                let owner = LeaseOwner::new();
                let is_message = number % 3 == 0;
                let intent = if is_message { of_message.clone() } else { intent(request, NOW) };
                (is_message, table.claim_call(id, &owner, &intent, NOW).await.expect("a write"))
            }
        });
        let claims = join_all(claims).await;
        let (won, lost): (Vec<_>, Vec<_>) = claims.into_iter().partition(|(_, claim)| claim.is_applied());
        assert!(won.len() == 1 && !won[0].0, "{won:?}");
        for (is_message, claim) in lost {
            let progress = found(claim);
            let is_own_end = is_message && progress == CallProgress::Answered((404, Some(vec![4])));
            assert!(is_own_end || progress == CallProgress::InFlight(NOW + LEASE), "{progress:?}");
        }
    }
}

async fn only_an_unknown_record_is_resolved(engine: &Engine) {
    let table = engine.table().await;
    let request = request("POST");
    let answered = CallOutcome::Answered((200, None));
    for (outcome, after, resolved) in [
        (None, Duration::ZERO, false),
        (None, LEASE, true),
        (Some(CallOutcome::Unknown(None)), Duration::ZERO, true),
        (Some(CallOutcome::Answered((404, Some(vec![2])))), LEASE, false),
    ] {
        for resolution in [&answered, &CallOutcome::Released] {
            let (owner, id) = (LeaseOwner::new(), id(&format!("{outcome:?}{after:?}{resolution:?}")));
            let claim = table.claim_call(&id, &owner, &intent(&request, NOW), NOW).await.expect("a write");
            assert!(claim.is_applied());
            if let Some(outcome) = &outcome {
                assert!(table.end_call(&id, &owner, outcome, NOW + DAY, NOW).await.expect("a write"));
            }
            let seen = table.call(&id, NOW).await.expect("a read").expect("a record");
            if resolved && *resolution == answered {
                assert!(table.settle_call(&id, &seen, NOW).await.expect("a write"));
                assert!(!table.resolve_call(&id, &seen, resolution, NOW + after).await.expect("a write"), "settled");
            }
            let seen = table.call(&id, NOW).await.expect("a read").expect("a record");
            let done = table.resolve_call(&id, &seen, resolution, NOW + after).await.expect("a write");
            assert_eq!(done, resolved, "{outcome:?} after {after:?}");
            if resolved {
                assert!(
                    !table.resolve_call(&id, &seen, resolution, NOW + after).await.expect("a write")
                        || *resolution == CallOutcome::Released
                );
                let settled = table.settle_call(&id, &seen, NOW + after).await.expect("a write");
                assert!(!settled, "the outcome was found out");
                let now = table.call(&id, NOW + after).await.expect("a read").map(|stored| stored.progress);
                let expected = (*resolution == answered).then_some(CallProgress::Answered((200, None)));
                assert_eq!(now, expected);
            }
        }
    }
}

/// Several processes take turns at the same time. Each window has at most its number of turns.
async fn each_window_of_a_schedule_has_its_turns_once(engine: &Engine) {
    let table = engine.table().await;
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    let location = Resource::location("L1").expect("an id");
    let pattern = Pattern { calls: 10, within: Duration::from_secs(10) };
    let take = |table: Table, count: usize, earliest: Millis| {
        let location = location.clone();
        async move { table.take_turns(&location, None, count, pattern, earliest, NOW).await.expect("turns") }
    };
    let taken = join_all(tables.iter().flat_map(|table| (0..8).map(|_| take(table.clone(), 3, NOW)))).await;
    let mut turns: Vec<_> = taken.into_iter().flatten().collect();
    turns.sort_unstable();
    assert_eq!(turns.len(), 288);
    for window in 0..29 {
        let begin = NOW + pattern.within * window;
        let inside = turns.iter().filter(|turn| **turn >= begin && **turn < begin + pattern.within).count();
        assert!(inside <= 10, "window {window} has {inside} turns");
    }
    let last = *turns.last().expect("some");
    assert!(last < NOW + pattern.within * 30, "the turns follow each other: {last}");
    // Turns of calls that must wait for the end of a day, and then turns of others behind them.
    let tomorrow = NOW + DAY;
    let parked = take(table.clone(), 25, tomorrow).await;
    assert_eq!(
        (parked[0], parked[10], parked[20]),
        (tomorrow, tomorrow + pattern.within, tomorrow + pattern.within * 2)
    );
    assert_eq!(take(table.clone(), 1, NOW).await, [tomorrow + pattern.within * 2 + Duration::from_secs(2)]);
    // Other limits: the schedule goes on in their pattern.
    let faster = Pattern { calls: 20, ..pattern };
    let turns = table.take_turns(&location, None, 2, faster, NOW, NOW).await.expect("turns");
    assert_eq!(turns[0], tomorrow + pattern.within * 2 + Duration::from_secs(3));
    // A caller with a share of its own has its own schedule.
    assert_eq!(table.take_turns(&location, Some("a"), 1, pattern, NOW, NOW).await.expect("turns"), [NOW]);
    // An idle schedule begins anew.
    let later = tomorrow + DAY;
    assert_eq!(table.take_turns(&location, None, 1, faster, later, later).await.expect("turns"), [later]);
}

async fn records(kind: Kind, test: &str) {
    let Some(engine) = Engine::start(kind, test).await else { return };
    one_of_many_processes_claims_a_record(&engine).await;
    a_released_record_is_free_at_once(&engine).await;
    a_request_is_either_sent_or_recorded_as_unsent(&engine).await;
    a_key_that_a_message_has_released_is_claimed_once(&engine).await;
    only_an_unknown_record_is_resolved(&engine).await;
    each_window_of_a_schedule_has_its_turns_once(&engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writes_of_a_record_on_the_embedded_engine() {
    records(Kind::Embedded, "the_writes_of_a_record_on_the_embedded_engine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writes_of_a_record_on_dynamodb_local() {
    records(Kind::Local, "the_writes_of_a_record_on_dynamodb_local").await;
}
