//! The one path that mints a location's token from its company's, under the same lease and lineage as a refresh.
//!
//! Nothing here is single use: a minting whose answer is lost, or that cannot be stored, is repeated. So there is
//! neither rescue nor parking, and an outcome that is not known leaves no doubt behind.

use std::sync::Arc;
use std::time::Duration;

use super::company_api::{Asked, Heard};
use super::endpoint::{PRESENTATION, TokenEndpoint};
use super::pair::{Pair, Slot};
use super::presence::Presence;
use super::refresh::setback::outcome_of;
use super::refresh::{Failure, Refreshed, Why, not_claimed};
use super::search::SEARCH_RETRY;
use super::{Access, Grant, TokenError, schedule};
use crate::clock::{Clock, Millis};
use crate::installation::state::{Attempt, Lineage, Status};
use crate::lifecycle::Events;
use crate::quota::{Quota, QuotaError};
use crate::resource::Resource;
use crate::seal::Sealer;
use crate::table::Table;
use crate::table::installation::{Changed, Claim, Claimed, Installation, LEASE, Renewal, Settlement};
use crate::table::minted::{Absence, Source};
use crate::vault::Vault;

/// What must be left of the lease after a minting: the time of a commit.
const COMMIT: Duration = Duration::from_secs(2);
/// So long the platform's word that a location is not a company's is believed. An install is noticed within 10 s.
const ABSENT: Duration = Duration::from_secs(7);
/// How often one minting is asked for.
const TRIES: u32 = 2;
/// How often a permit may come too late to be used.
const LATE_PERMITS: usize = 3;
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

/// The platform's answer about a location, asked with the token of one company and without a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// The company has the app there.
    Installed,
    /// The company does not have the app there.
    Absent,
    /// The platform does not take the company's token.
    TokenRefused,
    /// Nothing is known.
    Unclear(&'static str),
}

/// The write that follows if none of the companies that are asked has the app in the location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenAbsent {
    /// All companies were asked: the location is not asked for again for a moment.
    Remember,
    /// Nothing: others are asked next.
    AskOthers,
    /// The schedule asks the companies that were not asked now, if it has room for another location.
    Search,
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
    pub(super) async fn mint(
        &self,
        location: &Resource,
        seen: Lineage,
        why: Why,
        companies: &[Company],
        when_absent: WhenAbsent,
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
            // A company that cannot be asked now must not hide that another one has the app there.
            Some(setback)
                if when_absent != WhenAbsent::Search || matches!(setback.told, Failure::CompanyRefused(_)) =>
            {
                self.set_back(&claimant, setback).await
            }
            _ => self.absent(&claimant, when_absent).await,
        }
    }

    /// Asks a company for a location's token and drops it: all that counts is whether the company has the app there.
    /// Writes nothing, so it needs no lease. Waits for a permit of the company's until `wait_until`, and takes it from the
    /// share of locations that only a caller has named.
    pub(super) async fn probe(&self, company: &Company, location: &Resource, wait_until: Option<Millis>) -> Probed {
        let permit = self.quota.take_within_share(SUPPOSED, &company.resource, SUPPOSED_BURST, wait_until).await;
        let Ok(permit) = permit else { return Probed::Unclear("no permit of the company's") };
        if self.clock.now() > permit.send_by {
            return Probed::Unclear("the permit came too late");
        }
        let (asked, heard) = self.endpoint.mint(&company.resource, &company.access, location).await;
        self.learn_limits(&company.resource, heard).await;
        match asked {
            Asked::Got(_) => Probed::Installed,
            Asked::Absent => Probed::Absent,
            Asked::TokenRefused => Probed::TokenRefused,
            Asked::Unanswered(why) => Probed::Unclear(why),
            Asked::Throttled { .. } => Probed::Unclear("throttled"),
            Asked::Suspended => Probed::Unclear("the location is not active"),
            Asked::NotAllowed(_) => Probed::Unclear("the company's token may not mint"),
            Asked::WrongTenant => Probed::Unclear("a grant for another location or company"),
        }
    }

    /// Asks the platform whether it takes this token, with a permit of the resource's.
    pub(super) async fn presence(&self, resource: &Resource, access: &Access) -> Result<Presence, TokenError> {
        let Ok(permit) = self.quota.take(resource, None).await else { return Ok(Presence::Unclear("no permit")) };
        if self.clock.now() > permit.send_by {
            return Ok(Presence::Unclear("the permit came too late"));
        }
        let (presence, heard) = self.endpoint.presence(access).await?;
        self.learn_limits(resource, heard).await;
        Ok(presence)
    }

    async fn learn_limits(&self, resource: &Resource, heard: Heard) {
        if let Some((status, headers)) = heard.limits
            && let Err(error) = self.quota.observe(resource, status, &headers).await
        {
            tracing::warn!(%resource, %error, "nothing was learnt from the platform's limits");
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
            self.permit(claimant, &company.resource).await.map_err(Refused::Failed)?;
            let (asked, heard) = self.endpoint.mint(&company.resource, &company.access, location).await;
            self.learn_limits(&company.resource, heard).await;
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

    /// A permit of the company's, waited for as long as the lease leaves time for the request.
    async fn permit(&self, claimant: &Claimant, company: &Resource) -> Result<(), Setback> {
        let until = claimant.ends - (PRESENTATION + COMMIT);
        let refused = |error| {
            let (retry_at, told) = match error {
                QuotaError::Refused(refusal) => (Some(refusal.retry_at), Failure::TryAgain(refusal.retry_at)),
                QuotaError::Store(error) => (None, Failure::Store(error)),
            };
            let (failures, note) = (claimant.location.failures, "no permit of the company's");
            let due_at = retry_at.unwrap_or(self.clock.now());
            Setback { status: None, due_at, retry_at, failures, note, told }
        };
        let supposed = claimant.location.minted.is_some_and(|minted| minted.supposed);
        for _ in 0..LATE_PERMITS {
            let permit = if supposed {
                self.quota.take_within_share(SUPPOSED, company, SUPPOSED_BURST, Some(until)).await
            } else {
                self.quota.take(company, Some(until)).await
            };
            let permit = permit.map_err(refused)?;
            let now = self.clock.now();
            if now <= permit.send_by && now <= until {
                return Ok(());
            }
        }
        let now = self.clock.now();
        let (failures, note) = (claimant.location.failures, "out of time before it was sent");
        Err(Setback { status: None, due_at: now, retry_at: None, failures, note, told: Failure::NoTime })
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

    /// None of the companies that were asked has the app there. Somebody who once installed the app there by hand is
    /// asked to do so again.
    async fn absent(&self, claimant: &Claimant, when_absent: WhenAbsent) -> Refreshed {
        let Installation { resource, lineage, failures, .. } = &claimant.location;
        let reinstall_url = claimant.location.reinstall_url();
        let (settled, told) = if reinstall_url.is_some() {
            let (status, failures) = (Status::NeedsReauthorization, failures + 1);
            let to = Settlement { status, due_at: None, failures, retry_at: None, now: self.clock.now() };
            let settled = self.events.settle(&claimant.location, &claimant.attempt, to, claimant.deadline).await;
            (settled, Failure::NeedsReauthorization(reinstall_url))
        } else {
            let (absence, told) = self.absence(resource, when_absent).await;
            (self.table.settle_absent(resource, *lineage, &claimant.attempt, absence).await, told)
        };
        tracing::info!(%resource, stored = settled.is_ok(), ?when_absent, outcome = "absent", Refreshes = 1,
            "no company that was asked has the app there");
        Refreshed::Failed(told)
    }

    /// The mark of an absence in the table, and the caller's answer.
    async fn absence(&self, location: &Resource, when_absent: WhenAbsent) -> (Absence, Failure) {
        let now = self.clock.now();
        let remembered = (Absence::Until(now + ABSENT), Failure::NotInstalled);
        match when_absent {
            WhenAbsent::Remember => remembered,
            WhenAbsent::AskOthers => (Absence::Unmarked, Failure::NotInstalled),
            // Queued before the location says so: a location that says so is always in the queue.
            WhenAbsent::Search => match self.table.begin_search(location).await {
                Ok(true) => (Absence::Searching(now), Failure::TryAgain(now + SEARCH_RETRY)),
                Ok(false) => remembered,
                Err(error) => (Absence::Unmarked, Failure::Store(error)),
            },
        }
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
