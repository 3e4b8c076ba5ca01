//! Installs and uninstalls of an agency and its locations, reported by webhooks in every order.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use it::proxy::Call;
use it::sender::{Sender, reply};
use it::world::{World, grantee, location};
use serde_json::{Value, json};
use shared::domain::status::Status;
use shared::token::TokenError;

use crate::{access, company, grow, minted, works};

it::stories!(
    a_companys_uninstall_stops_its_locations_and_erases_their_tokens,
    a_company_installed_again_revives_its_locations,
    an_install_before_the_redirect_is_kept,
    an_install_may_leave_out_the_company,
    forged_and_reserialised_webhooks_change_nothing,
    repeated_and_late_webhooks_change_nothing,
    an_uninstall_of_a_location_stops_only_that_location,
    a_webhook_that_cannot_be_stored_is_answered_so_that_it_is_repeated,
);

async fn a_companys_uninstall_stops_its_locations_and_erases_their_tokens(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    let [l1, l2, own] = ["L1", "L2", "L3"].map(location);
    world.install(&process, &company()).await;
    world.install(&process, &own).await;
    for l in [&l1, &l2, &own] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_secs(5));
    let writes = sender.proxy.calls(Call::Write);
    let notice = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    assert_eq!(sender.send(&notice).await, reply(200, "stored"));
    assert_eq!(sender.proxy.calls(Call::Write) - writes, 4, "the claim, the note, the company, the mark");
    world.market.uninstall(&grantee(&company()));
    world.advance(Duration::from_secs(9));
    for l in [&l1, &l2, &company()] {
        let found = access(&world, &process, l).await;
        assert!(matches!(found, Err(TokenError::Revoked)), "{l}: {found:?}");
        let standing = process.tokens.status(l).await.expect("known");
        assert_eq!(standing.status, Status::Revoked);
    }
    works(&world, &process, &own).await;
    assert!(world.stored(&l1).await.access().is_some(), "not inside the request");
    world.refresh(&process, json!({})).await;
    for l in [&l1, &l2] {
        assert_eq!(world.stored(l).await.access(), None);
    }
    assert!(world.stored(&own).await.access().is_some());
    world.advance(Duration::from_mins(2));
    world.refresh(&process, json!({})).await;
    assert_eq!(world.table.newest_companies(9).await.expect("a table").0, []);
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
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    assert_eq!(sender.send(&sender.notice("INSTALL", world.clock.now(), "w1", &members)).await, reply(200, "stored"));
    let found = access(&world, &process, &l1).await;
    assert!(matches!(found, Err(TokenError::NotInstalled)), "{found:?}");
    let of_company = sender.notice("INSTALL", world.clock.now(), "w2", &json!({"companyId": company().id()}));
    assert_eq!(sender.send(&of_company).await, reply(200, "stored"));
    world.advance(Duration::from_secs(3));
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(7));
    works(&world, &process, &l1).await;
    world.end().await;
}

async fn an_install_may_leave_out_the_company(world: World) {
    let (process, sender, new) = (world.process().await, Sender::new(&world).await, location("L4"));
    world.install(&process, &company()).await;
    assert!(matches!(access(&world, &process, &new).await, Err(TokenError::NotInstalled)));
    grow(&world, 4);
    world.advance(Duration::from_secs(1));
    let notice = sender.notice("INSTALL", world.clock.now(), "w1", &json!({"locationId": "L4"}));
    assert_eq!(sender.send(&notice).await, reply(200, "stored"));
    works(&world, &process, &new).await;
    assert_eq!(world.stored(&new).await.company.as_deref(), Some(company().id()));
    world.end().await;
}

async fn forged_and_reserialised_webhooks_change_nothing(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(1));
    let notice = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    let body = notice.to_string();
    let signature = STANDARD.encode(sender.signer.sign(body.as_bytes()));
    let other = Ed25519KeyPair::generate().expect("a key");
    let forged = STANDARD.encode(other.sign(body.as_bytes()));
    let members: BTreeMap<String, Value> = serde_json::from_value(notice.clone()).expect("an object");
    let reserialised = serde_json::to_string_pretty(&members).expect("JSON");
    for (body, signature) in [(&body, &forged), (&reserialised, &signature)] {
        assert_eq!(sender.send_bytes(body, signature).await, reply(401, "not_signed"));
    }
    let mut foreign = notice;
    foreign["appId"] = json!("another");
    assert_eq!(sender.send(&foreign).await, reply(403, "foreign_app"));
    assert_eq!(world.status(&company()).await, Status::Active);
    assert_eq!(sender.send_bytes(&body, &signature).await, reply(200, "stored"), "the positive control");
    assert_eq!(world.status(&company()).await, Status::Revoked);
}

async fn repeated_and_late_webhooks_change_nothing(world: World) {
    let (process, sender, l1) = (world.process().await, Sender::new(&world).await, location("L1"));
    world.install(&process, &company()).await;
    works(&world, &process, &l1).await;
    world.advance(Duration::from_mins(1));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    let gone = sender.notice("UNINSTALL", world.clock.now(), "w1", &members);
    // This uninstall is sent before the reinstall and delivered after it.
    let late = sender.notice("UNINSTALL", world.clock.now() + Duration::from_secs(1), "w2", &members);
    world.advance(Duration::from_secs(2));
    let back = sender.notice("INSTALL", world.clock.now(), "w3", &members);
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(world.status(&l1).await, Status::Revoked);
    assert_eq!(sender.send(&back).await, reply(200, "stored"));
    // Half an hour later the sender repeats the webhooks, as a sender that retries would.
    world.advance(Duration::from_mins(30));
    assert_eq!(sender.send(&gone).await, reply(200, "repeated"));
    assert_eq!(sender.send(&late).await, reply(200, "superseded"));
    assert_eq!(sender.send(&back).await, reply(200, "repeated"));
    works(&world, &process, &l1).await;
    // A late delivery does not make an uninstall older.
    let gone = sender.notice("UNINSTALL", world.clock.now() - Duration::from_mins(20), "w4", &members);
    assert_eq!(sender.send(&gone).await, reply(200, "stored"));
    assert_eq!(sender.send(&back).await, reply(200, "repeated"));
    world.advance(Duration::from_secs(9));
    assert!(matches!(access(&world, &process, &l1).await, Err(TokenError::Revoked)));
}

async fn an_uninstall_of_a_location_stops_only_that_location(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    let (l1, l2) = (location("L1"), location("L2"));
    world.install(&process, &company()).await;
    for l in [&l1, &l2] {
        works(&world, &process, l).await;
    }
    world.advance(Duration::from_mins(2));
    let members = json!({"locationId": "L1", "companyId": company().id()});
    assert_eq!(sender.send(&sender.notice("UNINSTALL", world.clock.now(), "w1", &members)).await, reply(200, "stored"));
    world.market.uninstall(&grantee(&l1));
    let stored = world.stored(&l1).await;
    assert_eq!((stored.status(), stored.access()), (Status::Revoked, None));
    world.advance(Duration::from_secs(9));
    assert!(matches!(access(&world, &process, &l1).await, Err(TokenError::Revoked)));
    works(&world, &process, &l2).await;
    // The list of the agency's locations does not contain the location, so the location stays uninstalled.
    world.refresh(&process, json!({})).await;
    assert_eq!(world.status(&l1).await, Status::Revoked);
    world.end().await;
}

async fn a_webhook_that_cannot_be_stored_is_answered_so_that_it_is_repeated(world: World) {
    let (process, sender) = (world.process().await, Sender::new(&world).await);
    world.install(&process, &company()).await;
    world.advance(Duration::from_secs(1));
    let notice = sender.notice("UNINSTALL", world.clock.now(), "w1", &json!({"companyId": company().id()}));
    sender.proxy.always(Call::Uninstall, it::proxy::Fault::AccessDenied);
    assert_eq!(sender.send(&notice).await, reply(429, "try_again"));
    sender.proxy.heal();
    assert_eq!(sender.send(&notice).await, reply(200, "stored"), "no mark stands in the way");
    assert_eq!(sender.send(&notice).await, reply(200, "repeated"));
    assert_eq!(world.status(&company()).await, Status::Revoked);
}
