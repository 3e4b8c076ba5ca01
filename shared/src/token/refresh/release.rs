//! The end of an attempt without a new pair: releases the lease and stores the reason in the installation.

use std::time::Duration;

use super::Refreshed;
use super::attempt::LeasedRefresh;
use super::minting::Minting;
use crate::domain::clock::Millis;
use crate::domain::installation::{Gone, Installation};
use crate::domain::pace::Priority;
use crate::domain::resource::Resource;
use crate::domain::status::Status;
use crate::platform::token_endpoint::{Cause, fingerprint};
use crate::seal::pair::{Pair, PairRole};
use crate::table::Write;
use crate::table::app::BreakerReason;
use crate::table::installation::{Finding, LEASE, Release};
use crate::table::mark_budget::Requested;
use crate::table::minted::MintSource;
use crate::token::TokenError;
use crate::token::breaker::Marking;
use crate::token::schedule;

/// The longest delay before the next try of an installation after a fault of the app, such as wrong credentials.
const OUR_FAULT: Duration = Duration::from_mins(5);
/// The most tries to promote a standby pair while other standby pairs are added.
const PROMOTIONS: u32 = 5;
/// If several renewals are refused with the same credentials within this time, the app's secret is read again only
/// once.
const REFUSED_TOGETHER: Duration = Duration::from_secs(1);

impl LeasedRefresh<'_, '_> {
    /// Handles the platform's refusal of the current refresh token. Promotes a standby pair, makes the location a
    /// minted one, or marks the installation, in this order. The refresh token is erased for minting only after a company
    /// has said that it has the app in the location. While the location's company cannot be asked, nothing is concluded.
    pub(super) async fn refused(self) -> Refreshed {
        if !self.leased.installation.standby().is_empty() {
            return self.promote(&self.leased.installation).await;
        }
        let minting = match Box::pin(self.minting()).await {
            Ok(minting) => minting,
            Err(error) => return Refreshed::Failed(TokenError::Store(error)),
        };
        // The live pair may still be on the rescue queue: no token is erased and no event is published.
        if self.refresher.pairs_may_be_queued().await {
            return self
                .wait("a granted pair may be on the rescue queue", schedule::after_rescue, Finding::Waits)
                .await;
        }
        // A process that was frozen wakes up late, and other processes may have tried in the meantime.
        if self.leased.lease.left(self.refresher.parts.clock.now()).is_zero() {
            return self.wait("refused, and the lease is over", schedule::after_refused, Finding::Waits).await;
        }
        match minting {
            Minting::Possible { company, epoch } => self.become_minted(&company, epoch).await,
            Minting::Impossible => self.mark().await,
            Minting::Suspended => self.suspended().await,
            Minting::Unknown(why) => {
                tracing::info!(resource = %self.leased.installation.resource, why,
                    "the refresh token is refused, and it is not known yet if a company has the app in the location");
                self.wait("refused, and the company cannot be asked", schedule::after_refused, Finding::Waits).await
            }
            Minting::NotYet(why) => {
                tracing::info!(resource = %self.leased.installation.resource, why,
                    "the refresh token is refused, and another company that may have the location cannot be asked");
                let again_at = self.refresher.parts.clock.now();
                let finding = Finding::OthersAsked { again_at };
                self.wait("refused, and another company cannot be asked", schedule::after_refused, finding).await
            }
        }
    }

    /// Marks the installation as needing reauthorization because the platform has refused its grant, if the budget of
    /// marks allows it ([`crate::table::mark_budget`]). An installation that was marked before is marked again without
    /// a place of the budget.
    async fn mark(&self) -> Refreshed {
        let now = self.refresher.parts.clock.now();
        if !self.leased.installation.claimed_from().needs_human() {
            let first = !self.leased.installation.findings.was_refused;
            match self.refresher.parts.breaker.reserve(Requested::Refresh, &self.leased.owner, first).await {
                Ok(Marking::Reserved) => {}
                Ok(Marking::NoPlace) => {
                    return self.wait("refused, and no mark is left", schedule::after_refused, Finding::Refused).await;
                }
                Ok(Marking::Stopped) => {
                    self.wait("refused, like too many others", schedule::after_refused, Finding::Refused).await;
                    return Refreshed::Failed(TokenError::Misconfigured(BreakerReason::MassRefusal.as_str()));
                }
                // The lease ends by itself.
                Err(error) => return Refreshed::Failed(TokenError::Store(error)),
            }
        }
        let Installation { version, .. } = &self.leased.installation;
        let to = Release {
            status: Status::NeedsReauthorization,
            due_at: None,
            failures: self.leased.installation.schedule().failures + 1,
            retry_at: None,
            finding: None,
            now,
        };
        let note = "the refresh token is refused: the app must be installed again";
        match self.refresher.parts.release(&self.leased, to, note).await {
            Ok(Write::Applied(_)) => Refreshed::Failed(TokenError::ReauthorizationRequired {
                reinstall_url: self.leased.installation.reinstall_url(),
            }),
            Ok(Write::Conflict(stored)) if stored.version == *version && !stored.standby().is_empty() => {
                self.promote(&stored).await
            }
            Ok(Write::Conflict(stored)) if stored.version == *version => {
                Refreshed::Held(stored.lease().map_or(now, |lease| lease.ends_at))
            }
            Ok(Write::Conflict(_)) => Refreshed::Moved,
            Ok(Write::NotFound) => Refreshed::Gone,
            Err(error) => Refreshed::Failed(TokenError::Store(error)),
        }
    }

    /// Releases a refused installation that must not be marked now. The installation becomes uncertain, and its access
    /// token is used to its end. The refresh token is not presented before the instant that `again` gives for the
    /// number of failures.
    async fn wait(&self, note: &str, again: fn(Millis, u32, f64) -> Millis, finding: Finding) -> Refreshed {
        let (now, failures) = (self.refresher.parts.clock.now(), self.leased.installation.schedule().failures + 1);
        let retry_at = again(now, failures, fastrand::f64());
        let (status, due_at, finding) = (Status::Uncertain, Some(retry_at), Some(finding));
        let moved =
            self.release_as(Release { status, due_at, failures, retry_at: Some(retry_at), finding, now }, note).await;
        if moved { Refreshed::Moved } else { Refreshed::Failed(TokenError::InProgress { retry_at }) }
    }

    /// Makes the location a minted one: its own grant is gone, and this company has the app there.
    async fn become_minted(&self, company: &Resource, epoch: u64) -> Refreshed {
        let Installation { resource, version, .. } = &self.leased.installation;
        let (source, now) = (MintSource { company: company.id(), epoch }, self.refresher.parts.clock.now());
        match self.refresher.parts.table.become_minted(resource, *version, &self.leased.owner, source, now).await {
            Ok(Write::Applied(_)) => {
                tracing::warn!(%resource, %company, generation = version.generation, outcome = "to_be_minted", Refreshes = 1,
                    "the grant is gone: its token is minted from the company's from now on");
                Refreshed::Moved
            }
            // A standby pair arrived while the company was asked.
            Ok(Write::Conflict(stored)) if stored.version == *version && !stored.standby().is_empty() => {
                self.promote(&stored).await
            }
            Ok(Write::Conflict(_)) => Refreshed::Moved,
            Ok(Write::NotFound) => Refreshed::Gone,
            Err(error) => Refreshed::Failed(TokenError::Store(error)),
        }
    }

    /// Replaces the refused current pair of the installation, as it was `seen`, by the standby pair that was granted
    /// last. The other standby pairs stay, and each is tried in turn.
    async fn promote(&self, seen: &Installation) -> Refreshed {
        let resource = &self.leased.installation.resource;
        let mut seen = seen.clone();
        for _ in 0..PROMOTIONS {
            let Some((place, pair)) = self.newest_standby(&seen).await else {
                self.our_fault("no standby pair opens").await;
                return Refreshed::Failed(TokenError::Misconfigured("a stored token does not open"));
            };
            let (next, now) = (seen.version.next(), self.refresher.parts.clock.now());
            let sealed = pair.seal(&self.leased.sealer, resource, next, PairRole::Current);
            match self.refresher.parts.table.promote(&seen, place, &self.leased.owner, &sealed, now).await {
                Ok(Write::Applied(_)) => {
                    tracing::warn!(%resource, generation = next.generation, outcome = "promoted", Refreshes = 1,
                        "the current pair was refused and a standby pair takes its place");
                    return Refreshed::Moved;
                }
                // Another standby pair was added meanwhile.
                Ok(Write::Conflict(stored)) if stored.version == seen.version => seen = *stored,
                Ok(Write::Conflict(_)) => return Refreshed::Moved,
                Ok(Write::NotFound) => return Refreshed::Gone,
                Err(error) => return Refreshed::Failed(TokenError::Store(error)),
            }
        }
        // The lease ends by itself, and the next claim finds the standby pairs.
        Refreshed::Moved
    }

    /// Returns the standby pair that was granted last, among those that open, and its index.
    async fn newest_standby(&self, seen: &Installation) -> Option<(usize, Pair)> {
        let mut places: Vec<usize> = (0..seen.standby().len()).collect();
        places.sort_by_key(|place| std::cmp::Reverse((seen.standby()[*place].pair.access.issued_at, *place)));
        for place in places {
            match self.refresher.open(seen, &seen.standby()[place]).await {
                Ok(pair) => return Some((place, pair)),
                Err(error) => {
                    tracing::error!(alarm = "unseal", resource = %seen.resource, %error, "a standby pair does not open");
                }
            }
        }
        None
    }

    /// Releases a location that the platform has paused. Its grant may be good.
    pub(super) async fn suspended(&self) -> Refreshed {
        let now = self.refresher.parts.clock.now();
        let retry_at = schedule::after_suspended(now, fastrand::f64());
        self.release(Status::Suspended, retry_at, 0, "the location is not active").await;
        Refreshed::Failed(TokenError::Suspended { retry_at: now + schedule::RETRY_ON_DEMAND })
    }

    pub(super) async fn unknown(&self) -> Refreshed {
        let (now, failures) = (self.refresher.parts.clock.now(), self.unanswered_before() + 1);
        let retry_at = schedule::after_unknown(now, failures, fastrand::f64());
        let moved = self.release(Status::Uncertain, retry_at, failures, "no answer is known").await;
        if moved {
            return Refreshed::Moved;
        }
        self.unanswered(schedule::on_demand(now, failures), failures)
    }

    /// The number of presentations in a row that were not answered before this lease. The failures before the first of them
    /// are other ones: a lost answer after an outage is as urgent as any.
    pub(super) fn unanswered_before(&self) -> u32 {
        match self.leased.installation.claimed_from() {
            Status::Refreshing | Status::Uncertain => self.leased.installation.schedule().failures,
            Status::Active | Status::Suspended | Status::Blocked | Status::NeedsReauthorization | Status::Revoked => 0,
        }
    }

    /// Releases an installation whose next presentation must wait for the pace of the token endpoint until `at`. Its state
    /// stays as it was, and it stays due, so that the next tick finds it.
    pub(super) async fn paced(&self, at: Millis) -> Refreshed {
        let (now, is_replay) =
            (self.refresher.parts.clock.now(), self.is_unanswered || self.priority == Priority::Replay);
        let failures = match self.is_unanswered {
            true if !schedule::is_urgent(self.unanswered_before() + 1) => return self.unknown().await,
            true => self.unanswered_before() + 1,
            false => self.leased.installation.schedule().failures,
        };
        if self.release(self.unchanged(), now, failures, "the pace of the token endpoint has no place").await {
            return Refreshed::Moved;
        }
        if is_replay { self.unanswered(at, failures) } else { Refreshed::Failed(TokenError::Paced { retry_at: at }) }
    }

    fn unanswered(&self, retry_at: Millis, failures: u32) -> Refreshed {
        let until = self.leased.lease.ends_at - LEASE + schedule::GRACE;
        Refreshed::Failed(TokenError::Unanswered { retry_at, until, is_urgent: schedule::is_urgent(failures) })
    }

    pub(super) async fn blocked(&self, now: Millis) -> Refreshed {
        let retry_at = schedule::after_blocked(now, fastrand::f64());
        self.release(
            Status::Blocked,
            retry_at,
            self.leased.installation.schedule().failures + 1,
            "an unclassified answer",
        )
        .await;
        Refreshed::Failed(TokenError::InProgress { retry_at: now + schedule::RETRY_ON_DEMAND })
    }

    /// Releases an installation whose request has certainly not reached the platform. Its state stays as it was.
    pub(super) async fn not_sent(&self, note: &str) -> Refreshed {
        let (now, failures) = (self.refresher.parts.clock.now(), self.leased.installation.schedule().failures + 1);
        let retry_at = schedule::backoff(now, failures, fastrand::f64());
        self.release(self.unchanged(), retry_at, failures, note).await;
        Refreshed::Failed(TokenError::InProgress { retry_at: schedule::on_demand(now, failures) })
    }

    /// Handles the answer that the platform does not know the location or company. The answer may be a mistake, so the
    /// platform is asked again for a day. After that, the answer counts as a refusal of the grant.
    pub(super) async fn gone(self) -> Refreshed {
        let now = self.refresher.parts.clock.now();
        let Installation { findings, .. } = &self.leased.installation;
        let gone = findings.gone.map_or(Gone { since: now, tries: 1 }, |gone| Gone { tries: gone.tries + 1, ..gone });
        if schedule::is_gone(gone.since, gone.tries, now) {
            return self.refused().await;
        }
        let to = Release {
            status: Status::Blocked,
            due_at: Some(schedule::after_blocked(now, fastrand::f64())),
            failures: self.leased.installation.schedule().failures + 1,
            retry_at: None,
            finding: Some(Finding::Gone(gone)),
            now,
        };
        self.release_as(to, "the platform does not know it").await;
        Refreshed::Failed(TokenError::InProgress { retry_at: now + schedule::RETRY_ON_DEMAND })
    }

    pub(super) async fn out_of_time(&self) -> Refreshed {
        let now = self.refresher.parts.clock.now();
        let note = "out of time before it was sent";
        let moved = self.release(self.unchanged(), now, self.leased.installation.schedule().failures, note).await;
        if moved { Refreshed::Moved } else { Refreshed::Failed(TokenError::NoTime) }
    }

    /// Releases an installation because the circuit breaker is open. Its state stays as it was.
    pub(super) async fn stopped(&self, note: &str) {
        self.release(self.unchanged(), self.after_our_fault(), self.leased.installation.schedule().failures, note)
            .await;
    }

    /// Releases an installation after a fault of the app. The attempt counts as a failure, so that callers do not claim
    /// the installation again at once.
    pub(super) async fn our_fault(&self, note: &str) {
        self.release(self.unchanged(), self.after_our_fault(), self.leased.installation.schedule().failures + 1, note)
            .await;
    }

    fn after_our_fault(&self) -> Millis {
        self.refresher.parts.clock.now() + OUR_FAULT.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Returns the state that the claim found. If the holder of an earlier lease died, the state is uncertain.
    pub(super) fn unchanged(&self) -> Status {
        if self.is_unanswered {
            return Status::Uncertain;
        }
        match self.leased.installation.claimed_from() {
            Status::Refreshing | Status::Uncertain => Status::Uncertain,
            found @ (Status::Active
            | Status::Suspended
            | Status::Blocked
            | Status::NeedsReauthorization
            | Status::Revoked) => found,
        }
    }

    /// Releases the lease. Returns true if the installation has changed meanwhile. If the table fails, the lease ends
    /// by itself, and the next claim does the same work.
    pub(super) async fn release(&self, status: Status, due_at: Millis, failures: u32, note: &str) -> bool {
        // An installation that needs reauthorization is tried again only if an operator asks for it.
        let due_at = (!status.needs_human()).then_some(due_at);
        let now = self.refresher.parts.clock.now();
        self.release_as(Release { status, due_at, failures, retry_at: None, finding: None, now }, note).await
    }

    pub(super) async fn release_as(&self, to: Release, note: &str) -> bool {
        let released = self.refresher.parts.release(&self.leased, to, note).await;
        matches!(&released, Ok(Write::Conflict(stored)) if stored.version != self.leased.installation.version)
    }

    pub(super) async fn credentials_changed(&self, refused: &str) -> bool {
        let newer = self.refresher.parts.endpoint.credentials_again(REFUSED_TOGETHER).await;
        newer.is_ok_and(|app| fingerprint(&app) != refused)
    }

    pub(super) fn log_wrong_tenant(&self) {
        tracing::error!(alarm = "wrong_tenant", resource = %self.leased.installation.resource,
            "the platform granted a token for another location or company; the token is dropped");
    }

    pub(super) fn log_unknown(&self, cause: Cause) {
        let resource = &self.leased.installation.resource;
        tracing::warn!(%resource, generation = self.leased.installation.version.generation, ?cause, "the platform's answer to a renewal is not known");
    }
}
