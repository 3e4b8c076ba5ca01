//! The search for a company to mint a token from, for a location whose own grant is refused.

use futures_util::future::join_all;

use super::attempt::LeasedRefresh;
use crate::domain::installation::Installation;
use crate::domain::resource::{Kind, Resource};
use crate::table::StoreError;
use crate::table::search::SearchReason;
use crate::token::companies::MOST_ASKED;
use crate::token::probe::Probed;

/// The possibility to mint a token from a company's for a location whose own grant is refused.
pub(super) enum Minting {
    /// The company has the app there, and its installation has this epoch.
    Possible { company: Resource, epoch: u64 },
    /// No company that has a grant is known to have the app there, or the token of the location's company may not mint.
    Impossible,
    /// The platform has paused the location.
    Suspended,
    /// The location's company cannot be asked now, for this reason.
    Unknown(&'static str),
    /// Another company cannot be asked now, for this reason. The location waits for that company once.
    NotYet(&'static str),
}

impl LeasedRefresh<'_, '_> {
    /// Asks the location's company if it has the app there. If it does not, the location may have moved: then a few
    /// other companies are asked, too.
    pub(super) async fn minting(&self) -> Result<Minting, StoreError> {
        if self.leased.installation.resource.kind() == Kind::Company {
            return Ok(Minting::Impossible);
        }
        let own = self.leased.installation.own_company();
        if let Some(own) = &own {
            let known = self.ask(own, true).await?;
            if !matches!(known, Minting::Impossible) {
                return Ok(known);
            }
        }
        self.ask_others(own.as_ref()).await
    }

    /// Asks a few companies other than the location's own. If one of them cannot be asked now, the location waits for it
    /// once.
    async fn ask_others(&self, own: Option<&Resource>) -> Result<Minting, StoreError> {
        let Installation { resource, version, search, .. } = &self.leased.installation;
        let table = &self.refresher.parts.table;
        let (listed, more) = table.newest_companies(MOST_ASKED).await?;
        let others = listed.iter().map(|listed| &listed.company).filter(|company| Some(*company) != own);
        let mut unasked = None;
        for answer in join_all(others.map(|company| self.ask(company, false))).await {
            match answer {
                Ok(found @ Minting::Possible { .. }) => return Ok(found),
                Ok(Minting::Impossible) => {}
                // The platform may say so without regard to the company that asks.
                Ok(Minting::Suspended) => unasked = Some("the location is not active"),
                Ok(Minting::Unknown(why) | Minting::NotYet(why)) => unasked = Some(why),
                Err(error) => {
                    tracing::warn!(%resource, %error, "another company cannot be read");
                    unasked = Some("another company cannot be read");
                }
            }
        }
        let is_marked = self.leased.installation.claimed_from().needs_human();
        if let Some(why) = unasked
            && search.others_again_at.is_none()
            && !is_marked
        {
            return Ok(Minting::NotYet(why));
        }
        // The customer is asked to install the app again. If the location belongs to one of the companies that were not
        // asked, the schedule finds it, and its token is minted without the customer.
        if more {
            let (reason, now) = (SearchReason::Former, self.refresher.parts.clock.now());
            if let Err(error) = table.queue_search(resource, *version, &self.leased.owner, reason, now).await {
                tracing::warn!(%resource, %error, "a location is not queued for the search for its company");
            }
        }
        Ok(Minting::Impossible)
    }

    /// Asks a company if it has the app in the location, with the company's stored token. A token that does not work is
    /// not renewed here, because a renewal could take longer than the lease. It becomes due at once instead, unless its
    /// own last renewal has failed, and the schedule renews it. With `waits`, the request waits for a permit of the company.
    async fn ask(&self, company: &Resource, waits: bool) -> Result<Minting, StoreError> {
        let company = self.refresher.parts.table.installation(company).await?;
        let Some(company) = company.filter(|company| !company.status().has_ended()) else {
            return Ok(Minting::Impossible);
        };
        let now = self.refresher.parts.clock.now();
        if !self.leased.lease.allows_presentation(now) {
            return Ok(Minting::Unknown("too little time is left of the lease"));
        }
        let wait_until = waits.then(|| self.leased.lease.last_presentation());
        let location = &self.leased.installation.resource;
        let probed = self.refresher.minter.probe_with_stored_token(&company, location, wait_until).await;
        if let Ok(None | Some(Probed::TokenRefused)) = probed
            && company.status().has_live_pair()
            && company.schedule().retry_at.is_none_or(|retry_at| retry_at <= now)
            && let Err(error) = self.refresher.parts.table.want_token(&company.resource, company.version, now).await
        {
            tracing::warn!(company = %company.resource, %error, "a company's token that does not work could not be made due");
        }
        Ok(match probed {
            Ok(Some(Probed::Installed)) => {
                Minting::Possible { epoch: company.version.epoch, company: company.resource }
            }
            Ok(Some(Probed::Absent | Probed::NotAllowed)) => Minting::Impossible,
            Ok(Some(Probed::Suspended)) => Minting::Suspended,
            Ok(Some(Probed::TokenRefused)) => Minting::Unknown("the company's access token is refused"),
            Ok(Some(Probed::Unclear(why))) => Minting::Unknown(why),
            Ok(None) => Minting::Unknown("the company's access token is expired"),
            Err(error) => {
                tracing::warn!(company = %company.resource, %error, "a company's token cannot be used");
                Minting::Unknown("the company's access token cannot be used")
            }
        })
    }
}
