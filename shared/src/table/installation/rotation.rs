//! The writes of the lease: the claim that takes the lease, and the writes that end it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::b;
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Gone, Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};
use crate::table::search::SEARCH_RESULT;
use crate::table::{StoreError, Table, Update, Write, n, s};

/// The length of a lease. It is long enough for two presentations of the refresh token and a commit. It is so short
/// that the next claimant can still present the same token within the platform's 30 s of grace.
pub const LEASE: Duration = Duration::from_secs(15);

/// The parameters of a claim.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The location or company.
    pub resource: &'a Resource,
    /// The version that the claimant has read.
    pub version: TokenVersion,
    /// The id of the claimant.
    pub owner: &'a LeaseOwner,
    /// The current time.
    pub now: Millis,
    /// The end of the lease.
    pub lease_ends_at: Millis,
    /// True if an installation that was given up may be claimed, too: an operator has reason to believe that the
    /// platform's refusal was the platform's own fault.
    pub given_up_too: bool,
    /// Set if a refused access token is the reason for the claim. The last forced refresh must be before this time.
    pub forced_before: Option<Millis>,
    /// True if the refused access token got an unclassified answer. The renewal is then noted for the generation that
    /// it produces. A generation that was itself produced by such a renewal is not renewed for such an answer.
    pub doubted: bool,
    /// True if the claim is for minting. Such a claim applies only to minted locations, which have no refresh token,
    /// and every other claim only to installations that are not minted.
    pub minting: bool,
}

/// A granted token, and the values that are stored with it.
#[derive(Clone, Copy, Debug)]
pub struct Renewal<'a> {
    /// The lease owner that was granted the token.
    pub owner: &'a LeaseOwner,
    /// The token or pair, sealed under the next version.
    pub pair: &'a SealedPair,
    /// The time at which the schedule tries the installation next.
    pub due_at: Millis,
    /// The event that is published once the token is stored.
    pub event: Option<Event>,
}

/// The release of a lease without a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The state after the release.
    pub status: Status,
    /// The time at which the schedule tries the installation next. `None` if a human must act first.
    pub due_at: Option<Millis>,
    /// The number of failures in a row, including this one.
    pub failures: u32,
    /// The earliest time of the next try, because the platform asked for a pause.
    pub retry_at: Option<Millis>,
    /// The platform's finding about the current token.
    pub finding: Option<Finding>,
    /// The current time.
    pub now: Millis,
}

/// A finding from the platform's answer, which is stored as long as the token is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The token was refused, and the installation was not marked. This finding makes the installation count only once.
    Refused,
    /// The token was refused, and nothing is concluded from it yet.
    Waits,
    /// The platform states that the location or company does not exist.
    Gone(Gone),
    /// The location's own company has ended or does not have the app there, and no other company is known to have it. The
    /// other companies are asked again after this time.
    OthersAsked {
        /// The time after which the other companies are asked again.
        again_at: Millis,
    },
}

impl Table {
    /// Claims an installation for a refresh. The claim is one write that takes the lease, records the intent
    /// (write-ahead), and proves that the table accepts writes.
    ///
    /// # Errors
    /// [`StoreError`]. No request may be sent then.
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
            // The condition applies only if the stored pair is the live one. A token without an answer is presented
            // again within the platform's grace.
            let in_doubt = write.status_is(|status| !status.has_live_pair());
            write.when(&format!("{in_doubt} OR attribute_not_exists(forced_at) OR forced_at < :forced_before"));
            write.value(":forced_before", n(before)).set("forced_at", n(claim.now));
        }
        if claim.doubted {
            let in_doubt = write.status_is(|status| !status.has_live_pair());
            write.when(&format!(
                "{in_doubt} OR attribute_not_exists(doubted_generation) OR doubted_generation <> generation"
            ));
            // The note is written before the token is presented, so neither a crash nor another process can lose it.
            // Without a new pair, the note names a generation that does not exist.
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

    /// Notes that the platform accepts a token that was produced by a renewal after an unclassified answer
    /// ([`Claim::doubted`]). Such a renewal may therefore help another time, too.
    pub async fn clear_doubt(
        &self,
        resource: &Resource,
        version: TokenVersion,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, version);
        write.when_equal("doubted_generation", n(version.generation)).remove(["doubted_generation"]);
        self.write_installation(write).await
    }

    /// Stores a new pair in place of the pair of version `from`. The condition is the version and not the lease,
    /// because the holder of a granted pair may hold the only live one. Standby pairs stay. A location that became
    /// minted after its own grant was refused is no longer minted.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may or may not have been stored. The caller should try again; a second try recognises
    /// the first.
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

    /// Adds a standby pair to an installation that was read as `seen`. An installation that was given up or waits for a
    /// retry becomes uncertain and due at once. The condition fails if the installation is minted, has another version,
    /// or has changed between those states and the others.
    ///
    /// # Errors
    /// [`StoreError`]: the pair may have been added. A pair that is stored twice is tried twice, which does no harm.
    pub async fn add_standby(
        &self,
        seen: &Installation,
        standby: &StandbyPair,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let is_retried = |status| Transition::AddStandby.from(status) == Some(Status::Uncertain);
        let to_be_retried = is_retried(seen.status());
        let mut write = Update::of_version(&seen.resource, seen.version);
        // A minted installation has no standby pairs, because its next commit would erase them.
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

    /// Promotes the standby pair at `place` of `seen` to the current pair, in place of a refused one. `pair` is the
    /// same pair, sealed under the next version. The condition fails if the standby pairs have changed.
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
        write.when_equal(&format!("standby[{place}].access_token"), b(&standby.pair.access.token));
        write.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        write.set("granted_from", n(standby.granted_from)).set("committed_by", s(owner.as_str()));
        write.set_due(&seen.resource, now).remove(SEARCH_RESULT).release_lease();
        if seen.standby().len() == 1 {
            write.remove(["standby"]);
        } else {
            write.remove([&*format!("standby[{place}]")]);
        }
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(owner)))
    }

    /// Releases the lease without a new token. Only the owner of the lease can do this. The condition for
    /// [`Status::NeedsReauthorization`] is that there is no standby pair.
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
        if to.status.has_live_pair() {
            // The installation becomes active without a new pair: nothing was renewed, so no refresh was forced.
            write.remove(["forced_at"]);
        }
        match to.finding {
            Some(Finding::Refused | Finding::Waits | Finding::OthersAsked { .. }) => {
                write.set("answered_generation", n(version.generation));
            }
            Some(Finding::Gone(_)) | None => {
                write.remove(["answered_generation"]);
            }
        }
        match to.finding {
            None | Some(Finding::Waits) => {}
            Some(Finding::Refused) => {
                write.set("refused_generation", n(version.generation));
            }
            Some(Finding::Gone(gone)) => {
                write.set("gone_generation", n(version.generation));
                write.set("gone_since", n(gone.since)).set("gone_tries", n(gone.tries));
            }
            Some(Finding::OthersAsked { again_at }) => {
                write.set("others_again_at", n(again_at));
            }
        }
        if event.is_some() {
            write.set("published", s(to.status.as_str()));
        }
        write.release_lease().publish(event, to.now);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.version == version && stored.status() == to.status))
    }
}

impl Update {
    /// Stores a granted token as the current one, and releases the lease. The token is sealed under the version after
    /// `from`.
    pub(in crate::table) fn renew(&mut self, resource: &Resource, from: TokenVersion, renewal: &Renewal<'_>) {
        let Renewal { owner, pair, due_at, event } = renewal;
        self.set_status(Status::Active).set("generation", n(from.next().generation)).set_pair(pair);
        self.set("committed_by", s(owner.as_str())).set_due(resource, *due_at).set("failures", n(0));
        self.release_lease().remove(["token_wanted"]).publish(*event, pair.access.issued_at);
        if event.is_some() {
            // The event reports the end of the published state. Without an event, the next commit reports that end.
            self.remove(["published"]);
        }
    }
}
