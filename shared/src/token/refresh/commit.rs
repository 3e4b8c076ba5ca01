//! A granted pair on its way into the table, and where it goes if the table does not take it.

use std::time::Duration;

use super::Refresher;
use super::lease::{COMMIT, Lease, RESCUE};
use crate::clock::Millis;
use crate::http_client::within;
use crate::installation::state::{Attempt, Lineage, LostCommit, lost_commit};
use crate::lifecycle::event::Event;
use crate::resource::Resource;
use crate::seal::Sealer;
use crate::table::StoreError;
use crate::table::installation::{Beside, Changed, Installation, Renewal, SealedPair};
use crate::token::pair::{Pair, Slot};
use crate::token::rescue::Rescued;
use crate::token::schedule;
use crate::vault::VaultError;

/// A granted pair on its way into the store.
pub(super) struct Commit<'a> {
    pub(super) on: &'a Refresher,
    pub(super) resource: &'a Resource,
    pub(super) from: Lineage,
    pub(super) attempt: &'a Attempt,
    pub(super) sealer: &'a Sealer,
    pub(super) pair: &'a Pair,
    /// The parked pair that the claim has seen. It may be the live one even now, so it stays beside the new pair until
    /// it is tried.
    pub(super) parked: Option<&'a SealedPair>,
    /// What is told if it is stored.
    pub(super) event: Option<Event>,
}

/// Where a granted pair ended up.
#[derive(Debug)]
pub(super) enum Committed {
    /// It is the current one.
    Stored(Box<Installation>),
    /// Another was stored first; it is kept beside that.
    Parked,
    /// It belongs to the past.
    Superseded,
}

impl Commit<'_> {
    /// Tries until the store answers, or the lease's last seconds; at least once, however late it is.
    pub(super) async fn until_stored(&self, lease: Lease) -> Option<Committed> {
        let mut pause = Duration::from_millis(50);
        loop {
            // A table that hangs must leave time for the queue before the lease and the invocation end.
            let time = lease.left(self.on.clock.now()).saturating_sub(RESCUE).max(RESCUE);
            match within(time, Box::pin(self.once())).await {
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

    pub(super) async fn once(&self) -> Result<Committed, StoreError> {
        let sealed = self.pair.seal(self.sealer, self.resource, self.from.next(), Slot::Current);
        let due_at = schedule::next_refresh(self.pair.issued_at, self.pair.expires_at, fastrand::f64());
        let mut beside = self.keep_beside(self.parked.cloned()).await?;
        let stored = loop {
            let renewal = Renewal { attempt: self.attempt, pair: &sealed, due_at, event: self.event };
            let table = &self.on.table;
            match table.commit(self.resource, self.from, renewal, &beside).await? {
                Changed::Done(stored) => return Ok(Committed::Stored(stored)),
                Changed::Gone => return Ok(Committed::Superseded),
                // Another pair was parked since the claim.
                Changed::Not(stored) if stored.lineage == self.from && stored.alternate.is_some() => {
                    beside = self.keep_beside(stored.alternate).await?;
                }
                Changed::Not(stored) => break stored,
            }
        };
        match lost_commit(self.attempt, self.from, stored.lineage, stored.committed_by.as_deref()) {
            LostCommit::AlreadyMine => Ok(Committed::Stored(stored)),
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
    pub(super) async fn last_resort(&self, rescued: &Rescued, commit: &Commit<'_>, deadline: Millis) {
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
}
