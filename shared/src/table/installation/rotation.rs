//! Everything that happens under a lease: a claim, and how it ends.

use std::time::Duration;

use super::writing::{Changed, InstallationWrite as _, SET_PAIR, changed, committed_by};
use super::{Installation, SealedPair};
use crate::clock::Millis;
use crate::installation::state::{Attempt, Lineage, Status};
use crate::lifecycle::event::Event;
use crate::resource::Resource;
use crate::table::outbox::Telling;
use crate::table::{StoreError, Table, Written, n, written};

/// How long a claim holds: time for two presentations and a commit, and short enough that whoever comes next can
/// still present the same token inside the platform's 30 s of grace.
pub const LEASE: Duration = Duration::from_secs(15);

/// A claim to be made.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// Whose installation.
    pub resource: &'a Resource,
    /// The lineage that the claimant has seen.
    pub lineage: Lineage,
    /// The claimant.
    pub attempt: &'a Attempt,
    /// The present.
    pub now: Millis,
    /// The end of the lease.
    pub lease_ends_at: Millis,
    /// Whether an installation may be claimed that was given up: an operator has reason to think that the platform's
    /// refusal was its own fault.
    pub given_up_too: bool,
    /// Whether a refused access token is the reason: then the last forced refresh must be older than this.
    pub forced_before: Option<Millis>,
    /// Whether the claim is for minting. A minted location has no refresh token, and what has one is not minted.
    pub minting: bool,
}

/// What a claim came to.
#[derive(Debug)]
pub enum Claimed {
    /// The lease is mine; present the refresh token of this item and no other.
    Mine(Box<Installation>),
    /// It is not mine, and this is how the installation stands.
    Not(Box<Installation>),
    /// There is no such installation.
    Gone,
}

/// A granted token and what is stored with it.
#[derive(Clone, Copy, Debug)]
pub struct Renewal<'a> {
    /// The attempt that was granted it.
    pub attempt: &'a Attempt,
    /// The token or pair, sealed under the next lineage.
    pub pair: &'a SealedPair,
    /// When the schedule looks again.
    pub due_at: Millis,
    /// What is told once it is stored.
    pub event: Option<Event>,
}

/// What becomes of a parked pair when another is committed.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The parked pair that is known.
    pub seen: Option<SealedPair>,
    /// The same pair sealed for the next lineage.
    pub keep: Option<SealedPair>,
}

/// How a lease is given back without a new pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The state to leave behind.
    pub status: Status,
    /// When the schedule looks again; never, if a human must act first.
    pub due_at: Option<Millis>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// Before this nobody tries again, since the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// The present.
    pub now: Millis,
}

impl Table {
    /// Claims an installation for a refresh: at once the lease, the record of the intent, and the proof that the
    /// store can be written.
    ///
    /// # Errors
    /// [`StoreError`]. Nothing may be sent then.
    pub async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        let mut condition =
            "epoch = :epoch AND generation = :generation AND (#status IN (:active, :suspended, :blocked, :given_up) \
                             OR (#status IN (:refreshing, :uncertain) AND \
                             (attribute_not_exists(lease_ends_at) OR lease_ends_at <= :now)))"
                .to_owned();
        let mut set = "SET #status = :refreshing, attempt = :attempt, lease_ends_at = :due, due_at = :due, \
                       due_shard = :shard, tried_at = :now, claimed_from = #status"
            .to_owned();
        // Without leave the place is taken by a state that is in the list already.
        let given_up = if claim.given_up_too { Status::NeedsReauthorization } else { Status::Active };
        let mut write = self.change(claim.resource, claim.lineage);
        condition.push_str(if claim.minting {
            " AND attribute_exists(minted)"
        } else {
            " AND attribute_not_exists(minted)"
        });
        if let Some(before) = claim.forced_before {
            // Only a token that is not in doubt: one without an answer is presented again while the platform forgives.
            condition
                .push_str(" AND (#status <> :active OR attribute_not_exists(forced_at) OR forced_at < :forced_before)");
            set.push_str(", forced_at = :now");
            write = write.expression_attribute_values(":forced_before", n(before));
        }
        set.push_str(" REMOVE retry_at");
        let result = write
            .condition_expression(condition)
            .update_expression(set)
            .status(":active", Status::Active)
            .status(":suspended", Status::Suspended)
            .status(":blocked", Status::Blocked)
            .status(":given_up", given_up)
            .status(":refreshing", Status::Refreshing)
            .status(":uncertain", Status::Uncertain)
            .by(claim.attempt)
            .expression_attribute_values(":now", n(claim.now))
            .due(claim.resource, claim.lease_ends_at)
            .send()
            .await;
        Ok(match written(result)? {
            Written::Applied(item) => Claimed::Mine(Installation::read(&item)?.into()),
            Written::Refused(None) => Claimed::Gone,
            Written::Refused(Some(item)) => {
                let stored = Installation::read(&item)?;
                // The first try of this very write was applied and its answer lost.
                let mine = stored.status == Status::Refreshing
                    && stored.lineage == claim.lineage
                    && stored.attempt.as_deref() == Some(claim.attempt.as_str());
                if mine { Claimed::Mine(stored.into()) } else { Claimed::Not(stored.into()) }
            }
        })
    }

    /// Stores a new pair in place of the one of lineage `from`: by lineage, whoever holds the lease. A parked pair
    /// stays `beside` it; if another one is parked than is known, the condition fails.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may or may not have been stored. Try again; a second try recognises the first.
    pub async fn commit(
        &self,
        resource: &Resource,
        from: Lineage,
        renewal: Renewal<'_>,
        beside: &Beside,
    ) -> Result<Changed, StoreError> {
        let Renewal { attempt, pair, due_at, event } = renewal;
        // Only who knows what was told last may say that it is over; else the next commit does.
        let telling = Telling::of(event, pair.access_issued_at);
        let over = if event.is_some() { ", told" } else { "" };
        let mut write = telling.values(self.change(resource, from).pair(pair));
        let mut known = "attribute_not_exists(alternate)".to_owned();
        if let Some(seen) = &beside.seen {
            known.push_str(" OR alternate = :seen");
            write = write.expression_attribute_values(":seen", seen.to_map());
        }
        let (keep, drop) = if let Some(keep) = &beside.keep {
            write = write.expression_attribute_values(":keep", keep.to_map());
            (", alternate = :keep", "")
        } else {
            ("", ", alternate")
        };
        let result = write
            .condition_expression(format!(
                "epoch = :epoch AND generation = :generation AND #status <> :revoked AND ({known})"
            ))
            .update_expression(format!(
                "SET #status = :active, generation = :next, committed_by = :attempt, due_at = :due, \
                 due_shard = :shard, failures = :zero, {SET_PAIR}{keep}{} \
                 REMOVE attempt, lease_ends_at, token_wanted{drop}{over}{}",
                telling.set(),
                telling.add()
            ))
            .renewed(resource, from, attempt, due_at)
            .expression_attribute_values(":zero", n(0))
            .send()
            .await;
        changed(written(result)?, committed_by(attempt))
    }

    /// Keeps a granted pair beside the current one of lineage `current`, under which it must be sealed. An
    /// installation that was given up is uncertain again, and due at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn park(
        &self,
        resource: &Resource,
        current: Lineage,
        pair: &SealedPair,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let alive = self
            .change(resource, current)
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND NOT #status IN (:given_up, :revoked)",
            )
            .update_expression("SET alternate = :alternate")
            .status(":given_up", Status::NeedsReauthorization)
            .status(":revoked", Status::Revoked)
            .expression_attribute_values(":alternate", pair.to_map())
            .send()
            .await;
        let parked = changed(written(alive)?, |_| false)?;
        if !matches!(&parked, Changed::Not(stored) if stored.status == Status::NeedsReauthorization) {
            return Ok(parked);
        }
        let given_up = self
            .change(resource, current)
            .condition_expression("epoch = :epoch AND generation = :generation AND #status = :given_up")
            .update_expression("SET alternate = :alternate, #status = :uncertain, due_at = :due, due_shard = :shard")
            .status(":given_up", Status::NeedsReauthorization)
            .status(":uncertain", Status::Uncertain)
            .expression_attribute_values(":alternate", pair.to_map())
            .due(resource, now)
            .send()
            .await;
        changed(written(given_up)?, |_| false)
    }

    /// Makes the parked pair the current one, sealed anew under the next lineage, in place of one that was refused.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn promote(
        &self,
        resource: &Resource,
        from: Lineage,
        attempt: &Attempt,
        pair: &SealedPair,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let result = self
            .change(resource, from)
            .pair(pair)
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND #status <> :revoked AND attribute_exists(alternate)",
            )
            .update_expression(format!(
                "SET #status = :active, generation = :next, committed_by = :attempt, due_at = :due, \
                 due_shard = :shard, {SET_PAIR} REMOVE attempt, lease_ends_at, alternate"
            ))
            .renewed(resource, from, attempt, now)
            .send()
            .await;
        changed(written(result)?, committed_by(attempt))
    }

    /// Gives the lease back without a new pair. Only its holder can; [`Status::NeedsReauthorization`] only if no pair
    /// is parked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle(
        &self,
        resource: &Resource,
        lineage: Lineage,
        attempt: &Attempt,
        to: Settlement,
        event: Option<Event>,
    ) -> Result<Changed, StoreError> {
        let mut condition = "epoch = :epoch AND generation = :generation AND attempt = :attempt".to_owned();
        if to.status == Status::NeedsReauthorization {
            condition.push_str(" AND attribute_not_exists(alternate)");
        }
        let (due, remove) = match to.due_at {
            Some(_) => (", due_at = :due, due_shard = :shard", ""),
            None => ("", ", due_at, due_shard"),
        };
        // Active without a new pair: nothing was renewed, so nothing was forced either.
        let forced = if to.status == Status::Active { ", forced_at" } else { "" };
        let asked = if to.retry_at.is_some() { ", retry_at = :retry_at" } else { "" };
        let telling = Telling::of(event, to.now);
        let told = if event.is_some() { ", told = :status" } else { "" };
        let mut write = telling.values(self.change(resource, lineage));
        if let Some(retry_at) = to.retry_at {
            write = write.expression_attribute_values(":retry_at", n(retry_at));
        }
        if let Some(due_at) = to.due_at {
            write = write.due(resource, due_at);
        }
        let result = write
            .condition_expression(condition)
            .update_expression(format!(
                "SET #status = :status, failures = :failures, settled_by = :attempt{due}{asked}{told}{} \
                 REMOVE attempt, lease_ends_at{remove}{forced}{}",
                telling.set(),
                telling.add()
            ))
            .status(":status", to.status)
            .expression_attribute_values(":failures", n(to.failures))
            .by(attempt)
            .send()
            .await;
        changed(written(result)?, |stored| {
            stored.lineage == lineage && stored.status == to.status && stored.attempt.is_none()
        })
    }
}
