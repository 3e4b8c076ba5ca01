//! The settings of the `webhook` function.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{AppConfig, Reader, ReportedProblem};

/// The marketplace's webhook key as the platform publishes it (SPKI, base64).
const PUBLISHED_KEY: &str = "MCowBQYDK2VwAyEAi2HR1srL4o18O8BRa7gVJY7G7bupbN3H9AwJrHCDiOg=";

/// DER of a `SubjectPublicKeyInfo` for Ed25519 up to the key's own 32 bytes (RFC 8410 section 4).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The word that accepts no Ed25519 signature.
const NO_KEYS: &str = "none";

/// The configuration of the `webhook` function.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// The part that all functions have.
    pub app: AppConfig,
    /// The part that only this function has.
    pub settings: WebhookSettings,
}

/// The settings that only the `webhook` function has.
#[derive(Clone, Debug, Default)]
pub struct WebhookSettings {
    /// Ed25519 keys of the platform's webhooks, 32 bytes each. Without a key, no Ed25519 signature is accepted.
    pub public_keys: Vec<[u8; 32]>,
    /// Id of the secrets that HMAC signatures are made with. Without it, no HMAC signature is accepted.
    pub secret_id: Option<String>,
    /// The queue for events that the bus does not take.
    pub overflow_queue_url: Option<String>,
    /// The handling of an event that the platform sends more than once.
    pub dedupe: Dedupe,
}

/// The handling of an event that the platform sends more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dedupe {
    /// An event with the same `webhookId` is published once within 24 h, at the cost of two writes for each event.
    #[default]
    On,
    /// Each delivery is published, except those that change an installation.
    Off,
}

impl WebhookConfig {
    /// Reads the variables of the `webhook` function.
    ///
    /// # Errors
    /// A variable is missing or malformed, or no kind of signature would be accepted.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let app = AppConfig::read(env);
        let form = "must be comma-separated base64 SPKI Ed25519 keys, or none";
        let public_keys = env.parsed("WEBHOOK_PUBLIC_KEYS", form, ed25519_keys);
        let public_keys = public_keys.map(|keys| keys.unwrap_or_else(published_keys));
        let secret_id = match &public_keys {
            Ok(keys) if keys.is_empty() => env.required("WEBHOOK_SECRET_ID").map(Some),
            _ => Ok(env.optional("WEBHOOK_SECRET_ID")),
        };
        let overflow_queue_url = env.optional_url("EVENTS_OVERFLOW_QUEUE_URL");
        let dedupe = env.choice("WEBHOOK_DEDUPE", [("on", Dedupe::On), ("off", Dedupe::Off)]);
        let settings = WebhookSettings {
            public_keys: public_keys?,
            secret_id: secret_id?,
            overflow_queue_url: overflow_queue_url?.map(String::from),
            dedupe: dedupe?,
        };
        Ok(Self { app: app?, settings })
    }
}

fn published_keys() -> Vec<[u8; 32]> {
    ed25519_keys(PUBLISHED_KEY).expect("the published key is an Ed25519 key")
}

fn ed25519_keys(text: &str) -> Option<Vec<[u8; 32]>> {
    if text == NO_KEYS {
        return Some(Vec::new());
    }
    text.split(',').map(|key| ed25519_key(key.trim())).collect()
}

fn ed25519_key(spki: &str) -> Option<[u8; 32]> {
    let der = STANDARD.decode(spki).ok()?;
    der.strip_prefix(&ED25519_SPKI_PREFIX)?.try_into().ok()
}
