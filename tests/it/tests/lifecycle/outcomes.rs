//! The platform's possible answers to a refresh token, and the effect of each answer.

use std::time::Duration;

use it::world::{APP_SECRET, Process, World, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::RefreshTokenState;
use serde_json::{Value, json};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::platform::token_endpoint::ExchangeError;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

use crate::wordings::own_locations;

it::stories!(
    an_unknown_outcome_is_presented_twice_and_then_recovered,
    a_time_out_is_answered_by_the_second_presentation,
    without_a_connection_nothing_is_sent_and_nothing_changes,
    a_429_changes_nothing,
    callers_wait_as_long_as_the_token_endpoint_asks,
    a_refused_parameter_opens_the_breaker_for_a_minute,
    an_installation_without_a_refresh_token_needs_reauthorization,
    implausible_token_lifetimes_are_clamped,
    a_grant_without_a_refresh_token_keeps_the_old_one,
    a_grant_for_another_location_is_not_stored,
    a_rotated_client_secret_is_read_again_at_once,
    a_wrong_client_secret_marks_no_installation_and_recovers_by_itself,
    a_paused_location_recovers_by_itself,
    a_location_that_the_platform_does_not_know_is_given_up_after_a_day,
    a_location_that_the_platform_does_not_know_for_an_hour_recovers,
    a_code_is_exchanged_again_if_the_platform_was_not_reached,
);

pub(crate) async fn refresh(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Due, world.deadline()).await
}

pub(crate) fn answered(processed: bool, status: u16, body: &str) -> Fault {
    Fault::Answer { processed, status, body: body.to_owned(), content_type: None }
}

async fn an_unknown_outcome_is_presented_twice_and_then_recovered(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let faults = [
        Fault::HangUp { processed: false },
        Fault::HangUp { processed: true },
        answered(true, 500, "{}"),
        answered(true, 502, "<html>"),
        answered(false, 503, r#"{"message":"refresh token is invalid"}"#),
        answered(true, 302, ""),
        answered(true, 408, ""),
        answered(true, 400, r#"{"statusCode":400,"message":"Request Timeout after 30000ms"}"#),
        answered(true, 200, ""),
        answered(true, 200, "[]"),
        answered(true, 200, r#"{"access_token":null}"#),
        Fault::Truncated,
        Fault::Without { field: "access_token".into() },
        Fault::html_200(true),
        Fault::html_200(false),
    ];
    for fault in faults {
        let (before, presented) = (world.stored(&l1).await, world.presented());
        world.market.fault(Endpoint::Refresh, fault.clone(), Some(2));
        let unknown = refresh(&world, &process, &l1).await;
        assert!(matches!(unknown, Refreshed::Failed(TokenError::Unanswered { .. })), "{fault:?}: {unknown:?}");
        let stored = world.stored(&l1).await;
        assert_eq!((stored.status(), stored.version), (Status::Uncertain, before.version), "{fault:?}");
        assert_eq!(world.presented() - presented, 2, "{fault:?}");
        world.advance(Duration::from_secs(1));
        let summary = world.refresh(&process, json!({})).await;
        assert_eq!(summary["refreshed"], 1, "{fault:?}: {summary}");
        assert_eq!(world.status(&l1).await, Status::Active, "{fault:?}");
        assert_eq!(world.presented() - presented, 3, "{fault:?}");
        assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live), "{fault:?}");
    }
    world.end().await;
}

async fn a_time_out_is_answered_by_the_second_presentation(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.market.fault(Endpoint::Refresh, Fault::Stall { processed: true }, Some(1));
    let renewed = refresh(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!(world.presented(), 2);
    world.end().await;
}

async fn without_a_connection_nothing_is_sent_and_nothing_changes(world: World) {
    let l1 = location("L1");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let (installer, process) = (world.process().await, world.process_at(&format!("http://{closed}")).await);
    world.install(&installer, &l1).await;
    let failed = refresh(&world, &process, &l1).await;
    assert!(matches!(failed, Refreshed::Failed(TokenError::InProgress { .. })), "{failed:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.schedule().failures, world.presented()), (Status::Active, 1, 0));
    world.end().await;
}

async fn a_429_changes_nothing(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.market.fault(Endpoint::Refresh, Fault::throttled(), Some(1));
    let failed = refresh(&world, &process, &l1).await;
    assert!(matches!(failed, Refreshed::Failed(TokenError::Paced { .. })), "{failed:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.schedule().failures, world.presented()), (Status::Active, 0, 1));
    world.end().await;
}

async fn callers_wait_as_long_as_the_token_endpoint_asks(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.expire();
    world.market.fault(Endpoint::Refresh, Fault::ComeBack { seconds: 120 }, Some(1));
    let asked_at = world.clock.now();
    let failed = process.tokens.access(&l1, world.deadline()).await;
    let Err(TokenError::Paced { retry_at }) = failed else { panic!("{failed:?}") };
    // One second more, because the platform may have rounded down.
    assert_eq!(retry_at, asked_at + Duration::from_secs(121));
    world.advance(Duration::from_secs(100));
    let early = process.tokens.access(&l1, world.deadline()).await;
    assert!(matches!(early, Err(TokenError::Paced { retry_at: again }) if again == retry_at), "{early:?}");
    assert_eq!(world.presented(), 1, "nobody asks before");
    world.advance(retry_at.since(world.clock.now()));
    process.tokens.access(&l1, world.deadline()).await.expect("at the promised instant");
    world.end().await;
}

async fn a_refused_parameter_opens_the_breaker_for_a_minute(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let process = world.process().await;
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
    }
    world.expire();
    world.market.fault(Endpoint::Refresh, Fault::refusal(400, "Missing parameter: clientId"), None);
    for resource in [&l1, &l2, &l1, &l1] {
        let failed = process.tokens.access(resource, world.deadline()).await;
        assert!(matches!(failed, Err(TokenError::Misconfigured(_))), "{failed:?}");
    }
    assert_eq!(world.presented(), 2, "once in each version of the API, since fields seem to be missing");
    assert_eq!(world.stored(&l1).await.status(), Status::Active);
    world.market.clear_faults();
    world.advance(Duration::from_mins(1));
    process.tokens.access(&l1, world.deadline()).await.expect("tried again by itself");
    world.end().await;
}

async fn an_installation_without_a_refresh_token_needs_reauthorization(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.market.fault(Endpoint::Exchange, Fault::Without { field: "refresh_token".into() }, Some(1));
    world.install(&process, &l1).await;
    world.expire();
    let failed = process.tokens.access(&l1, world.deadline()).await;
    assert!(matches!(failed, Err(TokenError::ReauthorizationRequired { .. })), "{failed:?}");
    assert_eq!((world.stored(&l1).await.status(), world.presented()), (Status::NeedsReauthorization, 0));
    world.install(&process, &l1).await;
    process.tokens.access(&l1, world.deadline()).await.expect("installed again");
    world.end().await;
}

async fn implausible_token_lifetimes_are_clamped(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    for (said, seconds) in [
        (json!(0), 60),
        (json!(-1), 60),
        (json!("soon"), 3_600),
        (json!(1e12), 86_400),
        (json!("7200"), 7_200),
        (Value::Null, 3_600),
    ] {
        world.market.fault(Endpoint::Refresh, Fault::expires_in(said.clone()), Some(1));
        let renewed = refresh(&world, &process, &l1).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{said}: {renewed:?}");
        let stored = world.stored(&l1).await;
        let access = stored.access().expect("a token");
        assert_eq!(access.expires_at.since(access.issued_at).as_secs(), seconds, "{said}");
        assert!(stored.schedule().due_at.is_some_and(|due| due < access.expires_at), "{said}");
    }
    world.end().await;
}

async fn a_grant_without_a_refresh_token_keeps_the_old_one(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let before = world.stored(&l1).await;
    let old = world.open_current(&before).expect("a token");
    for field in ["refresh_token", "userType"] {
        world.market.fault(Endpoint::Refresh, Fault::Without { field: field.into() }, Some(1));
        let renewed = refresh(&world, &process, &l1).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{field}: {renewed:?}");
        if field == "refresh_token" {
            let after = world.stored(&l1).await;
            let kept = world.open_current(&after).expect("a token");
            assert_eq!(kept.expose(), old.expose());
        }
    }
    world.end().await;
}

async fn a_grant_for_another_location_is_not_stored(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let process = world.process().await;
    world.install(&process, &l1).await;
    world.install(&process, &l2).await;
    let others = world.stored(&l2).await;
    let wrong = [
        Fault::other_location("L2"),
        Fault::With { field: "userType".into(), value: json!("Company") },
        Fault::other_location("../L1"),
    ];
    for fault in wrong {
        let presented = world.presented();
        world.market.fault(Endpoint::Refresh, fault.clone(), Some(1));
        let renewed = refresh(&world, &process, &l1).await;
        assert!(
            matches!(renewed, Refreshed::Renewed(_)),
            "the true answer comes within the grace: {fault:?} {renewed:?}"
        );
        assert_eq!(world.presented() - presented, 2, "{fault:?}");
        assert_eq!(world.refresh_token_state(&l1).await, Some(RefreshTokenState::Live), "{fault:?}");
    }
    // A grant that stays wrong is not stored, and the token is not presented in a loop.
    let (before, presented) = (world.stored(&l1).await, world.presented());
    world.market.fault(Endpoint::Refresh, Fault::other_location("L2"), Some(2));
    let refused = refresh(&world, &process, &l1).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::InProgress { .. })), "{refused:?}");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.version, stored.access()), (Status::Blocked, before.version, before.access()));
    assert_eq!(world.presented() - presented, 2);
    assert_eq!(world.stored(&l2).await, others);
    world.end().await;
}

/// Gives the app a new secret at the platform, and returns the secret as Secrets Manager should hold it.
fn rotate_client_secret(world: &World) -> String {
    let secret = format!("rotated-{}", shared::domain::random::hex::<8>());
    world.market.change(|options| options.client_secret.clone_from(&secret));
    json!({ "client_id": world.market.options().client_id, "client_secret": secret }).to_string()
}

async fn a_rotated_client_secret_is_read_again_at_once(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    // The process reads the new secret however recently it read the old one.
    let new = rotate_client_secret(&world);
    world.secrets.put(APP_SECRET, new);
    let renewed = refresh(&world, &process, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    assert_eq!(world.presented(), 2, "once with the old secret, once with the new");
    world.end().await;
}

async fn a_wrong_client_secret_marks_no_installation_and_recovers_by_itself(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let (process, other) = (world.process().await, world.process().await);
    world.install(&process, &l1).await;
    world.install(&process, &l2).await;
    let new = rotate_client_secret(&world);
    let refused = refresh(&world, &process, &l1).await;
    assert!(matches!(refused, Refreshed::Failed(TokenError::Misconfigured(_))), "{refused:?}");
    assert_eq!(world.presented(), 1);
    for process in [&process, &other] {
        let stopped = refresh(&world, process, &l2).await;
        assert!(matches!(stopped, Refreshed::Failed(TokenError::Misconfigured("wrong_client"))), "{stopped:?}");
    }
    assert_eq!(world.presented(), 1, "the breaker is open for every process");
    for resource in [&l1, &l2] {
        let stored = world.stored(resource).await;
        assert_eq!((stored.status(), stored.schedule().failures), (Status::Active, 0), "{resource}");
        process.tokens.access(resource, world.deadline()).await.expect("the token still works");
    }
    world.secrets.put(APP_SECRET, new);
    world.advance(Duration::from_secs(5));
    for process in [&process, &other] {
        let renewed = refresh(&world, process, &l2).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    }
    let renewed = refresh(&world, &other, &l1).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
    world.end().await;
}

async fn a_paused_location_recovers_by_itself(world: World) {
    let (l1, l2) = (location("L1"), location("L2"));
    let process = world.process().await;
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
        world.market.set_active(it::world::grantee(resource), false);
        let paused = refresh(&world, &process, resource).await;
        assert!(matches!(paused, Refreshed::Failed(TokenError::Suspended { .. })), "{paused:?}");
        let stored = world.stored(resource).await;
        assert_eq!((stored.status(), stored.schedule().failures), (Status::Suspended, 0));
        process.tokens.access(resource, world.deadline()).await.expect("the access token works on");
    }
    world.expire();
    let presented = world.presented();
    for _ in 0..10 {
        let paused = process.tokens.access(&l1, world.deadline()).await;
        assert!(matches!(paused, Err(TokenError::Suspended { .. })), "{paused:?}");
        world.advance(Duration::from_secs(5));
    }
    assert_eq!(world.presented() - presented, 1, "callers do not hammer the platform");
    for resource in [&l1, &l2] {
        world.market.set_active(it::world::grantee(resource), true);
    }
    world.advance(Duration::from_mins(1));
    process.tokens.access(&l1, world.deadline()).await.expect("a caller ends the pause");
    world.advance(Duration::from_hours(24));
    let summary = world.refresh(&process, json!({})).await;
    assert_eq!((world.status(&l2).await, &summary["failed"]), (Status::Active, &json!(0)), "{summary}");
    world.end().await;
}

async fn a_location_that_the_platform_does_not_know_is_given_up_after_a_day(world: World) {
    let process = world.teller().await;
    let (prefix, all) = own_locations(1);
    let gone = &all[0];
    world.install(&process, gone).await;
    world.market.fault(Endpoint::Refresh, Fault::refusal_v3(404, "Location not found"), None);
    let began = world.clock.now();
    let mut tries = 0;
    while world.clock.now().since(began) < Duration::from_hours(24) {
        let unknown = refresh(&world, &process, gone).await;
        assert!(matches!(unknown, Refreshed::Failed(TokenError::InProgress { .. })), "{unknown:?}");
        let stored = world.stored(gone).await;
        assert_eq!(stored.status(), Status::Blocked);
        let due_at = stored.schedule().due_at.expect("it is tried again");
        assert!(due_at.since(world.clock.now()) <= Duration::from_hours(4));
        tries += 1;
        world.advance(due_at.since(world.clock.now()).max(Duration::from_hours(1)));
    }
    assert!(tries >= 6, "{tries}");
    world.refresh(&process, json!({})).await;
    let stored = world.stored(gone).await;
    assert_eq!((stored.status(), stored.schedule().due_at), (Status::NeedsReauthorization, None));
    let presented = world.presented();
    for _ in 0..3 {
        world.advance(Duration::from_hours(4));
        world.refresh(&process, json!({})).await;
    }
    assert_eq!(world.presented(), presented, "nobody asks any more");
    let told: Vec<_> = world.event_bridge.events().into_iter().map(|put| put.detail_type).collect();
    assert_eq!(told, ["Installed", "NeedsReauthorization"]);
    assert_eq!(world.alarms("unclassified", &prefix), 0, "that is no alarm");
}

async fn a_location_that_the_platform_does_not_know_for_an_hour_recovers(world: World) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    let not_found = || Fault::refusal(400, "Location does not exist");
    // Two rounds with a renewal in between: refusals of the first round do not count in the second round.
    for _ in 0..2 {
        for _ in 0..3 {
            world.market.fault(Endpoint::Refresh, not_found(), Some(1));
            refresh(&world, &process, &l1).await;
            assert_eq!(world.status(&l1).await, Status::Blocked);
            world.advance(Duration::from_mins(20));
        }
        let renewed = refresh(&world, &process, &l1).await;
        assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
        world.advance(Duration::from_hours(24));
    }
    world.market.fault(Endpoint::Refresh, not_found(), Some(1));
    refresh(&world, &process, &l1).await;
    assert_eq!(world.status(&l1).await, Status::Blocked, "two days after the first");
    world.end().await;
}

async fn a_code_is_exchanged_again_if_the_platform_was_not_reached(world: World) {
    let process = world.process().await;
    let code = world.market.authorize(it::world::grantee(&location("L1"))).into();
    for fault in [
        Fault::block_page(),
        answered(false, 403, "error code: 1010"),
        answered(false, 503, "<html>Just a moment...</html>"),
        Fault::refusal(400, "Something new"),
    ] {
        world.market.fault(Endpoint::Exchange, fault.clone(), Some(1));
        let failed = process.codes.exchange(&code, it::world::HOME, world.deadline()).await;
        assert!(matches!(failed, Err(ExchangeError::Unavailable(_))), "{fault:?}: {failed:?}");
    }
    process.codes.exchange(&code, it::world::HOME, world.deadline()).await.expect("a grant");
}
