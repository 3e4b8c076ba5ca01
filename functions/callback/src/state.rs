//! The `state` of an authorization request (RFC 6749 section 10.12): proof that the redirect belongs to an
//! installation that this browser started here, not long ago.
//!
//! It is signed and not stored, so that any process can check what another made, and binds four things: the browser
//! (whose secret is signed but not carried), the redirect URI, the instant, and the marketplace's entrance.
//!
//! The key is derived from the app's client secret. Exactly who can exchange a code needs it, and both routes read
//! that secret anyway, while the sealing keys keep their one purpose. Whoever knows the client secret could forge a
//! state, but could as well call the token endpoint as the app. When the secret is changed, installations that are
//! under way must be started again, as their codes must be anyway.

use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::domain::clock::Millis;
use shared::domain::random;
use shared::domain::redacted::Redacted;

use crate::authorize::{CONSENT_TIME, Entrance};
use crate::browser::Browser;

const FORMAT: u8 = 1;
const NONCE: usize = 16;
/// Format, entrance, instant, nonce.
const CLAIM: usize = 1 + 1 + 8 + NONCE;
const MAC: usize = 32;

/// Why a state does not prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not made here, or made for another browser or another redirect URI. Which of them cannot be told apart.
    #[error("the state was not made for this browser and this address")]
    Foreign,
    /// Made here, for this browser, too long ago.
    #[error("the state is older than {} minutes", CONSENT_TIME.as_secs() / 60)]
    Expired,
}

/// A state that was made here, for this browser and this redirect URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedState {
    /// The entrance that the installation was started through.
    pub entrance: Entrance,
    /// What no other state has.
    pub nonce: [u8; NONCE],
    issued_at: Millis,
}

impl VerifiedState {
    /// Whether a code that comes with it may be exchanged.
    ///
    /// # Errors
    /// [`StateError::Expired`], [`CONSENT_TIME`] after it was made.
    pub fn check_age(&self, now: Millis) -> Result<(), StateError> {
        // An instant that is still to come was written by a process whose clock is ahead.
        if now.since(self.issued_at) >= CONSENT_TIME { Err(StateError::Expired) } else { Ok(()) }
    }
}

/// Makes and checks states.
pub struct StateKey(hmac::Key);

impl StateKey {
    /// HKDF-SHA256 of the client secret, for this one purpose.
    ///
    /// # Panics
    /// Never: 32 bytes are within HKDF's limit.
    #[must_use]
    pub fn derive(client_secret: &Redacted) -> Self {
        let pseudorandom =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"hoopai-relay").extract(client_secret.expose().as_bytes());
        let key = pseudorandom.expand(&[b"oauth state v1"], hmac::HMAC_SHA256).expect("32 bytes are within the limit");
        Self(key.into())
    }

    /// A state for an authorization request that this browser is sent away with now.
    #[must_use]
    pub fn sign(&self, entrance: Entrance, browser: &Browser, redirect_uri: &str, now: Millis) -> String {
        let nonce: [u8; NONCE] = random::bytes();
        let mut state = Vec::with_capacity(CLAIM + MAC);
        state.push(FORMAT);
        state.push(entrance_byte(entrance));
        state.extend_from_slice(&now.0.to_be_bytes());
        state.extend_from_slice(&nonce);
        let tag = hmac::sign(&self.0, &signed(&state, browser, redirect_uri));
        state.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(state)
    }

    /// Checks that a state was made here for this browser and this redirect URI. Its age is another question:
    /// [`VerifiedState::check_age`].
    ///
    /// # Errors
    /// [`StateError::Foreign`].
    pub fn verify(&self, state: &str, browser: &Browser, redirect_uri: &str) -> Result<VerifiedState, StateError> {
        let bytes: [u8; CLAIM + MAC] =
            URL_SAFE_NO_PAD.decode(state).ok().and_then(|b| b.try_into().ok()).ok_or(StateError::Foreign)?;
        let (claim, tag) = bytes.split_at(CLAIM);
        hmac::verify(&self.0, &signed(claim, browser, redirect_uri), tag).map_err(|_| StateError::Foreign)?;
        let ([FORMAT, entrance], rest) = claim.split_at(2) else { return Err(StateError::Foreign) };
        let (issued_at, nonce) = rest.split_first_chunk().ok_or(StateError::Foreign)?;
        Ok(VerifiedState {
            entrance: if *entrance == entrance_byte(Entrance::WhiteLabel) {
                Entrance::WhiteLabel
            } else {
                Entrance::Standard
            },
            nonce: nonce.try_into().map_err(|_| StateError::Foreign)?,
            issued_at: Millis(i64::from_be_bytes(*issued_at)),
        })
    }

    /// A digest of the address and the make of a browser that has no cookie of ours. It is keyed, because addresses are
    /// few enough to be guessed from a plain digest.
    #[must_use]
    pub fn network(&self, address: &str, user_agent: &str) -> String {
        // A signed state begins with its format, so this is never the text of one.
        let text = format!("network\0{address}\0{user_agent}");
        hex::encode(hmac::sign(&self.0, text.as_bytes()))
    }
}

/// What the signature covers. All parts but the last have a fixed length, so no two readings are possible.
fn signed(claim: &[u8], browser: &Browser, redirect_uri: &str) -> Vec<u8> {
    [claim, browser.bytes(), redirect_uri.as_bytes()].concat()
}

fn entrance_byte(entrance: Entrance) -> u8 {
    match entrance {
        Entrance::Standard => 0,
        Entrance::WhiteLabel => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const URI: &str = "https://connect.example.com/oauth/callback";
    const NOW: Millis = Millis(1_750_000_000_000);

    fn key() -> StateKey {
        StateKey::derive(&Redacted::from("the app's client secret"))
    }

    fn verify(state: &str, browser: &Browser, now: Millis) -> Result<Entrance, StateError> {
        let state = key().verify(state, browser, URI)?;
        state.check_age(now).map(|()| state.entrance)
    }

    #[test]
    fn a_state_is_good_in_its_browser_until_its_end_and_in_every_process() {
        let browser = Browser::new();
        let state = key().sign(Entrance::WhiteLabel, &browser, URI, NOW);
        assert_eq!(verify(&state, &browser, NOW), Ok(Entrance::WhiteLabel));
        let last = NOW + CONSENT_TIME - Duration::from_millis(1);
        assert_eq!(verify(&state, &browser, last), Ok(Entrance::WhiteLabel));
        assert_eq!(verify(&state, &browser, NOW + CONSENT_TIME), Err(StateError::Expired));
        assert_eq!(verify(&state, &browser, NOW - CONSENT_TIME), Ok(Entrance::WhiteLabel), "a clock behind");
    }

    #[test]
    fn tabs_of_one_browser_have_states_of_their_own() {
        let browser = Browser::new();
        let (one, two) =
            (key().sign(Entrance::Standard, &browser, URI, NOW), key().sign(Entrance::Standard, &browser, URI, NOW));
        assert_ne!(one, two);
        let nonces = [&one, &two].map(|state| key().verify(state, &browser, URI).expect("ours").nonce);
        assert_ne!(nonces[0], nonces[1], "each is told apart in the table");
    }

    #[test]
    fn another_browser_address_or_secret_does_not_match() {
        let browser = Browser::new();
        let state = key().sign(Entrance::Standard, &browser, URI, NOW);
        let other_key = StateKey::derive(&Redacted::from("another secret"));
        let elsewhere = "https://connect.example.com/prod/oauth/callback";
        assert_eq!(key().verify(&state, &Browser::new(), URI), Err(StateError::Foreign));
        assert_eq!(key().verify(&state, &browser, elsewhere), Err(StateError::Foreign));
        assert_eq!(other_key.verify(&state, &browser, URI), Err(StateError::Foreign));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let browser = Browser::new();
        let good = URL_SAFE_NO_PAD.decode(key().sign(Entrance::Standard, &browser, URI, NOW)).expect("base64");
        for bit in 0..good.len() * 8 {
            let mut forged = good.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let verdict = key().verify(&URL_SAFE_NO_PAD.encode(forged), &browser, URI);
            assert_eq!(verdict, Err(StateError::Foreign), "bit {bit}");
        }
    }

    #[test]
    fn a_network_is_told_apart_by_address_and_make_and_by_key() {
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
        fn whatever_text_is_sent_is_foreign(state in ".{0,200}") {
            prop_assert_eq!(key().verify(&state, &Browser::new(), URI), Err(StateError::Foreign));
        }
    }
}
