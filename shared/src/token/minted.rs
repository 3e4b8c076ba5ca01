//! Reading the token of a minted location: checks its company too, and finds the company to mint a token from.

use std::pin::Pin;
use std::time::Duration;

use super::companies::{Agency, MOST_ASKED, Roster};
use super::mint::{CompanyRefused, WhenAbsent};
use super::outcome::{Refreshed, Why};
use super::tokens::{CACHED, MOST_CACHED, Tokens};
use super::{Company, TokenError, lock, schedule};
use crate::domain::clock::Millis;
use crate::domain::installation::{CompanySearch, Installation};
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::Status;

/// The head of the list of companies is used from memory for this time. This time and the memory of an absence add up
/// to less than 10 s.
const LISTED: Duration = Duration::from_secs(2);

/// The companies to ask about a location, with their tokens.
struct Sources {
    companies: Vec<Company>,
    /// The reason for which a company cannot be asked now.
    unasked: Option<TokenError>,
}

type Minting<'a> = Pin<Box<dyn Future<Output = Result<Refreshed, TokenError>> + Send + 'a>>;

impl Tokens {
    /// Checks the company of a minted location. Removes a token from `stored` if the token comes from an earlier
    /// installation of the company. Returns the time at which the company was read.
    pub(super) async fn under_company(&self, stored: &mut Installation) -> Result<Millis, TokenError> {
        let now = self.clock.now();
        let Some(minted) = stored.minted() else { return Ok(now) };
        let agency = match stored.own_company() {
            Some(company) => Some(self.agency(&company, minted.company_epoch).await?.ok_or(TokenError::NotInstalled)?),
            None => None,
        };
        let status = agency.map_or(Status::Active, |agency| agency.status);
        if !status.is_installed() {
            return Err(TokenError::Revoked);
        }
        let works = stored.access().is_some_and(|access| now < access.expires_at);
        // While the location's company has no grant, the absence of the location at other companies means nothing.
        if !works && !stored.status().needs_human() && !status.needs_human() {
            self.expect_present(stored.search).await?;
        }
        let Some(agency) = agency else { return Ok(now) };
        if minted.company_epoch < agency.epoch {
            stored.forget_access();
        }
        Ok(agency.read_at)
    }

    /// Returns a company from memory or from the table. Its snapshot is at most as old as a token in memory may be. A
    /// snapshot in memory of an epoch before `epoch` is not used.
    async fn agency(&self, company: &Resource, epoch: u64) -> Result<Option<Agency>, TokenError> {
        let now = self.clock.now();
        let known = lock(&self.agencies).get(company).copied();
        if let Some(known) = known.filter(|known| now.since(known.read_at) < CACHED && known.epoch >= epoch) {
            return Ok(Some(known));
        }
        let Some(stored) = self.table.installation(company).await? else { return Ok(None) };
        let agency = Agency { status: stored.status(), epoch: stored.version.epoch, read_at: now };
        let mut agencies = lock(&self.agencies);
        if agencies.len() >= MOST_CACHED {
            agencies.clear();
        }
        agencies.insert(company.clone(), agency);
        Ok(Some(agency))
    }

    /// Stores a placeholder for an unknown location, if there is any company that may have the location.
    pub(super) async fn keep_placeholder(&self, resource: &Resource) -> Result<(), TokenError> {
        if resource.kind() == Kind::Company || self.roster().await?.newest.is_empty() {
            return Err(TokenError::NotInstalled);
        }
        Ok(self.table.keep_placeholder(resource, self.clock.now()).await?)
    }

    /// Returns an error if the companies were asked about a location a moment ago and none has the app there, or if the
    /// schedule is still asking the companies.
    async fn expect_present(&self, search: CompanySearch) -> Result<(), TokenError> {
        let now = self.clock.now();
        if search.absent_until.is_some_and(|until| now < until) {
            let newest_at = match search.absent_newest {
                Some(_) => self.roster().await?.newest_at,
                None => None,
            };
            // A company that was listed after the absence was noted has not been asked.
            if newest_at <= search.absent_newest {
                return Err(TokenError::NotInstalled);
            }
        }
        match search.search_since {
            Some(since) if now < since + schedule::SEARCH_OVER => {
                Err(TokenError::InProgress { retry_at: now + schedule::SEARCH_RETRY })
            }
            _ => Ok(()),
        }
    }

    /// Mints a location's token, even if the location has one. If the company's token is refused, that token is renewed
    /// and the minting is repeated once.
    ///
    /// A location that its company does not have (any more) may have moved to another company, so the other companies
    /// are asked, as for a location with an unknown company. The other companies are asked also if the location's
    /// company was uninstalled or needs a new authorization (`ask_others`).
    ///
    /// # Errors
    /// [`TokenError`]: there is no token of a company to mint from.
    // The future is boxed and not opaque because it is recursive: a location's token needs its company's token, which
    // is read by the same functions.
    pub fn mint<'a>(&'a self, stored: &'a Installation, why: Why, deadline: Millis) -> Minting<'a> {
        Box::pin(async move {
            let Some(company) = stored.own_company() else {
                self.expect_present(stored.search).await?;
                return self.ask_around(stored, why, None, deadline).await;
            };
            let source = match self.source(company.clone(), deadline).await {
                Ok(source) => vec![source],
                Err(ended @ (TokenError::Revoked | TokenError::ReauthorizationRequired { .. })) => {
                    return self.ask_others(stored, why, &company, ended, deadline).await;
                }
                Err(error) => return Err(error),
            };
            self.expect_present(stored.search).await?;
            let roster = self.roster().await?;
            let others = roster.more || roster.newest.iter().any(|listed| *listed != company);
            let when_absent = if others { WhenAbsent::AskOthers } else { WhenAbsent::Remember };
            let minted = self.mint_from(stored, why, source, when_absent, deadline).await?;
            if others && matches!(minted, Refreshed::Failed(TokenError::NotInstalled)) {
                return self.ask_around(stored, why, Some(&company), deadline).await;
            }
            Ok(minted)
        })
    }

    /// Mints the token of a location from any company that has the app there. Asks a few companies now; the schedule
    /// asks the others. The company `asked` has said that it does not have the app there, and is not asked again.
    async fn ask_around(
        &self,
        stored: &Installation,
        why: Why,
        asked: Option<&Resource>,
        deadline: Millis,
    ) -> Result<Refreshed, TokenError> {
        let Roster { newest, more, .. } = self.roster().await?;
        let others = newest.into_iter().filter(|company| Some(company) != asked);
        let Sources { companies, unasked } = self.sources(others, deadline).await;
        // If the location's own company has answered and there is no other company to ask, the absence is certain.
        let is_decided = asked.is_some() && unasked.is_none();
        if companies.is_empty() && !more && !is_decided {
            return Err(unasked.unwrap_or(TokenError::NotInstalled));
        }
        let when_absent = if more || unasked.is_some() { WhenAbsent::Search } else { WhenAbsent::Remember };
        self.mint_from(stored, why, companies, when_absent, deadline).await
    }

    /// Mints the token of a location from a company other than its own, which has ended. If none of the other companies
    /// is known to have the app there, the caller gets the error `ended`, and nothing is concluded about the location.
    ///
    /// Asks a few companies now; the schedule asks the others. The minter notes when the companies are asked again. They
    /// are asked sooner if a company is listed that was not asked.
    async fn ask_others(
        &self,
        stored: &Installation,
        why: Why,
        company: &Resource,
        ended: TokenError,
        deadline: Millis,
    ) -> Result<Refreshed, TokenError> {
        let Roster { newest, newest_at, more, .. } = self.roster().await?;
        let is_asked = stored.search.others_again_at.is_some_and(|again_at| self.clock.now() < again_at)
            && newest_at <= stored.schedule().tried_at;
        if is_asked || stored.status().needs_human() {
            return Err(ended);
        }
        let others = newest.into_iter().filter(|other| other != company);
        let Sources { companies, unasked } = self.sources(others, deadline).await;
        if companies.is_empty() && !more {
            return Err(ended);
        }
        let when_absent = WhenAbsent::Unknown { search: more, unasked: unasked.is_some() };
        match self.mint_from(stored, why, companies, when_absent, deadline).await {
            Ok(Refreshed::Failed(_)) | Err(_) => Err(ended),
            Ok(found) => Ok(found),
        }
    }

    async fn mint_from(
        &self,
        stored: &Installation,
        why: Why,
        mut companies: Vec<Company>,
        when_absent: WhenAbsent,
        deadline: Millis,
    ) -> Result<Refreshed, TokenError> {
        let location = &stored.resource;
        // The future is boxed because it is large, and every future around it would be as large.
        let minting = Box::pin(self.minter.mint(location, stored.version, why, &companies, when_absent, deadline));
        let refused = match minting.await {
            Ok(minted) => {
                if let (Refreshed::Renewed(_), [company]) = (&minted, &companies[..]) {
                    self.worked(&company.resource, &company.access);
                }
                return Ok(minted);
            }
            Err(refused) => *refused,
        };
        let CompanyRefused { company: Company { resource, access }, why } = refused;
        // The company's token was renewed a moment ago and is refused again. Only the platform can correct that.
        let again_later = || TokenError::InProgress { retry_at: self.clock.now() + schedule::FORCED_APART };
        let renewed = self.renew_because(&resource, &access, why, deadline).await.map_err(|error| match error {
            TokenError::RecentlyForced => again_later(),
            error => error,
        })?;
        for company in companies.iter_mut().filter(|company| company.resource == resource) {
            company.access = renewed.clone();
        }
        let minting = Box::pin(self.minter.mint(location, stored.version, Why::Due, &companies, when_absent, deadline));
        let minted = minting.await.map_err(|_| again_later())?;
        if let (Refreshed::Renewed(_), [Company { resource, access }]) = (&minted, &companies[..]) {
            self.worked(resource, access);
            if why == Why::Doubted {
                self.renewal_helped(resource, access).await;
            }
        }
        Ok(minted)
    }

    async fn sources(&self, companies: impl Iterator<Item = Resource>, deadline: Millis) -> Sources {
        let mut sources = Sources { companies: Vec::new(), unasked: None };
        for company in companies {
            match self.source(company, deadline).await {
                Ok(source) => sources.companies.push(source),
                Err(TokenError::NotInstalled | TokenError::Revoked | TokenError::ReauthorizationRequired { .. }) => {}
                Err(error) => sources.unasked = Some(error),
            }
        }
        sources
    }

    pub(super) async fn source(&self, resource: Resource, deadline: Millis) -> Result<Company, TokenError> {
        let mut access = self.access(&resource, deadline).await?;
        // A token in memory may come from an earlier installation of the company, which has ended.
        if let Some(agency) = self.agency(&resource, access.epoch).await?
            && access.epoch < agency.epoch
        {
            self.forget(&resource, &access);
            access = self.access(&resource, deadline).await?;
        }
        Ok(Company { resource, access })
    }

    /// Returns the head of the list of companies, from memory or from the table.
    async fn roster(&self) -> Result<Roster, TokenError> {
        let now = self.clock.now();
        let known = lock(&self.listed).clone().filter(|known| now.since(known.read_at) < LISTED);
        if let Some(known) = known {
            return Ok(known);
        }
        let (listed, more) = self.table.newest_companies(MOST_ASKED).await?;
        let newest_at = listed.first().map(|newest| newest.listed_at);
        let newest: Vec<Resource> = listed.into_iter().map(|listed| listed.company).collect();
        let roster = Roster { read_at: now, newest, newest_at, more };
        // An empty list is not kept in memory, so that the very first install works at once.
        *lock(&self.listed) = (!roster.newest.is_empty()).then(|| roster.clone());
        Ok(roster)
    }
}
