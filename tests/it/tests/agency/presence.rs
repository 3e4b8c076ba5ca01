//! Uninstalls whose timestamps do not decide the order: the relay asks the platform if the app is still installed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use it::proxy::Call;
use it::sender::{Sender, reply};
use it::world::{World, grantee, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::domain::resource::Resource;
use shared::domain::status::Status;

use crate::{company, grow, locations, minted, works};

it::stories!(
    an_uninstall_without_timestamp_and_id_does_not_end_a_newer_installation,
    the_platform_is_asked_only_if_the_timestamps_do_not_decide,
    an_uninstall_that_the_platform_neither_confirms_nor_denies_is_repeated,
    an_expired_token_does_not_prove_an_uninstall_and_is_renewed_by_the_schedule,
    an_uninstall_without_timestamp_is_checked_for_every_kind_of_installation,
    a_reinstallation_during_the_check_is_kept,
    an_uninstall_with_a_list_of_locations_ends_only_those,
    an_uninstall_list_that_is_stored_in_part_is_repeated,
);

/// An uninstall as the platform documents it: without a timestamp and an id.
fn bare(sender: &Sender, members: &Value) -> Value {
    let mut notice = json!({ "type": "UNINSTALL", "appId": sender.app_id });
    notice.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
    notice
}

/// The number of times that the platform was asked if the app is installed, with tokens of `resource`.
fn questions(world: &World, resource: &Resource) -> usize {
    let requests = world.market.api_requests(&grantee(resource));
    requests.iter().filter(|request| request.target.ends_with("/installations")).count()
}

async fn an_uninstall_without_timestamp_and_id_does_not_end_a_newer_installation(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    let gone = bare(&sender, &json!({"locationId": "L1"}));
    assert_eq!(sender.send(&gone).await, reply(200, "unknown"));
    world.install(&process, &l1).await;
    world.market.uninstall(&grantee(&l1));
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.advance(Duration::from_mins(1));
    world.install(&process, &l1).await;
    let requests = world.market.strangers();
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"), "the same bytes");
    assert_eq!((questions(&world, &l1), world.market.strangers()), (0, requests), "and nobody is asked");
    // The same event arrives in other bytes.
    let reordered = format!(r#"{{"locationId":"L1","appId":"{}","type":"UNINSTALL"}}"#, sender.app_id);
    let signature = STANDARD.encode(sender.signer.sign(reordered.as_bytes()));
    assert_eq!(sender.send_bytes(&reordered, &signature).await, reply(200, "superseded"));
    assert_eq!(questions(&world, &l1), 1);
    assert_eq!(process.limiter.usage(&l1).await.expect("counters").burst.remaining, 99, "with a permit");
    works(&world, &process, &l1).await;
    // A day later the same bytes may report another uninstall.
    world.advance(Duration::from_hours(24));
    world.refresh(&process, json!({ "resource": l1, "force": true })).await;
    world.market.uninstall(&grantee(&l1));
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.end().await;
}

async fn the_platform_is_asked_only_if_the_timestamps_do_not_decide(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
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
        let mut gone = bare(&sender, &json!({"locationId": "L1"}));
        gone.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        assert_eq!(sender.send(&gone).await, reply(200, "superseded"), "{members}");
        assert_eq!(questions(&world, &l1) - before, expected, "{members}");
    }
    works(&world, &process, &l1).await;
    let gone = sender.notice("UNINSTALL", installed_at + Duration::from_millis(1), "w4", &json!({"locationId": "L1"}));
    assert_eq!(sender.send(&gone).await, reply(200, "stored"), "the positive control");
    assert_eq!(world.status(&l1).await, Status::Revoked);
}

async fn an_uninstall_that_the_platform_neither_confirms_nor_denies_is_repeated(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_mins(1));
    let gone = bare(&sender, &json!({"locationId": "L1"}));
    let answer = |status, body: &str| Fault::Answer { processed: false, status, body: body.into(), content_type: None };
    let faults = [
        Fault::HangUp { processed: false },
        Fault::Delay { millis: 3_000 },
        answer(500, "{}"),
        answer(429, "{}"),
        answer(403, "<html>Just a moment...</html>"),
        answer(400, r#"{"message":"something new"}"#),
        answer(401, r#"{"message":"The token is not authorized for this scope."}"#),
        answer(401, r#"{"message":"The access token is expired"}"#),
    ];
    let asked = faults.len();
    for fault in faults {
        world.market.fault(Endpoint::Api, fault.clone(), Some(1));
        assert_eq!(sender.send(&gone).await, reply(429, "try_again"), "{fault:?}");
        world.market.clear_faults();
        world.advance(Duration::from_mins(31));
    }
    sender.proxy.always(Call::Read, it::proxy::Fault::AccessDenied);
    assert_eq!(sender.send(&gone).await, reply(429, "try_again"), "the table is down");
    sender.proxy.heal();
    // This process has read the app's secret, but cannot read the sealing keys.
    let started = Sender::new(&world).await;
    started.proxy.fault(Call::Secrets, 1, None, it::proxy::Fault::AccessDenied);
    assert_eq!(started.send(&bare(&started, &json!({"locationId": "L1"}))).await, reply(429, "try_again"));
    assert!(started.proxy.struck() > 0, "the sealing keys were asked for");
    // The fake platform records a delayed question after its delay, when the webhook has been answered already.
    until("every question is recorded", async || questions(&world, &l1) == asked).await;
    // Every permit is taken, so the relay sends no request to the platform.
    for _ in 0..100 {
        process.limiter.take(&l1, None).await.expect("a permit");
    }
    let before = questions(&world, &l1);
    assert_eq!(sender.send(&gone).await, reply(429, "try_again"));
    assert_eq!(questions(&world, &l1), before);
    assert_eq!(world.status(&l1).await, Status::Active);
    world.advance(Duration::from_secs(11));
    assert_eq!(sender.send(&gone).await, reply(200, "superseded"), "the positive control");
    for (status, body) in [(401, r#"{"message":"Invalid JWT"}"#), (403, r#"{"message":"no"}"#), (404, "{}")] {
        world.market.fault(Endpoint::Api, answer(status, body), Some(1));
        assert_eq!(sender.send(&gone).await, reply(200, "stored"), "{status}");
        assert_eq!(world.status(&l1).await, Status::Revoked, "{status}");
        world.advance(Duration::from_hours(25));
        world.install(&process, &l1).await;
    }
    world.end().await;
}

async fn an_expired_token_does_not_prove_an_uninstall_and_is_renewed_by_the_schedule(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    for resource in [&l1, &l2] {
        world.install(&process, resource).await;
    }
    // No caller uses these locations, so the schedule defers their renewal.
    world.advance(Duration::from_hours(8 * 24));
    let summary = world.refresh(&process, json!({})).await;
    assert_eq!(summary["deferred"], 2, "{summary}");
    world.market.uninstall(&grantee(&l2));
    for (id, resource) in [("L1", &l1), ("L2", &l2)] {
        let gone = bare(&sender, &json!({ "locationId": id }));
        assert_eq!(sender.send(&gone).await, reply(429, "try_again"));
        assert_eq!((questions(&world, resource), world.presented()), (0, 0), "the webhook presents no refresh token");
    }
    world.refresh(&process, json!({})).await;
    assert_eq!(world.status(&l2).await, Status::NeedsReauthorization);
    assert_eq!(sender.send(&bare(&sender, &json!({"locationId": "L1"}))).await, reply(200, "superseded"));
    assert_eq!(sender.send(&bare(&sender, &json!({"locationId": "L2"}))).await, reply(200, "stored"));
    assert_eq!((world.status(&l1).await, world.status(&l2).await), (Status::Active, Status::Revoked));
    let wanted = world.items().await.into_iter().filter(|item| item.contains_key("token_wanted")).count();
    assert_eq!(wanted, 0, "the wish ends with the renewal and with the uninstall");
    world.end().await;
}

async fn an_uninstall_without_timestamp_is_checked_for_every_kind_of_installation(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    world.install(&process, &company()).await;
    for l in [&l1, &l2] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_mins(1));
    // For a company, the relay asks with the company's own token.
    let of_company = bare(&sender, &json!({"companyId": company().id()}));
    assert_eq!(sender.send(&of_company).await, reply(200, "superseded"));
    assert_eq!(questions(&world, &company()), 1);
    // For a location with a minted token, the relay asks with that token.
    let of_l1 = bare(&sender, &json!({"locationId": "L1"}));
    assert_eq!(sender.send(&of_l1).await, reply(200, "superseded"));
    assert_eq!(questions(&world, &l1), 1);
    // After that token has expired, the relay asks with a token that it mints from the company's token.
    world.expire();
    world.refresh(&process, json!({ "resource": company(), "force": true })).await;
    let before = minted(&world);
    assert_eq!(sender.send(&of_l1).await, reply(200, "superseded"));
    assert_eq!((questions(&world, &l1), minted(&world)), (1, before + 1));
    world.market.uninstall(&grantee(&l1));
    assert_eq!(sender.send(&of_l1).await, reply(200, "stored"));
    assert_eq!((world.status(&l1).await, world.status(&l2).await), (Status::Revoked, Status::Active));
    world.market.uninstall(&grantee(&company()));
    assert_eq!(sender.send(&of_company).await, reply(200, "stored"));
    assert_eq!(world.status(&company()).await, Status::Revoked);
}

async fn a_reinstallation_during_the_check_is_kept(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    world.install(&process, &l1).await;
    world.market.uninstall(&grantee(&l1));
    world.advance(Duration::from_secs(1));
    // The platform has refused the token, and then the customer installs again before the uninstall is written.
    let gate = sender.proxy.hold(Call::Uninstall);
    let gone = bare(&sender, &json!({"locationId": "L1"}));
    let reinstalled = async {
        gate.reached().await;
        world.install(&process, &l1).await;
        gate.open();
    };
    let (heard, ()) = tokio::join!(sender.send(&gone), reinstalled);
    assert_eq!(heard, reply(429, "try_again"));
    sender.proxy.heal();
    assert_eq!(sender.send(&gone).await, reply(200, "superseded"));
    works(&world, &process, &l1).await;
    world.end().await;
}

async fn an_uninstall_with_a_list_of_locations_ends_only_those(world: World) {
    grow(&world, 40);
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    world.install(&process, &company()).await;
    let all = locations(40);
    let ids: Vec<&str> = all.iter().map(Resource::id).collect();
    let list = |ids: &Value| json!({"companyId": company().id(), "locationIds": ids});
    let installed = sender.notice("INSTALL", world.clock.now(), "w1", &list(&json!(ids)));
    assert_eq!(sender.send_until_taken(&installed).await, reply(200, "stored"));
    for l in &all {
        assert_eq!(world.stored(l).await.company.as_deref(), Some(company().id()), "{l}");
    }
    for l in &all[..3] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_secs(5));
    let none = sender.notice("UNINSTALL", world.clock.now(), "w2", &list(&json!([])));
    assert_eq!(sender.send(&none).await, reply(200, "ignored"));
    let malformed = sender.notice("UNINSTALL", world.clock.now(), "w3", &list(&json!([7, "../x"])));
    assert_eq!(sender.send(&malformed).await, reply(400, "malformed"));
    let some = sender.notice("UNINSTALL", world.clock.now(), "w4", &list(&json!(["L1", 7, "L2", "../x", "L9999"])));
    assert_eq!(sender.send(&some).await, reply(200, "stored"));
    for l in &all {
        let expected = if ["L1", "L2"].contains(&l.id()) { Status::Revoked } else { Status::Active };
        assert_eq!(world.status(l).await, expected, "{l}");
    }
    assert_eq!(world.status(&company()).await, Status::Active);
    works(&world, &process, &all[2]).await;
}

async fn an_uninstall_list_that_is_stored_in_part_is_repeated(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    for l in locations(3) {
        world.install(&process, &l).await;
    }
    world.advance(Duration::from_secs(1));
    sender.proxy.fault(Call::Uninstall, 1, Some(1), it::proxy::Fault::AccessDenied);
    let members = json!({"companyId": company().id(), "locationIds": ["L1", "L2", "L3"]});
    let gone = sender.notice("UNINSTALL", world.clock.now(), "w1", &members);
    assert_eq!(sender.send(&gone).await, reply(429, "try_again"));
    let mut revoked = 0;
    for l in locations(3) {
        revoked += usize::from(world.status(&l).await == Status::Revoked);
    }
    assert_eq!(revoked, 2, "one failure keeps none of the others");
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    for l in locations(3) {
        assert_eq!(world.status(&l).await, Status::Revoked, "{l}");
    }
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"));
}
