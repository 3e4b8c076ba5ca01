//! The `state` of an authorization request, against cross-site request forgery (RFC 6749 section 10.12). A valid state
//! proves that this browser started the installation here, not long ago.
//!
//! States are signed and not stored, so every process can verify the state of another process. The signature covers the
//! browser's secret (which the state does not contain), the redirect URI, the time of issue, and the marketplace host.
//!
//! The signing key is derived from the app's client secret, which both routes read anyway. The sealing keys thus keep
//! their one purpose. A holder of the client secret could forge a state, but could also call the token endpoint as the
//! app. A change of the client secret invalidates the states of installations in progress; their codes become invalid,
//! too.

use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::domain::clock::Millis;
use shared::domain::random;
use shared::domain::redacted::Redacted;

use crate::authorize::{CONSENT_TIME, Marketplace};
use crate::browser::Browser;

const FORMAT: u8 = 1;
const NONCE: usize = 16;
/// Length of the signed part: format, marketplace, time of issue, nonce.
const CLAIM: usize = 1 + 1 + 8 + NONCE;
const MAC: usize = 32;

/// The reason for which a state is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The state was not signed here, or was signed for another browser or redirect URI. The signature cannot tell these
    /// apart.
    #[error("the state was not signed for this browser and this redirect URI")]
    Foreign,
    /// The state was signed here for this browser, and has expired.
    #[error("the state is older than {} minutes", CONSENT_TIME.as_secs() / 60)]
    Expired,
}

/// A state whose signature for this browser and redirect URI is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedState {
    /// The marketplace host that the installation was started on.
    pub marketplace: Marketplace,
    /// Random bytes, unique to this state.
    pub nonce: [u8; NONCE],
    issued_at: Millis,
}

impl VerifiedState {
    /// Checks that the state has not expired.
    ///
    /// # Errors
    /// [`StateError::Expired`], [`CONSENT_TIME`] after the state was signed.
    pub fn check_age(&self, now: Millis) -> Result<(), StateError> {
        // `since` is zero for a time of issue in the future, which another process's fast clock may have written.
        if now.since(self.issued_at) >= CONSENT_TIME { Err(StateError::Expired) } else { Ok(()) }
    }
}

/// Signs and verifies states.
pub struct StateKey(hmac::Key);

impl StateKey {
    /// Derives the key: HKDF-SHA256 (RFC 5869) of the client secret, with an `info` for this purpose only.
    ///
    /// # Panics
    /// Never: 32 bytes are within HKDF's limit.
    pub fn derive(client_secret: &Redacted) -> Self {
        let pseudorandom =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"hoopai-relay").extract(client_secret.expose().as_bytes());
        let key = pseudorandom.expand(&[b"oauth state v1"], hmac::HMAC_SHA256).expect("32 bytes are within the limit");
        Self(key.into())
    }

    /// Signs a state for an authorization request of this browser.
    pub fn sign(&self, marketplace: Marketplace, browser: &Browser, redirect_uri: &str, now: Millis) -> String {
        let nonce: [u8; NONCE] = random::bytes();
        let mut state = Vec::with_capacity(CLAIM + MAC);
        state.push(FORMAT);
        state.push(marketplace_byte(marketplace));
        state.extend_from_slice(&now.0.to_be_bytes());
        state.extend_from_slice(&nonce);
        let tag = hmac::sign(&self.0, &signed(&state, browser, redirect_uri));
        state.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(state)
    }

    /// Verifies that a state was signed here for this browser and redirect URI. Does not check the age:
    /// [`VerifiedState::check_age`] does.
    ///
    /// # Errors
    /// [`StateError::Foreign`].
    pub fn verify(&self, state: &str, browser: &Browser, redirect_uri: &str) -> Result<VerifiedState, StateError> {
        let bytes: [u8; CLAIM + MAC] =
            URL_SAFE_NO_PAD.decode(state).ok().and_then(|b| b.try_into().ok()).ok_or(StateError::Foreign)?;
        let (claim, tag) = bytes.split_at(CLAIM);
        hmac::verify(&self.0, &signed(claim, browser, redirect_uri), tag).map_err(|_| StateError::Foreign)?;
        let ([FORMAT, marketplace], rest) = claim.split_at(2) else { return Err(StateError::Foreign) };
        let (issued_at, nonce) = rest.split_first_chunk().ok_or(StateError::Foreign)?;
        Ok(VerifiedState {
            marketplace: if *marketplace == marketplace_byte(Marketplace::WhiteLabel) {
                Marketplace::WhiteLabel
            } else {
                Marketplace::Standard
            },
            nonce: nonce.try_into().map_err(|_| StateError::Foreign)?,
            issued_at: Millis(i64::from_be_bytes(*issued_at)),
        })
    }

    /// HMAC of the network address and `User-Agent` of a browser without our cookie. A plain digest could be reversed by
    /// trying all addresses.
    pub fn network(&self, address: &str, user_agent: &str) -> String {
        // A signed state begins with the byte FORMAT, so this text is never a signed state.
        let text = format!("network\0{address}\0{user_agent}");
        hex::encode(hmac::sign(&self.0, text.as_bytes()))
    }
}

/// The bytes that the signature covers. All parts but the last have a fixed length, so the encoding is unambiguous.
fn signed(claim: &[u8], browser: &Browser, redirect_uri: &str) -> Vec<u8> {
    [claim, browser.bytes(), redirect_uri.as_bytes()].concat()
}

fn marketplace_byte(marketplace: Marketplace) -> u8 {
    match marketplace {
        Marketplace::Standard => 0,
        Marketplace::WhiteLabel => 1,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    pub(crate) const URI: &str = "https://connect.example.com/oauth/callback";
    pub(crate) const NOW: Millis = Millis(1_750_000_000_000);

    pub(crate) fn key() -> StateKey {
        StateKey::derive(&Redacted::from("the app's client secret"))
    }

    fn verify(state: &str, browser: &Browser, now: Millis) -> Result<Marketplace, StateError> {
        let state = key().verify(state, browser, URI)?;
        state.check_age(now).map(|()| state.marketplace)
    }

    #[test]
    fn a_state_is_valid_in_its_browser_until_it_expires() {
        let browser = Browser::new();
        let state = key().sign(Marketplace::WhiteLabel, &browser, URI, NOW);
        assert_eq!(verify(&state, &browser, NOW), Ok(Marketplace::WhiteLabel));
        let last = NOW + CONSENT_TIME - Duration::from_millis(1);
        assert_eq!(verify(&state, &browser, last), Ok(Marketplace::WhiteLabel));
        assert_eq!(verify(&state, &browser, NOW + CONSENT_TIME), Err(StateError::Expired));
        assert_eq!(verify(&state, &browser, NOW - CONSENT_TIME), Ok(Marketplace::WhiteLabel), "a slow clock");
    }

    #[test]
    fn each_tab_of_a_browser_has_its_own_state() {
        let browser = Browser::new();
        let (one, two) = (
            key().sign(Marketplace::Standard, &browser, URI, NOW),
            key().sign(Marketplace::Standard, &browser, URI, NOW),
        );
        assert_ne!(one, two);
        let nonces = [&one, &two].map(|state| key().verify(state, &browser, URI).expect("ours").nonce);
        assert_ne!(nonces[0], nonces[1], "the table tells them apart by the nonce");
    }

    #[test]
    fn another_browser_address_or_secret_does_not_match() {
        let browser = Browser::new();
        let state = key().sign(Marketplace::Standard, &browser, URI, NOW);
        let other_key = StateKey::derive(&Redacted::from("another secret"));
        let elsewhere = "https://connect.example.com/prod/oauth/callback";
        assert_eq!(key().verify(&state, &Browser::new(), URI), Err(StateError::Foreign));
        assert_eq!(key().verify(&state, &browser, elsewhere), Err(StateError::Foreign));
        assert_eq!(other_key.verify(&state, &browser, URI), Err(StateError::Foreign));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let browser = Browser::new();
        let good = URL_SAFE_NO_PAD.decode(key().sign(Marketplace::Standard, &browser, URI, NOW)).expect("base64");
        for bit in 0..good.len() * 8 {
            let mut forged = good.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let result = key().verify(&URL_SAFE_NO_PAD.encode(forged), &browser, URI);
            assert_eq!(result, Err(StateError::Foreign), "bit {bit}");
        }
    }

    #[test]
    fn a_network_digest_depends_on_address_user_agent_and_key() {
        let other_key = StateKey::derive(&Redacted::from("another secret"));
        let network = key().network("192.0.2.1", "Firefox");
        assert_eq!(network, key().network("192.0.2.1", "Firefox"));
        for other in [
            key().network("192.0.2.2", "Firefox"),
            key().network("192.0.2.1", "Chrome"),
            other_key.network("192.0.2.1", "Firefox"),
        ] {
            assert_ne!(network, other);
        }
    }

    proptest! {
        #[test]
        fn every_other_text_is_foreign(state in ".{0,200}") {
            prop_assert_eq!(key().verify(&state, &Browser::new(), URI), Err(StateError::Foreign));
        }
    }
}
