//! The one path that mints a location's token from its company's, under the same lease and lineage as a refresh.
//!
//! Nothing here is single use: a minting whose answer is lost, or that cannot be stored, is repeated. So there is
//! neither rescue nor parking, and an outcome that is not known leaves no doubt behind.

use std::sync::Arc;
use std::time::Duration;

use super::company_api::{Asked, Departure};
use super::endpoint::{PRESENTATION, TokenEndpoint};
use super::pair::{Pair, Slot};
use super::refresh::setback::outcome_of;
use super::refresh::{Failure, Refreshed, Why, not_claimed};
use super::{Access, Grant, schedule};
use crate::clock::{Clock, Millis};
use crate::installation::state::{Attempt, Lineage, Status};
use crate::lifecycle::Events;
use crate::quota::{Permit, Quota, QuotaError};
use crate::resource::Resource;
use crate::seal::Sealer;
use crate::table::Table;
use crate::table::installation::{Changed, Claim, Claimed, Installation, LEASE, Renewal, Settlement};
use crate::table::minted::Source;
use crate::vault::Vault;

/// What must be left of the lease after a minting: the time of a commit.
const COMMIT: Duration = Duration::from_secs(2);
/// So long the platform's word that a location is not a company's is believed. An install is noticed within 10 s.
const ABSENT: Duration = Duration::from_secs(7);
/// How often one minting is asked for.
const TRIES: u32 = 2;
/// How often a permit may come too late to be used.
const LATE_PERMITS: usize = 3;
/// After a longer wait than this for a permit, the company is looked at again.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// In an interval a company is asked so often about locations that nobody but a caller has named: whoever asks for what
/// does not exist must not use up what the others need.
const SUPPOSED_BURST: u32 = 20;
/// Who takes that share of the company's limit. No caller's id has parentheses.
const SUPPOSED: &str = "(supposed)";

/// A company and its token.
#[derive(Clone, Debug)]
pub struct Company {
    /// The company.
    pub resource: Resource,
    /// Its token.
    pub access: Access,
}

/// Mints locations' tokens.
pub struct Minter {
    table: Table,
    vault: Arc<Vault>,
    endpoint: TokenEndpoint,
    quota: Quota,
    events: Events,
    clock: Clock,
}

/// A claimed location.
struct Claimant {
    location: Installation,
    attempt: Attempt,
    sealer: Sealer,
    ends: Millis,
    deadline: Millis,
}

/// Why a company gave no token.
enum Refused {
    /// It does not have the app there.
    Absent,
    /// For a reason that is not about the location.
    Failed(Setback),
}

/// Why a location is given back without a token.
struct Setback {
    status: Option<Status>,
    due_at: Millis,
    /// Before this nobody tries again, since the platform or the limits have asked for it.
    retry_at: Option<Millis>,
    failures: u32,
    note: &'static str,
    told: Failure,
}

impl Minter {
    /// A minter of the locations in `table`.
    #[must_use]
    pub fn new(
        table: Table,
        vault: Arc<Vault>,
        endpoint: TokenEndpoint,
        quota: Quota,
        events: Events,
        clock: Clock,
    ) -> Self {
        Self { table, vault, endpoint, quota, events, clock }
    }

    /// Mints the token of a location that was seen in lineage `seen`, from the first of `companies` that has the app
    /// there, in an invocation that ends at `deadline`.
    pub async fn mint(
        &self,
        location: &Resource,
        seen: Lineage,
        why: Why,
        companies: &[Company],
        deadline: Millis,
    ) -> Refreshed {
        let claimant = match self.claim(location, seen, why, deadline).await {
            Ok(claimant) => claimant,
            Err(instead) => return instead,
        };
        let mut setback = None;
        for company in companies {
            match self.ask(&claimant, company).await {
                Ok(grant) => return self.granted(&claimant, company, &grant).await,
                Err(Refused::Absent) => {}
                Err(Refused::Failed(failed)) => setback = setback.or(Some(failed)),
            }
        }
        match setback {
            Some(setback) => self.set_back(&claimant, setback).await,
            None => self.absent(&claimant).await,
        }
    }

    async fn claim(
        &self,
        location: &Resource,
        seen: Lineage,
        why: Why,
        deadline: Millis,
    ) -> Result<Claimant, Refreshed> {
        let now = self.clock.now();
        if now + LEASE > deadline {
            return Err(Refreshed::Failed(Failure::NoTime));
        }
        let sealer = self.vault.sealer().await.map_err(|error| Refreshed::Failed(Failure::Secret(error)))?;
        let attempt = Attempt::new();
        let claim = Claim {
            resource: location,
            lineage: seen,
            attempt: &attempt,
            now,
            lease_ends_at: now + LEASE,
            given_up_too: why == Why::Operator,
            forced_before: (why == Why::Forced).then_some(now - schedule::FORCED_APART),
            minting: true,
        };
        match self.table.claim(&claim).await.map_err(|error| Refreshed::Failed(Failure::Store(error)))? {
            Claimed::Mine(location) => {
                Ok(Claimant { location: *location, attempt, sealer, ends: now + LEASE, deadline })
            }
            Claimed::Gone => Err(Refreshed::Gone),
            Claimed::Not(stored) if stored.minted.is_none() => Err(Refreshed::Moved),
            Claimed::Not(stored) => Err(not_claimed(&stored, seen, why, now)),
        }
    }

    /// Asks one company, twice if there is no answer.
    async fn ask(&self, claimant: &Claimant, company: &Company) -> Result<Box<Grant>, Refused> {
        let location = &claimant.location.resource;
        let mut tries = 0;
        let asked = loop {
            let asked = self.ask_once(claimant, company).await.map_err(Refused::Failed)?;
            tries += 1;
            if tries == TRIES || !matches!(asked, Asked::Unanswered(_)) {
                break asked;
            }
        };
        let (now, random, failures) = (self.clock.now(), fastrand::f64(), claimant.location.failures + 1);
        let later = |note| Setback {
            status: None,
            due_at: schedule::backoff(now, failures, random),
            retry_at: None,
            failures,
            note,
            told: Failure::TryAgain(schedule::on_demand(now, failures)),
        };
        let blocked = |note, told| Setback {
            status: Some(Status::Blocked),
            due_at: schedule::after_blocked(now, random),
            retry_at: None,
            failures,
            note,
            told,
        };
        Err(Refused::Failed(match asked {
            Asked::Got(grant) => return Ok(grant),
            Asked::Absent => return Err(Refused::Absent),
            Asked::Unanswered(why) => later(why),
            Asked::Throttled { retry_after } => {
                let retry_at = now + retry_after.unwrap_or(Duration::from_secs(10)).min(Duration::from_mins(30));
                let told = Failure::TryAgain(retry_at);
                Setback { due_at: retry_at, retry_at: Some(retry_at), told, ..later("throttled") }
            }
            Asked::TokenRefused => Setback {
                failures: claimant.location.failures,
                told: Failure::CompanyRefused(Box::new(company.clone())),
                ..later("the company's token is refused")
            },
            Asked::Suspended => Setback {
                status: Some(Status::Suspended),
                due_at: schedule::after_suspended(now, random),
                retry_at: None,
                failures: 0,
                note: "the location is not active",
                told: Failure::Suspended(now + schedule::RETRY_ON_DEMAND),
            },
            Asked::NotAllowed(message) => {
                tracing::error!(alarm = "not_allowed", company = %company.resource, said = message,
                    "a company's token may not mint: does the app have the scope oauth.write?");
                blocked("not allowed", Failure::Misconfigured("the company's token may not mint"))
            }
            Asked::WrongTenant => {
                tracing::error!(alarm = "wrong_tenant", resource = %location,
                    "a grant for another location or company was refused");
                blocked("wrong tenant", Failure::TryAgain(now + schedule::RETRY_ON_DEMAND))
            }
        }))
    }

    /// One request to one company: a connection, a permit, and then what may have changed while it waited.
    async fn ask_once(&self, claimant: &Claimant, company: &Company) -> Result<Asked<Box<Grant>>, Setback> {
        let (location, until) = (&claimant.location.resource, claimant.ends - (PRESENTATION + COMMIT));
        for _ in 0..LATE_PERMITS {
            let Ok(connection) = self.endpoint.connection().await else {
                return Ok(Asked::Unanswered("no connection"));
            };
            let began = self.clock.now();
            let permit = self.permit(claimant, &company.resource, until).await?;
            if self.clock.now().since(began) >= SHORT_WAIT {
                self.expect_unchanged(claimant, company).await?;
            }
            let departure = Departure { connection, leave_by: permit.send_by.min(until) };
            let asked = self.endpoint.mint(&company.resource, &company.access, location, departure).await;
            let Some((asked, heard)) = asked else { continue };
            if let Some((status, headers)) = heard.limits
                && let Err(error) = self.quota.observe(&company.resource, status, &headers).await
            {
                tracing::warn!(company = %company.resource, %error, "nothing was learnt from the platform's limits");
            }
            return Ok(asked);
        }
        Err(self.not_asked(claimant, None, "out of time before it was sent", Failure::NoTime))
    }

    /// A permit of the company's, waited for as long as the lease leaves time for the request.
    async fn permit(&self, claimant: &Claimant, company: &Resource, until: Millis) -> Result<Permit, Setback> {
        let supposed = claimant.location.minted.is_some_and(|minted| minted.supposed);
        let permit = if supposed {
            self.quota.take_within_share(SUPPOSED, company, SUPPOSED_BURST, Some(until)).await
        } else {
            self.quota.take(company, Some(until)).await
        };
        permit.map_err(|error| {
            let (retry_at, told) = match error {
                QuotaError::Refused(refusal) => (Some(refusal.retry_at), Failure::TryAgain(refusal.retry_at)),
                QuotaError::Store(error) => (None, Failure::Store(error)),
            };
            self.not_asked(claimant, retry_at, "no permit of the company's", told)
        })
    }

    /// The company's installation must still be the one that its token comes from: it may have been uninstalled.
    async fn expect_unchanged(&self, claimant: &Claimant, company: &Company) -> Result<(), Setback> {
        let stored = match self.table.installation(&company.resource).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.not_asked(claimant, None, "the company is not read", Failure::Store(error))),
        };
        let lives =
            |stored: &Installation| stored.status != Status::Revoked && stored.lineage.epoch == company.access.epoch;
        if stored.as_ref().is_some_and(lives) {
            return Ok(());
        }
        let told = Failure::TryAgain(self.clock.now());
        Err(self.not_asked(claimant, None, "the company was uninstalled or installed anew", told))
    }

    /// Nothing was sent, for a reason that counts as no failure of the location.
    fn not_asked(&self, claimant: &Claimant, retry_at: Option<Millis>, note: &'static str, told: Failure) -> Setback {
        let due_at = retry_at.unwrap_or(self.clock.now());
        Setback { status: None, due_at, retry_at, failures: claimant.location.failures, note, told }
    }

    async fn granted(&self, claimant: &Claimant, company: &Company, grant: &Grant) -> Refreshed {
        let (location, from) = (&claimant.location.resource, claimant.location.lineage);
        let pair = Pair { refresh: None, ..Pair::granted(grant, None, self.clock.now()) };
        let sealed = pair.seal(&claimant.sealer, location, from.next(), Slot::Current);
        let due_at = schedule::next_refresh(pair.issued_at, pair.expires_at, fastrand::f64());
        let source = Source { company: company.resource.id(), epoch: company.access.epoch };
        let event = self.events.renewed(&claimant.location);
        let renewal = Renewal { attempt: &claimant.attempt, pair: &sealed, due_at, event };
        let stored = self.table.commit_minted(location, from, renewal, source).await;
        match stored {
            Ok(Changed::Done(stored)) => {
                self.events.tell(&stored, claimant.deadline).await;
                tracing::info!(resource = %location, generation = from.next().generation, outcome = "minted", Refreshes = 1, "token minted");
            }
            Ok(Changed::Not(_) | Changed::Gone) => return Refreshed::Moved,
            // The lease passes, and then somebody mints again. The caller has nothing to do with that.
            Err(error) => tracing::warn!(resource = %location, %error, "a minted token is not stored"),
        }
        Refreshed::Renewed(pair.to_access(from.next()))
    }

    /// No company has the app there. Whoever once installed it there by hand is asked to do so again.
    async fn absent(&self, claimant: &Claimant) -> Refreshed {
        let Installation { resource, lineage, failures, .. } = &claimant.location;
        let reinstall_url = claimant.location.reinstall_url();
        let (settled, told) = if reinstall_url.is_some() {
            let (status, failures) = (Status::NeedsReauthorization, failures + 1);
            let to = Settlement { status, due_at: None, failures, retry_at: None, now: self.clock.now() };
            let settled = self.events.settle(&claimant.location, &claimant.attempt, to, claimant.deadline).await;
            (settled, Failure::NeedsReauthorization(reinstall_url))
        } else {
            let until = self.clock.now() + ABSENT;
            let settled = self.table.settle_absent(resource, *lineage, &claimant.attempt, until).await;
            (settled, Failure::NotInstalled)
        };
        tracing::info!(%resource, stored = settled.is_ok(), outcome = "absent", Refreshes = 1, "no known company has the app there");
        Refreshed::Failed(told)
    }

    /// Gives the lease back. If the store fails the lease passes by itself.
    async fn set_back(&self, claimant: &Claimant, setback: Setback) -> Refreshed {
        let Installation { resource, claimed_from, minted, .. } = &claimant.location;
        let found = match claimed_from {
            Some(status @ (Status::Suspended | Status::Blocked | Status::NeedsReauthorization)) => *status,
            _ => Status::Active,
        };
        let Setback { status, due_at, retry_at, failures, note, told } = setback;
        let status = status.unwrap_or(found);
        // What was given up, or never named by anybody who must know, is tried again by a caller's wish only.
        let wanted = status != Status::NeedsReauthorization && !minted.is_some_and(|minted| minted.supposed);
        let due_at = wanted.then_some(due_at);
        let to = Settlement { status, due_at, failures, retry_at, now: self.clock.now() };
        let settled = self.events.settle(&claimant.location, &claimant.attempt, to, claimant.deadline).await;
        tracing::warn!(%resource, outcome = outcome_of(status), failures, stored = settled.is_ok(), note, Refreshes = 1, "token not minted");
        Refreshed::Failed(told)
    }
}
