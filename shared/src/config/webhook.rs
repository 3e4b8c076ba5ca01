//! The settings of the `webhook` function.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{AppConfig, Reader, ReportedProblem};

/// The marketplace's webhook key as the platform publishes it (SPKI, base64).
const PUBLISHED_KEY: &str = "MCowBQYDK2VwAyEAi2HR1srL4o18O8BRa7gVJY7G7bupbN3H9AwJrHCDiOg=";

/// DER of a `SubjectPublicKeyInfo` for Ed25519 up to the key's own 32 bytes (RFC 8410 section 4).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The configuration of the `webhook` function.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// The part that all functions have.
    pub app: AppConfig,
    /// Ed25519 keys of the platform's webhooks, 32 bytes each.
    pub public_keys: Vec<[u8; 32]>,
}

impl WebhookConfig {
    /// Reads the variables of the `webhook` function.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let app = AppConfig::read(env);
        let form = "must be comma-separated base64 SPKI Ed25519 keys";
        let public_keys = env.parsed("WEBHOOK_PUBLIC_KEYS", form, ed25519_keys);
        Ok(Self { app: app?, public_keys: public_keys?.unwrap_or_else(published_keys) })
    }
}

fn published_keys() -> Vec<[u8; 32]> {
    ed25519_keys(PUBLISHED_KEY).expect("the published key is an Ed25519 key")
}

fn ed25519_keys(text: &str) -> Option<Vec<[u8; 32]>> {
    text.split(',').map(|key| ed25519_key(key.trim())).collect()
}

fn ed25519_key(spki: &str) -> Option<[u8; 32]> {
    let der = STANDARD.decode(spki).ok()?;
    der.strip_prefix(&ED25519_SPKI_PREFIX)?.try_into().ok()
}
