//! Installs and uninstalls: the change comes first, and then the event.

use std::time::Duration;

use it::proxy::{Call, Fault};
use it::sender::reply;
use it::world::{World, location};
use sandbox::event_bridge::Failure;
use serde_json::json;
use shared::domain::clock::Millis;
use shared::domain::installation::AppDetails;
use shared::domain::resource::Resource;
use shared::domain::status::Status;

use crate::{published, publisher, with_overflow};

it::stories!(
    a_change_is_stored_and_published,
    a_change_that_cannot_be_stored_is_not_published,
    a_change_whose_event_cannot_be_published_is_asked_for_again,
    a_change_that_cannot_be_read_is_published_nevertheless,
    a_change_without_an_id_is_marked_only_if_it_had_an_effect,
    details_are_stored_with_the_installation_and_published,
    late_reports_of_details_change_nothing,
    details_that_come_before_a_companys_redirect_are_kept,
    an_uninstall_erases_the_details,
);

fn company() -> Resource {
    Resource::company("HLcompany0000000001").expect("an id")
}

/// Version and plan of an installation.
async fn version_and_plan(world: &World, resource: &Resource) -> (Option<String>, Option<String>) {
    let details = world.stored(resource).await.details;
    (details.version_id, details.plan_id)
}

fn texts(version: &str, plan: &str) -> (Option<String>, Option<String>) {
    (Some(version.to_owned()), Some(plan.to_owned()))
}

async fn a_change_is_stored_and_published(world: World) {
    let (sender, process, l1) = (publisher(&world).await, world.process().await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let gone = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"locationId": "L1"}));
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    let put = published(&world).pop().expect("on the bus");
    assert_eq!(
        (&*put.detail_type, put.detail, &put.resources[..]),
        ("UNINSTALL", gone.clone(), &["location:L1".to_owned()][..])
    );
    let lifecycle = world.event_bridge.events();
    assert_eq!(
        (&*lifecycle[0].detail_type, &*lifecycle[1].detail_type),
        ("Uninstalled", "UNINSTALL"),
        "the change first"
    );
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"));
    let older =
        sender.notice("UNINSTALL", world.clock.now() - Duration::from_mins(1), "w2", &json!({"locationId": "L9"}));
    assert_eq!(sender.send(&older).await, reply(200, "unknown"));
    assert_eq!(sender.send(&older).await, reply(200, "repeated"), "the event is published once");
    assert_eq!(published(&world).len(), 2);
}

async fn a_change_that_cannot_be_stored_is_not_published(world: World) {
    let (sender, process, l1) = (with_overflow(&world).await, world.process().await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let gone = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"locationId": "L1"}));
    for call in [Call::WebhookClaim, Call::Uninstall, Call::Store] {
        sender.proxy.always(call, Fault::AccessDenied);
        assert_eq!(sender.send(&gone).await, reply(429, "try_again"), "{call:?}");
        sender.proxy.heal();
        assert_eq!((published(&world).len(), world.overflow.messages().len()), (0, 0), "{call:?}");
    }
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(published(&world).len(), 1);
}

async fn a_change_whose_event_cannot_be_published_is_asked_for_again(world: World) {
    let (sender, process, l1) = (with_overflow(&world).await, world.process().await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let gone = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"locationId": "L1"}));
    world.event_bridge.fail(Some(Failure::AccessDenied));
    world.overflow.fail(true);
    assert_eq!(sender.send(&gone).await, reply(429, "try_again"));
    assert_eq!(world.status(&l1).await, Status::Revoked, "the change is stored");
    world.overflow.fail(false);
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!((published(&world).len(), world.overflow.messages().len()), (0, 1));
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"));
}

async fn a_change_that_cannot_be_read_is_published_nevertheless(world: World) {
    let sender = publisher(&world).await;
    for (number, members) in
        [json!({"appId": null, "locationId": "L1"}), json!({"locationId": "../x"}), json!({})].iter().enumerate()
    {
        for kind in ["INSTALL", "UNINSTALL"] {
            let notice = sender.notice(kind, world.clock.now(), &format!("{kind}-{number}"), members);
            assert_eq!(sender.send(&notice).await, reply(200, "published"), "{notice}");
            assert_eq!(published(&world).pop().expect("on the bus").detail, notice);
        }
    }
    assert_eq!(sender.proxy.calls(Call::Install), 0);
}

async fn a_change_without_an_id_is_marked_only_if_it_had_an_effect(world: World) {
    let (sender, process, l1) = (publisher(&world).await, world.process().await, location("L1"));
    let gone = json!({"type": "UNINSTALL", "appId": sender.app_id, "locationId": "L1", "timestamp": (world.clock.now() + Duration::from_secs(5)).rfc3339()});
    assert_eq!(sender.send(&gone).await, reply(200, "unknown"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(9));
    assert_eq!(sender.send(&gone).await, reply(200, "stored"), "the same bytes report another uninstall");
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"));
    assert_eq!(published(&world).len(), 2);
}

async fn details_are_stored_with_the_installation_and_published(world: World) {
    let (sender, process, l1) = (publisher(&world).await, world.process().await, location("L1"));
    let install = json!({
        "locationId": "L1", "companyId": company().id(), "versionId": "v1", "planId": "p1", "userId": "u1",
        "trial": {"onTrial": true, "trialDuration": 10, "trialStartDate": "2026-11-01T00:00:00.000Z"},
        "isWhitelabelCompany": true, "whitelabelDetails": {"domain": "app.example.com"},
    });
    assert_eq!(sender.send(&sender.notice("INSTALL", world.clock.now(), "w1", &install)).await, reply(200, "stored"));
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    let details = world.stored(&l1).await.details;
    assert_eq!(
        (details.version_id.as_deref(), details.plan_id.as_deref()),
        (Some("v1"), Some("p1")),
        "the redirect keeps them"
    );
    assert_eq!(
        (details.installed_by.as_deref(), details.white_label.as_deref()),
        (Some("u1"), Some("app.example.com"))
    );
    assert_eq!(details.trial_ends_at.map(Millis::rfc3339).as_deref(), Some("2026-11-11T00:00:00Z"));
    world.advance(Duration::from_secs(1));
    let epoch = world.stored(&l1).await.version.epoch;
    let at = world.clock.now();
    let update = json!({"locationId": "L1", "versionId": "v2", "previousVersionId": "v1"});
    assert_eq!(sender.send(&sender.notice("UPDATE", at, "w2", &update)).await, reply(200, "stored"));
    let change = json!({"locationId": "L1", "currentPlanId": "p1", "newPlanId": "p2"});
    assert_eq!(sender.send(&sender.notice("PLAN_CHANGE", at, "w3", &change)).await, reply(200, "stored"));
    assert_eq!(version_and_plan(&world, &l1).await, texts("v2", "p2"));
    let lifecycle: Vec<_> =
        world.event_bridge.events().into_iter().filter(|put| put.source == "hoopai.relay").collect();
    let expected = |name: &str, member: &str, value: &str| {
        let mut detail =
            json!({"resource": {"location": "L1"}, "company": company().id(), "at": at.rfc3339(), "epoch": epoch});
        detail[member] = json!(value);
        (name.to_owned(), detail)
    };
    let last: Vec<_> = lifecycle.into_iter().rev().take(2).rev().map(|put| (put.detail_type, put.detail)).collect();
    assert_eq!(last, [expected("Updated", "version_id", "v2"), expected("PlanChanged", "plan_id", "p2")]);
    let kinds: Vec<_> = published(&world).into_iter().map(|put| put.detail_type).collect();
    assert_eq!(kinds, ["INSTALL", "UPDATE", "PLAN_CHANGE"], "the webhooks are on the bus as well");
    world.end().await;
}

async fn late_reports_of_details_change_nothing(world: World) {
    let (sender, process, l1) = (publisher(&world).await, world.process().await, location("L1"));
    let update = |id: &str, version: &str, at| {
        sender.notice("UPDATE", at, id, &json!({"locationId": "L1", "versionId": version}))
    };
    let change = |id: &str, plan: &str, at| {
        sender.notice("PLAN_CHANGE", at, id, &json!({"locationId": "L1", "newPlanId": plan}))
    };
    let began = world.clock.now();
    assert_eq!(sender.send(&update("w0", "v0", began)).await, reply(200, "unknown"), "nothing is installed");
    world.install(&process, &l1).await;
    world.advance(Duration::from_mins(1));
    let (early, late) = (world.clock.now() - Duration::from_secs(20), world.clock.now());
    assert_eq!(sender.send(&update("w1", "v2", late)).await, reply(200, "stored"));
    assert_eq!(sender.send(&change("w2", "p1", early)).await, reply(200, "stored"), "the plan has a time of its own");
    assert_eq!(sender.send(&update("w3", "v1", early)).await, reply(200, "superseded"));
    assert_eq!(sender.send(&update("w4", "v2", late)).await, reply(200, "superseded"), "a report of the same instant");
    let install = json!({"locationId": "L1", "companyId": company().id(), "versionId": "v0", "planId": "p0"});
    sender.send(&sender.notice("INSTALL", began, "w5", &install)).await;
    assert_eq!(version_and_plan(&world, &l1).await, texts("v2", "p1"));
    let names: Vec<_> = world
        .event_bridge
        .events()
        .into_iter()
        .filter(|put| put.source == "hoopai.relay")
        .map(|put| put.detail_type)
        .collect();
    assert_eq!(names, ["Updated", "PlanChanged"]);
    // The bus is down after the change was stored: the lifecycle event stays in the outbox.
    world.event_bridge.fail(Some(Failure::HangUp));
    world.advance(Duration::from_secs(1));
    assert_eq!(sender.send(&update("w6", "v3", world.clock.now())).await, reply(429, "try_again"));
    assert_eq!(world.stored(&l1).await.outbox.len(), 1);
    world.event_bridge.fail(None);
    assert_eq!(sender.send(&update("w6", "v3", world.clock.now())).await, reply(200, "superseded"));
    assert_eq!(world.stored(&l1).await.outbox.len(), 1, "the schedule publishes it");
    world.end().await;
}

async fn details_that_come_before_a_companys_redirect_are_kept(world: World) {
    let (sender, process) = (publisher(&world).await, world.process().await);
    let install = json!({"companyId": company().id(), "versionId": "v1", "planId": "p1", "userId": "u1"});
    assert_eq!(sender.send(&sender.notice("INSTALL", world.clock.now(), "w1", &install)).await, reply(200, "stored"));
    world.advance(Duration::from_secs(2));
    world.install(&process, &company()).await;
    assert_eq!(version_and_plan(&world, &company()).await, texts("v1", "p1"));
    world.advance(Duration::from_secs(2));
    let update =
        sender.notice("UPDATE", world.clock.now(), "w2", &json!({"companyId": company().id(), "versionId": "v2"}));
    assert_eq!(sender.send(&update).await, reply(200, "stored"));
    world.advance(Duration::from_secs(2));
    world.install(&process, &company()).await;
    assert_eq!(version_and_plan(&world, &company()).await, texts("v2", "p1"), "a second install keeps what is newer");
    world.end().await;
}

async fn an_uninstall_erases_the_details(world: World) {
    let (sender, process, l1) = (publisher(&world).await, world.process().await, location("L1"));
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    let members = json!({"locationId": "L1", "versionId": "v1", "newPlanId": "p1"});
    for kind in ["UPDATE", "PLAN_CHANGE", "UNINSTALL"] {
        world.advance(Duration::from_secs(1));
        assert_eq!(sender.send(&sender.notice(kind, world.clock.now(), kind, &members)).await, reply(200, "stored"));
    }
    assert_eq!(world.stored(&l1).await.details, AppDetails::default());
    let late = sender.notice("UPDATE", world.clock.now(), "late", &members);
    assert_eq!(sender.send(&late).await, reply(200, "unknown"));
}
