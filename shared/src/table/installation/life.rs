//! The writes of installs and uninstalls.

use aws_sdk_dynamodb::types::AttributeValue;

use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{AppDetails, Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};
use crate::table::installation::details::DETAILS;
use crate::table::search::SEARCH_RESULT;
use crate::table::{StoreError, Table, Update, Write, n, s};

/// The pairs of an import.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// The imported pair.
    pub pair: &'a SealedPair,
    /// The SHA-256 of the imported refresh token. `None` if this system was granted the pair.
    pub refresh_sha256: Option<&'a str>,
    /// All standby pairs after the import.
    pub standby: &'a [StandbyPair],
}

/// A new installation, without its tokens.
#[derive(Clone, Debug)]
pub struct NewInstallation<'a> {
    /// The location or company.
    pub resource: &'a Resource,
    /// The lease owner that exchanged the code.
    pub owner: &'a LeaseOwner,
    /// The time at which the exchange of the code began.
    pub installed_at: Millis,
    /// The time at which the schedule first tries the installation.
    pub due_at: Millis,
    /// The company, if the answer names it.
    pub company: Option<&'a str>,
    /// The public base URL, if known.
    pub home: Option<&'a str>,
    /// The granted scopes.
    pub scope: Option<&'a str>,
    /// Details that the marketplace reported before the installation was stored.
    pub details: Option<&'a AppDetails>,
    /// The current time.
    pub now: Millis,
}

impl Table {
    /// Stores a new installation in place of the one with version `seen`. The pair must be sealed under
    /// [`TokenVersion::reinstalled`] of `seen`, or of a version of zeros if there is no installation.
    pub async fn install(
        &self,
        new: &NewInstallation<'_>,
        seen: Option<TokenVersion>,
        pair: &SealedPair,
        event: Option<Event>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = beginning(new, seen, pair, event);
        write.remove(["standby", "published"]);
        self.begin(write, new).await
    }

    /// Stores an installation that another system has held, in place of the one that was read as `seen`. The pairs must be
    /// sealed under the version of which [`Table::install`] speaks. The condition fails if a lease was claimed or a standby
    /// pair was added since: neither changes the version.
    pub async fn import(
        &self,
        new: &NewInstallation<'_>,
        seen: Option<&Installation>,
        import: &Import<'_>,
        event: Option<Event>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = beginning(new, seen.map(|seen| seen.version), import.pair, event);
        if let Some(seen) = seen {
            match seen.lease() {
                Some(lease) => write.when_leased_by(&lease.owner),
                None => write.when("attribute_not_exists(attempt)"),
            };
            match seen.standby().len() {
                0 => write.when("attribute_not_exists(standby)"),
                count => write.when("size(standby) = :count").value(":count", n(count)),
            };
        }
        match import.standby {
            [] => write.remove(["standby"]),
            pairs => write.set("standby", AttributeValue::L(pairs.iter().map(StandbyPair::to_value).collect())),
        };
        if let Some(sha256) = import.refresh_sha256 {
            write.set("imported_sha256", s(sha256));
        }
        if event.is_some() {
            write.remove(["published"]);
        }
        self.begin(write, new).await
    }

    async fn begin(&self, write: Update, new: &NewInstallation<'_>) -> Result<Write<Box<Installation>>, StoreError> {
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(new.owner)))
    }

    /// Revokes an installation and erases its tokens. The write is applied only if the installation's version is `seen`
    /// or, without `seen`, if the app was installed before `at`. With an `event`, the installation's new epoch must be
    /// the event's epoch.
    pub async fn uninstall(
        &self,
        resource: &Resource,
        at: Millis,
        seen: Option<TokenVersion>,
        event: Option<Event>,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_installation(resource);
        write.when_legal(Transition::Uninstall);
        if seen.is_none() {
            write.when("installed_at < :at").value(":at", n(at));
        }
        if let Some(epoch) = seen.map(|seen| seen.epoch).or(event.map(|event| event.epoch.saturating_sub(1))) {
            write.when_equal("epoch", n(epoch));
        }
        if let Some(seen) = seen {
            write.when_equal("generation", n(seen.generation));
        }
        write.set_status(Status::Revoked).set_to("epoch", "epoch + :one").value(":one", n(1));
        write.set("revoked_at", n(at)).erase_pair().release_lease().unschedule();
        write.remove(["standby", "token_wanted", "published"]).remove(DETAILS).publish(event, now);
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.installed().is_none()))
    }
}

/// The clauses of every write that begins an installation in place of the one with version `seen`.
fn beginning(new: &NewInstallation<'_>, seen: Option<TokenVersion>, pair: &SealedPair, event: Option<Event>) -> Update {
    let next = seen.unwrap_or(TokenVersion { epoch: 0, generation: 0 }).reinstalled();
    let mut write = Update::of_installation(new.resource);
    match seen {
        None => {
            write.when("attribute_not_exists(pk)");
        }
        Some(seen) => {
            write.when_equal("epoch", n(seen.epoch)).when_equal("generation", n(seen.generation));
            // The location's own grant replaces a minted token, even if an install notice with a later time came first.
            write.when("installed_at < :installed_at OR attribute_exists(minted)");
            write.value(":installed_at", n(new.installed_at));
        }
    }
    write.set_status(Status::Active).set("epoch", n(next.epoch)).set("generation", n(next.generation));
    write.set("committed_by", s(new.owner.as_str())).set("installed_at", n(new.installed_at));
    write.set_due(new.resource, new.due_at).set("failures", n(0)).set_pair(pair);
    for (attribute, value) in [("company", new.company), ("#scope", new.scope), ("home", new.home)] {
        if let Some(value) = value {
            write.set(attribute, s(value));
        }
    }
    if let Some(details) = new.details {
        write.set_details(details);
    }
    write.release_lease().publish(event, new.now);
    write.remove(["granted_from", "revoked_at", "forced_at", "token_wanted"]);
    write.remove(["minted", "company_epoch", "placeholder", "expires_at"]).remove(SEARCH_RESULT);
    write
}
