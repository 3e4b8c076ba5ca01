//! The redirect back from the authorization page (RFC 6749 section 4.1.2): what it brings, and whether it is believed.
//!
//! Other parameters, such as `locationId`, are hints that anyone can write; whose token it is, the token's answer says.

use shared::config::MarketplaceInstalls;
use shared::domain::clock::Millis;
use shared::domain::redacted::Redacted;

use crate::authorize::Entrance;
use crate::browser::Browser;
use crate::failure::Failure;
use crate::query::parameter;
use crate::route;
use crate::state::{StateError, StateKey, VerifiedState};

/// The longest code that is passed on, in bytes. The platform's have 40; a signed one would have some hundreds.
const LONGEST_CODE: usize = 2048;

/// What an approved redirect brings.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// The authorization code: single use, so a secret until it is exchanged.
    pub code: Redacted,
    /// Absent where the installation was started in the marketplace's own pages.
    pub state: Option<String>,
}

impl Redirect {
    /// Reads the query.
    ///
    /// # Errors
    /// [`Failure::NotApproved`] for an error callback (section 4.1.2.1), also if it brings a code;
    /// [`Failure::Malformed`] for a code that is missing, too long or not visible ASCII (appendix A.11), and for
    /// repeated parameters.
    pub fn read(query: &str) -> Result<Self, Failure> {
        let code = parameter(query, "code")?;
        let state = parameter(query, "state")?;
        if parameter(query, "error")?.is_some() {
            return Err(Failure::NotApproved);
        }
        let code = code.filter(|code| is_code(code)).ok_or(Failure::Malformed)?;
        Ok(Self { code: Redacted::from(code), state })
    }

    /// The redirect URI that the code was issued for, which the token endpoint compares: links name one path, and
    /// the marketplace uses the one that is registered with the app, which is where the browser has come.
    #[must_use]
    pub fn path<'a>(&self, visited: &'a str) -> &'a str {
        if self.state.is_some() { route::CALLBACK } else { visited }
    }

    /// Decides whether the redirect belongs to this browser, or comes without a state where that is allowed.
    ///
    /// # Errors
    /// The state is not for this browser, or absent though it is required.
    pub fn admit(
        &self,
        key: &StateKey,
        browser: Option<&Browser>,
        redirect_uri: &str,
        without_state: MarketplaceInstalls,
    ) -> Result<Admitted, Failure> {
        match (&self.state, without_state) {
            (Some(state), _) => {
                let browser = browser.ok_or(Failure::BrowserUnknown)?;
                Ok(Admitted { state: Some(key.verify(state, browser, redirect_uri)?) })
            }
            (None, MarketplaceInstalls::Allow) => Ok(Admitted { state: None }),
            (None, MarketplaceInstalls::Deny) => Err(Failure::StateRequired),
        }
    }
}

/// A redirect that this browser may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its state, which is this browser's; absent from the marketplace's own pages.
    pub state: Option<VerifiedState>,
}

impl Admitted {
    /// The entrance that the installation came through.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        self.state.map_or(Entrance::Standard, |state| state.entrance)
    }

    /// Whether its code may still be exchanged.
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

    const URI: &str = "https://connect.example.com/oauth/callback";
    const NOW: Millis = Millis(1_750_000_000_000);

    fn key() -> StateKey {
        StateKey::derive(&Redacted::from("the app's client secret"))
    }

    #[test]
    fn what_is_no_code_is_refused() {
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
            assert_eq!(Redirect::read(query).expect_err(query), Failure::Malformed, "{query}");
        }
        let longest = format!("code={}", "a".repeat(LONGEST_CODE));
        for query in ["code=a%2Bb%2F%3D", "locationId=x&locationId=y&code=a", &longest] {
            assert!(Redirect::read(query).is_ok(), "{query}");
        }
    }

    #[test]
    fn an_error_counts_more_than_a_code() {
        for query in ["error=access_denied", "error=x&code=good", "code=good&state=s&error=%3Cscript%3E"] {
            assert_eq!(Redirect::read(query).expect_err(query), Failure::NotApproved, "{query}");
        }
        assert_eq!(Redirect::read("error=a&error=b").expect_err("twice"), Failure::Malformed);
        assert_eq!(Redirect::read("code=a&state=b&state=c").expect_err("twice"), Failure::Malformed);
    }

    #[test]
    fn the_redirect_uri_is_the_links_or_the_one_that_was_visited() -> Result<(), Failure> {
        assert_eq!(Redirect::read("code=a&state=s")?.path("/oauth/callback/x"), "/oauth/callback");
        assert_eq!(Redirect::read("code=a&state=")?.path("/oauth/callback/x"), "/oauth/callback/x");
        Ok(())
    }

    #[test]
    fn only_the_browser_that_began_may_finish_and_in_time() -> Result<(), Failure> {
        let (browser, another) = (Browser::new(), Browser::new());
        let state = key().sign(Entrance::WhiteLabel, &browser, URI, NOW);
        let redirect = Redirect::read(&format!("code=a&state={state}"))?;
        let admit = |browser, now| -> Result<Entrance, Failure> {
            let admitted = redirect.admit(&key(), browser, URI, MarketplaceInstalls::Allow)?;
            admitted.check_age(now)?;
            Ok(admitted.entrance())
        };
        assert_eq!(admit(Some(&browser), NOW), Ok(Entrance::WhiteLabel));
        assert_eq!(admit(Some(&browser), NOW + CONSENT_TIME), Err(Failure::StateExpired));
        assert_eq!(admit(Some(&another), NOW), Err(Failure::StateForeign));
        assert_eq!(admit(None, NOW), Err(Failure::BrowserUnknown));
        Ok(())
    }

    #[test]
    fn without_state_the_configuration_decides() -> Result<(), Failure> {
        let redirect = Redirect::read("code=a")?;
        let admit = |without_state| redirect.admit(&key(), None, URI, without_state);
        assert_eq!(admit(MarketplaceInstalls::Allow).map(|admitted| admitted.entrance()), Ok(Entrance::Standard));
        assert_eq!(admit(MarketplaceInstalls::Deny), Err(Failure::StateRequired));
        Ok(())
    }
}
