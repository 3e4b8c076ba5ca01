//! Everything that happens under a lease: a claim, and how it ends.

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
        write.set("attempt", s(claim.attempt.as_str())).set("lease_ends_at", n(claim.lease_ends_at));
        write.set_due(claim.resource, claim.lease_ends_at).set("tried_at", n(claim.now)).remove(["retry_at"]);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| {
            stored.status == Status::Refreshing
                && stored.version == claim.version
                && stored.attempt.as_deref() == Some(claim.attempt.as_str())
        }))
    }

    /// Notes that the platform takes the token which came of a renewal in doubt ([`Claim::doubted`]): such a renewal may
    /// help another time, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renewal_helped(
        &self,
        resource: &Resource,
        version: TokenVersion,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, version);
        write.when_equal("doubted_generation", n(version.generation)).remove(["doubted_generation"]);
        self.write_installation(write).await
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, version);
        write.when_leased_by(attempt).set("gone_generation", n(version.generation));
        write.set("gone_since", n(gone.since)).set("gone_tries", n(gone.tries));
        self.write_installation(write).await
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, from);
        write.when_legal(Transition::StoreToken);
        write.set_to("granted_from", "generation").renew(resource, from, &renewal);
        write.remove(["minted", "company_epoch"]).remove(SEARCH_RESULT);
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(renewal.attempt)))
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let is_retried = |status| Transition::AddStandby.from(status) == Some(Status::Uncertain);
        let to_be_retried = is_retried(seen.status);
        let mut write = Update::of_version(&seen.resource, seen.version);
        write.set_to("standby", "list_append(if_not_exists(standby, :none), :standby)");
        write
            .value(":none", AttributeValue::L(Vec::new()))
            .value(":standby", AttributeValue::L(vec![standby.to_value()]));
        write.when_status(|status| Transition::AddStandby.is_legal(status) && is_retried(status) == to_be_retried);
        if to_be_retried {
            write.set_status(Status::Uncertain).set_due(&seen.resource, now).remove(["retry_at"]);
        }
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.standby.iter().any(|pair| pair.attempt == standby.attempt)))
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let (standby, from) = (&seen.standby[place], seen.version);
        let mut write = Update::of_version(&seen.resource, from);
        write.when_legal(Transition::StoreToken);
        write.when("size(standby) = :count").value(":count", n(seen.standby.len()));
        write.when_equal(&format!("standby[{place}].access_token"), b(&standby.pair.access));
        write.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        write.set("granted_from", n(standby.granted_from)).set("committed_by", s(attempt.as_str()));
        write.set_due(&seen.resource, now).release_lease();
        if seen.standby.len() == 1 {
            write.remove(["standby"]);
        } else {
            write.remove([&*format!("standby[{place}]")]);
        }
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(attempt)))
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        self.release(resource, version, attempt, to, event, false).await
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
    ) -> Result<Write<Box<Installation>>, StoreError> {
        self.release(resource, version, attempt, to, None, true).await
    }

    async fn release(
        &self,
        resource: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        to: Settlement,
        event: Option<Event>,
        is_refused: bool,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        debug_assert!(
            Transition::Release(to.status).is_legal(Status::Refreshing),
            "a lease is not released to {}",
            to.status
        );
        let mut write = Update::of_version(resource, version);
        write.when_leased_by(attempt);
        if to.status == Status::NeedsReauthorization {
            write.when("attribute_not_exists(standby)");
        }
        write.set_status(to.status).set("failures", n(to.failures)).set("settled_by", s(attempt.as_str()));
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
        if is_refused {
            write.set("refused_generation", n(version.generation));
        }
        if event.is_some() {
            write.set("told", s(to.status.as_str()));
        }
        write.release_lease().publish(event, to.now);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| {
            stored.version == version && stored.status == to.status && stored.attempt.is_none()
        }))
    }
}

impl Update {
    /// Makes a granted token, which is sealed under the version after `from`, the current one. A new token ends the lease
    /// and whatever was published of the installation's having none.
    pub(in crate::table) fn renew(&mut self, resource: &Resource, from: TokenVersion, renewal: &Renewal<'_>) {
        let Renewal { attempt, pair, due_at, event } = renewal;
        self.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        self.set("committed_by", s(attempt.as_str())).set_due(resource, *due_at).set("failures", n(0));
        self.release_lease().remove(["token_wanted"]).publish(*event, pair.access_issued_at);
        if event.is_some() {
            // Without an event it is not known what was published last; the next commit knows.
            self.remove(["told"]);
        }
    }
}
