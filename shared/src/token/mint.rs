//! The one path that mints a location's token from its company's, under the same lease and version as a refresh.
//!
//! A minting uses no single-use token. If its answer is lost or cannot be stored, the minting is repeated. So minting
//! needs no rescue queue and no standby pairs, and an unknown outcome does not make the location uncertain.

use std::sync::Arc;
use std::time::Duration;

use super::alarm::AppAlarms;
use super::breaker::{Breaker, Marking};
use super::outcome::{Failure, Refreshed, Why, not_claimed, outcome_of};
use super::parts::TokenParts;
use super::reading::{fresh_pair, open};
use super::{COMMIT, Company, TokenError, schedule};
use crate::domain::access::Access;
use crate::domain::clock::{Clock, Millis};
use crate::domain::grant::Grant;
use crate::domain::installation::Installation;
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion};
use crate::events::Events;
use crate::limiter::{Limiter, LimiterError, Permit, ShareOwner};
use crate::platform::company_api::Presence;
use crate::platform::company_api::{CompanyApiError, CompanyApiResult, Departure, ResponseMeta};
use crate::platform::token_endpoint::{PRESENTATION, TokenEndpoint};
use crate::seal::Sealer;
use crate::seal::pair::{Pair, Slot};
use crate::seal::vault::Vault;
use crate::table::app::BreakerReason;
use crate::table::installation::{Claim, Finding, LEASE, Release, Renewal};
use crate::table::mark_budget::Requested;
use crate::table::minted::{Absence, Source};
use crate::table::search::SearchReason;
use crate::table::{StoreError, Table, Write};

/// The platform's answer that a location is not a company's is remembered for this time. An install is noticed within
/// 10 s.
const ABSENT: Duration = Duration::from_secs(7);
/// The most requests for one minting.
const TRIES: u32 = 2;
/// The most permits that are taken for one request, because a permit may come too late to be used.
const LATE_PERMITS: usize = 3;
/// After a wait of at least this time for a permit, the company's installation is read again.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// The most requests to a company in one interval about locations that only a caller has named. Calls for locations
/// that do not exist must not use up the permits that other locations need.
const SUPPOSED_BURST: u32 = 20;
/// The least time between two rounds of asking the other companies about a location whose own company has ended.
const OTHERS_APART: Duration = Duration::from_mins(5);
/// The same time if the schedule asks the other companies, because there are more than a call asks.
const SEARCHES_APART: Duration = Duration::from_hours(1);
/// The least time before the other companies are asked again if one of them could not be asked.
const UNASKED_APART: Duration = Duration::from_mins(1);
/// The path of minting. The platform may limit this path on its own.
const PATH: &str = "/oauth/locationToken";
/// The path of the request that asks who has installed the app.
const PATH_OF_INSTALLATIONS: &str = "/marketplace/app";

/// Mints locations' tokens.
pub struct Minter {
    table: Table,
    vault: Arc<Vault>,
    endpoint: TokenEndpoint,
    breaker: Arc<Breaker>,
    limiter: Limiter,
    events: Events,
    alarms: Arc<AppAlarms>,
    clock: Clock,
}

/// A location whose lease this attempt holds.
struct Claimant {
    location: Installation,
    owner: LeaseOwner,
    sealer: Sealer,
    ends: Millis,
    deadline: Millis,
    /// True if only companies other than the location's own are asked, because the location's own company has no token.
    others: bool,
}

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

/// The step that follows if none of the companies that are asked has the app in the location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenAbsent {
    /// All companies were asked: the absence is remembered, so no company is asked about the location for a moment.
    Remember,
    /// Nothing is concluded: other companies are asked next.
    AskOthers,
    /// The schedule asks the companies that were not asked now, if it has room for another location.
    Search,
    /// The location's own company has no token to ask with, so nothing is concluded. With `search`, the schedule asks
    /// the companies that were not asked now, if it has room for another location.
    Unknown {
        /// True if there are companies beyond those that a call asks.
        search: bool,
        /// True if the token of one of the companies could not be read, so that company is not asked now.
        unasked: bool,
    },
}

impl WhenAbsent {
    /// Returns true if the location's own company is not among the companies that are asked, because it has no token.
    fn is_unknown(self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// The reasons for which a company gave no token.
enum Refused {
    /// The company does not have the app there.
    Absent,
    /// The reason has nothing to do with the location.
    Failed(Setback),
}

/// The release of a location's lease without a new token, and its reason.
struct Setback {
    status: Option<Status>,
    due_at: Millis,
    /// The earliest time of the next try, if the platform or the limits have asked for a delay.
    retry_at: Option<Millis>,
    failures: u32,
    note: &'static str,
    told: Failure,
}

impl Minter {
    /// Creates a minter of the locations in the table. Each request to a company takes a permit of `limiter`.
    #[must_use]
    pub fn new(parts: TokenParts, limiter: Limiter) -> Self {
        let TokenParts { table, vault, endpoint, breaker, events, alarms, clock } = parts;
        Self { table, vault, endpoint, breaker, limiter, events, alarms, clock }
    }

    /// Mints the token of a location that was read in version `seen`, from the first of `companies` that has the app
    /// there, in an invocation that ends at `deadline`.
    pub(super) async fn mint(
        &self,
        location: &Resource,
        seen: TokenVersion,
        why: Why,
        companies: &[Company],
        when_absent: WhenAbsent,
        deadline: Millis,
    ) -> Refreshed {
        let claimant = match self.claim(location, seen, why, deadline).await {
            Ok(claimant) => Claimant { others: when_absent.is_unknown(), ..claimant },
            Err(instead) => return instead,
        };
        let mut setback = None;
        for company in companies {
            match self.ask(&claimant, company).await {
                Ok(grant) => {
                    let granted = self.granted(&claimant, company, &grant);
                    return tokio::join!(granted, self.breaker.granted(Requested::Mint)).0;
                }
                Err(Refused::Absent) => {}
                Err(Refused::Failed(failed)) => setback = setback.or(Some(failed)),
            }
        }
        match (setback, when_absent) {
            (setback, WhenAbsent::Unknown { search, unasked }) => {
                self.unknown(&claimant, setback, search, unasked).await
            }
            // The caller renews the company's token, and then all companies are asked again.
            (Some(setback), _) if matches!(setback.told, Failure::CompanyRefused(..)) => {
                self.set_back(&claimant, setback, None).await
            }
            // If one company cannot be asked now, another company may still have the app there, so nothing is
            // concluded.
            (Some(setback), WhenAbsent::Remember | WhenAbsent::AskOthers) => {
                self.set_back(&claimant, setback, None).await
            }
            _ => self.absent(&claimant, why, companies, when_absent).await,
        }
    }

    /// Asks a company for a location's token, to find out if the company has the app there, and drops the token. Writes
    /// nothing, so the call needs no lease. Waits until `wait_until` for a permit of the company. The permit comes from
    /// the share of locations that only a caller has named.
    pub(super) async fn probe(&self, company: &Company, location: &Resource, wait_until: Option<Millis>) -> Probed {
        let to = Endpoint::of(&company.resource, PATH);
        let Ok(connection) = self.endpoint.connection().await else { return Probed::Unclear("no connection") };
        let permit = self.limiter.take_within_share(ShareOwner::Minter, to, SUPPOSED_BURST, wait_until).await;
        let Ok(permit) = permit else { return Probed::Unclear("no permit of the company's") };
        let departure = Departure { connection, leave_by: permit.send_by };
        let asked = self.endpoint.mint(&company.resource, &company.access, location, departure).await;
        let Some((asked, meta)) = asked else { return Probed::Unclear("the permit came too late") };
        self.learn_limits(to, meta).await;
        if let Some((status, said)) = asked.as_ref().err().and_then(CompanyApiError::unclassified) {
            self.alarms.unclassified(location, status, said).await;
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
        let Some(pair) = fresh_pair(company, self.clock.now()) else { return Ok(None) };
        let access = open(&self.vault, company, pair).await?;
        let company = Company { resource: company.resource.clone(), access };
        Ok(Some(self.probe(&company, location, wait_until).await))
    }

    /// Asks the platform if it accepts this token. Takes a permit of the resource.
    pub(super) async fn presence(&self, resource: &Resource, access: &Access) -> Result<Presence, TokenError> {
        let to = Endpoint::of(resource, PATH_OF_INSTALLATIONS);
        let Ok(connection) = self.endpoint.connection().await else { return Ok(Presence::Unclear("no connection")) };
        let Ok(permit) = self.limiter.take(to, None).await else { return Ok(Presence::Unclear("no permit")) };
        let departure = Departure { connection, leave_by: permit.send_by };
        let Some((presence, meta)) = self.endpoint.presence(access, departure).await? else {
            return Ok(Presence::Unclear("the permit came too late"));
        };
        self.learn_limits(to, meta).await;
        Ok(presence)
    }

    async fn learn_limits(&self, endpoint: Endpoint<'_>, meta: ResponseMeta) {
        if let Some((status, headers)) = meta.head
            && let Err(error) = self.limiter.observe(endpoint, status, &headers).await
        {
            tracing::warn!(%error, "nothing was learnt from the platform's limits");
        }
    }

    async fn claim(
        &self,
        location: &Resource,
        seen: TokenVersion,
        why: Why,
        deadline: Millis,
    ) -> Result<Claimant, Refreshed> {
        let now = self.clock.now();
        if now + LEASE > deadline {
            return Err(Refreshed::Failed(Failure::NoTime));
        }
        let sealer = self.vault.sealer().await.map_err(|error| Refreshed::Failed(Failure::Secret(error)))?;
        match self.breaker.stops_minting().await {
            Ok(false) => {}
            Ok(true) => return Err(Refreshed::Failed(Failure::Misconfigured(BreakerReason::MassRefusal.as_str()))),
            Err(error) => return Err(Refreshed::Failed(Failure::Store(error))),
        }
        let owner = LeaseOwner::new();
        let claim = Claim {
            resource: location,
            version: seen,
            owner: &owner,
            now,
            lease_ends_at: now + LEASE,
            given_up_too: why == Why::Operator,
            forced_before: why.forced_apart().map(|apart| now - apart),
            doubted: why == Why::Doubted,
            minting: true,
        };
        match self.table.claim(&claim).await.map_err(|error| Refreshed::Failed(Failure::Store(error)))? {
            Write::Applied(location) => {
                Ok(Claimant { location: *location, owner, sealer, ends: now + LEASE, deadline, others: false })
            }
            Write::NotFound => Err(Refreshed::Gone),
            Write::Conflict(stored) if stored.minted().is_none() => Err(Refreshed::Moved),
            Write::Conflict(stored) => Err(not_claimed(&stored, seen, why, now)),
        }
    }

    /// Asks one company, and asks once more if there is no answer.
    async fn ask(&self, claimant: &Claimant, company: &Company) -> Result<Box<Grant>, Refused> {
        let location = &claimant.location.resource;
        let mut tries = 0;
        let asked = loop {
            let asked = self.ask_once(claimant, company).await.map_err(Refused::Failed)?;
            tries += 1;
            if tries == TRIES || !matches!(asked, Err(CompanyApiError::Unanswered(_))) {
                break asked;
            }
        };
        let (now, random, failures) = (self.clock.now(), fastrand::f64(), claimant.location.schedule.failures + 1);
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
        let otherwise = match asked {
            Ok(grant) => return Ok(grant),
            Err(otherwise) => otherwise,
        };
        if let Some((status, said)) = otherwise.unclassified() {
            self.alarms.unclassified(location, status, said).await;
        }
        let company_refused = |why| Setback {
            failures: claimant.location.schedule.failures,
            told: Failure::CompanyRefused(Box::new(company.clone()), why),
            ..later("the company's token is refused")
        };
        Err(Refused::Failed(match otherwise {
            CompanyApiError::Absent => return Err(Refused::Absent),
            CompanyApiError::Unanswered(why) => later(why),
            CompanyApiError::NotReached => {
                self.alarms.not_reached(location).await;
                later("the platform was not reached")
            }
            CompanyApiError::Throttled { retry_after } => {
                let retry_at = now + retry_after.unwrap_or(Duration::from_secs(10)).min(Duration::from_mins(30));
                let told = Failure::TryAgain(retry_at);
                Setback { due_at: retry_at, retry_at: Some(retry_at), told, ..later("throttled") }
            }
            CompanyApiError::TokenRefused => company_refused(Why::Forced),
            CompanyApiError::TokenDoubted(_) => company_refused(Why::Doubted),
            // An unclassified answer says nothing about the installation, so its stored token stays in use.
            CompanyApiError::Unclassified { .. } => {
                blocked("an unclassified answer", Failure::TryAgain(now + schedule::RETRY_ON_DEMAND))
            }
            CompanyApiError::Suspended => Setback {
                status: Some(Status::Suspended),
                due_at: schedule::after_suspended(now, random),
                retry_at: None,
                failures: 0,
                note: "the location is not active",
                told: Failure::Suspended(now + schedule::RETRY_ON_DEMAND),
            },
            CompanyApiError::NotAllowed(said) => {
                self.alarms.not_allowed(&company.resource, "oauth.write", &said).await;
                blocked("not allowed", Failure::Misconfigured("the company's token may not mint"))
            }
            CompanyApiError::WrongTenant => {
                tracing::error!(alarm = "wrong_tenant", resource = %location,
                    "a grant for another location or company was refused");
                blocked("wrong tenant", Failure::TryAgain(now + schedule::RETRY_ON_DEMAND))
            }
        }))
    }

    /// Sends one request to one company: opens a connection, takes a permit, and after a long wait checks that the
    /// company's installation has not changed.
    async fn ask_once(&self, claimant: &Claimant, company: &Company) -> Result<CompanyApiResult<Box<Grant>>, Setback> {
        let (location, until) = (&claimant.location.resource, claimant.ends - (PRESENTATION + COMMIT));
        for _ in 0..LATE_PERMITS {
            if self.clock.now() > until {
                break;
            }
            let Ok(connection) = self.endpoint.connection().await else {
                return Ok(Err(CompanyApiError::Unanswered("no connection")));
            };
            let began = self.clock.now();
            let permit = self.permit(claimant, &company.resource, until).await?;
            if self.clock.now().since(began) >= SHORT_WAIT {
                self.expect_unchanged(claimant, company).await?;
            }
            let departure = Departure { connection, leave_by: permit.send_by.min(until) };
            let asked = self.endpoint.mint(&company.resource, &company.access, location, departure).await;
            let Some((asked, meta)) = asked else { continue };
            self.learn_limits(Endpoint::of(&company.resource, PATH), meta).await;
            return Ok(asked);
        }
        Err(self.not_asked(claimant, None, "out of time before it was sent", Failure::NoTime))
    }

    /// Takes a permit of the company. Waits until `until`, which leaves time for the request within the lease. A
    /// request to a company other than the location's own takes the permit from a limited share, so that the company's
    /// own locations keep theirs, and does not wait.
    async fn permit(&self, claimant: &Claimant, company: &Resource, until: Millis) -> Result<Permit, Setback> {
        let supposed = claimant.location.minted().is_some_and(|minted| minted.is_placeholder);
        let to = Endpoint::of(company, PATH);
        let permit = if supposed || claimant.others {
            let wait_until = (!claimant.others).then_some(until);
            self.limiter.take_within_share(ShareOwner::Minter, to, SUPPOSED_BURST, wait_until).await
        } else {
            self.limiter.take(to, Some(until)).await
        };
        permit.map_err(|error| {
            let (retry_at, told) = match error {
                LimiterError::Refused(refusal) => (Some(refusal.retry_at), Failure::TryAgain(refusal.retry_at)),
                LimiterError::Store(error) => (None, Failure::Store(error)),
            };
            self.not_asked(claimant, retry_at, "no permit of the company's", told)
        })
    }

    /// Checks that the company's installation is still the one that its token comes from. The app may have been
    /// uninstalled meanwhile.
    async fn expect_unchanged(&self, claimant: &Claimant, company: &Company) -> Result<(), Setback> {
        let stored = match self.table.installation(&company.resource).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.not_asked(claimant, None, "the company is not read", Failure::Store(error))),
        };
        let lives =
            |stored: &Installation| stored.status() != Status::Revoked && stored.version.epoch == company.access.epoch;
        if stored.as_ref().is_some_and(lives) {
            return Ok(());
        }
        let told = Failure::TryAgain(self.clock.now());
        Err(self.not_asked(claimant, None, "the company was uninstalled or installed anew", told))
    }

    /// Returns the release of a location for which no request was sent. The reason does not count as a failure of the
    /// location.
    fn not_asked(&self, claimant: &Claimant, retry_at: Option<Millis>, note: &'static str, told: Failure) -> Setback {
        let due_at = retry_at.unwrap_or(self.clock.now());
        Setback { status: None, due_at, retry_at, failures: claimant.location.schedule.failures, note, told }
    }

    async fn granted(&self, claimant: &Claimant, company: &Company, grant: &Grant) -> Refreshed {
        let (location, from) = (&claimant.location.resource, claimant.location.version);
        let pair = Pair { refresh: None, ..Pair::granted(grant, None, self.clock.now()) };
        let sealed = pair.seal(&claimant.sealer, location, from.next(), Slot::Current);
        let due_at = schedule::next_refresh(pair.issued_at, pair.expires_at, fastrand::f64());
        let source = Source { company: company.resource.id(), epoch: company.access.epoch };
        let event = self.events.renewed(&claimant.location);
        let renewal = Renewal { owner: &claimant.owner, pair: &sealed, due_at, event };
        let stored = self.table.commit_minted(location, from, renewal, source).await;
        match stored {
            Ok(Write::Applied(stored)) => {
                self.events.publish(&stored, claimant.deadline).await;
                tracing::info!(resource = %location, generation = from.next().generation, outcome = "minted", Refreshes = 1, "token minted");
            }
            Ok(Write::Conflict(_) | Write::NotFound) => return Refreshed::Moved,
            // The lease ends by itself, and the next attempt mints again. The caller gets the minted token all the
            // same.
            Err(error) => tracing::warn!(resource = %location, %error, "a minted token is not stored"),
        }
        Refreshed::Renewed(pair.to_access(from.next()))
    }

    /// Handles the case that none of the companies that were asked has the app there. A token that still works is used
    /// to its end. After that, a location that would lose its token or its grant needs a place of the budget of marks.
    /// If the location had a grant of its own, the customer is asked to install the app again.
    async fn absent(&self, claimant: &Claimant, why: Why, companies: &[Company], when_absent: WhenAbsent) -> Refreshed {
        let works = match self.has_token(&claimant.location, companies).await {
            Ok(works) => works && why != Why::Forced,
            // The lease ends by itself.
            Err(error) => return Refreshed::Failed(Failure::Store(error)),
        };
        // While other companies may have the app there, no token is erased and nothing is concluded.
        if works || when_absent == WhenAbsent::AskOthers {
            let (now, failures) = (self.clock.now(), claimant.location.schedule.failures + 1);
            let note = if works {
                "no company that was asked has the app there, and the token still works"
            } else {
                "the location's company does not have the app there: others are asked"
            };
            let setback = Setback {
                status: None,
                due_at: schedule::after_blocked(now, fastrand::f64()),
                retry_at: None,
                failures,
                note,
                told: Failure::NotInstalled,
            };
            return self.set_back(claimant, setback, None).await;
        }
        let Installation { resource, version, schedule: planned, .. } = &claimant.location;
        let reinstall_url = claimant.location.reinstall_url();
        let given_up = claimant.location.claimed_from() == Status::NeedsReauthorization;
        // While the schedule asks further companies, nothing is concluded.
        let is_final = when_absent == WhenAbsent::Remember;
        if is_final && !given_up && (claimant.location.pair.is_some() || reinstall_url.is_some()) {
            let first = !claimant.location.findings.was_refused;
            match self.breaker.reserve(Requested::Mint, &claimant.owner, first).await {
                Ok(Marking::Reserved) => {}
                Ok(Marking::NoPlace | Marking::Stopped) => return self.wait(claimant).await,
                // The lease ends by itself.
                Err(error) => return Refreshed::Failed(Failure::Store(error)),
            }
        }
        let (settled, told) = if is_final && reinstall_url.is_some() {
            let (status, failures, now) = (Status::NeedsReauthorization, planned.failures + 1, self.clock.now());
            let to = Release { status, due_at: None, failures, retry_at: None, finding: None, now };
            let settled = self.events.release(&claimant.location, &claimant.owner, to, claimant.deadline).await;
            (settled, Failure::NeedsReauthorization(reinstall_url))
        } else {
            let (absence, told) = self.absence(resource, when_absent).await;
            (self.table.release_absent(resource, *version, &claimant.owner, absence).await, told)
        };
        tracing::info!(%resource, stored = settled.is_ok(), ?when_absent, outcome = "absent", Refreshes = 1,
            "no company that was asked has the app there");
        Refreshed::Failed(told)
    }

    /// Handles the case that the location's own company has no token to ask with, and no other company is known to have
    /// the app there. The location stays as it is: no token is erased and no failure is counted. So its token can be
    /// minted as soon as its company has a token again.
    ///
    /// `setback` is the reason for which one of the other companies gave no answer.
    async fn unknown(&self, claimant: &Claimant, setback: Option<Setback>, search: bool, unasked: bool) -> Refreshed {
        let Installation { resource, version, schedule: planned, .. } = &claimant.location;
        let now = self.clock.now();
        let is_queued = search
            && self
                .table
                .queue_search(resource, *version, &claimant.owner, SearchReason::Former, now)
                .await
                .unwrap_or_else(|error| {
                    tracing::warn!(%resource, %error, "a location is not queued for the search for its company");
                    false
                });
        let again_at = match &setback {
            // The schedule asks all companies, so it does not matter which of them could be asked now.
            _ if is_queued => now + SEARCHES_APART,
            Some(setback) => (now + UNASKED_APART).max(setback.retry_at.unwrap_or(now)),
            None if unasked => now + UNASKED_APART,
            None => now + OTHERS_APART,
        };
        let setback = setback.filter(|setback| matches!(setback.told, Failure::CompanyRefused(..)));
        let setback = setback.unwrap_or(Setback {
            status: None,
            due_at: schedule::after_blocked(now, fastrand::f64()),
            retry_at: None,
            failures: planned.failures,
            note: "the location's company has no token, and no other company is known to have the app there",
            told: Failure::NotInstalled,
        });
        self.set_back(claimant, setback, Some(Finding::OthersAsked { again_at })).await
    }

    /// Releases a location that cannot be marked because no place of the budget is left. Its token is used to its end,
    /// and the company is asked again in minutes.
    async fn wait(&self, claimant: &Claimant) -> Refreshed {
        let Installation { resource, schedule: planned, .. } = &claimant.location;
        let (now, failures) = (self.clock.now(), planned.failures + 1);
        let retry_at = schedule::after_refused(now, failures, fastrand::f64());
        let (status, due_at) = (Status::Uncertain, Some(retry_at));
        let finding = Some(Finding::Refused);
        let to = Release { status, due_at, failures, retry_at: Some(retry_at), finding, now };
        let settled = self.events.release(&claimant.location, &claimant.owner, to, claimant.deadline).await;
        tracing::warn!(%resource, outcome = outcome_of(status), failures, stored = settled.is_ok(), Refreshes = 1,
            note = "refused, and no mark is left", "token not minted");
        Refreshed::Failed(Failure::TryAgain(retry_at))
    }

    /// Returns the note of an absence for the table, and the caller's answer.
    async fn absence(&self, location: &Resource, when_absent: WhenAbsent) -> (Absence, Failure) {
        let now = self.clock.now();
        let remembered = (Absence::Until(now + ABSENT), Failure::NotInstalled);
        match when_absent {
            WhenAbsent::Remember => remembered,
            WhenAbsent::AskOthers | WhenAbsent::Unknown { .. } => (Absence::Unmarked, Failure::NotInstalled),
            // The location is queued before the search is noted in it, so a location with such a note is always in the
            // queue.
            WhenAbsent::Search => match self.table.begin_search(location, SearchReason::Unknown).await {
                Ok(true) => (Absence::Searching(now), Failure::TryAgain(now + schedule::SEARCH_RETRY)),
                Ok(false) => remembered,
                Err(error) => (Absence::Unmarked, Failure::Store(error)),
            },
        }
    }

    /// Returns true if the location has an access token that is not expired and that comes from the present
    /// installation of its own company. The epochs of other companies say nothing about the token.
    async fn has_token(&self, location: &Installation, companies: &[Company]) -> Result<bool, StoreError> {
        let now = self.clock.now();
        if location.pair.as_ref().is_none_or(|pair| pair.access_expires_at <= now) {
            return Ok(false);
        }
        let own = location.company.as_deref().and_then(|id| Resource::company(id).ok());
        let Some(own) = own else { return Ok(true) };
        let epoch = location.minted().unwrap_or_default().company_epoch;
        if let Some(company) = companies.iter().find(|company| company.resource == own) {
            return Ok(company.access.epoch <= epoch);
        }
        let stored = self.table.installation(&own).await?;
        Ok(stored.is_some_and(|stored| stored.status() != Status::Revoked && stored.version.epoch <= epoch))
    }

    /// Releases the lease. If the table fails, the lease ends by itself.
    async fn set_back(&self, claimant: &Claimant, setback: Setback, finding: Option<Finding>) -> Refreshed {
        let resource = &claimant.location.resource;
        let found = match claimant.location.claimed_from() {
            status @ (Status::Suspended | Status::Blocked | Status::NeedsReauthorization) => status,
            _ => Status::Active,
        };
        let Setback { status, due_at, retry_at, failures, note, told } = setback;
        let status = status.unwrap_or(found);
        // The schedule does not try locations that need reauthorization, nor placeholders, which only a caller has
        // named. Such a location is tried again only on a caller's request.
        let wanted = status != Status::NeedsReauthorization
            && !claimant.location.minted().is_some_and(|minted| minted.is_placeholder);
        let due_at = wanted.then_some(due_at);
        let to = Release { status, due_at, failures, retry_at, finding, now: self.clock.now() };
        let settled = self.events.release(&claimant.location, &claimant.owner, to, claimant.deadline).await;
        tracing::warn!(%resource, outcome = outcome_of(status), failures, stored = settled.is_ok(), note, Refreshes = 1, "token not minted");
        Refreshed::Failed(told)
    }
}
