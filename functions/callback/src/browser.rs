//! The cookie that identifies the browser in which an installation was started.
//!
//! All tabs of one browser share the cookie, so one browser can run several installations at once. On TLS, the
//! `__Host-` prefix stops other hosts of the domain from setting the cookie (RFC 6265bis section 4.1.3.2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use shared::domain::random;

use crate::authorize::CONSENT_TIME;
use crate::public_url::PublicUrl;

const BYTES: usize = 32;

/// The secret of one browser. A state is valid only in the browser that it was signed for.
#[derive(Clone, PartialEq, Eq)]
pub struct Browser([u8; BYTES]);

impl Browser {
    /// A browser without our cookie: makes a new secret.
    pub fn new() -> Self {
        Self(random::bytes())
    }

    /// Finds the browser's secret in its cookies. If the cookie is repeated, the first one counts.
    pub fn known<'a>(cookies: impl Iterator<Item = &'a str>, public: &PublicUrl) -> Option<Self> {
        let name = name(public);
        cookies
            .filter_map(|cookie| Cookie::parse(cookie).ok())
            .filter(|cookie| cookie.name() == name)
            .find_map(|cookie| URL_SAFE_NO_PAD.decode(cookie.value()).ok()?.try_into().ok().map(Self))
    }

    /// The value of `Set-Cookie`. The cookie lasts as long as a state that is made now. Each response that sets the cookie
    /// renews its time, so a repeated redirect is recognised for some time after the installation.
    pub fn cookie(&self, public: &PublicUrl) -> String {
        Cookie::build((name(public), URL_SAFE_NO_PAD.encode(self.0)))
            .path("/")
            .http_only(true)
            // Lax, because the redirect is a navigation from the marketplace's site. Strict would drop the cookie.
            .same_site(SameSite::Lax)
            .secure(public.is_secure())
            .max_age(cookie::time::Duration::try_from(CONSENT_TIME).unwrap_or_default())
            .to_string()
    }

    /// The secret. A state's signature covers it; it must not be logged or shown.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Browser {
    fn default() -> Self {
        Self::new()
    }
}

/// Name of the cookie. Browsers accept the `__Host-` prefix on TLS only, and loopback has no TLS.
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
    fn a_browser_is_recognised_by_its_cookie() {
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
    fn a_loopback_cookie_has_no_prefix_and_no_secure_attribute() {
        let set = Browser::new().cookie(&public("localhost:8080"));
        assert!(set.starts_with("relay-install=") && !set.contains("Secure"), "{set}");
    }

    #[test]
    fn a_foreign_or_malformed_cookie_identifies_no_browser() {
        let public = public("connect.example.com");
        for odd in
            ["", "=", "__Host-relay-install", "__Host-relay-install=", "__Host-relay-install=AAAA", "relay-install=x"]
        {
            assert!(Browser::known([odd].into_iter(), &public).is_none(), "{odd}");
        }
    }
}
