//! The signatures of webhooks. The configuration decides which of the two kinds are accepted:
//! - `X-GHL-Signature`: an Ed25519 signature (RFC 8032) of the raw body, in base64.
//! - `X-WL-Signature` or `X-Hook-Signature`: an HMAC-SHA256 (RFC 2104) of the raw body, in hexadecimal or base64.

use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lambda_http::Request;
use shared::lambda::gateway;
use shared::secrets::webhook::WebhookSecrets;
use shared::secrets::{Secret, SecretError};

/// The header of an Ed25519 signature.
pub const ED25519_HEADER: &str = "x-ghl-signature";
/// The headers of an HMAC. Two pages of the platform's help name different ones.
pub const HMAC_HEADERS: [&str; 2] = ["x-wl-signature", "x-hook-signature"];

/// The number of bytes of an HMAC-SHA256.
const TAG_LENGTH: usize = 32;
/// The least time between two re-reads of the secrets because of a signature that does not match. A stranger can send
/// such signatures.
const NO_MATCH: Duration = Duration::from_secs(10);

/// The reason why a webhook is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signature is absent or malformed, or no known key made it.
    #[error("no known key signed this body")]
    NotSigned,
    /// The secrets of HMAC signatures cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Verifies the signatures of one app's webhooks.
pub struct Verifier {
    public_keys: Vec<[u8; 32]>,
    secrets: Option<Secret<WebhookSecrets>>,
}

impl Verifier {
    /// A verifier that accepts signatures of these Ed25519 keys and, if given, of these secrets. There are several keys
    /// while the platform changes its key.
    pub fn new(public_keys: Vec<[u8; 32]>, secrets: Option<Secret<WebhookSecrets>>) -> Self {
        Self { public_keys, secrets }
    }

    /// Verifies that a known key signed the body of a request.
    ///
    /// If no secret matches an HMAC, the secrets are read again, at most once in 10 s.
    ///
    /// # Errors
    /// [`SignatureError::Secret`] only if a request has an HMAC and no other signature that is valid.
    pub async fn verify(&self, request: &Request, body: &[u8]) -> Result<(), SignatureError> {
        let ed25519 = gateway::header(request, ED25519_HEADER);
        if ed25519.is_some_and(|signature| is_signed_by(&self.public_keys, body, signature)) {
            return Ok(());
        }
        let Some(secrets) = &self.secrets else { return Err(SignatureError::NotSigned) };
        let tags = HMAC_HEADERS.into_iter().filter_map(|name| gateway::header(request, name));
        let tags: Vec<_> = tags.filter_map(tag).collect();
        if tags.is_empty() {
            return Err(SignatureError::NotSigned);
        }
        let is_signed = |secrets: &WebhookSecrets| tags.iter().any(|tag| secrets.have_signed(body, tag));
        if is_signed(&*secrets.get().await?) || is_signed(&*secrets.read_again(NO_MATCH).await?) {
            Ok(())
        } else {
            Err(SignatureError::NotSigned)
        }
    }
}

/// Returns true if one of the Ed25519 keys made this signature.
fn is_signed_by(keys: &[[u8; 32]], body: &[u8], signature: &str) -> bool {
    let Ok(signature) = STANDARD.decode(signature.trim()) else { return false };
    keys.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(body, &signature).is_ok())
}

/// Decodes an HMAC-SHA256. 64 hexadecimal digits are also base64, but of 48 bytes.
fn tag(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let tag = hex::decode(text).ok().or_else(|| STANDARD.decode(text).ok())?;
    (tag.len() == TAG_LENGTH).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    fn pair(seed: u8) -> (Ed25519KeyPair, [u8; 32]) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes are a seed");
        let public = pair.public_key().as_ref().try_into().expect("a public key has 32 bytes");
        (pair, public)
    }

    #[test]
    fn a_signature_of_any_key_is_accepted() {
        let ((_, one), (signer, two), (_, three)) = (pair(1), pair(2), pair(3));
        let body = br#"{"type":"UNINSTALL"}"#;
        let signature = STANDARD.encode(signer.sign(body));
        assert!(is_signed_by(&[one, two], body, &signature));
        assert!(!is_signed_by(&[one, three], body, &signature));
        assert!(!is_signed_by(&[], body, &signature));
    }

    #[test]
    fn the_same_json_in_other_bytes_is_refused() {
        let (signer, key) = pair(1);
        let signature = STANDARD.encode(signer.sign(br#"{"type":"UNINSTALL","appId":"a"}"#));
        for other in [r#"{"type": "UNINSTALL","appId":"a"}"#, r#"{"appId":"a","type":"UNINSTALL"}"#, ""] {
            assert!(!is_signed_by(&[key], other.as_bytes(), &signature), "{other}");
        }
    }

    #[test]
    fn a_malformed_signature_is_refused() {
        let (_, key) = pair(1);
        for odd in ["", "AAAA", "not base64!", "é"] {
            assert!(!is_signed_by(&[key], b"{}", odd), "{odd:?}");
        }
        assert!(!is_signed_by(&[key], b"{}", &STANDARD.encode([0; 64])));
    }

    /// RFC 8032 section 7.1, test 3.
    #[test]
    fn the_algorithm_is_rfc_8032s() {
        let hex = |text: &str| hex::decode(text).expect("hexadecimal digits");
        let key = hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
        let signature = hex("6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a");
        let key: [u8; 32] = key.try_into().expect("32 bytes");
        assert!(is_signed_by(&[key], &[0xaf, 0x82], &STANDARD.encode(signature)));
    }

    #[test]
    fn a_tag_is_hexadecimal_or_base64_of_32_bytes() {
        let bytes: Vec<u8> = (0..32).collect();
        for text in [
            hex::encode(&bytes),
            hex::encode_upper(&bytes),
            STANDARD.encode(&bytes),
            format!(" {} ", hex::encode(&bytes)),
        ] {
            assert_eq!(tag(&text).as_ref(), Some(&bytes), "{text}");
        }
        for odd in [
            String::new(),
            hex::encode(&bytes[1..]),
            STANDARD.encode([&bytes[..], &[0]].concat()),
            "x".repeat(64),
            "é".to_owned(),
        ] {
            assert_eq!(tag(&odd), None, "{odd}");
        }
    }
}
