//! Questions to the platform about an installation that store nothing: if a company has the app in a location, and if the
//! platform accepts a token.

use super::mint::{Minter, PATH, PLACEHOLDER_BURST};
use super::reading::open;
use super::schedule::fresh_access;
use super::{Company, TokenError};
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::installation::Installation;
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;
use crate::limiter::ShareOwner;
use crate::platform::company_api::{CompanyApiError, Departure, Presence};

/// The path of the requests about an installation. The platform may limit this path on its own.
pub(super) const PATH_OF_INSTALLATIONS: &str = "/marketplace/app";

/// The platform's answer about a location, asked with the token of one company. Nothing is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// The company has the app there.
    Installed,
    /// The company does not have the app there.
    Absent,
    /// The company's token may not mint: the token lacks the scope `oauth.write`.
    NotAllowed,
    /// The platform does not take the company's token.
    TokenRefused,
    /// The platform has paused the location.
    Suspended,
    /// The answer does not say whether the company has the app there.
    Unclear(&'static str),
}

impl Minter {
    /// Asks a company for a location's token, to find out if the company has the app there, and drops the token. Writes
    /// nothing, so the call needs no lease. Waits until `wait_until` for a permit of the company. The permit comes from
    /// the share of locations that only a caller has named.
    pub(super) async fn probe(&self, company: &Company, location: &Resource, wait_until: Option<Millis>) -> Probed {
        let to = Endpoint::of(&company.resource, PATH);
        let Ok(connection) = self.parts.endpoint.connection().await else { return Probed::Unclear("no connection") };
        let permit = self.limiter.take_within_share(ShareOwner::Minter, to, PLACEHOLDER_BURST, wait_until).await;
        let Ok(permit) = permit else { return Probed::Unclear("no permit of the company's") };
        let departure = Departure { connection, leave_by: permit.send_by };
        let asked = self.parts.endpoint.mint(&company.resource, &company.access, location, departure).await;
        let Some((asked, meta)) = asked else { return Probed::Unclear("the permit came too late") };
        self.learn_limits(to, meta).await;
        if let Some((status, said)) = asked.as_ref().err().and_then(CompanyApiError::unclassified) {
            self.parts.alarms.unclassified(location, status, said).await;
        }
        match asked {
            Ok(_) => Probed::Installed,
            Err(CompanyApiError::Absent) => Probed::Absent,
            Err(CompanyApiError::NotAllowed(_)) => Probed::NotAllowed,
            Err(CompanyApiError::TokenRefused) => Probed::TokenRefused,
            Err(CompanyApiError::Unanswered(why)) => Probed::Unclear(why),
            Err(CompanyApiError::NotReached) => Probed::Unclear("the platform was not reached"),
            Err(CompanyApiError::Throttled { .. }) => Probed::Unclear("throttled"),
            Err(CompanyApiError::Suspended) => Probed::Suspended,
            Err(CompanyApiError::TokenDoubted(_) | CompanyApiError::Unclassified { .. }) => {
                Probed::Unclear("an unclassified answer")
            }
            Err(CompanyApiError::WrongTenant) => Probed::Unclear("a grant for another location or company"),
        }
    }

    /// Asks a company for a location's token with the company's stored token ([`Minter::probe`]). Renews no token:
    /// `None` if the stored token is missing, or not fresh.
    pub(super) async fn probe_with_stored_token(
        &self,
        company: &Installation,
        location: &Resource,
        wait_until: Option<Millis>,
    ) -> Result<Option<Probed>, TokenError> {
        let Some(sealed) = fresh_access(company, self.parts.clock.now()) else { return Ok(None) };
        let access = open(&self.parts.vault, company, sealed).await?;
        let company = Company { resource: company.resource.clone(), access };
        Ok(Some(self.probe(&company, location, wait_until).await))
    }

    /// Asks the platform if it accepts this token. Takes a permit of the resource.
    pub(super) async fn presence(&self, resource: &Resource, access: &Access) -> Result<Presence, TokenError> {
        let to = Endpoint::of(resource, PATH_OF_INSTALLATIONS);
        let Ok(connection) = self.parts.endpoint.connection().await else {
            return Ok(Presence::Unclear("no connection"));
        };
        let Ok(permit) = self.limiter.take(to, None).await else { return Ok(Presence::Unclear("no permit")) };
        let departure = Departure { connection, leave_by: permit.send_by };
        let Some((presence, meta)) = self.parts.endpoint.presence(access, departure).await? else {
            return Ok(Presence::Unclear("the permit came too late"));
        };
        self.learn_limits(to, meta).await;
        Ok(presence)
    }
}
