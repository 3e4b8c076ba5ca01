//! Readers of minted locations: they look at the company, too, and know where a token can be minted from.

use std::pin::Pin;
use std::time::Duration;

use super::mint::Company;
use super::refresh::{Failure, Refreshed, Why};
use super::tokens::{CACHED, MOST_CACHED, Tokens, lock};
use super::{TokenError, schedule};
use crate::clock::Millis;
use crate::installation::state::Status;
use crate::resource::{Kind, Resource};
use crate::table::company::Companies;
use crate::table::installation::Installation;

/// How many companies are asked about a location of which nobody knows whose it is.
const MOST_ASKED: usize = 5;
/// How long the list of companies is believed. With what is remembered of a location less than 10 s.
const LISTED: Duration = Duration::from_secs(2);

/// A company as its locations' readers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agency {
    status: Status,
    epoch: u64,
    read_at: Millis,
}

type Minting<'a> = Pin<Box<dyn Future<Output = Result<Refreshed, TokenError>> + Send + 'a>>;

impl Tokens {
    /// Looks at the company of a minted location: forgets a token that comes from an earlier installation of it. Gives
    /// back as of when the company is known.
    pub(super) async fn under_company(&self, stored: &mut Installation) -> Result<Millis, TokenError> {
        let now = self.clock.now();
        let minted = stored.minted.unwrap_or_default();
        if stored.status == Status::Revoked {
            return Ok(now);
        }
        if minted.absent_until.is_some_and(|until| now < until) {
            return Err(TokenError::NotInstalled);
        }
        let Some(company) = stored.company.as_deref().and_then(|id| Resource::company(id).ok()) else { return Ok(now) };
        let agency = self.agency(&company, minted.company_epoch).await?.ok_or(TokenError::NotInstalled)?;
        if agency.status == Status::Revoked {
            return Err(TokenError::Revoked);
        }
        if minted.company_epoch < agency.epoch {
            stored.pair = None;
        }
        Ok(agency.read_at)
    }

    /// A company, at most so old as a token in memory, and not older than `epoch`.
    async fn agency(&self, company: &Resource, epoch: u64) -> Result<Option<Agency>, TokenError> {
        let now = self.clock.now();
        let known = lock(&self.agencies).get(company).copied();
        if let Some(known) = known.filter(|known| now.since(known.read_at) < CACHED && known.epoch >= epoch) {
            return Ok(Some(known));
        }
        let Some(stored) = self.table.installation(company).await? else { return Ok(None) };
        let agency = Agency { status: stored.status, epoch: stored.lineage.epoch, read_at: now };
        let mut agencies = lock(&self.agencies);
        if agencies.len() >= MOST_CACHED {
            agencies.clear();
        }
        agencies.insert(company.clone(), agency);
        Ok(Some(agency))
    }

    /// Makes a place for a location that is not known, if there is any company that may have it.
    pub(super) async fn suppose(&self, resource: &Resource) -> Result<(), TokenError> {
        if resource.kind() == Kind::Company || self.companies().await?.is_empty() {
            return Err(TokenError::NotInstalled);
        }
        Ok(self.table.suppose(resource, self.clock.now()).await?)
    }

    /// Mints a location's token, whatever it has; once more with a newer token of the company if that was refused.
    ///
    /// # Errors
    /// [`TokenError`]: there is no token of a company to mint from.
    // A box and not an opaque future, because a location's token waits for its company's, which comes the same way.
    pub fn mint<'a>(&'a self, stored: &'a Installation, why: Why, deadline: Millis) -> Minting<'a> {
        Box::pin(async move {
            let location = &stored.resource;
            let companies = self.sources(stored, deadline).await?;
            let minted = self.minter.mint(location, stored.lineage, why, &companies, deadline).await;
            let Refreshed::Failed(Failure::CompanyRefused(refused, why)) = minted else {
                if let (Refreshed::Renewed(_), [company]) = (&minted, &companies[..]) {
                    self.worked(&company.resource, &company.access);
                }
                return Ok(minted);
            };
            let Company { resource, access } = *refused;
            let renewed = self.renew_because(&resource, &access, why, deadline).await.map_err(|error| match error {
                // It was renewed a moment ago and is refused again: that is the platform's to mend.
                TokenError::RecentlyForced => {
                    TokenError::InProgress { retry_at: self.clock.now() + schedule::FORCED_APART }
                }
                error => error,
            })?;
            let company = [Company { resource, access: renewed }];
            let minted = self.minter.mint(location, stored.lineage, Why::Due, &company, deadline).await;
            if let (Refreshed::Renewed(_), [Company { resource, access }]) = (&minted, &company) {
                self.worked(resource, access);
                if why == Why::Doubted {
                    self.renewal_helped(resource, access).await;
                }
            }
            Ok(minted)
        })
    }

    /// The companies that a location's token may be minted from, with their tokens.
    async fn sources(&self, stored: &Installation, deadline: Millis) -> Result<Vec<Company>, TokenError> {
        if let Some(company) = stored.company.as_deref().and_then(|id| Resource::company(id).ok()) {
            return Ok(vec![self.source(company, deadline).await?]);
        }
        let mut sources = Vec::new();
        let mut instead = TokenError::NotInstalled;
        for company in self.companies().await? {
            match self.source(company, deadline).await {
                Ok(source) => sources.push(source),
                Err(TokenError::NotInstalled | TokenError::Revoked | TokenError::ReauthorizationRequired { .. }) => {}
                Err(error) => instead = error,
            }
        }
        if sources.is_empty() { Err(instead) } else { Ok(sources) }
    }

    async fn source(&self, resource: Resource, deadline: Millis) -> Result<Company, TokenError> {
        let mut access = self.access(&resource, deadline).await?;
        // A token in memory may be older than what is known of the company: of an installation that has ended.
        if let Some(agency) = self.agency(&resource, access.epoch).await?
            && access.epoch < agency.epoch
        {
            self.forget(&resource, &access);
            access = self.access(&resource, deadline).await?;
        }
        Ok(Company { resource, access })
    }

    /// The companies to ask about a location of which nobody knows whose it is: first those that were installed a
    /// moment ago, whose locations the schedule has not read yet.
    async fn companies(&self) -> Result<Vec<Resource>, TokenError> {
        let now = self.clock.now();
        let listed = lock(&self.listed).clone().filter(|(at, _)| now.since(*at) < LISTED);
        if let Some((_, companies)) = listed {
            return Ok(companies);
        }
        let companies = to_ask(self.table.companies().await?);
        // That there are none is not remembered: the very first install works at once.
        *lock(&self.listed) = (!companies.is_empty()).then(|| (now, companies.clone()));
        Ok(companies)
    }
}

fn to_ask(mut known: Companies) -> Vec<Resource> {
    known.tasks.sort_by_key(|task| std::cmp::Reverse(task.at));
    let ids = known.tasks.into_iter().map(|task| task.company).chain(known.ids);
    let mut companies: Vec<Resource> = Vec::new();
    for company in ids.filter_map(|id| Resource::company(&id).ok()) {
        if companies.len() < MOST_ASKED && !companies.contains(&company) {
            companies.push(company);
        }
    }
    companies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::company::Task;

    #[test]
    fn who_was_installed_last_is_asked_first_and_few_are_asked() {
        let task = |company: &str, at| Task { company: company.into(), at: Millis(at) };
        let ids = ["A", "B", "C", "D", "E", "F"].map(str::to_owned).to_vec();
        let known = Companies { ids, tasks: vec![task("D", 1), task("F", 2), task("D", 3)] };
        let asked: Vec<_> = to_ask(known).iter().map(|company| company.id().to_owned()).collect();
        assert_eq!(asked, ["D", "F", "A", "B", "C"]);
    }
}
