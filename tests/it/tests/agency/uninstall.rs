//! Uninstalls that an operator wants: the platform is told, and then the same happens as after an uninstall webhook.

use std::time::Duration;

use it::proxy::{self, Call};
use it::sender::{Sender, reply};
use it::world::{Process, World, grantee, location, until};
use sandbox::marketplace::ApiVersions;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::domain::resource::Resource;
use shared::domain::status::Status;

use crate::{company, grow, locations, works};

it::stories!(
    a_location_is_uninstalled_and_the_webhook_changes_nothing,
    a_minted_location_is_uninstalled_alone,
    a_company_is_uninstalled_with_its_locations,
    each_answer_of_the_platform_has_its_consequence,
    a_token_that_is_expired_or_refused_is_renewed_first,
    an_installation_without_a_token_is_left_alone,
    each_version_of_the_api_is_spoken,
    an_installation_made_meanwhile_stays,
    a_verdict_that_is_not_stored_comes_by_webhook,
);

/// Invokes the function as the operator's command does, and returns its answer.
async fn uninstall(world: &World, process: &Process, resource: &Resource) -> Value {
    world.refresh(process, json!({ "resource": resource, "uninstall": { "reason": "moving on" } })).await
}

fn outcome(answer: &Value) -> (&str, &str) {
    let text = |name: &str| answer[name].as_str().expect("text");
    (text("platform"), text("here"))
}

/// The number of requests to uninstall the app that arrived with a token of `resource`.
fn asked(world: &World, resource: &Resource) -> usize {
    let requests = world.market.api_requests(&grantee(resource));
    requests.iter().filter(|request| request.method == "DELETE").count()
}

/// Sends the webhook that the platform sends after an uninstall.
async fn webhook(world: &World, sender: &Sender, resource: &Resource) -> (u16, String) {
    let named = if *resource == company() { "companyId" } else { "locationId" };
    let members = json!({ named: resource.id() });
    let reply = sender.send(&sender.notice("UNINSTALL", world.clock.now(), "after", &members)).await;
    (reply.0, reply.1)
}

async fn a_location_is_uninstalled_and_the_webhook_changes_nothing(world: World) {
    let (process, sender, l1) = (world.teller().await, Sender::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"));
    assert_eq!((world.status(&l1).await, world.presented()), (Status::Revoked, 0));
    assert!(world.market.live_refresh_tokens(&grantee(&l1)).is_empty(), "the platform has done it");
    let events =
        |world: &World| world.event_bridge.events().iter().filter(|put| put.detail_type == "Uninstalled").count();
    let (before, published) = (world.items().await, events(&world));
    assert_eq!(published, 1);
    world.advance(Duration::from_secs(1));
    assert_eq!(webhook(&world, &sender, &l1).await, reply(200, "stored"));
    let installations = |items: Vec<shared::table::Item>| -> Vec<_> {
        items.into_iter().filter(|item| item.contains_key("epoch")).collect()
    };
    assert_eq!(installations(world.items().await), installations(before));
    assert_eq!(events(&world), 1, "told once");
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("not_installed", "revoked"), "once more");
    assert_eq!(outcome(&uninstall(&world, &process, &location("L2")).await), ("not_asked", "unknown"));
    world.end().await;
}

async fn a_minted_location_is_uninstalled_alone(world: World) {
    let process = world.process().await;
    world.install(&process, &company()).await;
    let [l1, l2] = [location("L1"), location("L2")];
    for location in [&l1, &l2] {
        works(&world, &process, location).await;
    }
    world.advance(Duration::from_secs(61));
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"));
    assert_eq!((asked(&world, &l1), asked(&world, &company())), (1, 0), "with the location's own token");
    assert_eq!((world.status(&l1).await, world.status(&company()).await), (Status::Revoked, Status::Active));
    works(&world, &process, &l2).await;
    // The next reading of the agency's list does not bring the location back.
    world.expire();
    world.refresh(&process, json!({})).await;
    world.refresh(&process, json!({})).await;
    assert_eq!(world.status(&l1).await, Status::Revoked);
    works(&world, &process, &l2).await;
    world.end().await;
}

async fn a_company_is_uninstalled_with_its_locations(world: World) {
    grow(&world, 5);
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    world.install(&process, &company()).await;
    let all = locations(5);
    for own in &all[..2] {
        world.install(&process, own).await;
    }
    for minted in &all[2..] {
        works(&world, &process, minted).await;
    }
    world.advance(Duration::from_secs(61));
    let answer = uninstall(&world, &process, &company()).await;
    assert_eq!(outcome(&answer), ("uninstalled", "revoked"));
    assert_eq!(answer["locations"], json!({ "revoked": 2, "installed": 0, "unclear": 0, "left": 0 }));
    assert_eq!(webhook(&world, &sender, &company()).await, reply(200, "stored"));
    world.refresh(&process, json!({})).await;
    for own in &all[..2] {
        assert_eq!(world.status(own).await, Status::Revoked, "{own}: by the platform's word");
    }
    for minted in &all[2..] {
        assert!(world.stored(minted).await.access().is_none(), "{minted}: erased by the company's task");
    }
    assert_eq!(world.table.app_state().await.expect("a table").budget.waiting(), 0, "nothing looks like a refusal");

    // The platform reports success, but still has a location: that location stays.
    world.advance(Duration::from_secs(1));
    world.install(&process, &company()).await;
    world.install(&process, &all[0]).await;
    world.advance(Duration::from_secs(61));
    let success = r#"{"success":true}"#.to_owned();
    let fault = Fault::Answer { processed: false, status: 200, body: success, content_type: None };
    world.market.fault(Endpoint::Api, fault, Some(1));
    let answer = uninstall(&world, &process, &company()).await;
    assert_eq!(answer["locations"], json!({ "revoked": 0, "installed": 1, "unclear": 0, "left": 0 }));
    works(&world, &process, &all[0]).await;
    world.end_without(&[&company()]).await;
}

async fn each_answer_of_the_platform_has_its_consequence(world: World) {
    let process = world.process().await;
    let l1 = location("L1");
    let answer =
        |processed, status, body: &str| Fault::Answer { processed, status, body: body.into(), content_type: None };
    let said = |status, message: &str| Fault::refusal(status, message);
    for (fault, expected) in [
        // The answer is lost or unreadable after the platform has done it.
        (Fault::answer_lost(), ("uninstalled", "revoked")),
        (Fault::Truncated, ("uninstalled", "revoked")),
        (answer(true, 500, "{}"), ("uninstalled", "revoked")),
        (answer(true, 204, ""), ("uninstalled", "revoked")),
        (answer(true, 200, r#"{"success":false}"#), ("uninstalled", "revoked")),
        (answer(true, 400, r#"{"message":"App is not installed"}"#), ("uninstalled", "revoked")),
        // The platform has not done it.
        (Fault::HangUp { processed: false }, ("refused", "unchanged")),
        (answer(false, 503, "{}"), ("refused", "unchanged")),
        (answer(false, 200, r#"{"success":false}"#), ("refused", "unchanged")),
        (said(403, "The token does not have access to this location."), ("refused", "unchanged")),
        (said(401, "The token is not authorized for this scope."), ("refused", "unchanged")),
        (said(400, "Location is not active"), ("refused", "unchanged")),
        (said(404, "Cannot DELETE /marketplace/app/x/installations"), ("refused", "unchanged")),
        (said(404, "Not Found"), ("refused", "unchanged")),
        (said(422, "reason must be a string"), ("refused", "unchanged")),
        (said(400, "words that nobody knows"), ("refused", "unchanged")),
        (said(429, "Too Many Requests"), ("refused", "unchanged")),
        (Fault::block_page(), ("refused", "unchanged")),
    ] {
        world.advance(Duration::from_secs(20));
        if world.table.installation(&l1).await.expect("a table").is_none_or(|l1| l1.status() != Status::Active) {
            world.install(&process, &l1).await;
            world.advance(Duration::from_secs(1));
        }
        let before = world.stored(&l1).await;
        world.market.fault(Endpoint::Api, fault.clone(), Some(1));
        let got = uninstall(&world, &process, &l1).await;
        assert_eq!(outcome(&got), expected, "{fault:?}: {got}");
        world.market.clear_faults();
        if expected.1 == "unchanged" {
            assert_eq!(world.stored(&l1).await, before, "{fault:?}");
            works(&world, &process, &l1).await;
        } else {
            assert_eq!(world.status(&l1).await, Status::Revoked, "{fault:?}");
            assert!(world.market.live_refresh_tokens(&grantee(&l1)).is_empty(), "{fault:?}");
        }
    }
    // Neither the request nor the question is answered.
    world.advance(Duration::from_secs(20));
    world.market.fault(Endpoint::Api, answer(false, 503, "{}"), None);
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("unknown", "unchanged"));
    world.market.clear_faults();
    works(&world, &process, &l1).await;
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"), "the positive control");
    world.end().await;
}

async fn a_token_that_is_expired_or_refused_is_renewed_first(world: World) {
    let process = world.process().await;
    let l1 = location("L1");
    world.install(&process, &l1).await;
    world.expire();
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"));
    assert_eq!((world.presented(), asked(&world, &l1)), (1, 1));
    for refusal in ["Invalid JWT", "something new"] {
        world.advance(Duration::from_mins(2));
        world.install(&process, &l1).await;
        world.advance(Duration::from_secs(1));
        let (presented, before) = (world.presented(), asked(&world, &l1));
        world.market.fault(Endpoint::Api, Fault::unauthorized(refusal), Some(1));
        assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"), "{refusal}");
        assert_eq!((world.presented() - presented, asked(&world, &l1) - before), (1, 2), "{refusal}");
    }
    world.end().await;
}

async fn an_installation_without_a_token_is_left_alone(world: World) {
    let process = world.process().await;
    let l1 = location("L1");
    world.install(&process, &l1).await;
    world.expire();
    world.market.set_active(grantee(&l1), false);
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("not_asked", "unchanged"), "paused");
    assert_eq!((world.status(&l1).await, asked(&world, &l1)), (Status::Suspended, 0));
    world.market.set_active(grantee(&l1), true);
    world.advance(Duration::from_hours(24));
    world.market.fault(Endpoint::Refresh, Fault::refusal(400, "Invalid grant: refresh token is invalid"), Some(1));
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("not_asked", "unchanged"), "no grant");
    assert_eq!((world.status(&l1).await, asked(&world, &l1)), (Status::NeedsReauthorization, 0));
}

async fn each_version_of_the_api_is_spoken(world: World) {
    let l1 = location("L1");
    for (api, setting, expected) in [
        (ApiVersions::V2, "auto", 1),
        (ApiVersions::V3, "auto", 2),
        (ApiVersions::V3, "auto", 1),
        (ApiVersions::V3, "v3", 1),
        (ApiVersions::Both, "v2", 1),
    ] {
        world.market.change(|options| options.api = api);
        let process = world.process_with(&[("PLATFORM_API", setting)]).await;
        world.advance(Duration::from_secs(20));
        world.install(&process, &l1).await;
        world.advance(Duration::from_secs(1));
        let before = asked(&world, &l1);
        assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "revoked"), "{api:?}");
        assert_eq!(asked(&world, &l1) - before, expected, "{api:?}: the version that works is remembered");
    }
    world.end().await;
}

async fn an_installation_made_meanwhile_stays(world: World) {
    let (process, customer) = (world.process().await, world.process().await);
    let l1 = location("L1");
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let write = process.proxy.hold(Call::Uninstall);
    let again = async {
        write.reached().await;
        world.advance(Duration::from_secs(1));
        world.install(&customer, &l1).await;
        write.open();
    };
    let (answer, ()) = tokio::join!(uninstall(&world, &process, &l1), again);
    assert_eq!(outcome(&answer), ("uninstalled", "newer"));
    assert_eq!(world.status(&l1).await, Status::Active);
    process.proxy.heal();

    // The platform's answer is late, and the customer installs again before it arrives. The newer installation stays in
    // either order of the two writes, because the time of the request decides and not the time of the answer.
    world.advance(Duration::from_mins(2));
    let before = asked(&world, &l1);
    world.market.fault(Endpoint::Api, Fault::Late { millis: 2_000 }, Some(1));
    let again = async {
        until("the request is at the platform", async || asked(&world, &l1) > before).await;
        world.advance(Duration::from_secs(1));
        world.install(&customer, &l1).await;
        world.advance(Duration::from_secs(1));
    };
    let (answer, ()) = tokio::join!(uninstall(&world, &process, &l1), again);
    assert_eq!(outcome(&answer).0, "uninstalled");
    assert_eq!(world.status(&l1).await, Status::Active);
    works(&world, &customer, &l1).await;
    world.end().await;
}

async fn a_verdict_that_is_not_stored_comes_by_webhook(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    process.proxy.always(Call::Uninstall, proxy::Fault::AccessDenied);
    assert_eq!(outcome(&uninstall(&world, &process, &l1).await), ("uninstalled", "failed"));
    process.proxy.heal();
    assert_eq!(world.status(&l1).await, Status::Active);
    world.advance(Duration::from_secs(1));
    assert_eq!(webhook(&world, &sender, &l1).await, reply(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.end().await;
}
