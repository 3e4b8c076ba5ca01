//! Agencies: one company's grant, hundreds of locations that have none of their own, and webhooks in every order.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use it::proxy::{Call, Proxy};
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::caller::Identity;
use shared::clock::Millis;
use shared::config::Function;
use shared::installation::state::Status;
use shared::relay::answer::Source;
use shared::relay::path::Path;
use shared::relay::request::Request;
use shared::relay::{Invocation, Relay};
use shared::resource::Resource;
use shared::token::{Access, TokenError};
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
}

impl Ear {
    async fn new(world: &World) -> Self {
        let signer = Ed25519KeyPair::generate().expect("a key");
        let spki = STANDARD.encode(signer.public_key().as_der().expect("a public key").as_ref());
        let further = [("WEBHOOK_PUBLIC_KEYS", spki.as_str())];
        let (app, proxy) = world.app(Function::Webhook, world.clock.clone(), world.market.url(), &further).await;
        let app_id = world.market.options().client_id.split('-').next().unwrap_or_default().to_owned();
        Self { listener: Listener::new(app), signer, app_id, proxy }
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

    async fn hear_bytes(&self, body: &str, signature: &str) -> (u16, String) {
        let event = json!({
            "version": "2.0",
            "rawPath": "/webhooks/marketplace",
            "headers": {"x-ghl-signature": signature},
            "requestContext": {"stage": "$default", "http": {"method": "POST"}},
            "body": body,
            "isBase64Encoded": false,
        });
        let answer = self.listener.answer(&event.to_string(), "request").await;
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        (answer.status_code, body["outcome"].as_str().unwrap_or_default().to_owned())
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
    assert_eq!((stored.status, stored.minted.is_some(), minted(&world)), (Status::Active, true, 1));
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
    assert_eq!((stored.minted, stored.alternate.is_some(), stored.lineage.epoch), (None, false, 2));
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
    let of_company = process.quota.usage(&company()).await.expect("counters");
    let of_location = process.quota.usage(&location("L1")).await.expect("counters");
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
    let read = world.table.locations_read(company().id(), world.clock.now()).await.expect("a table");
    assert!((100..250).contains(&read), "{read} read");
    let known = |items: &[shared::table::Item]| items.iter().filter(|item| item.contains_key("minted")).count();
    assert_eq!(known(&world.items().await), read);
    let installs = process.proxy.calls(Call::Install);
    world.refresh(&process, json!({})).await;
    assert_eq!(known(&world.items().await), 250);
    assert_eq!(process.proxy.calls(Call::Install) - installs, 250 - read, "nothing is read twice");
    assert_eq!(world.table.companies().await.expect("a table").tasks, [], "and the task is done");
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
    let companies = world.table.companies().await.expect("a table");
    assert_eq!((companies.ids.len(), companies.tasks.len()), (0, 0));
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
    world.secrets.put("callers", json!({"callers": []}).to_string());
    let further = [("CALLERS_SECRET_ID", "callers")];
    let (app, _proxy) = world.app(Function::Relay, world.clock.clone(), world.market.url(), &further).await;
    let relay = Relay::new(app);
    let invocation = Invocation { request_id: "r".into(), trace_id: None, deadline: world.deadline() };
    let arn = "arn:aws:lambda:us-east-1:1:function:relay";
    for (resource, refused) in [(location("L1"), true), (company(), false)] {
        let path = Path::parse("/locations/L1").expect("a path");
        let request = Request::new(resource.clone(), Method::DELETE, path);
        let callers = relay.callers().await.expect("callers");
        let caller = callers.authenticate(Identity::Invocation(arn)).expect("whom IAM let in");
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
