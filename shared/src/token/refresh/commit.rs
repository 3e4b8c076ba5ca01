//! Commits a granted pair to the table, or sends the pair to the rescue queue if the table does not take it.

use std::time::Duration;

use super::Refresher;
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Installation, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, LostCommit, TokenVersion, lost_commit};
use crate::http_client::within;
use crate::seal::Sealer;
use crate::seal::pair::{Pair, PairRole};
use crate::table::installation::Renewal;
use crate::table::{StoreError, Write};
use crate::token::COMMIT;
use crate::token::leased::LeaseTime;
use crate::token::rescue::Rescued;
use crate::token::schedule;

/// The part of [`COMMIT`] that sending to the rescue queue needs if the table takes no write.
const RESCUE: Duration = Duration::from_secs(1);
/// The most tries to add a standby pair to an installation that changes meanwhile.
const ROUNDS: u32 = 10;

/// The commit of a granted pair to the table.
pub(super) struct Commit<'a> {
    pub(super) refresher: &'a Refresher,
    pub(super) resource: &'a Resource,
    pub(super) from: TokenVersion,
    pub(super) owner: &'a LeaseOwner,
    pub(super) sealer: &'a Sealer,
    pub(super) pair: &'a Pair,
    /// The event of this commit.
    pub(super) event: Option<Event>,
}

/// The outcome of a commit.
#[derive(Debug)]
pub(super) enum Committed {
    /// The pair is the installation's current pair.
    Stored(Box<Installation>),
    /// Another pair was stored first; this pair is kept as a standby pair.
    Standby,
    /// The pair is out of date and was dropped.
    Superseded,
}

impl Commit<'_> {
    /// Tries to commit until the table answers or the last seconds of the lease begin. Tries at least once, even if the
    /// lease is over.
    pub(super) async fn until_stored(&self, lease: LeaseTime) -> Option<Committed> {
        let mut pause = Duration::from_millis(50);
        loop {
            // If the table hangs, there must be time for the rescue queue before the lease and the invocation end.
            let time = lease.left(self.refresher.parts.clock.now()).saturating_sub(RESCUE).max(RESCUE);
            match within(time, Box::pin(self.once())).await {
                Ok(Ok(committed)) => return Some(committed),
                Ok(Err(error)) => tracing::warn!(resource = %self.resource, %error, "a granted pair is not stored yet"),
                Err(_) => tracing::warn!(resource = %self.resource, "a granted pair is not stored yet: no answer"),
            }
            if lease.left(self.refresher.parts.clock.now()) < COMMIT + pause {
                return None;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    pub(super) async fn once(&self) -> Result<Committed, StoreError> {
        match self.replace(self.from).await? {
            Write::Applied(stored) => Ok(Committed::Stored(stored)),
            Write::NotFound => Ok(Committed::Superseded),
            Write::Conflict(stored) => self.come_second(stored).await,
        }
    }

    /// Makes the granted pair the current pair, in place of the pair of this version (compare-and-swap).
    async fn replace(&self, version: TokenVersion) -> Result<Write<Box<Installation>>, StoreError> {
        let sealed = self.pair.seal(self.sealer, self.resource, version.next(), PairRole::Current);
        let due_at = schedule::next_refresh(self.pair.issued_at, self.pair.expires_at, fastrand::f64());
        let renewal = Renewal { owner: self.owner, pair: &sealed, due_at, event: self.event };
        self.refresher.parts.table.commit(self.resource, version, renewal).await
    }

    /// Handles a granted pair after another pair was stored first. Decides from the stored installation if the pair is
    /// dropped or kept, and decides again each time that the installation changes meanwhile.
    async fn come_second(&self, mut stored: Box<Installation>) -> Result<Committed, StoreError> {
        for _ in 0..ROUNDS {
            let (version, granted_from) = (stored.version, stored.granted_from);
            match lost_commit(self.owner, self.from, version, granted_from, stored.committed_by.as_ref()) {
                LostCommit::AlreadyMine => return Ok(Committed::Stored(stored)),
                LostCommit::Superseded => {
                    tracing::warn!(resource = %self.resource, generation = self.from.next().generation,
                        "a granted pair is dropped: the installation has ended or the current pair is newer");
                    return Ok(Committed::Superseded);
                }
                LostCommit::Standby => {}
            }
            if stored.minted().is_some() {
                // The location became a minted one meanwhile, because its own grant was thought to be gone. A grant is
                // worth more than a minted token, so the pair replaces the minted token.
                match self.replace(version).await? {
                    Write::Applied(stored) => return Ok(Committed::Stored(stored)),
                    Write::NotFound => return Ok(Committed::Superseded),
                    Write::Conflict(changed) => {
                        stored = changed;
                        continue;
                    }
                }
            }
            let standby = StandbyPair {
                owner: self.owner.clone(),
                generation: version.generation,
                granted_from: self.from.generation,
                pair: self.pair.seal(self.sealer, self.resource, version, PairRole::Standby),
            };
            let known = stored.standby().iter().any(|pair| pair.owner == standby.owner);
            match if known {
                Write::Applied(stored)
            } else {
                self.refresher.parts.table.add_standby(&stored, &standby, self.refresher.parts.clock.now()).await?
            } {
                Write::Applied(_) => {
                    tracing::warn!(resource = %self.resource, generation = version.generation,
                        "another pair was stored first: this one is a standby pair");
                    return Ok(Committed::Standby);
                }
                Write::NotFound => return Ok(Committed::Superseded),
                Write::Conflict(changed) => stored = changed,
            }
        }
        Err(StoreError::Unavailable("the installation changes faster than a pair can be added to it".into()))
    }
}

impl Refresher {
    /// Sends a pair to the rescue queue because the table does not answer. If the queue fails too, tries the table
    /// again until shortly before `deadline`.
    pub(super) async fn last_resort(&self, rescued: &Rescued, commit: &Commit<'_>, deadline: Millis) {
        if let Some(queue) = &self.rescue
            && queue.send(rescued).await
        {
            return;
        }
        tracing::error!(alarm = "pair_at_risk", resource = %rescued.resource,
            "a granted pair is in this process only: neither the table nor the rescue queue takes it");
        while self.parts.clock.now() + Duration::from_secs(2) < deadline {
            if commit.once().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
