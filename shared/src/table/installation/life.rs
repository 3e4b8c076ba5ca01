//! The writes of installs and uninstalls.

use aws_sdk_dynamodb::types::AttributeValue;

use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{AppDetails, Installation, SealedPair, Source, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};
use crate::table::installation::details::DETAILS;
use crate::table::installation::rotation::Renewal;
use crate::table::search::SEARCH_RESULT;
use crate::table::{StoreError, Table, Update, Write, n, s};

/// The pairs of an import.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// The imported pair.
    pub pair: &'a SealedPair,
    /// The SHA-256 of the imported refresh token. `None` if the pair was a standby pair before.
    pub refresh_sha256: Option<&'a str>,
    /// All standby pairs after the import.
    pub standby: &'a [StandbyPair],
}

impl Import<'_> {
    /// The version of an imported pair. Only an installation without a grant of its own begins a new epoch.
    pub fn version(seen: Option<&Installation>) -> TokenVersion {
        match seen {
            None => TokenVersion { epoch: 0, generation: 0 }.reinstalled(),
            Some(seen) if has_own_grant(seen) => seen.version.next(),
            Some(seen) => seen.version.reinstalled(),
        }
    }
}

fn has_own_grant(seen: &Installation) -> bool {
    matches!(seen.installed().map(|installed| &installed.source), Some(Source::Own { .. }))
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

    /// Stores an installation that another system has held, in place of the one that was read as `seen`. The pair must be
    /// sealed under [`Import::version`].
    pub async fn import(
        &self,
        new: &NewInstallation<'_>,
        seen: Option<&Installation>,
        import: &Import<'_>,
        event: Option<Event>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = match seen {
            Some(seen) if has_own_grant(seen) => replacing(new, seen, import, event),
            _ => {
                let mut write = beginning(new, seen.map(|seen| seen.version), import.pair, event);
                write.remove(["standby"]);
                if event.is_some() {
                    write.remove(["published"]);
                }
                write
            }
        };
        if let Some(sha256) = import.refresh_sha256 {
            write.set("imported_sha256", s(sha256));
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
    write.set_due(new.resource, new.due_at).set("failures", n(0)).set_pair(pair).set_origin(new);
    if let Some(details) = new.details {
        write.set_details(details);
    }
    write.release_lease().publish(event, new.now);
    write.remove(["granted_from", "revoked_at", "forced_at", "token_wanted"]);
    write.remove(["minted", "company_epoch", "placeholder", "expires_at"]).remove(SEARCH_RESULT);
    write
}

/// The clauses of an import in place of the current pair of an installed app. Every claim sets `tried_at`, and each added
/// standby pair changes their number, although neither changes the version. A renewal that is claimed later finds its
/// epoch, and its pair becomes a standby pair: `granted_from` stays as it was.
fn replacing(new: &NewInstallation<'_>, seen: &Installation, import: &Import<'_>, event: Option<Event>) -> Update {
    let mut write = Update::of_version(new.resource, seen.version);
    let status = seen.status();
    write.when_status(|stored| stored == status);
    match seen.schedule().tried_at {
        Some(at) => write.when_equal("tried_at", n(at)),
        None => write.when("attribute_not_exists(tried_at)"),
    };
    match seen.standby().len() {
        0 => write.when("attribute_not_exists(standby)"),
        count => write.when("size(standby) = :count").value(":count", n(count)),
    };
    write.renew(
        new.resource,
        seen.version,
        &Renewal { owner: new.owner, pair: import.pair, due_at: new.due_at, event },
    );
    write.set("granted_from", n(seen.granted_from)).set("installed_at", n(seen.installed_at.max(new.installed_at)));
    write.set_origin(new).remove(["retry_at", "forced_at"]).remove(SEARCH_RESULT);
    match import.standby {
        [] => write.remove(["standby"]),
        pairs => write.set("standby", AttributeValue::L(pairs.iter().map(StandbyPair::to_value).collect())),
    };
    write
}

impl Update {
    /// Sets the values of an installation that a grant may leave out.
    fn set_origin(&mut self, new: &NewInstallation<'_>) -> &mut Self {
        for (attribute, value) in [("company", new.company), ("#scope", new.scope), ("home", new.home)] {
            if let Some(value) = value {
                self.set(attribute, s(value));
            }
        }
        self
    }
}
