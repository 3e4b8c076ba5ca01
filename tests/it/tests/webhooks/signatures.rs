//! The two kinds of signatures, and the configuration that decides which are accepted.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use it::proxy::{Call, Fault};
use it::sender::{Sender, reply};
use it::world::World;
use sandbox::secrets::Failure;
use serde_json::json;
use shared::config::WebhookSettings;

it::stories!(
    an_hmac_in_each_form_and_header_is_accepted,
    only_the_configured_kinds_of_signature_are_accepted,
    a_replaced_secret_is_noticed_at_the_first_signature_that_does_not_match,
    forged_signatures_read_the_secret_at_most_once_in_ten_seconds,
    without_the_secret_a_webhook_is_asked_for_again,
);

const SECRET: &str = "hooks";
const BODY: &str = r#"{"type":"ContactCreate","locationId":"L1","webhookId":"w1"}"#;

/// The HMAC-SHA256 of a body.
fn tag(secret: &str, body: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, body.as_bytes()).as_ref().to_vec()
}

/// The webhook function with these secrets for HMAC signatures.
async fn with_secrets(world: &World, secrets: &[&str]) -> Sender {
    put(world, secrets);
    let settings = WebhookSettings { secret_id: Some(SECRET.to_owned()), ..WebhookSettings::default() };
    Sender::with(world, &[], settings).await
}

fn put(world: &World, secrets: &[&str]) {
    world.secrets.put(SECRET, json!({ "secrets": secrets }).to_string());
}

async fn an_hmac_in_each_form_and_header_is_accepted(world: World) {
    let sender = with_secrets(&world, &["older-secret", "newer-secret"]).await;
    for secret in ["older-secret", "newer-secret"] {
        let tag = tag(secret, BODY);
        for text in [hex::encode(&tag), hex::encode_upper(&tag), STANDARD.encode(&tag)] {
            for name in ["x-wl-signature", "x-hook-signature", "X-Hook-Signature"] {
                assert_eq!(sender.send_with(BODY, &json!({ name: text })).await, reply(200, "ignored"), "{name}");
            }
            let both = json!({ "x-ghl-signature": "AAAA", "x-wl-signature": "00", "x-hook-signature": text });
            assert_eq!(sender.send_with(BODY, &both).await, reply(200, "ignored"), "one of them is valid");
            let other = BODY.replace("L1", "L2");
            let forged = sender.send_with(&other, &json!({ "x-wl-signature": text })).await;
            assert_eq!(forged, reply(401, "not_signed"), "the signature is of another body");
        }
    }
    assert_eq!(sender.send_text(BODY).await, reply(200, "ignored"), "Ed25519 is accepted besides");
}

async fn only_the_configured_kinds_of_signature_are_accepted(world: World) {
    let headers = json!({ "x-wl-signature": hex::encode(tag("newer-secret", BODY)) });
    let without_secrets = Sender::new(&world).await;
    assert_eq!(without_secrets.send_with(BODY, &headers).await, reply(401, "not_signed"));
    assert_eq!(without_secrets.proxy.calls(Call::Secrets), 0, "nothing is read for it");
    let mut with_secrets = with_secrets(&world, &["newer-secret"]).await;
    with_secrets.signer = without_secrets.signer;
    assert_eq!(with_secrets.send_text(BODY).await, reply(401, "not_signed"), "an Ed25519 key that is not configured");
    assert_eq!(with_secrets.send_with(BODY, &headers).await, reply(200, "ignored"));
    let none = json!({ "x-wl-signature": "" });
    assert_eq!(with_secrets.send_with(BODY, &none).await, reply(401, "not_signed"));
}

async fn a_replaced_secret_is_noticed_at_the_first_signature_that_does_not_match(world: World) {
    let sender = with_secrets(&world, &["older-secret"]).await;
    let signed = |secret: &str| json!({ "x-wl-signature": hex::encode(tag(secret, BODY)) });
    assert_eq!(sender.send_with(BODY, &signed("older-secret")).await, reply(200, "ignored"));
    put(&world, &["newer-secret"]);
    assert_eq!(sender.send_with(BODY, &signed("newer-secret")).await, reply(200, "ignored"));
    assert_eq!(sender.send_with(BODY, &signed("older-secret")).await, reply(401, "not_signed"), "it was taken away");
    put(&world, &["third-secret"]);
    assert_eq!(sender.send_with(BODY, &signed("newer-secret")).await, reply(200, "ignored"), "the cache is fresh");
    world.advance(std::time::Duration::from_mins(1));
    assert_eq!(sender.send_with(BODY, &signed("newer-secret")).await, reply(401, "not_signed"), "within 60 s");
}

async fn forged_signatures_read_the_secret_at_most_once_in_ten_seconds(world: World) {
    let sender = with_secrets(&world, &["newer-secret"]).await;
    for _ in 0..20 {
        let forged = json!({ "x-wl-signature": hex::encode(tag("guessed", BODY)) });
        assert_eq!(sender.send_with(BODY, &forged).await, reply(401, "not_signed"));
    }
    assert_eq!(world.secrets.requests_for(SECRET), 2, "at the first request, and once again");
    for odd in ["", "zz", &"ab".repeat(31), "é"] {
        assert_eq!(sender.send_with(BODY, &json!({ "x-wl-signature": odd })).await, reply(401, "not_signed"), "{odd}");
    }
    world.advance(std::time::Duration::from_secs(11));
    let forged = json!({ "x-hook-signature": STANDARD.encode(tag("guessed", BODY)) });
    assert_eq!(sender.send_with(BODY, &forged).await, reply(401, "not_signed"));
    assert_eq!(world.secrets.requests_for(SECRET), 3);
}

async fn without_the_secret_a_webhook_is_asked_for_again(world: World) {
    let sender = with_secrets(&world, &["newer-secret"]).await;
    let signed = json!({ "x-wl-signature": hex::encode(tag("newer-secret", BODY)) });
    world.secrets.fail(Some(Failure::AccessDenied));
    assert_eq!(sender.send_with(BODY, &signed).await, reply(429, "try_again"));
    world.secrets.fail(None);
    put(&world, &[]);
    assert_eq!(sender.send_with(BODY, &signed).await, reply(429, "try_again"), "nobody has put a secret in yet");
    sender.proxy.once(Call::Secrets, Fault::AccessDenied);
    put(&world, &["newer-secret"]);
    assert_eq!(sender.send_with(BODY, &signed).await, reply(429, "try_again"));
    assert_eq!(sender.send_with(BODY, &signed).await, reply(200, "ignored"));
}
