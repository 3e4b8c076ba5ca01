//! An installation whose lease this attempt holds: the claim, the time that is left, and the release.
//!
//! A refresh and a mint claim and release in the same way. The claim is one conditional write, and is at once the lease
//! and the write-ahead intent. A lease ends by itself if its holder dies.

use std::time::{Duration, Instant};

use super::COMMIT;
use super::TokenError;
use super::outcome::{Refreshed, Why, outcome_of};
use super::parts::TokenParts;
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, Installed, State};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::platform::token_endpoint::PRESENTATION;
use crate::seal::Sealer;
use crate::table::installation::{Claim, LEASE, Release};
use crate::table::{StoreError, Write};

/// An installation whose lease this attempt holds.
pub(super) struct LeasedInstallation {
    /// The installation, as the claim found it.
    pub(super) installation: Installation,
    pub(super) owner: LeaseOwner,
    /// The sealer of the new token. It is read before the claim, because its secret may be unreadable.
    pub(super) sealer: Sealer,
    pub(super) lease: LeaseTime,
}

/// The time that is left for an attempt, by two clocks. Only the wall clock shows that a frozen execution environment
/// woke up late. Only the monotonic clock is right if the wall clock is set back.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseTime {
    pub(super) ends_at: Millis,
    pub(super) claimed_at: Instant,
    pub(super) deadline: Millis,
}

impl LeaseTime {
    pub(super) fn left(&self, now: Millis) -> Duration {
        let by_wall = self.ends_at.min(self.deadline).since(now);
        by_wall.min(LEASE.saturating_sub(self.claimed_at.elapsed()))
    }

    /// The time since the claim, in milliseconds.
    pub(super) fn held_ms(&self) -> u64 {
        u64::try_from(self.claimed_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns true if a request to the platform and the commit of its answer fit into the lease.
    pub(super) fn allows_presentation(&self, now: Millis) -> bool {
        self.left(now) >= PRESENTATION + COMMIT
    }

    /// The latest time at which a request to the platform may be sent.
    pub(super) fn last_presentation(&self) -> Millis {
        self.ends_at.min(self.deadline) - (PRESENTATION + COMMIT)
    }
}

impl TokenParts {
    /// Returns an error if less than `needed` is left of the invocation that ends at `deadline`.
    pub(super) fn expect_time(
        &self,
        resource: &Resource,
        needed: Duration,
        deadline: Millis,
    ) -> Result<(), TokenError> {
        if self.clock.now() + needed > deadline {
            tracing::warn!(%resource, needed_s = needed.as_secs(), "the token is not renewed: too little of the invocation is left");
            return Err(TokenError::NoTime);
        }
        Ok(())
    }

    /// Claims an installation that was read in version `seen`. With `minting`, the installation must be a minted
    /// location; else it must have a grant of its own.
    pub(super) async fn claim(
        &self,
        resource: &Resource,
        seen: TokenVersion,
        why: Why,
        minting: bool,
        deadline: Millis,
    ) -> Result<LeasedInstallation, Refreshed> {
        let sealer = self.vault.sealer().await.map_err(|error| Refreshed::Failed(error.into()))?;
        let (now, claimed_at, owner) = (self.clock.now(), Instant::now(), LeaseOwner::new());
        let claim = Claim {
            resource,
            version: seen,
            owner: &owner,
            now,
            lease_ends_at: now + LEASE,
            given_up_too: why == Why::Operator,
            forced_before: why.forced_apart().map(|apart| now - apart),
            doubted: why == Why::Doubted,
            minting,
        };
        match self.table.claim(&claim).await.map_err(|error| Refreshed::Failed(error.into()))? {
            Write::Applied(installation) => {
                let lease = LeaseTime { ends_at: now + LEASE, claimed_at, deadline };
                Ok(LeasedInstallation { installation: *installation, owner, sealer, lease })
            }
            Write::NotFound => Err(Refreshed::Gone),
            Write::Conflict(stored) if stored.minted().is_some() != minting => {
                Err(if minting { Refreshed::Moved } else { Refreshed::IsMinted })
            }
            Write::Conflict(stored) => Err(not_claimed(&stored, seen, why, now)),
        }
    }

    /// Releases the lease without a new token. If the table fails, the lease ends by itself, and the next claim does the
    /// same work. `note` is the reason, for the log.
    pub(super) async fn release(
        &self,
        leased: &LeasedInstallation,
        to: Release,
        note: &str,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let LeasedInstallation { installation, owner, lease, .. } = leased;
        let released = self.events.release(installation, owner, to, lease.deadline).await;
        let stored = match &released {
            Ok(Write::Applied(_)) => "yes",
            Ok(_) => "no: another process has changed the installation",
            Err(_) => "no: the table does not answer",
        };
        let outcome = if matches!(released, Ok(Write::Applied(_))) { outcome_of(to.status) } else { "unchanged" };
        let message = if installation.minted().is_some() { "token not minted" } else { "token not refreshed" };
        tracing::warn!(resource = %installation.resource, generation = installation.version.generation,
            outcome, failures = to.failures, stored, note, total_ms = lease.held_ms(),
            Refreshes = 1, "{message}");
        released
    }
}

/// The reason for which a claim was not granted, decided from the item that the claim found.
fn not_claimed(stored: &Installation, seen: TokenVersion, why: Why, now: Millis) -> Refreshed {
    if stored.version != seen {
        return Refreshed::Moved;
    }
    let Some(Installed { state, .. }) = stored.installed() else { return Refreshed::Moved };
    match state {
        State::Refreshing(lease) if lease.ends_at > now => Refreshed::Held(lease.ends_at),
        State::NeedsReauthorization => {
            Refreshed::Failed(TokenError::ReauthorizationRequired { reinstall_url: stored.reinstall_url() })
        }
        State::Active | State::Refreshing(_) | State::Uncertain | State::Suspended | State::Blocked => {
            if why.forced_apart().is_some() {
                Refreshed::Failed(TokenError::RecentlyForced)
            } else {
                // The claim came a moment too early: by this clock the item can be claimed now.
                Refreshed::Held(now)
            }
        }
    }
}
