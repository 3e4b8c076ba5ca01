//! The redirect back from the authorization page (RFC 6749 section 4.1.2): its parameters and their check.
//!
//! Other parameters, such as `locationId`, are ignored, because anyone can write them. The token response names the
//! location or company of the token.

use shared::config::MarketplaceInstalls;
use shared::domain::clock::Millis;
use shared::domain::redacted::Redacted;

use crate::authorize::Marketplace;
use crate::browser::Browser;
use crate::failure::InstallFailure;
use crate::query::parameter;
use crate::route;
use crate::state::{StateError, StateKey, VerifiedState};

/// The longest accepted code, in bytes. The platform's codes have 40 bytes; a signed code would have some hundreds.
const LONGEST_CODE: usize = 2048;

/// The parameters of an approved redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// The authorization code. Codes are single-use; until the exchange, the code is a secret.
    pub code: Redacted,
    /// The `state`. Absent if the installation was started in the marketplace's own pages.
    pub state: Option<String>,
}

impl Redirect {
    /// Reads the query.
    ///
    /// # Errors
    /// [`InstallFailure::NotApproved`] for an error response (section 4.1.2.1), even if it has a code;
    /// [`InstallFailure::Malformed`] for a code that is missing, too long or not visible ASCII (appendix A.11), and for
    /// repeated parameters.
    pub fn read(query: &str) -> Result<Self, InstallFailure> {
        let code = parameter(query, "code")?;
        let state = parameter(query, "state")?;
        if parameter(query, "error")?.is_some() {
            return Err(InstallFailure::NotApproved);
        }
        let code = code.filter(|code| is_code(code)).ok_or(InstallFailure::Malformed)?;
        Ok(Self { code: Redacted::from(code), state })
    }

    /// The path of the redirect URI that the code was issued for. The token endpoint compares the URI. Our links name
    /// one fixed path. The marketplace's own pages use the URI registered with the app: the path that the browser
    /// visited.
    pub fn path<'a>(&self, visited: &'a str) -> &'a str {
        if self.state.is_some() { route::CALLBACK } else { visited }
    }

    /// Accepts a redirect whose state was signed for this browser. Accepts a redirect without a state if the
    /// configuration allows that.
    ///
    /// # Errors
    /// The state was not signed for this browser, or a required state is absent.
    pub fn admit(
        &self,
        key: &StateKey,
        browser: Option<&Browser>,
        redirect_uri: &str,
        without_state: MarketplaceInstalls,
    ) -> Result<Admitted, InstallFailure> {
        match (&self.state, without_state) {
            (Some(state), _) => {
                let browser = browser.ok_or(InstallFailure::BrowserUnknown)?;
                Ok(Admitted { state: Some(key.verify(state, browser, redirect_uri)?) })
            }
            (None, MarketplaceInstalls::Allow) => Ok(Admitted { state: None }),
            (None, MarketplaceInstalls::Deny) => Err(InstallFailure::StateRequired),
        }
    }
}

/// A redirect that was accepted from this browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The verified state. Absent if the installation was started in the marketplace's own pages.
    pub state: Option<VerifiedState>,
}

impl Admitted {
    /// The marketplace host that the installation was started on.
    pub fn marketplace(&self) -> Marketplace {
        self.state.map_or(Marketplace::Standard, |state| state.marketplace)
    }

    /// Checks that the state is not too old for an exchange of the code.
    ///
    /// # Errors
    /// [`StateError::Expired`].
    pub fn check_age(&self, now: Millis) -> Result<(), StateError> {
        self.state.map_or(Ok(()), |state| state.check_age(now))
    }
}

fn is_code(code: &str) -> bool {
    code.len() <= LONGEST_CODE && code.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::CONSENT_TIME;
    use crate::state::tests::{NOW, URI, key};

    #[test]
    fn malformed_codes_are_refused() {
        let long = format!("code={}", "a".repeat(LONGEST_CODE + 1));
        for query in [
            "",
            "code",
            "code=",
            "code=%0a",
            "code=a%20b",
            "code=%C3%A9",
            "code=%ff",
            "code=a%00",
            "code=a&code=b",
            &long,
        ] {
            assert_eq!(Redirect::read(query).expect_err(query), InstallFailure::Malformed, "{query}");
        }
        let longest = format!("code={}", "a".repeat(LONGEST_CODE));
        for query in ["code=a%2Bb%2F%3D", "locationId=x&locationId=y&code=a", &longest] {
            assert!(Redirect::read(query).is_ok(), "{query}");
        }
    }

    #[test]
    fn an_error_takes_precedence_over_a_code() {
        for query in ["error=access_denied", "error=x&code=good", "code=good&state=s&error=%3Cscript%3E"] {
            assert_eq!(Redirect::read(query).expect_err(query), InstallFailure::NotApproved, "{query}");
        }
        assert_eq!(Redirect::read("error=a&error=b").expect_err("twice"), InstallFailure::Malformed);
        assert_eq!(Redirect::read("code=a&state=b&state=c").expect_err("twice"), InstallFailure::Malformed);
    }

    #[test]
    fn the_redirect_uri_is_fixed_for_links_and_the_visited_path_otherwise() -> Result<(), InstallFailure> {
        assert_eq!(Redirect::read("code=a&state=s")?.path("/oauth/callback/x"), "/oauth/callback");
        assert_eq!(Redirect::read("code=a&state=")?.path("/oauth/callback/x"), "/oauth/callback/x");
        Ok(())
    }

    #[test]
    fn a_state_is_accepted_from_its_own_browser_until_it_expires() -> Result<(), InstallFailure> {
        let (browser, another) = (Browser::new(), Browser::new());
        let state = key().sign(Marketplace::WhiteLabel, &browser, URI, NOW);
        let redirect = Redirect::read(&format!("code=a&state={state}"))?;
        let admit = |browser, now| -> Result<Marketplace, InstallFailure> {
            let admitted = redirect.admit(&key(), browser, URI, MarketplaceInstalls::Allow)?;
            admitted.check_age(now)?;
            Ok(admitted.marketplace())
        };
        assert_eq!(admit(Some(&browser), NOW), Ok(Marketplace::WhiteLabel));
        assert_eq!(admit(Some(&browser), NOW + CONSENT_TIME), Err(InstallFailure::StateExpired));
        assert_eq!(admit(Some(&another), NOW), Err(InstallFailure::StateForeign));
        assert_eq!(admit(None, NOW), Err(InstallFailure::BrowserUnknown));
        Ok(())
    }

    #[test]
    fn the_configuration_decides_on_a_redirect_without_state() -> Result<(), InstallFailure> {
        let redirect = Redirect::read("code=a")?;
        let admit = |without_state| redirect.admit(&key(), None, URI, without_state);
        assert_eq!(admit(MarketplaceInstalls::Allow).map(|admitted| admitted.marketplace()), Ok(Marketplace::Standard));
        assert_eq!(admit(MarketplaceInstalls::Deny), Err(InstallFailure::StateRequired));
        Ok(())
    }
}
