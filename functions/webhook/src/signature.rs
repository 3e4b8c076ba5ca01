//! The header `X-GHL-Signature`: an Ed25519 signature (RFC 8032) of the raw body, in base64.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The name of the header.
pub const HEADER: &str = "x-ghl-signature";

/// The signature is absent or malformed, or no known key made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no known key signed this body")]
pub struct NotSigned;

/// Verifies the signature of a body with each key. Several keys are configured while the platform changes its key.
pub fn verify(keys: &[[u8; 32]], body: &[u8], signature: Option<&str>) -> Result<(), NotSigned> {
    let signature = STANDARD.decode(signature.ok_or(NotSigned)?.trim()).map_err(|_| NotSigned)?;
    let signed_by = |key: &[u8; 32]| UnparsedPublicKey::new(&ED25519, key).verify(body, &signature).is_ok();
    if keys.iter().any(signed_by) { Ok(()) } else { Err(NotSigned) }
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
        assert_eq!(verify(&[one, two], body, Some(&signature)), Ok(()));
        assert_eq!(verify(&[one, three], body, Some(&signature)), Err(NotSigned));
        assert_eq!(verify(&[], body, Some(&signature)), Err(NotSigned));
    }

    #[test]
    fn the_same_json_in_other_bytes_is_refused() {
        let (signer, key) = pair(1);
        let signature = STANDARD.encode(signer.sign(br#"{"type":"UNINSTALL","appId":"a"}"#));
        for other in [r#"{"type": "UNINSTALL","appId":"a"}"#, r#"{"appId":"a","type":"UNINSTALL"}"#, ""] {
            assert_eq!(verify(&[key], other.as_bytes(), Some(&signature)), Err(NotSigned), "{other}");
        }
    }

    #[test]
    fn an_absent_or_malformed_signature_is_refused() {
        let (_, key) = pair(1);
        for odd in [None, Some(""), Some("AAAA"), Some("not base64!"), Some("é")] {
            assert_eq!(verify(&[key], b"{}", odd), Err(NotSigned), "{odd:?}");
        }
        assert_eq!(verify(&[key], b"{}", Some(&STANDARD.encode([0; 64]))), Err(NotSigned));
    }

    /// RFC 8032 section 7.1, test 3.
    #[test]
    fn the_algorithm_is_rfc_8032s() {
        let hex = |text: &str| hex::decode(text).expect("hexadecimal digits");
        let key = hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
        let signature = hex("6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a");
        let key: [u8; 32] = key.try_into().expect("32 bytes");
        assert_eq!(verify(&[key], &[0xaf, 0x82], Some(&STANDARD.encode(signature))), Ok(()));
    }
}
