//! Everything that happens under a lease: the claim that takes it, and the writes that end it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::b;
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Gone, Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};
use crate::table::minted::SEARCH_RESULT;
use crate::table::{StoreError, Table, Update, Write, n, s};

/// The length of a lease: time for two presentations and a commit, and short enough that the next claimant can still
/// present the same token inside the platform's 30 s of grace.
pub const LEASE: Duration = Duration::from_secs(15);

/// A claim to be made.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The location or company.
    pub resource: &'a Resource,
    /// The version that the claimant has seen.
    pub version: TokenVersion,
    /// The claimant.
    pub owner: &'a LeaseOwner,
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

/// A granted token, and the values that are stored with it.
#[derive(Clone, Copy, Debug)]
pub struct Renewal<'a> {
    /// The attempt that was granted it.
    pub owner: &'a LeaseOwner,
    /// The token or pair, sealed under the next version.
    pub pair: &'a SealedPair,
    /// When the schedule looks again.
    pub due_at: Millis,
    /// The event that is published once it is stored.
    pub event: Option<Event>,
}

/// The release of a lease without a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The state to leave behind.
    pub status: Status,
    /// When the schedule looks again; never, if a human must act first.
    pub due_at: Option<Millis>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// Nobody tries again before this, because the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// What the platform has said about the current token.
    pub finding: Option<Finding>,
    /// The present.
    pub now: Millis,
}

/// What the item remembers of the platform's answer, as long as its token is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The token was refused, and the installation is not marked: it is counted once.
    Refused,
    /// The platform knows no such location or company.
    Gone(Gone),
}

impl Table {
    /// Claims an installation for a refresh: at once the lease, the record of the intent, and the proof that the
    /// store can be written.
    ///
    /// # Errors
    /// [`StoreError`]. Nothing may be sent then.
    pub async fn claim(&self, claim: &Claim<'_>) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(claim.resource, claim.version);
        let claimed = if claim.given_up_too { Transition::ClaimByOperator } else { Transition::Claim };
        let is_free = write.status_is(|status| claimed.is_legal(status) && !status.respects_lease());
        let is_leased = write.status_is(|status| claimed.is_legal(status) && status.respects_lease());
        write.when(&format!(
            "{is_free} OR ({is_leased} AND (attribute_not_exists(lease_ends_at) OR lease_ends_at <= :now))"
        ));
        write.value(":now", n(claim.now));
        write.when(if claim.minting { "attribute_exists(minted)" } else { "attribute_not_exists(minted)" });
        if let Some(before) = claim.forced_before {
            // Only a token that is not in doubt: one without an answer is presented again while the platform forgives.
            let in_doubt = write.status_is(|status| !status.has_live_pair());
            write.when(&format!("{in_doubt} OR attribute_not_exists(forced_at) OR forced_at < :forced_before"));
            write.value(":forced_before", n(before)).set("forced_at", n(claim.now));
        }
        if claim.doubted {
            let in_doubt = write.status_is(|status| !status.has_live_pair());
            write.when(&format!(
                "{in_doubt} OR attribute_not_exists(doubted_generation) OR doubted_generation <> generation"
            ));
            // Noted before the token is presented, so that neither a crash nor another process forgets it. Without a new
            // pair the note is about a generation that does not exist.
            write.set("doubted_generation", n(claim.version.next().generation));
        }
        write.set_status(Status::Refreshing).set_to("claimed_from", "#status");
        write.set("attempt", s(claim.owner.as_str())).set("lease_ends_at", n(claim.lease_ends_at));
        write.set_due(claim.resource, claim.lease_ends_at).set("tried_at", n(claim.now)).remove(["retry_at"]);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| {
            stored.version == claim.version && stored.lease().is_some_and(|lease| lease.owner == *claim.owner)
        }))
    }

    /// Notes that the platform takes the token which came of a renewal in doubt ([`Claim::doubted`]): such a renewal may
    /// help another time, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn clear_doubt(
        &self,
        resource: &Resource,
        version: TokenVersion,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, version);
        write.when_equal("doubted_generation", n(version.generation)).remove(["doubted_generation"]);
        self.write_installation(write).await
    }

    /// Stores a new pair in place of the one of version `from`. The condition is the version and not the lease, because the
    /// holder of a granted pair may hold the only live one. Standby pairs stay. A location that was to be minted since its
    /// grant was refused has a grant of its own again.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may or may not have been stored. Try again; a second try recognises the first.
    pub async fn commit(
        &self,
        resource: &Resource,
        from: TokenVersion,
        renewal: Renewal<'_>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, from);
        write.when_legal(Transition::StoreToken);
        write.set_to("granted_from", "generation").renew(resource, from, &renewal);
        write.remove(["minted", "company_epoch"]).remove(SEARCH_RESULT);
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(renewal.owner)))
    }

    /// Adds a standby pair to an installation that was read as `seen`. One that was given up or waits for a retry is
    /// uncertain again, and due at once. The condition fails if the installation has changed its version, or between
    /// these states and the others, or is minted.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may have been added. A pair that is there twice is tried twice, and does no harm.
    pub async fn add_standby(
        &self,
        seen: &Installation,
        standby: &StandbyPair,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let is_retried = |status| Transition::AddStandby.from(status) == Some(Status::Uncertain);
        let to_be_retried = is_retried(seen.status());
        let mut write = Update::of_version(&seen.resource, seen.version);
        // A minted token has no standby pairs: its next commit would erase them.
        write.when("attribute_not_exists(minted)");
        write.set_to("standby", "list_append(if_not_exists(standby, :none), :standby)");
        write
            .value(":none", AttributeValue::L(Vec::new()))
            .value(":standby", AttributeValue::L(vec![standby.to_value()]));
        write.when_status(|status| Transition::AddStandby.is_legal(status) && is_retried(status) == to_be_retried);
        if to_be_retried {
            write.set_status(Status::Uncertain).set_due(&seen.resource, now).remove(["retry_at"]);
        }
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.standby().iter().any(|pair| pair.owner == standby.owner)))
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
        owner: &LeaseOwner,
        pair: &SealedPair,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let (standby, from) = (&seen.standby()[place], seen.version);
        let mut write = Update::of_version(&seen.resource, from);
        write.when_legal(Transition::StoreToken);
        write.when("size(standby) = :count").value(":count", n(seen.standby().len()));
        write.when_equal(&format!("standby[{place}].access_token"), b(&standby.pair.access));
        write.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        write.set("granted_from", n(standby.granted_from)).set("committed_by", s(owner.as_str()));
        write.set_due(&seen.resource, now).release_lease();
        if seen.standby().len() == 1 {
            write.remove(["standby"]);
        } else {
            write.remove([&*format!("standby[{place}]")]);
        }
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(owner)))
    }

    /// Releases the lease without a new token. Only its owner can; to [`Status::NeedsReauthorization`] only if there is no
    /// standby pair.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release(
        &self,
        resource: &Resource,
        version: TokenVersion,
        owner: &LeaseOwner,
        to: Release,
        event: Option<Event>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        debug_assert!(
            Transition::Release(to.status).is_legal(Status::Refreshing),
            "a lease is not released to {}",
            to.status
        );
        let mut write = Update::of_version(resource, version);
        write.when_leased_by(owner);
        if to.status.has_ended() {
            write.when("attribute_not_exists(standby)");
        }
        write.set_status(to.status).set("failures", n(to.failures)).set("settled_by", s(owner.as_str()));
        match to.due_at {
            Some(due_at) => write.set_due(resource, due_at),
            None => write.unschedule(),
        };
        if let Some(retry_at) = to.retry_at {
            write.set("retry_at", n(retry_at));
        }
        if to.status == Status::Active {
            // Active without a new pair: nothing was renewed, so nothing was forced either.
            write.remove(["forced_at"]);
        }
        match to.finding {
            None => {}
            Some(Finding::Refused) => {
                write.set("refused_generation", n(version.generation));
            }
            Some(Finding::Gone(gone)) => {
                write.set("gone_generation", n(version.generation));
                write.set("gone_since", n(gone.since)).set("gone_tries", n(gone.tries));
            }
        }
        if event.is_some() {
            write.set("told", s(to.status.as_str()));
        }
        write.release_lease().publish(event, to.now);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.version == version && stored.status() == to.status))
    }
}

impl Update {
    /// Makes a granted token, which is sealed under the version after `from`, the current one. That releases the lease.
    pub(in crate::table) fn renew(&mut self, resource: &Resource, from: TokenVersion, renewal: &Renewal<'_>) {
        let Renewal { owner, pair, due_at, event } = renewal;
        self.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        self.set("committed_by", s(owner.as_str())).set_due(resource, *due_at).set("failures", n(0));
        self.release_lease().remove(["token_wanted"]).publish(*event, pair.access_issued_at);
        if event.is_some() {
            // The event says that the published state is over. Without an event the next commit says it.
            self.remove(["told"]);
        }
    }
}
