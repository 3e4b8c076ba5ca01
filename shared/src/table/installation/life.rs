//! How an installation begins and ends.

use super::writing::{Changed, InstallationWrite as _, SET_PAIR, changed};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::SealedPair;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion};
use crate::table::outbox::Telling;
use crate::table::{StoreError, Table, n, s, written};

/// What is stored about a new installation besides its tokens.
#[derive(Clone, Debug)]
pub struct NewInstallation<'a> {
    /// Whose it is.
    pub resource: &'a Resource,
    /// The attempt that exchanged the code.
    pub attempt: &'a LeaseOwner,
    /// When the exchange was begun.
    pub installed_at: Millis,
    /// When the schedule looks first.
    pub due_at: Millis,
    /// The company, where the answer names it.
    pub company: Option<&'a str>,
    /// The public base URL.
    pub home: &'a str,
    /// Scopes granted.
    pub scope: Option<&'a str>,
    /// The present.
    pub now: Millis,
}

impl Table {
    /// Stores a new installation over `seen`, whose pair must be sealed under [`TokenVersion::reinstalled`] of it (of a
    /// version of zeros if there is none).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn install(
        &self,
        new: &NewInstallation<'_>,
        seen: Option<TokenVersion>,
        pair: &SealedPair,
        event: Option<Event>,
    ) -> Result<Changed, StoreError> {
        let version = seen.unwrap_or(TokenVersion { epoch: 0, generation: 0 });
        let next = version.reinstalled();
        let telling = Telling::of(event, new.now);
        let optional = [("company", new.company), ("scope", new.scope)];
        let mut update = format!(
            "SET #status = :active, epoch = :next_epoch, generation = :next, committed_by = :attempt, \
             installed_at = :installed, due_at = :due, due_shard = :shard, failures = :zero, home = :home, {SET_PAIR}"
        );
        let mut write = telling.values(self.update(new.resource).pair(pair));
        for (name, value) in optional {
            if let Some(value) = value {
                // `scope` is a reserved word of DynamoDB.
                update.extend([", #", name, " = :", name]);
                write = write
                    .expression_attribute_names(format!("#{name}"), name)
                    .expression_attribute_values(format!(":{name}"), s(value));
            }
        }
        update.push_str(telling.set());
        update.push_str(
            " REMOVE attempt, lease_ends_at, standby, granted_from, revoked_at, forced_at, expires_at, minted, \
             company_epoch, absent_until, absent_newest, search_since, search_after, search_left, supposed, \
             token_wanted, told",
        );
        update.push_str(telling.add());
        write = match seen {
            None => write.condition_expression("attribute_not_exists(pk)"),
            Some(_) => write
                // A grant of its own is more than a minted token, whatever was heard of the location before.
                .condition_expression(
                    "epoch = :epoch AND generation = :generation AND (installed_at < :installed OR \
                     attribute_exists(minted))",
                )
                .expression_attribute_values(":epoch", n(version.epoch))
                .expression_attribute_values(":generation", n(version.generation)),
        };
        let result = write
            .update_expression(update)
            .status(":active", Status::Active)
            .expression_attribute_values(":next_epoch", n(next.epoch))
            .expression_attribute_values(":next", n(next.generation))
            .by(new.attempt)
            .expression_attribute_values(":installed", n(new.installed_at))
            .due(new.resource, new.due_at)
            .expression_attribute_values(":home", s(new.home))
            .expression_attribute_values(":zero", n(0))
            .send()
            .await;
        changed(written(result)?, |stored| stored.committed_by.as_deref() == Some(new.attempt.as_str()))
    }

    /// Revokes an installation and erases its tokens: one that is older than `at`, or the one whose version is still
    /// `seen`. With an `event`, only if that names the epoch which follows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn uninstall(
        &self,
        resource: &Resource,
        at: Millis,
        seen: Option<TokenVersion>,
        event: Option<Event>,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let telling = Telling::of(event, now);
        let mut condition = "#status <> :revoked".to_owned();
        let mut write = telling.values(self.update(resource));
        if seen.is_none() {
            condition.push_str(" AND installed_at < :at");
        }
        if let Some(epoch) = seen.map(|seen| seen.epoch).or(event.map(|event| event.epoch.saturating_sub(1))) {
            condition.push_str(" AND epoch = :before");
            write = write.expression_attribute_values(":before", n(epoch));
        }
        if let Some(seen) = seen {
            condition.push_str(" AND generation = :generation");
            write = write.expression_attribute_values(":generation", n(seen.generation));
        }
        let result = write
            .condition_expression(condition)
            .update_expression(format!(
                "SET #status = :revoked, epoch = epoch + :one, revoked_at = :at{} REMOVE access_token, refresh_token, \
                 access_issued_at, access_expires_at, standby, attempt, lease_ends_at, due_at, due_shard, token_wanted, told{}",
                telling.set(),
                telling.add()
            ))
            .status(":revoked", Status::Revoked)
            .expression_attribute_values(":at", n(at))
            .expression_attribute_values(":one", n(1))
            .send()
            .await;
        changed(written(result)?, |stored| stored.status == Status::Revoked)
    }
}
