//! Asks the platform if the app is still installed, with the installation's own token.
//!
//! The question rotates no refresh token: each rotation is an exposure, and a webhook has no time for a lease. If the
//! access token is missing or nearly expired, the schedule renews the token. The question is asked again when the
//! schedule has renewed the token or the platform has refused the renewal.

use super::TokenError;
use super::probe::Probed;
use super::schedule::fresh_access;
use super::tokens::Tokens;
use crate::domain::installation::Installation;
use crate::platform::company_api::Presence;
use crate::table::StoreError;

impl Tokens {
    /// Asks the platform if an installation still exists. Takes one permit of the installation's resource, and does not
    /// wait for the permit.
    ///
    /// # Errors
    /// [`TokenError`]: a stored token does not open, or the table does not answer.
    pub async fn presence(&self, stored: &Installation) -> Result<Presence, TokenError> {
        let mut stored = stored.clone();
        if stored.minted().is_some() {
            match self.under_company(&mut stored).await {
                // No token works for a location without its company, or where the platform knows of no installation.
                Err(TokenError::Revoked | TokenError::NotInstalled) => return Ok(Presence::Gone),
                known => drop(known?),
            }
        }
        if let Some(sealed) = fresh_access(&stored, self.clock.now()) {
            let access = self.open(&stored, sealed).await?;
            return self.minter.presence(&stored.resource, &access).await;
        }
        if stored.minted().is_some() {
            return self.presence_of_minted(&stored).await;
        }
        // The platform has refused the refresh token, as it does after an uninstall.
        if stored.status().needs_human() {
            return Ok(Presence::Gone);
        }
        self.want_token(&stored).await?;
        Ok(Presence::Unclear("the access token is expired"))
    }

    /// Asks a location's company if a token can be minted for the location, which has no token of its own.
    async fn presence_of_minted(&self, location: &Installation) -> Result<Presence, TokenError> {
        let Some(company) = location.own_company() else {
            return Ok(Presence::Unclear("nobody knows whose location it is"));
        };
        let Some(company) = self.table.installation(&company).await? else { return Ok(Presence::Gone) };
        if company.installed().is_none() {
            return Ok(Presence::Gone);
        }
        Ok(match self.minter.probe_with_stored_token(&company, &location.resource, None).await? {
            // The schedule renews no token of a company that was given up, so no token works for its locations.
            None if company.status().needs_human() => Presence::Gone,
            None => {
                self.want_token(&company).await?;
                Presence::Unclear("the company's access token is expired")
            }
            Some(Probed::Installed) => Presence::Installed,
            Some(Probed::Absent) => Presence::Gone,
            Some(Probed::NotAllowed) => Presence::Unclear("the company's token may not mint"),
            Some(Probed::TokenRefused) => Presence::Unclear("the company's access token is refused"),
            Some(Probed::Suspended) => Presence::Unclear("the location is not active"),
            Some(Probed::Unclear(why)) => Presence::Unclear(why),
        })
    }

    async fn want_token(&self, stored: &Installation) -> Result<(), StoreError> {
        self.table.want_token(&stored.resource, stored.version, self.clock.now()).await.map(drop)
    }
}
