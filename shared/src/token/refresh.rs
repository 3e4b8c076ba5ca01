//! The one path that rotates a refresh token, for the schedule, for callers' requests and for the operator alike.
//!
//! Claim, guard, present, commit. The claim is the lease, the record of the intent and the proof that the store can
//! be written; the guard looks at the lease directly before each presentation; the commit goes by lineage, so that a
//! granted pair is stored whoever holds the lease by then. What each outcome of a presentation leads to is decided in
//! `Attempted::conclude`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerError};
use super::endpoint::{Cause, Outcome, PRESENTATION, TokenEndpoint};
use super::mint::Company;
use super::pair::{Pair, Slot, place};
use super::rescue::{LostWrite, RescueError, RescueQueue, Rescued};
use super::{Access, Grant, schedule};
use crate::clock::{Clock, Millis};
use crate::installation::state::{Attempt, Lineage, LostCommit, Status, lost_commit};
use crate::redacted::Redacted;
use crate::resource::{Kind, Resource};
use crate::seal::Sealer;
use crate::secrets::{FRESH, SecretError};
use crate::table::installation::{Beside, Changed, Claim, Claimed, Installation, LEASE, SealedPair, Settlement};
use crate::table::{StoreError, Table};
use crate::vault::{Vault, VaultError};

/// What must be left of the lease after a presentation: the time of a commit.
const COMMIT: Duration = Duration::from_secs(2);
/// What the rescue queue needs of that, where the table takes nothing.
const RESCUE: Duration = Duration::from_secs(1);
/// How often a connection is tried for one presentation.
const CONNECTIONS: u32 = 3;
/// How long an installation is left alone after a fault that is not its own.
const OUR_FAULT: Duration = Duration::from_mins(5);

/// Why a refresh is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The schedule says so, or the token is stale.
    Due,
    /// The platform refused an access token that was thought to be good.
    Forced,
    /// An operator says so.
    Operator,
}

/// What came of a refresh.
#[derive(Debug)]
pub enum Refreshed {
    /// A new pair is stored, or on its way into the store.
    Renewed(Access),
    /// Somebody else holds the lease until this instant.
    Held(Millis),
    /// The installation is not as it was seen: read it again.
    Moved,
    /// It has no refresh token: its token is minted.
    IsMinted,
    /// There is no such installation.
    Gone,
    /// It was tried, or could not be tried.
    Failed(Failure),
}

/// Why there is no new pair.
#[derive(Debug)]
pub enum Failure {
    /// There was no outcome. Worth another try then.
    TryAgain(Millis),
    /// The token was presented and no answer is known. Worth another try then, within the platform's grace.
    Unanswered(Millis),
    /// The platform has paused the location.
    Suspended(Millis),
    /// The platform refused the refresh token for good.
    NeedsReauthorization(Option<String>),
    /// No known company has the app in the location.
    NotInstalled,
    /// The platform does not take the company's token, which a location's was to be minted from.
    CompanyRefused(Box<Company>),
    /// The app's credentials, a parameter or a sealed token are wrong, or refreshing is stopped.
    Misconfigured(&'static str),
    /// The last forced refresh was less than a minute ago.
    ForcedRecently,
    /// The invocation ends too soon to begin.
    NoTime,
    /// A secret cannot be read. Nothing was sent.
    Secret(SecretError),
    /// The table does not answer. Nothing was sent.
    Store(StoreError),
}

/// Refreshes installations.
pub struct Refresher {
    table: Table,
    vault: Arc<Vault>,
    endpoint: TokenEndpoint,
    breaker: Breaker,
    rescue: Option<RescueQueue>,
    clock: Clock,
}

impl Refresher {
    /// A refresher of the installations in `table`.
    #[must_use]
    pub fn new(
        table: Table,
        vault: Arc<Vault>,
        endpoint: TokenEndpoint,
        rescue: Option<RescueQueue>,
        clock: Clock,
    ) -> Self {
        let breaker = Breaker::new(table.clone(), clock.clone());
        Self { table, vault, endpoint, breaker, rescue, clock }
    }

    /// Refreshes an installation that was seen in lineage `seen`, in an invocation that ends at `deadline`.
    pub async fn refresh(&self, resource: &Resource, seen: Lineage, why: Why, deadline: Millis) -> Refreshed {
        // Boxed, because it is large and every reader's future would hold room for it.
        let refresh = async {
            match self.attempt(resource, seen, why, deadline).await {
                Ok(attempted) => attempted.present().await,
                Err(instead) => instead,
            }
        };
        Box::pin(refresh).await
    }

    /// Everything that can fail without harm, and then the claim.
    async fn attempt(
        &self,
        resource: &Resource,
        seen: Lineage,
        why: Why,
        deadline: Millis,
    ) -> Result<Attempted<'_>, Refreshed> {
        if self.clock.now() + LEASE > deadline {
            tracing::warn!(%resource, "not refreshed: a renewal needs 15 s of the invocation, and less are left");
            return Err(Refreshed::Failed(Failure::NoTime));
        }
        let secret = |error| Refreshed::Failed(Failure::Secret(error));
        let store = |error| Refreshed::Failed(Failure::Store(error));
        let (sealer, app) = tokio::join!(self.vault.sealer(), self.endpoint.credentials(FRESH));
        let sealer = sealer.map_err(secret)?;
        app.map_err(secret)?;
        match self.breaker.check(&self.endpoint).await {
            Ok(None) => {}
            Ok(Some(open)) => return Err(Refreshed::Failed(Failure::Misconfigured(open.reason.as_str()))),
            Err(BreakerError::Store(error)) => return Err(store(error)),
            Err(BreakerError::Secret(error)) => return Err(secret(error)),
        }
        let (now, claimed_at, attempt) = (self.clock.now(), Instant::now(), Attempt::new());
        let claim = Claim {
            resource,
            lineage: seen,
            attempt: &attempt,
            now,
            lease_ends_at: now + LEASE,
            given_up_too: why == Why::Operator,
            forced_before: (why == Why::Forced).then_some(now - schedule::FORCED_APART),
            minting: false,
        };
        match self.table.claim(&claim).await.map_err(store)? {
            Claimed::Mine(installation) => {
                let lease = Lease { ends_at: now + LEASE, claimed_at, deadline };
                Ok(Attempted { on: self, installation: *installation, attempt, lease, sealer, uncertain: false })
            }
            Claimed::Gone => Err(Refreshed::Gone),
            Claimed::Not(stored) if stored.minted.is_some() => Err(Refreshed::IsMinted),
            Claimed::Not(stored) => Err(not_claimed(&stored, seen, why, now)),
        }
    }

    /// Stores a pair from the rescue queue, by the same conditional commit.
    ///
    /// # Errors
    /// [`RescueError`]: the message must come again.
    pub async fn commit_rescued(
        &self,
        rescued: &Rescued,
        epoch: u64,
        generation: u64,
    ) -> Result<&'static str, RescueError> {
        let pair = rescued.open(&self.vault).await?;
        let sealer = self.vault.sealer().await.map_err(VaultError::from)?;
        let commit = Commit {
            on: self,
            parked: None,
            resource: &rescued.resource,
            from: Lineage { epoch, generation },
            attempt: &Attempt::from(rescued.attempt.clone()),
            sealer: &sealer,
            pair: &pair,
        };
        Ok(match commit.once().await? {
            Committed::Stored => "stored",
            Committed::Parked => "parked",
            Committed::Superseded => "superseded",
        })
    }
}

/// Why a claim was not granted, from the item that it found.
pub(super) fn not_claimed(stored: &Installation, seen: Lineage, why: Why, now: Millis) -> Refreshed {
    if stored.lineage != seen {
        return Refreshed::Moved;
    }
    match (stored.status, stored.lease_ends_at) {
        (Status::Refreshing | Status::Uncertain, Some(end)) if end > now => Refreshed::Held(end),
        (Status::NeedsReauthorization, _) => Refreshed::Failed(Failure::NeedsReauthorization(stored.reinstall_url())),
        (Status::Revoked, _) => Refreshed::Moved,
        _ if why == Why::Forced => Refreshed::Failed(Failure::ForcedRecently),
        // It was claimable a moment later than this clock says.
        _ => Refreshed::Held(now),
    }
}

/// The time that an attempt has, by two clocks: a frozen execution environment wakes up late, and only the wall clock
/// knows; a wall clock that is set back is seen through by the monotonic one.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ends_at: Millis,
    claimed_at: Instant,
    deadline: Millis,
}

impl Lease {
    fn left(&self, now: Millis) -> Duration {
        let by_wall = self.ends_at.min(self.deadline).since(now);
        by_wall.min(LEASE.saturating_sub(self.claimed_at.elapsed()))
    }

    fn allows_presentation(&self, now: Millis) -> bool {
        self.left(now) >= PRESENTATION + COMMIT
    }
}

/// A claimed installation.
struct Attempted<'a> {
    on: &'a Refresher,
    installation: Installation,
    attempt: Attempt,
    lease: Lease,
    sealer: Sealer,
    /// Whether this attempt has presented the token without an answer that can be read.
    uncertain: bool,
}

impl Attempted<'_> {
    async fn present(mut self) -> Refreshed {
        let token = match self.refresh_token().await {
            Ok(token) => token,
            Err(failed) => return failed,
        };
        let mut connections = 1;
        let mut credentials = 1;
        while self.lease.allows_presentation(self.on.clock.now()) {
            match self.on.endpoint.present(&self.installation.resource, &token).await {
                Outcome::NotSent if connections < CONNECTIONS => {
                    connections += 1;
                    tokio::time::sleep(Duration::from_millis(100 + fastrand::u64(..200))).await;
                }
                // The same token once more at once: the platform answers it again for 30 s.
                Outcome::Unknown(cause) if !self.uncertain => {
                    self.log_unknown(cause);
                    self.uncertain = true;
                }
                // The same for an answer to somebody else: the token may be spent, and its true answer is not known.
                Outcome::WrongTenant if !self.uncertain => {
                    self.log_wrong_tenant();
                    self.uncertain = true;
                }
                Outcome::WrongClient { fingerprint }
                    if credentials == 1 && self.credentials_changed(&fingerprint).await =>
                {
                    credentials += 1;
                }
                outcome => return self.conclude(outcome, &token).await,
            }
        }
        if self.uncertain { self.unknown().await } else { self.out_of_time().await }
    }

    /// What the outcome of the last presentation leads to.
    async fn conclude(self, outcome: Outcome, token: &Redacted) -> Refreshed {
        let (now, random, failures) = (self.on.clock.now(), fastrand::f64(), self.installation.failures + 1);
        match outcome {
            Outcome::Granted(grant) => {
                let (renewed, ()) = tokio::join!(self.granted(&grant, token), self.on.breaker.granted());
                renewed
            }
            Outcome::NotSent | Outcome::Throttled { .. } if self.uncertain => self.unknown().await,
            Outcome::NotSent => {
                let retry_at = schedule::backoff(now, failures, random);
                self.settle(self.unchanged(), retry_at, failures, "no connection").await;
                Refreshed::Failed(Failure::TryAgain(schedule::on_demand(now, failures)))
            }
            Outcome::Throttled { retry_after } => {
                let most = Duration::from_mins(30);
                let retry_at = retry_after.map_or(schedule::backoff(now, failures, random), |d| now + d.min(most));
                let asked = retry_after.is_some().then_some(retry_at);
                let (status, due_at) = (self.unchanged(), Some(retry_at));
                self.settle_as(Settlement { status, due_at, failures, retry_at: asked }, "throttled").await;
                Refreshed::Failed(Failure::TryAgain(asked.unwrap_or(schedule::on_demand(now, failures))))
            }
            Outcome::Unknown(cause) => {
                self.log_unknown(cause);
                self.unknown().await
            }
            Outcome::Refused => self.refused().await,
            Outcome::Suspended => {
                let retry_at = schedule::after_suspended(now, random);
                self.settle(Status::Suspended, retry_at, 0, "the location is not active").await;
                Refreshed::Failed(Failure::Suspended(now + schedule::RETRY_ON_DEMAND))
            }
            Outcome::WrongClient { fingerprint } => {
                self.on.breaker.wrong_client(fingerprint).await;
                self.stopped("wrong client credentials").await;
                Refreshed::Failed(Failure::Misconfigured("the platform refuses the app's client credentials"))
            }
            Outcome::BadRequest(message) => {
                self.on.breaker.bad_request(&message).await;
                self.stopped("bad request").await;
                Refreshed::Failed(Failure::Misconfigured("the platform does not accept the token request"))
            }
            Outcome::Unclassified { status, message } => {
                tracing::error!(alarm = "unclassified", status = status.as_u16(), said = message, "an unknown refusal");
                self.blocked(now).await
            }
            Outcome::WrongTenant => {
                self.log_wrong_tenant();
                self.blocked(now).await
            }
            Outcome::Secret(error) => {
                self.our_fault("the app's secret cannot be read").await;
                Refreshed::Failed(Failure::Secret(error))
            }
        }
    }

    /// The refresh token of the item that the claim returned, and no other.
    async fn refresh_token(&self) -> Result<Redacted, Refreshed> {
        let Installation { lineage, pair, .. } = &self.installation;
        let Some(sealed) = pair.as_ref().and_then(|pair| pair.refresh.as_deref()) else {
            tracing::error!(alarm = "no_refresh_token", resource = %self.installation.resource, "nothing to present");
            let now = self.on.clock.now();
            self.settle(Status::NeedsReauthorization, now, self.installation.failures + 1, "no refresh token").await;
            return Err(Refreshed::Failed(Failure::NeedsReauthorization(self.installation.reinstall_url())));
        };
        let item = self.installation.key();
        match self.on.vault.open(place(&item, *lineage, Slot::Current.refresh()), sealed).await {
            Ok(token) => Ok(token),
            Err(error) => {
                tracing::error!(alarm = "unseal", resource = %self.installation.resource, %error,
                    "a stored refresh token does not open: nothing is sent");
                self.our_fault("does not open").await;
                Err(Refreshed::Failed(match error {
                    VaultError::Secret(error) => Failure::Secret(error),
                    VaultError::Seal(_) => Failure::Misconfigured("a stored token does not open"),
                }))
            }
        }
    }

    async fn granted(&self, grant: &Grant, presented: &Redacted) -> Refreshed {
        let pair = Pair::granted(grant, Some(presented), self.on.clock.now());
        let Installation { resource, lineage, .. } = &self.installation;
        let renewed = pair.to_access(lineage.next());
        let (sealer, attempt) = (&self.sealer, &self.attempt);
        let parked = self.installation.alternate.as_ref();
        let commit = Commit { on: self.on, resource, from: *lineage, attempt, sealer, pair: &pair, parked };
        match commit.until_stored(self.lease).await {
            Some(Committed::Stored) => {
                tracing::info!(%resource, generation = renewed.generation, outcome = "refreshed", "token refreshed");
                Refreshed::Renewed(renewed)
            }
            Some(Committed::Parked | Committed::Superseded) => Refreshed::Moved,
            None => {
                let write = LostWrite::Commit { epoch: lineage.epoch, generation: lineage.generation };
                let rescued = Rescued::seal(sealer, resource, attempt, write, &pair);
                self.on.last_resort(&rescued, &commit, self.lease.deadline).await;
                Refreshed::Renewed(renewed)
            }
        }
    }

    /// An answered refusal of the current token by the current attempt: the parked pair, or a human.
    async fn refused(self) -> Refreshed {
        let now = self.on.clock.now();
        match self.on.breaker.refused().await {
            Ok(false) => {}
            Ok(true) => {
                self.stopped("refused, like too many others").await;
                return Refreshed::Failed(Failure::Misconfigured("mass_refusal"));
            }
            Err(error) => {
                // Not marked, since nobody knows whether it is one of many. The lease passes by itself.
                return Refreshed::Failed(Failure::Store(error));
            }
        }
        if let Some(alternate) = &self.installation.alternate {
            return self.promote(alternate, self.installation.lineage).await;
        }
        let Installation { resource, lineage, .. } = &self.installation;
        match self.company_lives().await {
            Ok(false) => {}
            Ok(true) => return self.become_minted(now).await,
            Err(error) => return Refreshed::Failed(Failure::Store(error)),
        }
        let to = Settlement {
            status: Status::NeedsReauthorization,
            due_at: None,
            failures: self.installation.failures + 1,
            retry_at: None,
        };
        match self.on.table.settle(resource, *lineage, &self.attempt, to).await {
            Ok(Changed::Done(_)) => {
                tracing::warn!(%resource, generation = lineage.generation, outcome = "refused",
                    "the grant is gone: the app must be installed again");
                Refreshed::Failed(Failure::NeedsReauthorization(self.installation.reinstall_url()))
            }
            Ok(Changed::Not(stored)) if stored.lineage == *lineage => match &stored.alternate {
                Some(alternate) => self.promote(alternate, *lineage).await,
                None => Refreshed::Held(stored.lease_ends_at.unwrap_or(now)),
            },
            Ok(Changed::Not(_)) => Refreshed::Moved,
            Ok(Changed::Gone) => Refreshed::Gone,
            Err(error) => Refreshed::Failed(Failure::Store(error)),
        }
    }

    /// Whether there is a company that the location's token can be minted from.
    async fn company_lives(&self) -> Result<bool, StoreError> {
        let Installation { resource, company, .. } = &self.installation;
        let company = company.as_deref().filter(|_| resource.kind() == Kind::Location);
        let Some(company) = company.and_then(|id| Resource::company(id).ok()) else { return Ok(false) };
        let stored = self.on.table.installation(&company).await?;
        Ok(stored.is_some_and(|stored| !matches!(stored.status, Status::Revoked | Status::NeedsReauthorization)))
    }

    /// The location's own grant is gone, and its company's is not.
    async fn become_minted(&self, now: Millis) -> Refreshed {
        let Installation { resource, lineage, .. } = &self.installation;
        match self.on.table.become_minted(resource, *lineage, &self.attempt, now).await {
            Ok(Changed::Done(_)) => {
                tracing::warn!(%resource, generation = lineage.generation, outcome = "to be minted",
                    "the grant is gone: its token is minted from the company's from now on");
                Refreshed::Moved
            }
            Ok(Changed::Not(_)) => Refreshed::Moved,
            Ok(Changed::Gone) => Refreshed::Gone,
            Err(error) => Refreshed::Failed(Failure::Store(error)),
        }
    }

    async fn promote(&self, alternate: &SealedPair, lineage: Lineage) -> Refreshed {
        let resource = &self.installation.resource;
        let pair = match self.on.open(resource, lineage, Slot::Alternate, alternate).await {
            Ok(pair) => pair,
            Err(error) => {
                tracing::error!(alarm = "unseal", %resource, %error, "a parked pair does not open");
                self.our_fault("the parked pair does not open").await;
                return Refreshed::Failed(Failure::Misconfigured("a stored token does not open"));
            }
        };
        let sealed = pair.seal(&self.sealer, resource, lineage.next(), Slot::Current);
        let now = self.on.clock.now();
        match self.on.table.promote(resource, lineage, &self.attempt, &sealed, now).await {
            Ok(_) => {
                tracing::warn!(%resource, generation = lineage.next().generation, outcome = "promoted",
                    "the current pair was refused and the parked one takes its place");
                Refreshed::Moved
            }
            Err(error) => Refreshed::Failed(Failure::Store(error)),
        }
    }

    async fn unknown(&self) -> Refreshed {
        let (now, failures) = (self.on.clock.now(), self.installation.failures + 1);
        let retry_at = schedule::after_unknown(now, failures, fastrand::f64());
        let moved = self.settle(Status::Uncertain, retry_at, failures, "no answer is known").await;
        if moved {
            return Refreshed::Moved;
        }
        Refreshed::Failed(Failure::Unanswered(schedule::on_demand(now, failures)))
    }

    async fn blocked(&self, now: Millis) -> Refreshed {
        let retry_at = schedule::after_blocked(now, fastrand::f64());
        self.settle(Status::Blocked, retry_at, self.installation.failures + 1, "an unclassified answer").await;
        Refreshed::Failed(Failure::TryAgain(now + schedule::RETRY_ON_DEMAND))
    }

    async fn out_of_time(&self) -> Refreshed {
        let now = self.on.clock.now();
        let note = "out of time before it was sent";
        let moved = self.settle(self.unchanged(), now, self.installation.failures, note).await;
        if moved { Refreshed::Moved } else { Refreshed::Failed(Failure::NoTime) }
    }

    /// The breaker is open: the installation is as it was.
    async fn stopped(&self, note: &str) {
        self.settle(self.unchanged(), self.after_our_fault(), self.installation.failures, note).await;
    }

    /// Counted as a failure, so that callers do not claim it again at once.
    async fn our_fault(&self, note: &str) {
        self.settle(self.unchanged(), self.after_our_fault(), self.installation.failures + 1, note).await;
    }

    fn after_our_fault(&self) -> Millis {
        self.on.clock.now() + OUR_FAULT.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The state that the claim found; one whose holder died is uncertain.
    fn unchanged(&self) -> Status {
        match self.installation.claimed_from {
            _ if self.uncertain => Status::Uncertain,
            Some(Status::Refreshing | Status::Uncertain) => Status::Uncertain,
            Some(status) => status,
            None => Status::Active,
        }
    }

    /// Gives the lease back; says whether the installation has meanwhile moved on. If the store fails the lease passes
    /// by itself, and the next claim does the same work.
    async fn settle(&self, status: Status, due_at: Millis, failures: u32, note: &str) -> bool {
        // What was given up is tried by an operator's wish only.
        let due_at = (status != Status::NeedsReauthorization).then_some(due_at);
        self.settle_as(Settlement { status, due_at, failures, retry_at: None }, note).await
    }

    async fn settle_as(&self, to: Settlement, note: &str) -> bool {
        let Installation { resource, lineage, .. } = &self.installation;
        let Settlement { status, failures, .. } = to;
        let settled = self.on.table.settle(resource, *lineage, &self.attempt, to).await;
        let stored = match &settled {
            Ok(Changed::Done(_)) => "yes",
            Ok(_) => "no: it has moved on",
            Err(_) => "no: the table does not answer",
        };
        tracing::warn!(%resource, generation = lineage.generation, outcome = %status, failures, stored, note,
            "token not refreshed");
        matches!(&settled, Ok(Changed::Not(stored)) if stored.lineage != *lineage)
    }

    async fn credentials_changed(&self, refused: &str) -> bool {
        let newer = self.on.endpoint.credentials(Duration::from_secs(1)).await;
        newer.is_ok_and(|app| super::endpoint::fingerprint(&app) != refused)
    }

    fn log_wrong_tenant(&self) {
        tracing::error!(alarm = "wrong_tenant", resource = %self.installation.resource,
            "a grant for another location or company was refused");
    }

    fn log_unknown(&self, cause: Cause) {
        let resource = &self.installation.resource;
        tracing::warn!(%resource, generation = self.installation.lineage.generation, ?cause, "no answer is known");
    }
}

/// A granted pair on its way into the store.
struct Commit<'a> {
    on: &'a Refresher,
    resource: &'a Resource,
    from: Lineage,
    attempt: &'a Attempt,
    sealer: &'a Sealer,
    pair: &'a Pair,
    /// The parked pair that the claim has seen. It may be the live one even now, so it stays beside the new pair until
    /// it is tried.
    parked: Option<&'a SealedPair>,
}

/// Where a granted pair ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Committed {
    /// It is the current one.
    Stored,
    /// Another was stored first; it is kept beside that.
    Parked,
    /// It belongs to the past.
    Superseded,
}

impl Commit<'_> {
    /// Tries until the store answers, or the lease's last seconds; at least once, however late it is.
    async fn until_stored(&self, lease: Lease) -> Option<Committed> {
        let mut pause = Duration::from_millis(50);
        loop {
            // A table that hangs must leave time for the queue before the lease and the invocation end.
            let time = lease.left(self.on.clock.now()).saturating_sub(RESCUE).max(RESCUE);
            match tokio::time::timeout(time, self.once()).await {
                Ok(Ok(committed)) => return Some(committed),
                Ok(Err(error)) => tracing::warn!(resource = %self.resource, %error, "a granted pair is not stored yet"),
                Err(_) => tracing::warn!(resource = %self.resource, "a granted pair is not stored yet: no answer"),
            }
            if lease.left(self.on.clock.now()) < COMMIT + pause {
                return None;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn once(&self) -> Result<Committed, StoreError> {
        let sealed = self.pair.seal(self.sealer, self.resource, self.from.next(), Slot::Current);
        let due_at = schedule::next_refresh(self.pair.issued_at, self.pair.expires_at, fastrand::f64());
        let mut beside = self.keep_beside(self.parked.cloned()).await?;
        let stored = loop {
            let (table, attempt) = (&self.on.table, self.attempt);
            match table.commit(self.resource, self.from, attempt, &sealed, due_at, &beside).await? {
                Changed::Done(_) => return Ok(Committed::Stored),
                Changed::Gone => return Ok(Committed::Superseded),
                // Another pair was parked since the claim.
                Changed::Not(stored) if stored.lineage == self.from && stored.alternate.is_some() => {
                    beside = self.keep_beside(stored.alternate).await?;
                }
                Changed::Not(stored) => break stored,
            }
        };
        match lost_commit(self.attempt, self.from, stored.lineage, stored.committed_by.as_deref()) {
            LostCommit::AlreadyMine => Ok(Committed::Stored),
            LostCommit::Superseded => {
                tracing::warn!(resource = %self.resource, generation = self.from.next().generation,
                    "a granted pair belongs to the past and is dropped");
                Ok(Committed::Superseded)
            }
            LostCommit::Park => {
                let parked = self.pair.seal(self.sealer, self.resource, stored.lineage, Slot::Alternate);
                self.on.table.park(self.resource, stored.lineage, &parked, self.on.clock.now()).await?;
                tracing::warn!(resource = %self.resource, generation = stored.lineage.generation,
                    "another pair was stored first: this one is parked");
                Ok(Committed::Parked)
            }
        }
    }
}

impl Commit<'_> {
    /// Seals a parked pair again, for the lineage that the commit begins.
    async fn keep_beside(&self, parked: Option<SealedPair>) -> Result<Beside, StoreError> {
        let Some(seen) = parked else { return Ok(Beside::default()) };
        let keep = match self.on.open(self.resource, self.from, Slot::Alternate, &seen).await {
            Ok(pair) => Some(pair.seal(self.sealer, self.resource, self.from.next(), Slot::Alternate)),
            Err(VaultError::Secret(error)) => return Err(StoreError::Unavailable(error.to_string())),
            Err(VaultError::Seal(error)) => {
                tracing::error!(alarm = "unseal", resource = %self.resource, %error, "a parked pair does not open");
                None
            }
        };
        Ok(Beside { seen: Some(seen), keep })
    }
}

impl Refresher {
    /// The store does not answer: the rescue queue, and as long as there is time the store again.
    async fn last_resort(&self, rescued: &Rescued, commit: &Commit<'_>, deadline: Millis) {
        if let Some(queue) = &self.rescue
            && queue.send(rescued).await
        {
            return;
        }
        tracing::error!(alarm = "pair_at_risk", resource = %rescued.resource,
            "a granted pair is in this process only: neither the table nor the rescue queue takes it");
        while self.clock.now() + Duration::from_secs(2) < deadline {
            if commit.once().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn open(
        &self,
        resource: &Resource,
        lineage: Lineage,
        slot: Slot,
        sealed: &SealedPair,
    ) -> Result<Pair, VaultError> {
        let item = crate::table::installation_key(resource);
        let refresh = match &sealed.refresh {
            Some(refresh) => Some(self.vault.open(place(&item, lineage, slot.refresh()), refresh).await?),
            None => None,
        };
        Ok(Pair {
            access: self.vault.open(place(&item, lineage, slot.access()), &sealed.access).await?,
            refresh,
            issued_at: sealed.access_issued_at,
            expires_at: sealed.access_expires_at,
        })
    }
}
