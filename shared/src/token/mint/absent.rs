//! The end of a minting without a token: what is concluded, what is stored, and the release of the lease.

use std::time::Duration;

use super::ask::MintFailure;
use super::{CompanyRefused, LeasedMint, Minter, WhenAbsent};
use crate::domain::installation::Installation;
use crate::domain::resource::Resource;
use crate::domain::status::Status;
use crate::table::StoreError;
use crate::table::installation::{Finding, Release};
use crate::table::mark_budget::Requested;
use crate::table::minted::Absence;
use crate::table::search::SearchReason;
use crate::token::breaker::Marking;
use crate::token::leased::LeasedInstallation;
use crate::token::outcome::{Refreshed, Why};
use crate::token::{Company, TokenError, schedule};

/// The platform's answer that a location is not a company's is remembered for this time. An install is noticed within
/// 10 s.
const ABSENT: Duration = Duration::from_secs(7);
/// The least time between two rounds of asking the other companies about a location whose own company has ended.
const OTHERS_APART: Duration = Duration::from_mins(5);
/// The same time if the schedule asks the other companies, because there are more than a call asks.
const SEARCHES_APART: Duration = Duration::from_hours(1);
/// The least time before the other companies are asked again if one of them could not be asked.
const UNASKED_APART: Duration = Duration::from_mins(1);

impl Minter {
    /// Handles the case that none of the companies that were asked has the app there. A token that still works is used
    /// to its end. After that, a location that would lose its token or its grant needs a place of the budget of marks.
    /// If the location had a grant of its own, the customer is asked to install the app again.
    pub(super) async fn absent(
        &self,
        mint: &LeasedMint,
        why: Why,
        companies: &[Company],
        when_absent: WhenAbsent,
    ) -> Result<Refreshed, Box<CompanyRefused>> {
        let LeasedInstallation { installation: location, owner, .. } = &mint.leased;
        let (now, failures) = (self.parts.clock.now(), location.schedule().failures + 1);
        let works = match self.has_token(location, companies).await {
            Ok(works) => works && why != Why::Forced,
            // The lease ends by itself.
            Err(error) => return Ok(Refreshed::Failed(error.into())),
        };
        // While other companies may have the app there, no token is erased and nothing is concluded.
        if works || when_absent == WhenAbsent::AskOthers {
            let note = if works {
                "no company that was asked has the app there, and the token still works"
            } else {
                "the location's company does not have the app there: others are asked"
            };
            let failure = self.not_installed(failures, note);
            return self.fail(mint, failure, None).await;
        }
        let reinstall_url = location.reinstall_url();
        let given_up = location.claimed_from().needs_human();
        // While the schedule asks further companies, nothing is concluded.
        let is_final = when_absent == WhenAbsent::Remember;
        if is_final && !given_up && (location.access().is_some() || reinstall_url.is_some()) {
            let first = !location.findings.was_refused;
            match self.parts.breaker.reserve(Requested::Mint, owner, first).await {
                Ok(Marking::Reserved) => {}
                Ok(Marking::NoPlace | Marking::Stopped) => return Ok(self.wait(mint).await),
                // The lease ends by itself.
                Err(error) => return Ok(Refreshed::Failed(error.into())),
            }
        }
        if is_final && reinstall_url.is_some() {
            let status = Status::NeedsReauthorization;
            let to = Release { status, due_at: None, failures, retry_at: None, finding: None, now };
            // If the table fails, the lease ends by itself.
            drop(self.parts.release(&mint.leased, to, "no company has the app there").await);
            return Ok(Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url }));
        }
        let (absence, error) = self.absence(&location.resource, !is_final).await;
        let released = self.parts.table.release_absent(&location.resource, location.version, owner, absence).await;
        tracing::info!(resource = %location.resource, stored = released.is_ok(), ?when_absent, outcome = "absent",
            Refreshes = 1, "no company that was asked has the app there");
        Ok(Refreshed::Failed(error))
    }

    /// Handles the case that the location's own company has no token to ask with, and no other company is known to have
    /// the app there. The location stays as it is: no token is erased and no failure is counted. So its token can be
    /// minted as soon as its company has a token again.
    ///
    /// `failure` is the reason for which one of the other companies gave no answer.
    pub(super) async fn unknown(
        &self,
        mint: &LeasedMint,
        failure: Option<MintFailure>,
        search: bool,
        unasked: bool,
    ) -> Result<Refreshed, Box<CompanyRefused>> {
        let Installation { resource, version, .. } = &mint.leased.installation;
        let planned = mint.leased.installation.schedule();
        let now = self.parts.clock.now();
        let is_queued = search
            && self
                .parts
                .table
                .queue_search(resource, *version, &mint.leased.owner, SearchReason::Former, now)
                .await
                .unwrap_or_else(|error| {
                    tracing::warn!(%resource, %error, "a location is not queued for the search for its company");
                    false
                });
        let again_at = match &failure {
            // The schedule asks all companies, so it does not matter which of them could be asked now.
            _ if is_queued => now + SEARCHES_APART,
            Some(failure) => (now + UNASKED_APART).max(failure.retry_at.unwrap_or(now)),
            None if unasked => now + UNASKED_APART,
            None => now + OTHERS_APART,
        };
        let failure = failure.filter(MintFailure::is_of_company_token).unwrap_or_else(|| {
            let note = "the location's company has no token, and no other company is known to have the app there";
            self.not_installed(planned.failures, note)
        });
        self.fail(mint, failure, Some(Finding::OthersAsked { again_at })).await
    }

    /// The failure of a location that no company that was asked has. Its state stays as it is.
    fn not_installed(&self, failures: u32, note: &'static str) -> MintFailure {
        let due_at = schedule::after_blocked(self.parts.clock.now(), fastrand::f64());
        MintFailure { status: None, due_at, retry_at: None, failures, note, error: Ok(TokenError::NotInstalled) }
    }

    /// Releases a location that cannot be marked because no place of the budget is left. Its token is used to its end,
    /// and the company is asked again in minutes.
    async fn wait(&self, mint: &LeasedMint) -> Refreshed {
        let (now, failures) = (self.parts.clock.now(), mint.leased.installation.schedule().failures + 1);
        let retry_at = schedule::after_refused(now, failures, fastrand::f64());
        let (status, due_at) = (Status::Uncertain, Some(retry_at));
        let finding = Some(Finding::Refused);
        let to = Release { status, due_at, failures, retry_at: Some(retry_at), finding, now };
        drop(self.parts.release(&mint.leased, to, "refused, and no mark is left").await);
        Refreshed::Failed(TokenError::InProgress { retry_at })
    }

    /// Returns the note of an absence for the table, and the caller's answer. With `search`, the schedule asks further
    /// companies, if it has room for another location.
    async fn absence(&self, location: &Resource, search: bool) -> (Absence, TokenError) {
        let now = self.parts.clock.now();
        let remembered = (Absence::Until(now + ABSENT), TokenError::NotInstalled);
        if !search {
            return remembered;
        }
        // The location is queued before the search is noted in it, so a location with such a note is always in the queue.
        match self.parts.table.begin_search(location, SearchReason::Unknown).await {
            Ok(true) => (Absence::Searching(now), TokenError::InProgress { retry_at: now + schedule::SEARCH_RETRY }),
            Ok(false) => remembered,
            Err(error) => (Absence::Open, error.into()),
        }
    }

    /// Returns true if the location has an access token that is not expired and that comes from the present
    /// installation of its own company. The epochs of other companies say nothing about the token.
    async fn has_token(&self, location: &Installation, companies: &[Company]) -> Result<bool, StoreError> {
        let now = self.parts.clock.now();
        if location.access().is_none_or(|access| access.expires_at <= now) {
            return Ok(false);
        }
        let Some(own) = location.own_company() else { return Ok(true) };
        let epoch = location.minted().unwrap_or_default().company_epoch;
        if let Some(company) = companies.iter().find(|company| company.resource == own) {
            return Ok(company.access.epoch <= epoch);
        }
        let stored = self.parts.table.installation(&own).await?;
        Ok(stored.is_some_and(|stored| stored.installed().is_some() && stored.version.epoch <= epoch))
    }

    /// Releases the lease without a new token. If the table fails, the lease ends by itself.
    pub(super) async fn fail(
        &self,
        mint: &LeasedMint,
        failure: MintFailure,
        finding: Option<Finding>,
    ) -> Result<Refreshed, Box<CompanyRefused>> {
        let location = &mint.leased.installation;
        let MintFailure { status, due_at, retry_at, failures, note, error } = failure;
        let status = status.unwrap_or_else(|| match location.claimed_from() {
            found @ (Status::Suspended | Status::Blocked | Status::NeedsReauthorization) => found,
            // Minting uses no single-use token, so an unknown outcome leaves nothing uncertain.
            Status::Active | Status::Refreshing | Status::Uncertain | Status::Revoked => Status::Active,
        });
        // The schedule does not try locations that need reauthorization, nor placeholders, which only a caller has
        // named. Such a location is tried again only on a caller's request.
        let is_scheduled = !status.needs_human() && !location.is_placeholder();
        let due_at = is_scheduled.then_some(due_at);
        let to = Release { status, due_at, failures, retry_at, finding, now: self.parts.clock.now() };
        drop(self.parts.release(&mint.leased, to, note).await);
        error.map(Refreshed::Failed)
    }
}
