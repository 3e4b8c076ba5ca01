//! Everything that happens under a lease: a claim, and how it ends.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::b;
use super::writing::{Changed, InstallationWrite as _, SET_PAIR, changed, committed_by};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Gone, Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion};
use crate::table::minted::SEARCHED;
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
    /// The version that the claimant has seen.
    pub version: TokenVersion,
    /// The claimant.
    pub attempt: &'a LeaseOwner,
    /// The present.
    pub now: Millis,
    /// The end of the lease.
    pub lease_ends_at: Millis,
    /// Whether an installation may be claimed that was given up: an operator has reason to think that the platform's
    /// refusal was its own fault.
    pub given_up_too: bool,
    /// Whether a refused access token is the reason: then the last forced refresh must be older than this.
    pub forced_before: Option<Millis>,
    /// Whether that refusal was an answer that nobody has classified. Then the renewal is noted for the generation that
    /// comes of it, and none is made for one that has come of such a renewal.
    pub doubted: bool,
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
    pub attempt: &'a LeaseOwner,
    /// The token or pair, sealed under the next version.
    pub pair: &'a SealedPair,
    /// When the schedule looks again.
    pub due_at: Millis,
    /// What is told once it is stored.
    pub event: Option<Event>,
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
        let mut write = self.change(claim.resource, claim.version);
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
        if claim.doubted {
            condition.push_str(
                " AND (#status <> :active OR attribute_not_exists(doubted_generation) OR \
                 doubted_generation <> :generation)",
            );
            // Noted before the token is presented, so that neither a crash nor another process forgets it. Without a new
            // pair the note is about a generation that does not exist.
            set.push_str(", doubted_generation = :next");
            write = write.expression_attribute_values(":next", n(claim.version.next().generation));
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
                    && stored.version == claim.version
                    && stored.attempt.as_deref() == Some(claim.attempt.as_str());
                if mine { Claimed::Mine(stored.into()) } else { Claimed::Not(stored.into()) }
            }
        })
    }

    /// Notes that the platform takes the token which came of a renewal in doubt ([`Claim::doubted`]): such a renewal may
    /// help another time, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renewal_helped(&self, resource: &Resource, version: TokenVersion) -> Result<Changed, StoreError> {
        let result = self
            .change(resource, version)
            .condition_expression("epoch = :epoch AND generation = :generation AND doubted_generation = :generation")
            .update_expression("REMOVE doubted_generation")
            .send()
            .await;
        changed(written(result)?, |_| false)
    }

    /// Notes that the platform knows no such location or company, by an answer to the holder of the lease.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_gone(
        &self,
        resource: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        gone: Gone,
    ) -> Result<Changed, StoreError> {
        let result = self
            .change(resource, version)
            .condition_expression("epoch = :epoch AND generation = :generation AND attempt = :attempt")
            .update_expression("SET gone_generation = :generation, gone_since = :since, gone_tries = :tries")
            .by(attempt)
            .expression_attribute_values(":since", n(gone.since))
            .expression_attribute_values(":tries", n(gone.tries))
            .send()
            .await;
        changed(written(result)?, |_| false)
    }

    /// Stores a new pair in place of the one of version `from`: by version, whoever holds the lease. Standby pairs stay. A
    /// location that was to be minted since its grant was refused has a grant of its own again.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may or may not have been stored. Try again; a second try recognises the first.
    pub async fn commit(
        &self,
        resource: &Resource,
        from: TokenVersion,
        renewal: Renewal<'_>,
    ) -> Result<Changed, StoreError> {
        let Renewal { attempt, pair, due_at, event } = renewal;
        // Only who knows what was told last may say that it is over; else the next commit does.
        let telling = Telling::of(event, pair.access_issued_at);
        let over = if event.is_some() { ", told" } else { "" };
        let result = telling
            .values(self.change(resource, from).pair(pair))
            .condition_expression("epoch = :epoch AND generation = :generation AND #status <> :revoked")
            .update_expression(format!(
                "SET #status = :active, generation = :next, granted_from = :generation, committed_by = :attempt, \
                 due_at = :due, due_shard = :shard, failures = :zero, {SET_PAIR}{} \
                 REMOVE attempt, lease_ends_at, token_wanted, minted, company_epoch, {SEARCHED}{over}{}",
                telling.set(),
                telling.add()
            ))
            .renewed(resource, from, attempt, due_at)
            .expression_attribute_values(":zero", n(0))
            .send()
            .await;
        changed(written(result)?, committed_by(attempt))
    }

    /// Adds a standby pair to an installation that was read as `seen`. One that was given up or waits for a retry is
    /// uncertain again, and due at once. The condition fails if the installation has changed its version, or between
    /// these states and the others.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may have been added. A pair that is there twice is tried twice, and does no harm.
    pub async fn add_standby(
        &self,
        seen: &Installation,
        standby: &StandbyPair,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let waits = "#status IN (:given_up, :uncertain)";
        let hopeless = matches!(seen.status, Status::NeedsReauthorization | Status::Uncertain);
        let append = "standby = list_append(if_not_exists(standby, :none), :standby)";
        let mut write = self
            .change(&seen.resource, seen.version)
            .status(":given_up", Status::NeedsReauthorization)
            .status(":uncertain", Status::Uncertain)
            .expression_attribute_values(":none", AttributeValue::L(Vec::new()))
            .expression_attribute_values(":standby", AttributeValue::L(vec![standby.to_value()]));
        write = if hopeless {
            write
                .condition_expression(format!("epoch = :epoch AND generation = :generation AND {waits}"))
                .update_expression(format!(
                    "SET {append}, #status = :uncertain, due_at = :due, due_shard = :shard REMOVE retry_at"
                ))
                .due(&seen.resource, now)
        } else {
            write
                .condition_expression(format!(
                    "epoch = :epoch AND generation = :generation AND #status <> :revoked AND NOT {waits}"
                ))
                .update_expression(format!("SET {append}"))
                .status(":revoked", Status::Revoked)
        };
        changed(written(write.send().await)?, |stored| {
            stored.standby.iter().any(|pair| pair.attempt == standby.attempt)
        })
    }

    /// Makes one standby pair of the installation as it was read, the one at `place`, the current pair in place of one
    /// that was refused. `pair` is the same pair sealed under the next version. The condition fails if the standby pairs
    /// have changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn promote(
        &self,
        seen: &Installation,
        place: usize,
        attempt: &LeaseOwner,
        pair: &SealedPair,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let (standby, from) = (&seen.standby[place], seen.version);
        let rest = if seen.standby.len() == 1 { "standby".to_owned() } else { format!("standby[{place}]") };
        let result = self
            .change(&seen.resource, from)
            .pair(pair)
            .condition_expression(format!(
                "epoch = :epoch AND generation = :generation AND #status <> :revoked AND size(standby) = :count AND \
                 standby[{place}].access_token = :standby"
            ))
            .update_expression(format!(
                "SET #status = :active, generation = :next, granted_from = :granted_from, committed_by = :attempt, \
                 due_at = :due, due_shard = :shard, {SET_PAIR} REMOVE attempt, lease_ends_at, {rest}"
            ))
            .renewed(&seen.resource, from, attempt, now)
            .expression_attribute_values(":count", n(seen.standby.len()))
            .expression_attribute_values(":standby", b(&standby.pair.access))
            .expression_attribute_values(":granted_from", n(standby.granted_from))
            .send()
            .await;
        changed(written(result)?, committed_by(attempt))
    }

    /// Gives the lease back without a new pair. Only its holder can; [`Status::NeedsReauthorization`] only if there is no
    /// standby pair.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle(
        &self,
        resource: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        to: Settlement,
        event: Option<Event>,
    ) -> Result<Changed, StoreError> {
        self.release(resource, version, attempt, to, event, "").await
    }

    /// Releases the lease of an installation whose grant was refused and which is not marked: [`Table::settle`], and
    /// the item remembers that this generation was refused, so that one installation is counted once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle_refused(
        &self,
        resource: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        to: Settlement,
    ) -> Result<Changed, StoreError> {
        self.release(resource, version, attempt, to, None, ", refused_generation = :generation").await
    }

    async fn release(
        &self,
        resource: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        to: Settlement,
        event: Option<Event>,
        refused: &str,
    ) -> Result<Changed, StoreError> {
        let mut condition = "epoch = :epoch AND generation = :generation AND attempt = :attempt".to_owned();
        if to.status == Status::NeedsReauthorization {
            condition.push_str(" AND attribute_not_exists(standby)");
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
        let mut write = telling.values(self.change(resource, version));
        if let Some(retry_at) = to.retry_at {
            write = write.expression_attribute_values(":retry_at", n(retry_at));
        }
        if let Some(due_at) = to.due_at {
            write = write.due(resource, due_at);
        }
        let result = write
            .condition_expression(condition)
            .update_expression(format!(
                "SET #status = :status, failures = :failures, settled_by = :attempt{due}{asked}{told}{refused}{} \
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
            stored.version == version && stored.status == to.status && stored.attempt.is_none()
        })
    }
}
