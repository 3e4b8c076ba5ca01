//! Installs and uninstalls: the change comes first, and then the event.

use std::time::Duration;

use it::proxy::{Call, Fault};
use it::sender::reply;
use it::world::{World, location};
use sandbox::event_bridge::Failure;
use serde_json::json;
use shared::domain::status::Status;

use crate::{published, publisher, with_overflow};

it::stories!(
    a_change_is_stored_and_published,
    a_change_that_cannot_be_stored_is_not_published,
    a_change_whose_event_cannot_be_published_is_asked_for_again,
    a_change_that_cannot_be_read_is_published_nevertheless,
    a_change_without_an_id_is_marked_only_if_it_had_an_effect,
);

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
