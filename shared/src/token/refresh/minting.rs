//! The search for a company to mint a token from, for a location whose own grant is refused.

use futures_util::future::try_join_all;

use super::attempt::LeasedRefresh;
use crate::domain::installation::Installation;
use crate::domain::resource::{Kind, Resource};
use crate::table::StoreError;
use crate::table::search::SearchReason;
use crate::token::minted::MOST_ASKED;
use crate::token::probe::Probed;
use crate::token::schedule;

/// After this many failures in a row, a company other than the location's own that cannot be asked no longer keeps the
/// location from being marked.
const PATIENCE: u32 = 5;

/// The possibility to mint a token from a company's for a location whose own grant is refused.
pub(super) enum Minting {
    /// The company has the app there, and its installation has this epoch.
    Possible { company: Resource, epoch: u64 },
    /// No company that has a grant is known to have the app there, or the token of the location's company may not mint.
    Impossible,
    /// The platform has paused the location.
    Suspended,
    /// A company cannot be asked now, for this reason.
    Unknown(&'static str),
}

impl LeasedRefresh<'_> {
    /// Asks the location's company if it has the app there. If it does not, the location may have moved: then a few
    /// other companies are asked now, and the schedule asks the others.
    pub(super) async fn minting(&self) -> Result<Minting, StoreError> {
        let Installation { resource, company, .. } = &self.leased.installation;
        if resource.kind() == Kind::Company {
            return Ok(Minting::Impossible);
        }
        let own = company.as_deref().and_then(|id| Resource::company(id).ok());
        if let Some(own) = &own {
            let known = self.ask(own, true).await?;
            if !matches!(known, Minting::Impossible) {
                return Ok(known);
            }
        }
        self.ask_others(own.as_ref()).await
    }

    async fn ask_others(&self, own: Option<&Resource>) -> Result<Minting, StoreError> {
        let Installation { resource, version, search, schedule: planned, .. } = &self.leased.installation;
        let mut listed = self.refresher.parts.table.newest_companies(MOST_ASKED + 1).await?;
        let more = listed.len() > MOST_ASKED;
        listed.truncate(MOST_ASKED);
        let others = listed.iter().map(|listed| &listed.company).filter(|company| Some(*company) != own);
        let mut unasked = None;
        for answer in try_join_all(others.map(|company| self.ask(company, false))).await? {
            match answer {
                Minting::Possible { .. } => return Ok(answer),
                Minting::Impossible => {}
                // The platform may say so without regard to the company that asks.
                Minting::Suspended => unasked = Some("the location is not active"),
                Minting::Unknown(why) => unasked = Some(why),
            }
        }
        if let Some(why) = unasked
            && planned.failures < PATIENCE
        {
            return Ok(Minting::Unknown(why));
        }
        let now = self.refresher.parts.clock.now();
        if !more || search.absent_until.is_some_and(|until| now < until) {
            return Ok(Minting::Impossible);
        }
        if search.search_since.is_none_or(|since| since + schedule::SEARCH_OVER <= now) {
            let is_queued = self
                .refresher
                .parts
                .table
                .queue_search(resource, *version, &self.leased.owner, SearchReason::Former, now)
                .await?;
            if !is_queued {
                return Ok(Minting::Unknown("the queue of the schedule's search is full"));
            }
        }
        Ok(Minting::Unknown("the schedule asks the other companies"))
    }

    /// Asks a company if it has the app in the location, with the company's stored token. A token that does not work is
    /// not renewed here, because a renewal could take longer than the lease. It becomes due at once instead, and the
    /// schedule renews it. With `waits`, the request waits for a permit of the company.
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
