//! The search for the company of a location: the schedule asks the companies that no call has asked.
//!
//! A call for a location with an unknown company asks a few companies, and queues the location if there are more
//! ([`crate::table::search`]). Callers are told to come back until every company was asked. The number of queued
//! locations is bounded, and an absence is remembered. So calls for locations that do not exist cannot keep the system
//! asking.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::TokenError;
use super::mint::WhenAbsent;
use super::outcome::Why;
use super::probe::Probed;
use super::tokens::Tokens;
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::table::StoreError;
use crate::table::company::Listed;
use crate::table::installation::LEASE;
use crate::table::minted::InstallNotice;
use crate::table::search::Search;

/// A search ends after this time, even if some companies were not asked.
const PATIENCE: Duration = Duration::from_mins(10);
/// An absence is remembered for this time if every company was asked. An install ends that time sooner.
const ABSENT_AFTER_ALL: Duration = Duration::from_hours(1);
/// An absence is remembered for this time if some companies could not be asked.
const ABSENT_AFTER_SOME: Duration = Duration::from_mins(5);
/// The number of locations that are searched for at once.
const LOCATIONS_AT_ONCE: usize = 4;
/// The number of companies that are asked at once about one location.
const COMPANIES_AT_ONCE: usize = 16;
/// The progress of a search is stored each time this many companies were asked.
const PAGE: usize = 64;
/// The most companies that are remembered for one location because they could not be asked.
const MOST_LEFT: usize = 100;
/// The longest wait for a permit to ask a company.
const PERMIT: Duration = Duration::from_secs(5);
/// No company is asked if less time than this is left: its token may have to be renewed first.
const ENOUGH: Duration = LEASE.saturating_add(Duration::from_secs(1));

/// A company's answer about a location.
enum CompanyAnswer {
    Installed,
    Absent,
    /// The company's installation has ended, so there is no token to ask with.
    Ended,
    /// The company cannot be asked now.
    Unknown,
}

impl Tokens {
    /// Continues all searches, in an invocation that ends at `deadline`. The next tick does the rest.
    pub async fn search(&self, deadline: Millis) {
        let locations = match self.table.searches().await {
            Ok(locations) => locations,
            Err(error) => return tracing::warn!(%error, "the locations to search for cannot be read"),
        };
        let searching = stream::iter(locations).map(|location| async move {
            if let Err(error) = self.search_one(&location, deadline).await {
                tracing::warn!(%location, %error, "the search for a location's company is not finished");
            }
        });
        searching.buffer_unordered(LOCATIONS_AT_ONCE).collect::<()>().await;
    }

    async fn search_one(&self, location: &Resource, deadline: Millis) -> Result<(), StoreError> {
        let Some(mut search) = self.table.search(location).await? else {
            // The location was found, uninstalled or reported meanwhile. If a call has queued the location just now,
            // that call holds the lease and notes the search in the location in a moment.
            let now = self.clock.now();
            let stored = self.table.installation(location).await?;
            let is_leased = stored.is_some_and(|stored| stored.lease().is_some_and(|lease| now < lease.ends_at));
            return if is_leased { Ok(()) } else { self.table.end_search(location).await };
        };
        let mut asked_left = false;
        loop {
            let now = self.clock.now();
            if now + ENOUGH > deadline {
                return Ok(());
            }
            if now >= search.since + PATIENCE {
                return self.conclude(&search, false, now, deadline).await;
            }
            let page = self.table.companies(search.after.as_ref(), PAGE).await?;
            let mut companies: Vec<Resource> = page.items.iter().map(|listed| listed.company.clone()).collect();
            if companies.is_empty() && !asked_left {
                asked_left = true;
                companies = std::mem::take(&mut search.left);
            }
            if companies.is_empty() {
                // The next ticks ask the companies in `search.left` again.
                if !search.left.is_empty() {
                    return Ok(());
                }
                return self.conclude(&search, !search.is_partial, now, deadline).await;
            }
            let found = self.ask(&mut search, companies, deadline).await;
            if let Some(company) = found {
                return self.found(location, &company, now).await;
            }
            search.after = page.items.into_iter().next_back().or(search.after);
            // The search has ended, or another one has begun. The next tick decides by the item.
            if !self.table.save_search(&search).await? {
                return Ok(());
            }
        }
    }

    async fn found(&self, location: &Resource, company: &Resource, now: Millis) -> Result<(), StoreError> {
        let stored = self.table.installation(location).await?;
        let ended = stored.filter(|stored| stored.status().has_ended());
        let event = ended.and_then(|stored| self.minter.parts.events.installed(stored.version.epoch + 1, now));
        let notice = InstallNotice { company: Some(company.id()), at: now, event, now };
        self.table.record_install_notice(location, notice).await?;
        tracing::info!(%location, %company, "the company of a location is found");
        self.table.end_search(location).await
    }

    /// Asks these companies, several at once. Returns the company that has the app in the location.
    async fn ask(&self, search: &mut Search, companies: Vec<Resource>, deadline: Millis) -> Option<Resource> {
        let location = search.location.clone();
        let asking = stream::iter(companies).map(|company| {
            let location = &location;
            async move { (self.probe(&company, location, deadline).await, company) }
        });
        let mut answers = std::pin::pin!(asking.buffer_unordered(COMPANIES_AT_ONCE));
        while let Some((answer, company)) = answers.next().await {
            match answer {
                CompanyAnswer::Installed => return Some(company),
                CompanyAnswer::Unknown if search.left.len() < MOST_LEFT => search.left.push(company),
                CompanyAnswer::Unknown => search.is_partial = true,
                CompanyAnswer::Absent | CompanyAnswer::Ended => {}
            }
        }
        None
    }

    async fn probe(&self, company: &Resource, location: &Resource, deadline: Millis) -> CompanyAnswer {
        let mut source = match self.source(company.clone(), deadline).await {
            Ok(source) => source,
            Err(TokenError::Revoked | TokenError::ReauthorizationRequired { .. }) => return CompanyAnswer::Ended,
            // A company that is listed and not yet installed is about to be installed.
            Err(error) => {
                tracing::debug!(%company, %error, "a company cannot be asked about a location");
                return CompanyAnswer::Unknown;
            }
        };
        let wait_until = |tokens: &Self| Some(tokens.clock.now() + PERMIT);
        let mut probed = self.minter.probe(&source, location, wait_until(self)).await;
        if probed == Probed::TokenRefused
            && let Ok(renewed) = self.renew(company, &source.access, deadline).await
        {
            source.access = renewed;
            probed = self.minter.probe(&source, location, wait_until(self)).await;
        }
        match probed {
            Probed::Installed => CompanyAnswer::Installed,
            Probed::Absent => CompanyAnswer::Absent,
            // The platform may say that a location is paused without regard to the company that asks.
            Probed::Suspended | Probed::NotAllowed | Probed::TokenRefused | Probed::Unclear(_) => {
                CompanyAnswer::Unknown
            }
        }
    }

    async fn conclude(
        &self,
        search: &Search,
        is_complete: bool,
        now: Millis,
        deadline: Millis,
    ) -> Result<(), StoreError> {
        let Some(stored) = self.table.installation(&search.location).await? else {
            return self.table.end_search(&search.location).await;
        };
        // A location whose own refresh token was refused was marked before the search. The search could only find a
        // company for it, so nothing is concluded.
        if stored.minted().is_none() {
            self.table.abandon_search(search).await?;
            return self.table.end_search(&search.location).await;
        }
        if let Some(own) = stored.own_company() {
            // The location's own company must be asked last: it may have had no token when it was asked first.
            match self.probe(&own, &search.location, deadline).await {
                CompanyAnswer::Installed => return self.found(&search.location, &own, now).await,
                // Without its company, nothing is concluded about a location.
                CompanyAnswer::Ended => {
                    self.table.abandon_search(search).await?;
                    return self.table.end_search(&search.location).await;
                }
                // The next ticks ask the company again, until the search has lasted for `PATIENCE`.
                CompanyAnswer::Unknown if is_complete => return Ok(()),
                CompanyAnswer::Absent | CompanyAnswer::Unknown => {}
            }
        }
        let remembered = if is_complete { ABSENT_AFTER_ALL } else { ABSENT_AFTER_SOME };
        let newest = search.after.as_ref().map(|Listed { listed_at, .. }| *listed_at);
        // The search may have ended meanwhile: an install was reported, or another search has begun. Then its result is
        // out of date, and nobody is asked to install the app again. The next tick decides by the item.
        if !self.table.conclude_search(search, now + remembered, newest, now).await? {
            return Ok(());
        }
        tracing::info!(location = %search.location, is_complete, "no company has the app in a location");
        if is_complete {
            self.give_up(&search.location, deadline).await?;
        }
        self.table.end_search(&search.location).await
    }

    /// Asks the customer to install the app again, if the location once had a grant of its own. Called when every
    /// company has said that it does not have the app there.
    async fn give_up(&self, location: &Resource, deadline: Millis) -> Result<(), StoreError> {
        let Some(stored) = self.table.installation(location).await? else { return Ok(()) };
        let is_over = stored.status().has_ended();
        if stored.minted().is_some() && stored.reinstall_url().is_some() && !is_over {
            let marking = self.minter.mint(location, stored.version, Why::Due, &[], WhenAbsent::Remember, deadline);
            drop(Box::pin(marking).await);
        }
        Ok(())
    }
}
