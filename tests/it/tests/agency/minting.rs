//! Tokens that are minted for an agency's locations from the token of the agency.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use http::Method;
use it::proxy::Call;
use it::sender::Sender;
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::caller::Identity;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::platform::company_api::ListPosition;
use shared::relay::answer::AnswerSource;
use shared::relay::{Invocation, Relay};
use shared::request::Request;
use shared::request::path::Path;
use shared::table::company::ListReading;
use shared::token::TokenError;
use shared::token::outcome::{Refreshed, Why};

use crate::{access, company, grow, locations, minted, works};

it::stories!(
    concurrent_first_calls_mint_each_location_once,
    five_hundred_locations_cost_one_refresh_of_the_company,
    a_refused_token_of_the_company_is_renewed_once,
    an_unknown_location_is_looked_up_rarely_and_noticed_within_seconds,
    without_a_company_the_platform_is_not_asked_and_nothing_is_written,
    a_location_whose_own_grant_is_refused_is_minted,
    a_grant_of_its_own_replaces_a_minted_token,
    the_schedule_mints_for_locations_in_use,
    minting_draws_on_the_companys_limits_only,
    minting_keeps_to_the_pace_after_it_was_answered_429,
    locations_are_read_in_pages_and_reading_is_resumed,
    operations_of_the_companys_token_are_refused_for_a_location,
    an_unknown_answer_to_minting_erases_no_token,
    a_minted_token_is_used_until_it_expires_even_if_minting_is_refused,
    a_minted_location_that_had_its_own_grant_is_marked_when_its_token_expires,
    the_token_of_a_location_that_becomes_minted_is_used_until_it_expires,
    an_unknown_401_to_minting_costs_one_rotation_of_the_companys_token,
);

async fn concurrent_first_calls_mint_each_location_once(world: World) {
    grow(&world, 500);
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(world.process().await);
    }
    world.install(&processes[0], &company()).await;
    // No schedule has run, so the relay does not know yet to which agency these locations belong.
    let first = locations(10);
    let deadline = world.deadline();
    let calls = processes.iter().flat_map(|process| first.iter().map(|l| process.tokens.access(l, deadline)));
    for access in join_all(calls).await {
        assert!(world.market.takes_access_token(access.expect("a token").token.expose()));
    }
    assert_eq!((minted(&world), world.presented()), (10, 0));
    let stored = world.stored(&first[0]).await;
    assert_eq!(stored.company.as_deref(), Some(company().id()));
    assert_eq!((stored.access().is_some(), stored.refresh_token()), (true, None), "no refresh token is kept");
    world.end().await;
}

async fn five_hundred_locations_cost_one_refresh_of_the_company(world: World) {
    grow(&world, 500);
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(world.process().await);
    }
    world.install(&processes[0], &company()).await;
    world.refresh(&processes[0], json!({})).await;
    world.expire();
    let all = locations(500);
    for some in all.chunks(100) {
        let deadline = world.deadline();
        let calls = some.iter().enumerate().map(|(n, l)| processes[n % 4].tokens.access(l, deadline));
        // Twenty calls at a time: with a hundred at once, a store on a busy machine would exceed its time-outs.
        let answers = futures_util::stream::iter(calls).buffer_unordered(20).collect::<Vec<_>>().await;
        for access in answers {
            assert!(world.market.takes_access_token(access.expect("a token").token.expose()));
        }
        world.advance(Duration::from_secs(11));
    }
    assert_eq!((minted(&world), world.presented()), (500, 1));
    world.end().await;
}

async fn a_refused_token_of_the_company_is_renewed_once(world: World) {
    let processes = [world.process().await, world.process().await];
    world.install(&processes[0], &company()).await;
    // The platform expires every access token, as if it had lost the tokens.
    world.market.expire_access_tokens();
    let deadline = world.deadline();
    let three = locations(3);
    let calls = processes.iter().flat_map(|process| three.iter().map(|l| process.tokens.access(l, deadline)));
    for access in join_all(calls).await {
        assert!(world.market.takes_access_token(access.expect("a token").token.expose()));
    }
    assert_eq!(world.presented(), 1);
    world.end().await;
}

async fn an_unknown_location_is_looked_up_rarely_and_noticed_within_seconds(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    world.install(&one, &company()).await;
    let stranger = location("L4");
    for process in [&one, &other, &one] {
        let found = access(&world, process, &stranger).await;
        assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    }
    assert_eq!(minted(&world), 1, "one process asks for all");
    let status = one.tokens.status(&stranger).await;
    assert!(matches!(status, Err(TokenError::NotInstalled)), "{status:?}");
    grow(&world, 4);
    world.advance(Duration::from_secs(9));
    works(&world, &other, &stranger).await;
    assert_eq!(minted(&world), 2);
    world.end().await;
}

async fn without_a_company_the_platform_is_not_asked_and_nothing_is_written(world: World) {
    let process = world.process().await;
    let found = access(&world, &process, &location("L1")).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    assert_eq!((minted(&world), world.items().await.len()), (0, 0));
}

async fn a_location_whose_own_grant_is_refused_is_minted(world: World) {
    let (l1, process) = (location("L1"), world.process().await);
    world.install(&process, &l1).await;
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(86_399 - 30));
    process.tokens.access(&company(), world.deadline()).await.expect("the company's token");
    let refused = Fault::Answer {
        processed: false,
        status: 400,
        body: r#"{"statusCode":400,"message":"Invalid grant: refresh token is invalid"}"#.into(),
        content_type: None,
    };
    world.market.fault(Endpoint::Refresh, refused, Some(1));
    works(&world, &process, &l1).await;
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.minted().is_some(), minted(&world)), (Status::Active, true, 2));
    world.end().await;
}

async fn a_grant_of_its_own_replaces_a_minted_token(world: World) {
    let (l1, process, sender) = (location("L1"), world.process().await, Sender::new(&world).await);
    world.install(&process, &company()).await;
    works(&world, &process, &l1).await;
    // The install notice has a later time than the start of the exchange, since the platform's clock may be ahead.
    let started = world.clock.now();
    world.advance(Duration::from_secs(1));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    sender.send(&sender.notice("INSTALL", world.clock.now(), "w1", &members)).await;
    let grant = world.consent(&process, &l1).await;
    process.installations.install(&grant, started, it::world::HOME).await.expect("installed");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.minted(), stored.standby().is_empty(), stored.version.epoch), (None, true, 2));
    world.end().await;
}

async fn the_schedule_mints_for_locations_in_use(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    for l in locations(3) {
        works(&world, &process, &l).await;
    }
    world.advance(Duration::from_hours(20));
    let summary = world.refresh(&process, json!({})).await;
    assert_eq!((&summary["minted"], &summary["refreshed"]), (&json!(3), &json!(1)), "{summary}");
    assert_eq!((minted(&world), world.presented()), (6, 1));
    world.end().await;
}

async fn minting_draws_on_the_companys_limits_only(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    for l in locations(3) {
        works(&world, &process, &l).await;
    }
    let of_company = process.limiter.usage(&company()).await.expect("counters");
    let of_location = process.limiter.usage(&location("L1")).await.expect("counters");
    assert_eq!((of_company.burst.remaining, of_location.burst.remaining), (97, 100));
    world.end().await;
}

async fn locations_are_read_in_pages_and_reading_is_resumed(world: World) {
    grow(&world, 250);
    let process = world.process().await;
    world.install(&process, &company()).await;
    let installs = process.proxy.calls(Call::Install);
    let time = async {
        while process.proxy.calls(Call::Install) < installs + 50 {
            tokio::task::yield_now().await;
        }
        // The deadline of the invocation is near.
        world.clock.advance(Duration::from_secs(75));
    };
    tokio::join!(world.refresh(&process, json!({})), time);
    let task = world.table.task(company().id(), world.clock.now()).await.expect("a table").expect("an open task");
    let Some(ListReading { position: ListPosition::Skip(read), .. }) = task.reading else { panic!("{task:?}") };
    assert!((100..250).contains(&read), "{read} read");
    let known = |items: &[shared::table::Item]| items.iter().filter(|item| item.contains_key("minted")).count();
    assert_eq!(known(&world.items().await), read);
    let installs = process.proxy.calls(Call::Install);
    world.refresh(&process, json!({})).await;
    assert_eq!(known(&world.items().await), 250);
    assert_eq!(process.proxy.calls(Call::Install) - installs, 250 - read, "nothing is read twice");
    let task = world.table.task(company().id(), world.clock.now()).await.expect("a table");
    assert_eq!(task, None, "the task is done");
    assert_eq!(minted(&world), 0, "who is not called costs nothing");
    world.end().await;
}

async fn operations_of_the_companys_token_are_refused_for_a_location(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    world.secrets.put("callers", json!({"callers": [{"id": "billing", "aliases": ["billing"]}]}).to_string());
    let (app, _proxy) = world.app(world.clock.clone(), world.market.url(), &[]).await;
    let relay = Relay::new(app, "callers");
    let invocation = Invocation { request_id: "r".into(), trace_id: None, deadline: world.deadline() };
    let arn = "arn:aws:lambda:us-east-1:1:function:relay:billing";
    for (resource, refused) in [(location("L1"), true), (company(), false)] {
        let path = Path::parse("/locations/L1").expect("a path");
        let request = Request::new(resource.clone(), Method::DELETE, path);
        let callers = relay.callers().await.expect("callers");
        let caller = callers.authenticate(Identity::Invocation(arn)).expect("a listed caller");
        let answer = relay.call(&caller.authorize(request).expect("allowed"), &invocation).await;
        assert_eq!(answer.source == AnswerSource::Relay, refused, "{answer:?}");
        assert_eq!(world.market.api_requests(&grantee(&resource)).len(), usize::from(!refused));
        if refused {
            let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!((answer.status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
            assert_eq!(problem["route"], "/relay/companies/{companyId}/locations/L1");
        }
    }
    world.end().await;
}

/// Makes the minted tokens due. They stay usable for some more hours.
async fn due(world: &World, process: &Process, all: &[Resource]) {
    world.install(process, &company()).await;
    for l in all {
        works(world, process, l).await;
    }
    world.advance(Duration::from_hours(20));
    let company = world.stored(&company()).await.version;
    let renewed = process.refresher.refresh(&self::company(), company, Why::Due, world.deadline()).await;
    assert!(matches!(renewed, Refreshed::Renewed(_)), "{renewed:?}");
}

async fn an_unknown_answer_to_minting_erases_no_token(world: World) {
    let processes = [world.process().await, world.process().await];
    let prefix = format!("N{}", shared::domain::random::hex::<4>());
    let all: Vec<_> = (0..5).map(|n| location(&format!("{prefix}x{n}"))).collect();
    let known = all.iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = known);
    due(&world, &processes[0], &all).await;
    let faults = [
        Fault::refusal(400, "Something new"),
        Fault::refusal_v3(404, "Something new"),
        Fault::refusal(403, "Forbidden"),
        Fault::refusal(422, "Something new"),
        Fault::block_page(),
    ];
    for (n, (l, fault)) in all.iter().zip(&faults).enumerate() {
        world.market.fault(Endpoint::Mint, fault.clone(), Some(1));
        let before = world.stored(l).await;
        let process = &processes[n % 2];
        let minted = process.tokens.mint(&before, Why::Due, world.deadline()).await;
        assert!(matches!(minted, Ok(Refreshed::Failed(TokenError::InProgress { .. }))), "{fault:?}: {minted:?}");
        let stored = world.stored(l).await;
        assert_eq!((stored.access(), stored.version), (before.access(), before.version), "{fault:?}");
        assert!(stored.schedule().due_at.is_some_and(|due| due > world.clock.now()), "{fault:?}: it is tried again");
        for process in &processes {
            works(&world, process, l).await;
        }
    }
    assert_eq!(world.alarms("unclassified", &prefix), 1, "one for the app");
    assert_eq!(world.alarms("not_reached", &prefix), 1);
    world.advance(Duration::from_hours(4));
    world.refresh(&processes[0], json!({})).await;
    for l in &all {
        works(&world, &processes[1], l).await;
    }
    world.end().await;
}

async fn a_minted_token_is_used_until_it_expires_even_if_minting_is_refused(world: World) {
    let (process, l1) = (world.process().await, location("L1"));
    due(&world, &process, std::slice::from_ref(&l1)).await;
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
    let before = world.stored(&l1).await;
    let absent = process.tokens.mint(&before, Why::Due, world.deadline()).await;
    assert!(matches!(absent, Ok(Refreshed::Failed(TokenError::NotInstalled))), "{absent:?}");
    assert_eq!(world.stored(&l1).await.access(), before.access());
    works(&world, &world.process().await, &l1).await;
    let expires_at = before.access().expect("a token").expires_at;
    // In the last minute of the token each call tries to renew it.
    world.advance((expires_at - Duration::from_secs(30)).since(world.clock.now()));
    works(&world, &world.process().await, &l1).await;
    world.advance(Duration::from_secs(31));
    let found = access(&world, &world.process().await, &l1).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    world.market.clear_faults();
    world.advance(Duration::from_secs(9));
    works(&world, &process, &l1).await;
    world.end().await;
}

async fn a_minted_location_that_had_its_own_grant_is_marked_when_its_token_expires(world: World) {
    let (process, l1) = (world.teller().await, location("L1"));
    world.install(&process, &company()).await;
    world.install(&process, &l1).await;
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let version = world.stored(&l1).await.version;
    let moved = process.refresher.refresh(&l1, version, Why::Due, world.deadline()).await;
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
    for _ in 0..5 {
        world.advance(Duration::from_hours(4));
        world.refresh(&process, json!({})).await;
        let stored = world.stored(&l1).await;
        assert_eq!((stored.status(), stored.access().is_some()), (Status::Active, true));
        works(&world, &process, &l1).await;
    }
    world.advance(Duration::from_hours(4));
    world.refresh(&process, json!({})).await;
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
    let told: Vec<_> = world.event_bridge.events().into_iter().map(|put| put.detail_type).collect();
    assert_eq!(told.iter().filter(|name| *name == "NeedsReauthorization").count(), 1, "{told:?}");
}

async fn the_token_of_a_location_that_becomes_minted_is_used_until_it_expires(world: World) {
    let (process, l1) = (world.process().await, location("L1"));
    world.install(&process, &company()).await;
    world.install(&process, &l1).await;
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let before = world.stored(&l1).await;
    process.refresher.refresh(&l1, before.version, Why::Due, world.deadline()).await;
    world.market.fault(Endpoint::Mint, Fault::refusal(400, "Something new"), None);
    world.refresh(&process, json!({})).await;
    let stored = world.stored(&l1).await;
    assert!(stored.minted().is_some(), "{stored:?}");
    works(&world, &world.process().await, &l1).await;
    world.market.clear_faults();
    world.advance(Duration::from_hours(4));
    world.refresh(&process, json!({})).await;
    assert_eq!((minted(&world) > 0, world.stored(&l1).await.version.generation), (true, before.version.generation + 1));
    works(&world, &world.process().await, &l1).await;
    world.end().await;
}

async fn an_unknown_401_to_minting_costs_one_rotation_of_the_companys_token(world: World) {
    let processes = [world.process().await, world.process().await];
    world.install(&processes[0], &company()).await;
    world.market.fault(Endpoint::Mint, Fault::unauthorized("Something new"), None);
    for _ in 0..4 {
        for process in &processes {
            let found = access(&world, process, &location("L1")).await;
            assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
        }
        world.advance(Duration::from_mins(61));
    }
    assert_eq!(world.presented(), 1);
    world.market.clear_faults();
    works(&world, &processes[1], &location("L1")).await;
    world.end().await;
}

async fn minting_keeps_to_the_pace_after_it_was_answered_429(world: World) {
    grow(&world, 12);
    let five = [("TOKEN_REQUESTS_PER_MINUTE", "5")];
    let (one, other) = (world.process_with(&five).await, world.process_with(&five).await);
    world.install(&one, &company()).await;
    for location in &locations(6) {
        works(&world, &one, location).await;
    }
    assert_eq!(minted(&world), 6, "as many as its locations need, although the pace is 5");
    let throttled = Fault::Answer { processed: false, status: 429, body: "{}".into(), content_type: None };
    world.market.fault(Endpoint::Mint, throttled, Some(1));
    access(&world, &one, &location("L7")).await.expect_err("429");
    assert_eq!(minted(&world), 7);
    world.advance(Duration::from_mins(2));
    let rest = locations(12).split_off(6);
    let both = rest.iter().flat_map(|location| [&one, &other].map(|process| (process, location)));
    let calls = both.map(async |(process, location)| {
        while access(&world, process, location).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let began = world.clock.now();
    Box::pin(world.at_speed(5, join_all(calls))).await;
    let took = world.clock.now().since(began);
    assert_eq!(minted(&world), 13);
    assert!(took >= Duration::from_mins(1), "five places a minute for six mintings: {took:?}");
    world.end().await;
}
