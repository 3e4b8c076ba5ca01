//! The browser that an installation was started in, known again by a cookie.
//!
//! All tabs of one browser share the value, so that several installations can be under way at once. On TLS the
//! `__Host-` prefix keeps other hosts of the domain from planting one (RFC 6265bis section 4.1.3.2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use shared::domain::random;

use crate::authorize::CONSENT_TIME;
use crate::public_url::PublicUrl;

const BYTES: usize = 32;

/// A secret of one browser. A state is valid only together with the browser that it was signed for.
#[derive(Clone, PartialEq, Eq)]
pub struct Browser([u8; BYTES]);

impl Browser {
    /// A browser that was not here before.
    #[must_use]
    pub fn new() -> Self {
        Self(random::bytes())
    }

    /// The browser by its cookies. Where the cookie is there twice, the one that browsers send first counts.
    pub fn known<'a>(cookies: impl Iterator<Item = &'a str>, public: &PublicUrl) -> Option<Self> {
        let name = name(public);
        cookies
            .filter_map(|cookie| Cookie::parse(cookie).ok())
            .filter(|cookie| cookie.name() == name)
            .find_map(|cookie| URL_SAFE_NO_PAD.decode(cookie.value()).ok()?.try_into().ok().map(Self))
    }

    /// The value of `Set-Cookie`. It lasts as long as a state that is made now, and begins anew with each answer that sets
    /// it, so that a repeat of a redirect is known some time after its installation.
    #[must_use]
    pub fn cookie(&self, public: &PublicUrl) -> String {
        Cookie::build((name(public), URL_SAFE_NO_PAD.encode(self.0)))
            .path("/")
            .http_only(true)
            // Lax and not Strict: the redirect comes from the marketplace's site.
            .same_site(SameSite::Lax)
            .secure(public.is_secure())
            .max_age(cookie::time::Duration::try_from(CONSENT_TIME).unwrap_or_default())
            .to_string()
    }

    /// The secret value, to be signed and never shown.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Browser {
    fn default() -> Self {
        Self::new()
    }
}

/// Browsers take the prefix on TLS only, and loopback has none.
fn name(public: &PublicUrl) -> &'static str {
    if public.is_secure() { "__Host-relay-install" } else { "relay-install" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(domain: &str) -> PublicUrl {
        PublicUrl::of(None, Some(domain), None, "/").expect("a domain")
    }

    #[test]
    fn a_browser_is_known_again_by_its_cookie() {
        let public = public("connect.example.com");
        let browser = Browser::new();
        let set = browser.cookie(&public);
        let pair = set.split(';').next().expect("name and value");
        let known = Browser::known(["other=1", pair].into_iter(), &public);
        assert!(known == Some(browser.clone()));
        assert!(browser != Browser::new(), "two browsers differ");
        for attribute in ["__Host-", "HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=1800"] {
            assert!(set.contains(attribute), "{attribute} is missing from {set}");
        }
        assert!(!set.contains("Domain"), "{set}");
    }

    #[test]
    fn loopback_has_neither_prefix_nor_secure() {
        let set = Browser::new().cookie(&public("localhost:8080"));
        assert!(set.starts_with("relay-install=") && !set.contains("Secure"), "{set}");
    }

    #[test]
    fn a_cookie_that_is_none_of_ours_is_nobody() {
        let public = public("connect.example.com");
        for odd in
            ["", "=", "__Host-relay-install", "__Host-relay-install=", "__Host-relay-install=AAAA", "relay-install=x"]
        {
            assert!(Browser::known([odd].into_iter(), &public).is_none(), "{odd}");
        }
    }
}
