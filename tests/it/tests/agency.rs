//! Agencies: one company's grant, hundreds of locations that have none of their own, and webhooks in every order.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use it::proxy::{Call, Proxy};
use it::world::{Process, World, answered, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::caller::Identity;
use shared::domain::access::Access;
use shared::domain::clock::{Clock, Millis};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::relay::answer::Source;
use shared::relay::{Invocation, Relay};
use shared::request::Request;
use shared::request::path::Path;
use shared::table::company::Note;
use shared::token::TokenError;
use shared::token::outcome::{Failure, Refreshed, Why};
use webhook::listener::Listener;

it::stories!(
    the_first_calls_work_at_once_and_each_location_is_minted_once,
    five_hundred_locations_cost_one_refresh_of_the_company,
    a_refused_token_of_the_company_is_renewed_once,
    a_location_of_nobody_is_asked_for_seldom_and_noticed_soon,
    without_a_company_nothing_is_asked_and_nothing_written,
    a_location_whose_own_grant_is_refused_is_minted,
    a_grant_of_its_own_replaces_a_minted_token,
    the_schedule_mints_what_is_in_use,
    minting_draws_on_the_companys_limits_only,
    locations_are_read_in_pages_and_reading_is_resumed,
    a_companys_uninstall_stops_its_locations_and_erases_their_tokens,
    a_company_installed_again_revives_its_locations,
    an_install_before_the_redirect_is_kept,
    an_install_may_leave_out_the_company,
    webhooks_that_are_forged_or_reserialised_change_nothing,
    webhooks_that_are_repeated_or_late_change_nothing,
    an_uninstall_of_a_location_stops_it_alone,
    a_webhook_that_cannot_be_stored_is_asked_for_again,
    what_needs_the_companys_token_is_refused_for_a_location,
    an_answer_that_nobody_knows_to_minting_costs_no_token,
    a_minted_token_is_used_to_its_end_whatever_minting_is_told,
    a_location_with_a_grant_of_its_own_once_is_given_up_at_the_end_of_its_token,
    a_token_of_a_location_that_is_to_be_minted_goes_on,
    a_401_that_nobody_knows_to_minting_costs_one_rotation_of_the_companys_token,
    an_uninstall_without_time_and_id_ends_no_reinstallation,
    the_platform_is_asked_only_where_the_times_do_not_say,
    what_the_platform_does_not_say_is_asked_for_again,
    an_expired_token_proves_nothing_and_is_renewed_by_the_schedule,
    an_uninstall_without_time_is_asked_about_for_every_kind_of_installation,
    a_reinstallation_during_the_question_stays,
    a_list_of_locations_ends_those_alone,
    a_list_that_is_not_stored_whole_is_asked_for_again,
    a_location_of_the_oldest_of_many_agencies_is_found_by_the_schedule,
    a_location_of_none_of_many_agencies_is_asked_for_once,
    an_agency_that_cannot_be_asked_keeps_the_search_open,
    a_location_that_moved_to_another_agency_is_found,
    a_location_that_moved_from_an_agency_that_has_ended_is_found_at_the_first_call,
    a_location_that_moved_from_an_agency_that_has_ended_is_found_among_many_by_the_schedule,
    a_location_of_an_agency_that_has_ended_keeps_the_answer_of_its_agency,
    an_agency_that_recovers_has_its_locations_back_at_once,
    a_report_ends_a_search,
    another_agencys_new_installation_costs_no_token,
    a_location_that_may_be_elsewhere_is_not_given_up,
    a_location_is_given_up_though_another_agency_cannot_be_asked,
    so_many_locations_are_searched_for_and_no_more,
    a_task_that_is_noted_again_stays,
    companies_are_listed_in_pages,
);

fn company() -> Resource {
    Resource::company("HLcompany0000000001").expect("an id")
}

fn locations(count: usize) -> Vec<Resource> {
    (1..=count).map(|n| location(&format!("L{n}"))).collect()
}

/// Gives the agency so many locations.
fn grow(world: &World, count: usize) {
    let locations =
        locations(count).iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = locations);
}

fn minted(world: &World) -> usize {
    world.market.token_requests_for("mint")
}

async fn access(world: &World, process: &Process, resource: &Resource) -> Result<Access, TokenError> {
    process.tokens.access(resource, world.deadline()).await
}

async fn works(world: &World, process: &Process, resource: &Resource) {
    let access = access(world, process, resource).await.expect("a token");
    assert!(world.market.takes_access_token(access.token.expose()), "{resource}");
}

/// The webhook function and whoever signs for the platform.
struct Ear {
    listener: Listener,
    signer: Ed25519KeyPair,
    app_id: String,
    proxy: Proxy,
    clock: Clock,
}

/// The webhook function's time-out.
const INVOCATION: Duration = Duration::from_secs(15);

impl Ear {
    async fn new(world: &World) -> Self {
        let signer = Ed25519KeyPair::generate().expect("a key");
        let public_key = signer.public_key().as_ref().try_into().expect("32 bytes");
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), &[]).await;
        let app_id = world.market.options().client_id.split('-').next().unwrap_or_default().to_owned();
        Self { listener: Listener::new(app, vec![public_key]), signer, app_id, proxy, clock: world.clock.clone() }
    }

    fn notice(&self, kind: &str, at: Millis, id: &str, members: &Value) -> Value {
        let mut notice = json!({ "type": kind, "appId": self.app_id, "timestamp": at.rfc3339(), "webhookId": id });
        notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        notice
    }

    async fn hear(&self, notice: &Value) -> (u16, String) {
        let body = notice.to_string();
        self.hear_bytes(&body, &STANDARD.encode(self.signer.sign(body.as_bytes()))).await
    }

    /// Sends a webhook again while that is asked for, as the platform does.
    async fn hear_in_the_end(&self, notice: &Value) -> (u16, String) {
        let mut heard = self.hear(notice).await;
        for _ in 0..9 {
            if heard.0 != 429 {
                break;
            }
            heard = self.hear(notice).await;
        }
        heard
    }

    async fn hear_bytes(&self, body: &str, signature: &str) -> (u16, String) {
        let event = json!({
            "version": "2.0",
            "rawPath": "/webhooks/marketplace",
            "headers": {"x-ghl-signature": signature},
            "requestContext": {"stage": "$default", "http": {"method": "POST"}},
            "body": body,
            "isBase64Encoded": false,
        });
        let answer: Value = answered(&self.listener, &event, "request", self.clock.now() + INVOCATION).await;
        let body: Value = serde_json::from_str(answer["body"].as_str().expect("text")).expect("JSON");
        let status = answer["statusCode"].as_u64().and_then(|status| status.try_into().ok()).expect("a status");
        (status, body["outcome"].as_str().unwrap_or_default().to_owned())
    }
}

fn told(status: u16, outcome: &str) -> (u16, String) {
    (status, outcome.to_owned())
}

async fn the_first_calls_work_at_once_and_each_location_is_minted_once(world: World) {
    grow(&world, 500);
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(world.process().await);
    }
    world.install(&processes[0], &company()).await;
    // No schedule has run: nobody knows whose locations these are.
    let first = locations(10);
    let deadline = world.deadline();
    let calls = processes.iter().flat_map(|process| first.iter().map(|l| process.tokens.access(l, deadline)));
    for access in join_all(calls).await {
        assert!(world.market.takes_access_token(access.expect("a token").token.expose()));
    }
    assert_eq!((minted(&world), world.presented()), (10, 0));
    let stored = world.stored(&first[0]).await;
    assert_eq!(stored.company.as_deref(), Some(company().id()));
    assert_eq!(stored.pair.as_ref().map(|pair| pair.refresh.is_some()), Some(false), "no refresh token is kept");
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
        for access in join_all(calls).await {
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
    // What the platform does to every token that it has lost.
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

async fn a_location_of_nobody_is_asked_for_seldom_and_noticed_soon(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    world.install(&one, &company()).await;
    let stranger = location("L4");
    for process in [&one, &other, &one] {
        let found = access(&world, process, &stranger).await;
        assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    }
    assert_eq!(minted(&world), 1, "one process asks for all");
    let standing = one.tokens.standing(&stranger).await;
    assert!(matches!(standing, Err(TokenError::NotInstalled)), "{standing:?}");
    grow(&world, 4);
    world.advance(Duration::from_secs(9));
    works(&world, &other, &stranger).await;
    assert_eq!(minted(&world), 2);
    world.end().await;
}

async fn without_a_company_nothing_is_asked_and_nothing_written(world: World) {
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
    assert_eq!((stored.status, stored.minted.is_some(), minted(&world)), (Status::Active, true, 2));
    world.end().await;
}

async fn a_grant_of_its_own_replaces_a_minted_token(world: World) {
    let (l1, process, ear) = (location("L1"), world.process().await, Ear::new(&world).await);
    world.install(&process, &company()).await;
    works(&world, &process, &l1).await;
    // Heard of at a later time than the exchange begins: the platform's clock may be ahead.
    let started = world.clock.now();
    world.advance(Duration::from_secs(1));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    ear.hear(&ear.notice("INSTALL", world.clock.now(), "w1", &members)).await;
    let grant = world.consent(&process, &l1).await;
    process.installations.install(&grant, started, it::world::HOME).await.expect("installed");
    let stored = world.stored(&l1).await;
    assert_eq!((stored.minted, stored.standby.is_empty(), stored.version.epoch), (None, true, 2));
    world.end().await;
}

async fn the_schedule_mints_what_is_in_use(world: World) {
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
        // The invocation is nearly over.
        world.clock.advance(Duration::from_secs(50));
    };
    tokio::join!(world.refresh(&process, json!({})), time);
    let task = world.table.task(company().id(), world.clock.now()).await.expect("a table").expect("an open task");
    let read = task.read;
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

async fn a_companys_uninstall_stops_its_locations_and_erases_their_tokens(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    let [l1, l2, own] = ["L1", "L2", "L3"].map(location);
    world.install(&process, &company()).await;
    world.install(&process, &own).await;
    for l in [&l1, &l2, &own] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_secs(5));
    let writes = ear.proxy.calls(Call::Write);
    let notice = ear.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    assert_eq!(ear.hear(&notice).await, told(200, "stored"));
    assert_eq!(ear.proxy.calls(Call::Write) - writes, 3, "the note, the company, the webhook");
    world.market.uninstall(&grantee(&company()));
    world.advance(Duration::from_secs(9));
    for l in [&l1, &l2, &company()] {
        let found = access(&world, &process, l).await;
        assert!(matches!(found, Err(TokenError::Revoked)), "{l}: {found:?}");
        let standing = process.tokens.standing(l).await.expect("known");
        assert_eq!(standing.status, Status::Revoked);
    }
    works(&world, &process, &own).await;
    assert!(world.stored(&l1).await.pair.is_some(), "not inside the request");
    world.refresh(&process, json!({})).await;
    for l in [&l1, &l2] {
        assert_eq!(world.stored(l).await.pair, None);
    }
    assert!(world.stored(&own).await.pair.is_some());
    world.advance(Duration::from_mins(2));
    world.refresh(&process, json!({})).await;
    assert_eq!(world.table.newest_companies(9).await.expect("a table"), []);
    assert_eq!(world.table.task(company().id(), world.clock.now()).await.expect("a table"), None);
    assert_eq!(minted(&world), 2);
    world.end().await;
}

async fn a_company_installed_again_revives_its_locations(world: World) {
    let (process, l1) = (world.process().await, location("L1"));
    world.install(&process, &company()).await;
    works(&world, &process, &l1).await;
    world.advance(Duration::from_mins(1));
    process.installations.uninstall(&company(), world.clock.now()).await.expect("a table");
    world.market.uninstall(&grantee(&company()));
    world.advance(Duration::from_secs(9));
    assert!(matches!(access(&world, &process, &l1).await, Err(TokenError::Revoked)));
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(9));
    works(&world, &process, &l1).await;
    assert_eq!(minted(&world), 2, "the token of the earlier installation is not used");
    world.end().await;
}

async fn an_install_before_the_redirect_is_kept(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    assert_eq!(ear.hear(&ear.notice("INSTALL", world.clock.now(), "w1", &members)).await, told(200, "stored"));
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    let of_company = ear.notice("INSTALL", world.clock.now(), "w2", &json!({"companyId": company().id()}));
    assert_eq!(ear.hear(&of_company).await, told(200, "stored"));
    world.advance(Duration::from_secs(3));
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(7));
    works(&world, &process, &l1).await;
    world.end().await;
}

async fn an_install_may_leave_out_the_company(world: World) {
    let (process, ear, new) = (world.process().await, Ear::new(&world).await, location("L4"));
    world.install(&process, &company()).await;
    assert!(matches!(access(&world, &process, &new).await, Err(TokenError::NotInstalled)));
    grow(&world, 4);
    world.advance(Duration::from_secs(1));
    let notice = ear.notice("INSTALL", world.clock.now(), "w1", &json!({"locationId": "L4"}));
    assert_eq!(ear.hear(&notice).await, told(200, "stored"));
    works(&world, &process, &new).await;
    assert_eq!(world.stored(&new).await.company.as_deref(), Some(company().id()));
    world.end().await;
}

async fn webhooks_that_are_forged_or_reserialised_change_nothing(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(1));
    let notice = ear.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    let body = notice.to_string();
    let signature = STANDARD.encode(ear.signer.sign(body.as_bytes()));
    let other = Ed25519KeyPair::generate().expect("a key");
    let forged = STANDARD.encode(other.sign(body.as_bytes()));
    let members: BTreeMap<String, Value> = serde_json::from_value(notice.clone()).expect("an object");
    let reserialised = serde_json::to_string_pretty(&members).expect("JSON");
    for (body, signature) in [(&body, &forged), (&reserialised, &signature)] {
        assert_eq!(ear.hear_bytes(body, signature).await, told(401, "not_signed"));
    }
    let mut foreign = notice;
    foreign["appId"] = json!("another");
    assert_eq!(ear.hear(&foreign).await, told(403, "foreign_app"));
    assert_eq!(world.status(&company()).await, Status::Active);
    assert_eq!(ear.hear_bytes(&body, &signature).await, told(200, "stored"), "the positive control");
    assert_eq!(world.status(&company()).await, Status::Revoked);
}

async fn webhooks_that_are_repeated_or_late_change_nothing(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    world.install(&process, &company()).await;
    works(&world, &process, &l1).await;
    world.advance(Duration::from_mins(1));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    let gone = ear.notice("UNINSTALL", world.clock.now(), "w1", &members);
    // Sent before anything else and delivered after everything else.
    let late = ear.notice("UNINSTALL", world.clock.now() + Duration::from_secs(1), "w2", &members);
    world.advance(Duration::from_secs(2));
    let back = ear.notice("INSTALL", world.clock.now(), "w3", &members);
    assert_eq!(ear.hear(&gone).await, told(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    assert_eq!(ear.hear(&back).await, told(200, "stored"));
    // Half an hour later, as a sender that retries would.
    world.advance(Duration::from_mins(30));
    assert_eq!(ear.hear(&gone).await, told(200, "repeated"));
    assert_eq!(ear.hear(&late).await, told(200, "superseded"));
    assert_eq!(ear.hear(&back).await, told(200, "repeated"));
    works(&world, &process, &l1).await;
    // An uninstall is no older for having been delivered late.
    let gone = ear.notice("UNINSTALL", world.clock.now() - Duration::from_mins(20), "w4", &members);
    assert_eq!(ear.hear(&gone).await, told(200, "stored"));
    assert_eq!(ear.hear(&back).await, told(200, "repeated"));
    world.advance(Duration::from_secs(9));
    assert!(matches!(access(&world, &process, &l1).await, Err(TokenError::Revoked)));
}

async fn an_uninstall_of_a_location_stops_it_alone(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    world.install(&process, &company()).await;
    for l in [&l1, &l2] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_mins(2));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    assert_eq!(ear.hear(&ear.notice("UNINSTALL", world.clock.now(), "w1", &members)).await, told(200, "stored"));
    world.market.uninstall(&grantee(&l1));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status, stored.pair), (Status::Revoked, None));
    world.advance(Duration::from_secs(9));
    assert!(matches!(access(&world, &process, &l1).await, Err(TokenError::Revoked)));
    works(&world, &process, &l2).await;
    // The list of locations leaves it out, and so it stays.
    world.refresh(&process, json!({})).await;
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.end().await;
}

async fn a_webhook_that_cannot_be_stored_is_asked_for_again(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(1));
    let notice = ear.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    ear.proxy.always(Call::Uninstall, it::proxy::Fault::AccessDenied);
    assert_eq!(ear.hear(&notice).await, told(429, "try_again"));
    ear.proxy.heal();
    assert_eq!(ear.hear(&notice).await, told(200, "stored"), "no mark stands in the way");
    assert_eq!(ear.hear(&notice).await, told(200, "repeated"));
    assert_eq!(world.status(&company()).await, Status::Revoked);
}

async fn what_needs_the_companys_token_is_refused_for_a_location(world: World) {
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
        assert_eq!(answer.source == Source::Relay, refused, "{answer:?}");
        assert_eq!(world.market.api_requests(&grantee(&resource)).len(), usize::from(!refused));
        if refused {
            let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!((answer.status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
            assert_eq!(problem["route"], "/relay/companies/{companyId}/locations/L1");
        }
    }
    world.end().await;
}

/// The minted tokens are due, and good for some more hours.
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

async fn an_answer_that_nobody_knows_to_minting_costs_no_token(world: World) {
    let processes = [world.process().await, world.process().await];
    let prefix = format!("N{}", shared::domain::random::hex::<4>());
    let all: Vec<_> = (0..6).map(|n| location(&format!("{prefix}x{n}"))).collect();
    let known = all.iter().map(|l| Location { id: l.id().into(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = known);
    due(&world, &processes[0], &all).await;
    let faults = [
        Fault::refusal(400, "Something new"),
        Fault::refusal_v3(404, "Something new"),
        Fault::refusal(403, "Forbidden"),
        Fault::refusal(422, "Something new"),
        Fault::Answer { processed: false, status: 404, body: String::new(), content_type: None },
        Fault::block_page(),
    ];
    for (n, (l, fault)) in all.iter().zip(&faults).enumerate() {
        world.market.fault(Endpoint::Mint, fault.clone(), Some(1));
        let before = world.stored(l).await;
        let process = &processes[n % 2];
        let minted = process.tokens.mint(&before, Why::Due, world.deadline()).await;
        assert!(matches!(minted, Ok(Refreshed::Failed(Failure::TryAgain(_)))), "{fault:?}: {minted:?}");
        let stored = world.stored(l).await;
        assert_eq!((&stored.pair, stored.version), (&before.pair, before.version), "{fault:?}");
        assert!(stored.due_at.is_some_and(|due| due > world.clock.now()), "{fault:?}: it is tried again");
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

async fn a_minted_token_is_used_to_its_end_whatever_minting_is_told(world: World) {
    let (process, l1) = (world.process().await, location("L1"));
    due(&world, &process, std::slice::from_ref(&l1)).await;
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
    let before = world.stored(&l1).await;
    let absent = process.tokens.mint(&before, Why::Due, world.deadline()).await;
    assert!(matches!(absent, Ok(Refreshed::Failed(Failure::NotInstalled))), "{absent:?}");
    assert_eq!(world.stored(&l1).await.pair, before.pair);
    works(&world, &world.process().await, &l1).await;
    let expires_at = before.pair.expect("a token").access_expires_at;
    // In its last minute each call tries to renew it.
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

async fn a_location_with_a_grant_of_its_own_once_is_given_up_at_the_end_of_its_token(world: World) {
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
        assert_eq!((stored.status, stored.pair.is_some()), (Status::Active, true));
        works(&world, &process, &l1).await;
    }
    world.advance(Duration::from_hours(4));
    world.refresh(&process, json!({})).await;
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
    let told: Vec<_> = world.event_bridge.events().into_iter().map(|put| put.detail_type).collect();
    assert_eq!(told.iter().filter(|name| *name == "NeedsReauthorization").count(), 1, "{told:?}");
}

async fn a_token_of_a_location_that_is_to_be_minted_goes_on(world: World) {
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
    assert!(stored.minted.is_some(), "{stored:?}");
    works(&world, &world.process().await, &l1).await;
    world.market.clear_faults();
    world.advance(Duration::from_hours(4));
    world.refresh(&process, json!({})).await;
    assert_eq!((minted(&world) > 0, world.stored(&l1).await.version.generation), (true, before.version.generation + 1));
    works(&world, &world.process().await, &l1).await;
    world.end().await;
}

async fn a_401_that_nobody_knows_to_minting_costs_one_rotation_of_the_companys_token(world: World) {
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

/// An uninstall as the platform documents it: without a timestamp and an id.
fn bare(ear: &Ear, members: &Value) -> Value {
    let mut notice = json!({ "type": "UNINSTALL", "appId": ear.app_id });
    notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
    notice
}

/// The number of times that the platform was asked if the app is installed, with tokens of `resource`.
fn questions(world: &World, resource: &Resource) -> usize {
    let requests = world.market.api_requests(&grantee(resource));
    requests.iter().filter(|request| request.target.ends_with("/installations")).count()
}

async fn an_uninstall_without_time_and_id_ends_no_reinstallation(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    let gone = bare(&ear, &json!({"locationId": "L1"}));
    assert_eq!(ear.hear(&gone).await, told(200, "unknown"));
    world.install(&process, &l1).await;
    world.market.uninstall(&grantee(&l1));
    assert_eq!(ear.hear(&gone).await, told(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.advance(Duration::from_mins(1));
    world.install(&process, &l1).await;
    let requests = world.market.strangers();
    assert_eq!(ear.hear(&gone).await, told(200, "repeated"), "the same bytes");
    assert_eq!((questions(&world, &l1), world.market.strangers()), (0, requests), "and nobody is asked");
    // The same event in other bytes.
    let reordered = format!(r#"{{"locationId":"L1","appId":"{}","type":"UNINSTALL"}}"#, ear.app_id);
    let signature = STANDARD.encode(ear.signer.sign(reordered.as_bytes()));
    assert_eq!(ear.hear_bytes(&reordered, &signature).await, told(200, "superseded"));
    assert_eq!(questions(&world, &l1), 1);
    assert_eq!(process.limiter.usage(&l1).await.expect("counters").burst.remaining, 99, "with a permit");
    works(&world, &process, &l1).await;
    // A day later the same bytes may tell of another uninstall.
    world.advance(Duration::from_hours(24));
    world.refresh(&process, json!({ "resource": l1, "force": true })).await;
    world.market.uninstall(&grantee(&l1));
    assert_eq!(ear.hear(&gone).await, told(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.end().await;
}

async fn the_platform_is_asked_only_where_the_times_do_not_say(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    world.advance(Duration::from_millis(1_000 - u64::try_from(world.clock.now().0 % 1_000).expect("positive") + 500));
    world.install(&process, &l1).await;
    let installed_at = world.clock.now();
    world.advance(Duration::from_mins(5));
    let second = installed_at.0 / 1_000;
    let earlier = installed_at - Duration::from_secs(10);
    for (members, expected) in [
        (json!({"timestamp": earlier.rfc3339()}), 0),
        (json!({"timestamp": earlier.rfc3339(), "webhookId": "w1"}), 0),
        (json!({"timestamp": second - 1}), 0),
        (json!({"timestamp": second}), 1),
        (json!({"webhookId": "w2"}), 1),
        (json!({"webhookId": "w2", "other": "body"}), 1),
        (json!({"timestamp": "yesterday", "webhookId": "w3"}), 1),
        (json!({"timestamp": ""}), 1),
        (json!({"timestamp": (world.clock.now() + Duration::from_hours(1)).rfc3339()}), 1),
        (json!({"timestamp": world.clock.now().0 * 1_000}), 1),
    ] {
        let before = questions(&world, &l1);
        let mut gone = bare(&ear, &json!({"locationId": "L1"}));
        gone.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        assert_eq!(ear.hear(&gone).await, told(200, "superseded"), "{members}");
        assert_eq!(questions(&world, &l1) - before, expected, "{members}");
    }
    works(&world, &process, &l1).await;
    let gone = ear.notice("UNINSTALL", installed_at + Duration::from_millis(1), "w4", &json!({"locationId": "L1"}));
    assert_eq!(ear.hear(&gone).await, told(200, "stored"), "the positive control");
    assert_eq!(world.status(&l1).await, Status::Revoked);
}

async fn what_the_platform_does_not_say_is_asked_for_again(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_mins(1));
    let gone = bare(&ear, &json!({"locationId": "L1"}));
    let answer = |status, body: &str| Fault::Answer { processed: false, status, body: body.into(), content_type: None };
    for fault in [
        Fault::HangUp { processed: false },
        Fault::Delay { millis: 3_000 },
        answer(500, "{}"),
        answer(429, "{}"),
        answer(403, "<html>Just a moment...</html>"),
        answer(400, r#"{"message":"something new"}"#),
        answer(401, r#"{"message":"The token is not authorized for this scope."}"#),
        answer(401, r#"{"message":"The access token is expired"}"#),
    ] {
        world.market.fault(Endpoint::Api, fault.clone(), Some(1));
        assert_eq!(ear.hear(&gone).await, told(429, "try_again"), "{fault:?}");
        world.market.clear_faults();
        world.advance(Duration::from_mins(31));
    }
    ear.proxy.always(Call::Read, it::proxy::Fault::AccessDenied);
    assert_eq!(ear.hear(&gone).await, told(429, "try_again"), "the table is down");
    ear.proxy.heal();
    // A process that has read the app's secret, and cannot read the sealing keys.
    let started = Ear::new(&world).await;
    started.proxy.fault(Call::Secrets, 1, None, it::proxy::Fault::AccessDenied);
    assert_eq!(started.hear(&bare(&started, &json!({"locationId": "L1"}))).await, told(429, "try_again"));
    assert!(started.proxy.struck() > 0, "the sealing keys were asked for");
    // Every permit is taken: nothing is sent.
    for _ in 0..100 {
        process.limiter.take(&l1, None).await.expect("a permit");
    }
    let before = questions(&world, &l1);
    assert_eq!(ear.hear(&gone).await, told(429, "try_again"));
    assert_eq!(questions(&world, &l1), before);
    assert_eq!(world.status(&l1).await, Status::Active);
    world.advance(Duration::from_secs(11));
    assert_eq!(ear.hear(&gone).await, told(200, "superseded"), "the positive control");
    for (status, body) in [(401, r#"{"message":"Invalid JWT"}"#), (403, r#"{"message":"no"}"#), (404, "{}")] {
        world.market.fault(Endpoint::Api, answer(status, body), Some(1));
        assert_eq!(ear.hear(&gone).await, told(200, "stored"), "{status}");
        assert_eq!(world.status(&l1).await, Status::Revoked, "{status}");
        world.advance(Duration::from_hours(25));
        world.install(&process, &l1).await;
    }
    world.end().await;
}

async fn an_expired_token_proves_nothing_and_is_renewed_by_the_schedule(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
    }
    // Nobody calls them: the schedule leaves them cold.
    world.advance(Duration::from_hours(8 * 24));
    let summary = world.refresh(&process, json!({})).await;
    assert_eq!(summary["deferred"], 2, "{summary}");
    world.market.uninstall(&grantee(&l2));
    for (id, resource) in [("L1", &l1), ("L2", &l2)] {
        let gone = bare(&ear, &json!({ "locationId": id }));
        assert_eq!(ear.hear(&gone).await, told(429, "try_again"));
        assert_eq!((questions(&world, resource), world.presented()), (0, 0), "the webhook presents no refresh token");
    }
    world.refresh(&process, json!({})).await;
    assert_eq!(world.status(&l2).await, Status::NeedsReauthorization);
    assert_eq!(ear.hear(&bare(&ear, &json!({"locationId": "L1"}))).await, told(200, "superseded"));
    assert_eq!(ear.hear(&bare(&ear, &json!({"locationId": "L2"}))).await, told(200, "stored"));
    assert_eq!((world.status(&l1).await, world.status(&l2).await), (Status::Active, Status::Revoked));
    let wanted = world.items().await.into_iter().filter(|item| item.contains_key("token_wanted")).count();
    assert_eq!(wanted, 0, "the wish ends with the renewal and with the uninstall");
    world.end().await;
}

async fn an_uninstall_without_time_is_asked_about_for_every_kind_of_installation(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    world.install(&process, &company()).await;
    for l in [&l1, &l2] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_mins(1));
    // A company, with its own token.
    let of_company = bare(&ear, &json!({"companyId": company().id()}));
    assert_eq!(ear.hear(&of_company).await, told(200, "superseded"));
    assert_eq!(questions(&world, &company()), 1);
    // A location whose token is minted, with that token…
    let of_l1 = bare(&ear, &json!({"locationId": "L1"}));
    assert_eq!(ear.hear(&of_l1).await, told(200, "superseded"));
    assert_eq!(questions(&world, &l1), 1);
    // …and without one with the company's, by minting.
    world.expire();
    world.refresh(&process, json!({ "resource": company(), "force": true })).await;
    let before = minted(&world);
    assert_eq!(ear.hear(&of_l1).await, told(200, "superseded"));
    assert_eq!((questions(&world, &l1), minted(&world)), (1, before + 1));
    world.market.uninstall(&grantee(&l1));
    assert_eq!(ear.hear(&of_l1).await, told(200, "stored"));
    assert_eq!((world.status(&l1).await, world.status(&l2).await), (Status::Revoked, Status::Active));
    world.market.uninstall(&grantee(&company()));
    assert_eq!(ear.hear(&of_company).await, told(200, "stored"));
    assert_eq!(world.status(&company()).await, Status::Revoked);
}

async fn a_reinstallation_during_the_question_stays(world: World) {
    let (process, ear, l1) = (world.process().await, Ear::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.market.uninstall(&grantee(&l1));
    world.advance(Duration::from_secs(1));
    // The platform has refused the token, and then the customer is faster than the write.
    let gate = ear.proxy.hold(Call::Uninstall);
    let gone = bare(&ear, &json!({"locationId": "L1"}));
    let reinstalled = async {
        gate.reached().await;
        world.install(&process, &l1).await;
        gate.open();
    };
    let (heard, ()) = tokio::join!(ear.hear(&gone), reinstalled);
    assert_eq!(heard, told(429, "try_again"));
    ear.proxy.heal();
    assert_eq!(ear.hear(&gone).await, told(200, "superseded"));
    works(&world, &process, &l1).await;
    world.end().await;
}

async fn a_list_of_locations_ends_those_alone(world: World) {
    grow(&world, 40);
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    world.install(&process, &company()).await;
    let all = locations(40);
    let ids: Vec<&str> = all.iter().map(Resource::id).collect();
    let list = |ids: &Value| json!({"companyId": company().id(), "locationIds": ids});
    let installed = ear.notice("INSTALL", world.clock.now(), "w1", &list(&json!(ids)));
    assert_eq!(ear.hear_in_the_end(&installed).await, told(200, "stored"));
    for l in &all {
        assert_eq!(world.stored(l).await.company.as_deref(), Some(company().id()), "{l}");
    }
    for l in &all[..3] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_secs(5));
    let none = ear.notice("UNINSTALL", world.clock.now(), "w2", &list(&json!([])));
    assert_eq!(ear.hear(&none).await, told(200, "ignored"));
    let malformed = ear.notice("UNINSTALL", world.clock.now(), "w3", &list(&json!([7, "../x"])));
    assert_eq!(ear.hear(&malformed).await, told(400, "malformed"));
    let some = ear.notice("UNINSTALL", world.clock.now(), "w4", &list(&json!(["L1", 7, "L2", "../x", "L9999"])));
    assert_eq!(ear.hear(&some).await, told(200, "stored"));
    for l in &all {
        let expected = if ["L1", "L2"].contains(&l.id()) { Status::Revoked } else { Status::Active };
        assert_eq!(world.status(l).await, expected, "{l}");
    }
    assert_eq!(world.status(&company()).await, Status::Active);
    works(&world, &process, &all[2]).await;
}

async fn a_list_that_is_not_stored_whole_is_asked_for_again(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    for l in locations(3) {
        world.install(&process, &l).await;
    }
    world.advance(Duration::from_secs(1));
    ear.proxy.fault(Call::Uninstall, 1, Some(1), it::proxy::Fault::AccessDenied);
    let members = json!({"companyId": company().id(), "locationIds": ["L1", "L2", "L3"]});
    let gone = ear.notice("UNINSTALL", world.clock.now(), "w1", &members);
    assert_eq!(ear.hear(&gone).await, told(429, "try_again"));
    let mut revoked = 0;
    for l in locations(3) {
        revoked += usize::from(world.status(&l).await == Status::Revoked);
    }
    assert_eq!(revoked, 2, "one failure keeps none of the others");
    assert_eq!(ear.hear(&gone).await, told(200, "stored"));
    for l in locations(3) {
        assert_eq!(world.status(&l).await, Status::Revoked, "{l}");
    }
    assert_eq!(ear.hear(&gone).await, told(200, "repeated"));
}

fn agency(number: usize) -> Resource {
    Resource::company(&format!("C{number}")).expect("an id")
}

/// Installs the app in so many agencies, oldest first, each with one location: C1 with M1, C2 with M2, and so on.
async fn many(world: &World, process: &Process, count: usize) {
    let location = |number: usize| Location { id: format!("M{number}"), name: "A location".into() };
    let agencies = (1..=count).map(|number| (agency(number).id().to_owned(), vec![location(number)])).collect();
    world.market.change(|options| options.agencies = agencies);
    for number in 1..=count {
        world.install(process, &agency(number)).await;
        world.advance(Duration::from_secs(1));
    }
}

/// Which agencies the platform was asked about a location, with refusals and grants.
fn asked(world: &World, location: &Resource) -> usize {
    let wanted = grantee(location);
    world.market.token_requests().iter().filter(|r| r.grant == "mint" && r.resource.as_ref() == Some(&wanted)).count()
}

async fn a_location_of_the_oldest_of_many_agencies_is_found_by_the_schedule(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    many(&world, &one, 9).await;
    works(&world, &one, &location("M9")).await;
    works(&world, &one, &location("M5")).await;
    let oldest = location("M1");
    for process in [&one, &other, &one] {
        let found = access(&world, process, &oldest).await;
        assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    }
    assert_eq!(asked(&world, &oldest), 5, "a call asks a few, once for all processes");
    // Not the task of that agency, whose list would tell it, too.
    one.tokens.search(world.deadline()).await;
    works(&world, &other, &oldest).await;
    assert_eq!(world.stored(&oldest).await.company.as_deref(), Some("C1"));
    assert_eq!(world.table.searches().await.expect("a table"), []);
    world.end().await;
}

async fn a_location_of_none_of_many_agencies_is_asked_for_once(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let nobodys = location("M99");
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    process.tokens.search(world.deadline()).await;
    let requests = asked(&world, &nobodys);
    assert_eq!(requests, 5 + 7, "by the call and by the schedule");
    for _ in 0..5 {
        let found = access(&world, &process, &nobodys).await;
        assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
        world.advance(Duration::from_mins(5));
        process.tokens.search(world.deadline()).await;
    }
    assert_eq!(asked(&world, &nobodys), requests, "an absence is remembered");
    // A new agency has it: noticed within 10 s, though the absence would be remembered for longer.
    world.market.change(|options| {
        options.agencies.insert("C8".into(), vec![Location { id: "M99".into(), name: "Moved".into() }]);
    });
    world.install(&process, &agency(8)).await;
    world.advance(Duration::from_secs(3));
    works(&world, &process, &nobodys).await;
    world.end().await;
}

async fn an_agency_that_cannot_be_asked_keeps_the_search_open(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let oldest = location("M1");
    let down = Fault::Answer { processed: false, status: 503, body: "<html>".into(), content_type: None };
    world.market.fault(Endpoint::Mint, down, None);
    for _ in 0..3 {
        let found = access(&world, &process, &oldest).await;
        assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
        process.tokens.search(world.deadline()).await;
        world.advance(Duration::from_mins(1));
    }
    world.market.clear_faults();
    process.tokens.search(world.deadline()).await;
    works(&world, &process, &oldest).await;
    // For ever nobody waits: after some minutes the answer is that it is not installed, but not for long.
    world.market.fault(Endpoint::Mint, Fault::HangUp { processed: false }, None);
    let nobodys = location("M99");
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    for _ in 0..11 {
        process.tokens.search(world.deadline()).await;
        world.advance(Duration::from_mins(1));
    }
    process.tokens.search(world.deadline()).await;
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::NotInstalled)));
    world.market.clear_faults();
    world.advance(Duration::from_mins(5));
    assert!(matches!(access(&world, &process, &nobodys).await, Err(TokenError::InProgress { .. })));
    world.end().await;
}

async fn a_location_that_moved_to_another_agency_is_found(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    let moved = location("M1");
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"));
    let to = |company: &str| {
        world.market.change(|options| {
            options.agencies.values_mut().for_each(|locations| locations.retain(|location| location.id != "M1"));
            let locations = options.agencies.entry(company.to_owned()).or_default();
            locations.push(Location { id: "M1".into(), name: "Moved".into() });
        });
    };
    to("C2");
    world.expire();
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C2"), "among a few agencies at the first call");
    many(&world, &process, 9).await;
    to("C1");
    world.expire();
    let found = access(&world, &process, &moved).await;
    assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    process.tokens.search(world.deadline()).await;
    works(&world, &process, &moved).await;
    assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"), "among many by the schedule");
    world.end().await;
}

/// How an agency's installation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Uninstalled,
    /// The platform refuses its refresh token.
    Refused,
}

impl End {
    async fn come(self, world: &World, process: &Process, company: &Resource) {
        match self {
            Self::Uninstalled => {
                world.market.uninstall(&grantee(company));
                process.installations.uninstall(company, world.clock.now()).await.expect("a table");
                assert_eq!(world.status(company).await, Status::Revoked);
            }
            Self::Refused => {
                let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
                world.market.fault(Endpoint::Refresh, refusal, Some(1));
                let version = world.stored(company).await.version;
                process.refresher.refresh(company, version, Why::Due, world.deadline()).await;
                assert_eq!(world.status(company).await, Status::NeedsReauthorization);
            }
        }
        world.expire();
    }

    fn assert_told(self, found: &Result<Access, TokenError>) {
        match self {
            Self::Uninstalled => assert!(matches!(found, Err(TokenError::Revoked)), "{found:?}"),
            Self::Refused => {
                assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
            }
        }
    }
}

/// Lets the location M1 belong to this agency only, or to none.
fn move_m1(world: &World, company: Option<&str>) {
    world.market.change(|options| {
        options.agencies.values_mut().for_each(|locations| locations.retain(|location| location.id != "M1"));
        if let Some(company) = company {
            let locations = options.agencies.entry(company.to_owned()).or_default();
            locations.push(Location { id: "M1".into(), name: "Moved".into() });
        }
    });
}

async fn a_location_that_moved_from_an_agency_that_has_ended_is_found_at_the_first_call(world: World) {
    let process = world.process().await;
    for (end, from, to) in [(End::Uninstalled, 1, 2), (End::Refused, 2, 3)] {
        many(&world, &process, 4).await;
        move_m1(&world, Some(agency(from).id()));
        let moved = location("M1");
        world.expire();
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some(agency(from).id()), "{end:?}");
        move_m1(&world, Some(agency(to).id()));
        end.come(&world, &process, &agency(from)).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some(agency(to).id()), "{end:?}");
        works(&world, &world.process().await, &moved).await;
    }
}

async fn a_location_that_moved_from_an_agency_that_has_ended_is_found_among_many_by_the_schedule(world: World) {
    let process = world.process().await;
    let moved = location("M1");
    for end in [End::Refused, End::Uninstalled] {
        many(&world, &process, 8).await;
        world.expire();
        assert!(matches!(access(&world, &process, &moved).await, Err(TokenError::InProgress { .. })), "{end:?}");
        process.tokens.search(world.deadline()).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"), "{end:?}");
        // The five agencies with the latest install notices do not have it.
        move_m1(&world, Some("C2"));
        end.come(&world, &process, &agency(1)).await;
        end.assert_told(&access(&world, &process, &moved).await);
        process.tokens.search(world.deadline()).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C2"), "{end:?}");
        assert_eq!(world.table.searches().await.expect("a table"), []);
    }
}

async fn a_location_of_an_agency_that_has_ended_keeps_the_answer_of_its_agency(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    let left = location("M1");
    for (end, count) in [(End::Refused, 3), (End::Uninstalled, 3), (End::Refused, 8), (End::Uninstalled, 8)] {
        many(&world, &one, count).await;
        world.expire();
        works(&world, &one, &left).await;
        move_m1(&world, None);
        end.come(&world, &one, &agency(1)).await;
        let reserved = || one.proxy.calls(Call::Reserve) + other.proxy.calls(Call::Reserve);
        let (pair, before, marks) = (world.stored(&left).await.pair, asked(&world, &left), reserved());
        for _ in 0..3 {
            for process in [&one, &other] {
                end.assert_told(&access(&world, process, &left).await);
            }
            one.tokens.search(world.deadline()).await;
            world.advance(Duration::from_secs(10));
        }
        let others = if count > 6 { 5 + count - 1 } else { count - 1 };
        assert_eq!(asked(&world, &left) - before, others, "each other agency is asked, and not for every call");
        let stored = world.stored(&left).await;
        assert_eq!((stored.status, &stored.pair), (Status::Active, &pair), "nothing is erased");
        let known = stored.minted.expect("a minted location");
        assert_eq!((known.absent_until, known.search_since), (None, None), "nothing is concluded");
        assert_eq!(reserved(), marks, "no place of the budget of marks is asked for");
        assert_eq!(world.table.searches().await.expect("a table"), []);
        // One agency cannot be asked: that is no reason for another answer.
        world.advance(Duration::from_hours(2));
        world.market.fault(Endpoint::Mint, Fault::refusal(400, "Location is not active"), None);
        end.assert_told(&access(&world, &one, &left).await);
        end.assert_told(&access(&world, &other, &left).await);
        world.market.clear_faults();
        assert_eq!(world.status(&left).await, Status::Active);
    }
}

async fn an_agency_that_recovers_has_its_locations_back_at_once(world: World) {
    let process = world.process().await;
    let l1 = location("M1");
    for count in [3, 8] {
        many(&world, &process, count).await;
        world.expire();
        works(&world, &process, &l1).await;
        End::Refused.come(&world, &process, &agency(1)).await;
        End::Refused.assert_told(&access(&world, &process, &l1).await);
        if count == 8 {
            assert!(world.stored(&l1).await.minted.is_some_and(|minted| minted.search_since.is_some()));
            process.tokens.search(world.deadline()).await;
        }
        // No install, so the list of agencies stays as it is.
        world.refresh(&process, json!({ "resource": agency(1), "force": true })).await;
        world.advance(Duration::from_secs(9));
        works(&world, &process, &l1).await;
    }
    world.end().await;
}

/// A location that had a grant of its own, is minted now, and does not get a token from anybody any more.
async fn to_be_minted(world: &World, process: &Process, location: &Resource) {
    world.install(process, location).await;
    let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
    world.market.fault(Endpoint::Refresh, refusal, Some(1));
    let stored = world.stored(location).await;
    let moved = process.refresher.refresh(location, stored.version, Why::Due, world.deadline()).await;
    assert!(matches!(moved, Refreshed::Moved), "{moved:?}");
    assert!(world.stored(location).await.minted.is_some());
    let no_access = Fault::refusal(403, "The token does not have access to this location.");
    world.market.fault(Endpoint::Mint, no_access, None);
}

async fn another_agencys_new_installation_costs_no_token(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    // C2 is of a later epoch than C1, which the location belongs to.
    world.install(&process, &agency(2)).await;
    let l1 = location("M1");
    works(&world, &process, &l1).await;
    let before = asked(&world, &l1);
    world.market.change(|options| options.agencies.values_mut().for_each(Vec::clear));
    world.advance(Duration::from_hours(20));
    let stored = world.stored(&l1).await;
    let absent = Box::pin(process.tokens.mint(&stored, Why::Due, world.deadline())).await;
    assert!(matches!(absent, Ok(Refreshed::Failed(Failure::NotInstalled))), "{absent:?}");
    assert_eq!(world.stored(&l1).await.pair, stored.pair, "the token that works stays");
    assert_eq!(asked(&world, &l1) - before, 2, "and both agencies were asked");
    works(&world, &world.process().await, &l1).await;
    world.end().await;
}

async fn a_location_that_may_be_elsewhere_is_not_given_up(world: World) {
    let process = world.process().await;
    many(&world, &process, 7).await;
    let l1 = location("M1");
    to_be_minted(&world, &process, &l1).await;
    world.expire();
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::InProgress { .. })), "{found:?}");
    assert_ne!(world.status(&l1).await, Status::NeedsReauthorization, "two agencies were not asked yet");
    process.tokens.search(world.deadline()).await;
    assert_eq!(world.status(&l1).await, Status::NeedsReauthorization, "all were");
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
}

async fn a_location_is_given_up_though_another_agency_cannot_be_asked(world: World) {
    let process = world.process().await;
    many(&world, &process, 2).await;
    world.market.uninstall(&grantee(&agency(2)));
    let version = world.stored(&agency(2)).await.version;
    let refused = process.refresher.refresh(&agency(2), version, Why::Due, world.deadline()).await;
    assert!(matches!(refused, Refreshed::Failed(Failure::NeedsReauthorization(_))), "{refused:?}");
    let l1 = location("M1");
    to_be_minted(&world, &process, &l1).await;
    let own = world.stored(&l1).await;
    assert_eq!(own.company.as_deref(), Some("C1"));
    world.expire();
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
}

async fn a_report_ends_a_search(world: World) {
    let (process, ear) = (world.process().await, Ear::new(&world).await);
    many(&world, &process, 7).await;
    for (id, company) in [("M1", json!("C1")), ("M2", json!(null))] {
        let oldest = location(id);
        assert!(matches!(access(&world, &process, &oldest).await, Err(TokenError::InProgress { .. })));
        let members = json!({"locationId": id, "companyId": company});
        let notice = ear.notice("INSTALL", world.clock.now(), &format!("of {id}"), &members);
        assert_eq!(ear.hear(&notice).await, told(200, "stored"));
        let found = access(&world, &process, &oldest).await;
        if company.is_null() {
            assert!(matches!(found, Err(TokenError::InProgress { .. })), "it is searched for anew: {found:?}");
            process.tokens.search(world.deadline()).await;
        } else {
            assert!(found.is_ok(), "at once: {found:?}");
        }
        works(&world, &process, &oldest).await;
    }
    process.tokens.search(world.deadline()).await;
    assert_eq!(world.table.searches().await.expect("a table"), []);
    world.end().await;
}

async fn so_many_locations_are_searched_for_and_no_more(world: World) {
    let all = locations(250);
    let queued = join_all(all.iter().map(|location| world.table.begin_search(location))).await;
    let queued = queued.into_iter().filter(|queued| matches!(queued, Ok(true))).count();
    let searches = world.table.searches().await.expect("a table");
    assert_eq!((queued, searches.len()), (100, 100), "and there was contention: {} wanted a place", all.len());
    assert!(world.table.begin_search(&searches[0]).await.expect("a table"), "it has its place");
    world.table.end_search(&searches[0]).await.expect("a table");
    assert!(world.table.begin_search(&location("new")).await.expect("a table"));
    assert!(!world.table.begin_search(&location("newer")).await.expect("a table"));
    // Without a place the answer is what the companies that were asked say.
    let process = world.process().await;
    many(&world, &process, 7).await;
    let found = access(&world, &process, &location("M1")).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    world.end().await;
}

async fn a_task_that_is_noted_again_stays(world: World) {
    let (id, now) = ("C1", world.clock.now());
    let task = async |at| world.table.task(id, at).await.expect("a table");
    world.table.note_task(id, Note::Installing(now), now).await.expect("a table");
    let first = task(now).await.expect("a task");
    assert_eq!((first.installing, first.settles_at), (Some(now), None));
    let later = now + Duration::from_secs(1);
    world.table.note_task(id, Note::Reported, later).await.expect("a table");
    assert!(!world.table.finish_task(&first, later).await.expect("a table"), "it was noted again");
    world.table.postpone_task(&first, later + Duration::from_hours(1), 3).await.expect("a table");
    let due = world.table.due_tasks(later, None, 9).await.expect("a table");
    assert_eq!(due.entries, [id], "and is still due");
    let second = task(later).await.expect("a task");
    assert_eq!((second.installing, second.failures), (Some(now), 0), "both notes count");
    assert!(second.settles_at.is_some_and(|at| at > later));
    world.table.postpone_task(&second, later + Duration::from_hours(1), 3).await.expect("a table");
    assert_eq!(world.table.due_tasks(later, None, 9).await.expect("a table").entries, [""; 0]);
    assert!(world.table.finish_task(&second, later).await.expect("a table"));
    assert_eq!(task(later).await, None);
    assert!(!world.table.finish_task(&second, later).await.expect("a table"));
    // A company that is listed again meanwhile stays listed.
    world.table.list_company(id, now).await.expect("a table");
    world.table.list_company(id, later).await.expect("a table");
    world.table.unlist_company(id, now, later).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table").len(), 1);
    world.table.keep_company_listed(id, now).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table")[0].listed_at, later);
    world.table.unlist_company(id, later, later).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table"), []);
    world.table.keep_company_listed(id, now).await.expect("a table");
    assert_eq!(world.table.newest_companies(9).await.expect("a table")[0].listed_at, now);
}

/// A million companies are as many such items, read in pages of a bounded size: nothing grows with their number.
async fn companies_are_listed_in_pages(world: World) {
    const MANY: usize = 1_000;
    let now = world.clock.now();
    let ids: Vec<String> = (0..MANY).map(|number| format!("HLcompany{number:010}")).collect();
    for some in ids.chunks(50) {
        // All in one millisecond, as after a migration: the place in the list is the instant and the id.
        let listed = join_all(some.iter().map(|id| world.table.list_company(id, now))).await;
        assert!(listed.iter().all(Result::is_ok), "{listed:?}");
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut after = None;
    loop {
        let page = world.table.companies(after.as_ref(), 64).await.expect("a table");
        let Some(last) = page.entries.last().cloned() else { break };
        assert!(page.entries.len() <= 64);
        for listed in page.entries {
            assert!(seen.insert(listed.company.clone()), "{} is read twice", listed.company);
        }
        after = Some(last);
    }
    assert_eq!(seen.len(), MANY);
    assert_eq!(world.table.newest_companies(6).await.expect("a table").len(), 6);
    let bytes = |item: &shared::table::Item| -> usize {
        item.iter().map(|(name, value)| name.len() + value.as_s().map_or(21, String::len)).sum()
    };
    let largest = world.items().await.iter().map(bytes).max().expect("items");
    assert!(largest < 200, "{largest} bytes: one write unit, and 200 MB for a million");
}
