//! Locations without a grant of their own: the writes that only they have.
//!
//! Such an installation has `minted` set and holds an access token at most. It says which company it belongs to and,
//! with each token, from which epoch of the company's installation that comes: a company that was uninstalled or
//! installed again makes all of them stale by one write on its own item.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::installation::writing::{InstallationWrite as _, SET_PAIR, changed, committed_by};
use super::installation::{Changed, Renewal};
use super::outbox::Telling;
use super::{Attributes, StoreError, Table, Written, n, s, written};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::installation_key;
use crate::domain::installation::resource_of;
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, Status, TokenVersion};

/// A location that no company turned out to have is forgotten after this.
pub(super) const SUPPOSED: Duration = Duration::from_hours(1);
/// The attributes that hold the result of asking companies about a location.
pub(super) const SEARCHED: &str = "absent_until, absent_newest, search_since, search_after, search_left";

/// Which company a token was minted from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The company's id.
    pub company: &'a str,
    /// The epoch of its installation.
    pub epoch: u64,
}

/// The mark on a location in which none of the companies that were asked has the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing: others are still to be asked.
    Unmarked,
    /// All companies were asked: nobody asks again before this.
    Until(Millis),
    /// The schedule asks the other companies, since this instant.
    Searching(Millis),
}

/// What is told of a location besides its name.
#[derive(Clone, Copy, Debug)]
pub struct Learnt<'a> {
    /// The company, where it is told.
    pub company: Option<&'a str>,
    /// Since when it is so, by the platform's word.
    pub at: Millis,
    /// What is told if that begins an installation; then nothing else is written of the location's beginning.
    pub event: Option<Event>,
    /// The present.
    pub now: Millis,
}

impl Table {
    /// Keeps a place for a location that a caller has named and nobody else, so that it can be claimed. Does nothing if
    /// there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn suppose(&self, location: &Resource, now: Millis) -> Result<(), StoreError> {
        let result = self
            .update(location)
            .condition_expression("attribute_not_exists(pk)")
            .update_expression(
                "SET #status = :active, minted = :true, supposed = :true, epoch = :one, generation = :zero, \
                 installed_at = :now, expires_at = :expires",
            )
            .status(":active", Status::Active)
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":one", n(1))
            .expression_attribute_values(":zero", n(0))
            .expression_attribute_values(":now", n(now))
            .expression_attribute_values(":expires", n((now + SUPPOSED).seconds()))
            .send()
            .await;
        written(result).map(drop)
    }

    /// Notes that the app is installed in a location, so that its token can be minted. A grant of its own that still
    /// holds stays; one that was refused for good or uninstalled before `at` gives way. True if anything changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn learn(&self, location: &Resource, learnt: Learnt<'_>) -> Result<bool, StoreError> {
        // Three kinds of items, three conditions: none yet or a minted one; one that had its end; one that holds.
        let set_company = learnt.company.map_or("", |_| ", company = :company");
        let company = learnt.company.map(s);
        let other_company = learnt.company.map_or("", |_| " OR attribute_not_exists(company) OR company <> :company");
        let telling = Telling::of(learnt.event, learnt.now);
        let write = |condition: String, update: String| {
            self.update(location)
                .condition_expression(condition)
                .update_expression(update)
                .set_expression_attribute_values(company.clone().map(|c| [(":company".to_owned(), c)].into()))
                .status(":revoked", Status::Revoked)
                .status(":given_up", Status::NeedsReauthorization)
        };
        // With an event only what begins, for of that alone it is true.
        let or_changes = if learnt.event.is_some() {
            String::new()
        } else {
            format!(
                " OR installed_at < :at OR attribute_exists(absent_until) OR attribute_exists(search_since){other_company}"
            )
        };
        let minted = telling.values(write(
            format!(
                "attribute_not_exists(pk) OR (attribute_exists(minted) AND NOT #status IN (:revoked, :given_up) \
                 AND (attribute_exists(supposed){or_changes}))"
            ),
            format!(
                "SET #status = if_not_exists(#status, :active), minted = :true, epoch = if_not_exists(epoch, :one), \
                 generation = if_not_exists(generation, :zero), installed_at = :at{set_company}{} \
                 REMOVE {SEARCHED}, supposed, expires_at{}",
                telling.set(),
                telling.add()
            ),
        ))
        .status(":active", Status::Active)
        .expression_attribute_values(":true", AttributeValue::Bool(true))
        .expression_attribute_values(":one", n(1))
        .expression_attribute_values(":zero", n(0))
        .expression_attribute_values(":at", n(learnt.at))
        .send()
        .await;
        let Written::Refused(Some(item)) = written(minted)? else { return Ok(true) };
        let attributes = Attributes::of(&item);
        let status = attributes.text("status").and_then(Status::parse).ok_or_else(|| attributes.malformed("status"))?;
        let ended = matches!(status, Status::Revoked | Status::NeedsReauthorization);
        // Without a company nothing says what its token could be minted from: who installed will come by the redirect.
        let minted = attributes.flag("minted");
        let result = if ended && (minted || learnt.company.is_some()) {
            let mut condition =
                "((#status = :revoked AND revoked_at < :at) OR (#status = :given_up AND installed_at < :at))"
                    .to_owned();
            if learnt.event.is_some() {
                condition.push_str(" AND epoch = :before");
            }
            let revived = telling.values(write(
                condition,
                format!(
                    "SET #status = :active, minted = :true, epoch = epoch + :one, installed_at = :at, \
                     failures = :zero{set_company}{} REMOVE {SEARCHED}, supposed, expires_at, revoked_at, \
                     access_token, refresh_token, access_issued_at, access_expires_at, standby, attempt, \
                     lease_ends_at, tried_at, forced_at, told{}",
                    telling.set(),
                    telling.add()
                ),
            ));
            let revived = match learnt.event {
                Some(event) => revived.expression_attribute_values(":before", n(event.epoch.saturating_sub(1))),
                None => revived,
            };
            revived
                .status(":active", Status::Active)
                .expression_attribute_values(":true", AttributeValue::Bool(true))
                .expression_attribute_values(":one", n(1))
                .expression_attribute_values(":zero", n(0))
                .expression_attribute_values(":at", n(learnt.at))
                .send()
                .await
        } else if !ended && !minted && learnt.company.is_some_and(|c| attributes.text("company") != Some(c)) {
            let holds = "attribute_not_exists(minted) AND NOT #status IN (:revoked, :given_up)";
            write(holds.to_owned(), "SET company = :company".to_owned()).send().await
        } else {
            return Ok(false);
        };
        Ok(matches!(written(result)?, Written::Applied(_)))
    }

    /// Lets a location whose own grant was refused be minted from its company instead, which has `company_epoch`. Its
    /// access token may be good for hours and stays until then. Only the holder of the lease can.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn become_minted(
        &self,
        location: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        company_epoch: u64,
        now: Millis,
    ) -> Result<Changed, StoreError> {
        let result = self
            .change(location, version)
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND attempt = :attempt AND attribute_not_exists(standby)",
            )
            .update_expression(
                "SET #status = :active, minted = :true, failures = :zero, due_at = :due, due_shard = :shard, \
                 company_epoch = :company_epoch REMOVE refresh_token, attempt, lease_ends_at",
            )
            .status(":active", Status::Active)
            .expression_attribute_values(":company_epoch", n(company_epoch))
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":zero", n(0))
            .by(attempt)
            .due(location, now)
            .send()
            .await;
        changed(written(result)?, |stored| stored.minted.is_some() && stored.version == version)
    }

    /// Stores a minted token, which is sealed under the next version and comes without a refresh token.
    ///
    /// # Errors
    /// [`StoreError`]. Nothing is lost: it can be minted again.
    pub async fn commit_minted(
        &self,
        location: &Resource,
        from: TokenVersion,
        renewal: Renewal<'_>,
        source: Source<'_>,
    ) -> Result<Changed, StoreError> {
        let Renewal { attempt, pair, due_at, event } = renewal;
        let telling = Telling::of(event, pair.access_issued_at);
        let over = if event.is_some() { ", told" } else { "" };
        let result = telling
            .values(self.change(location, from).pair(pair))
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND #status <> :revoked AND attribute_exists(minted)",
            )
            .update_expression(format!(
                "SET #status = :active, generation = :next, committed_by = :attempt, due_at = :due, \
                 due_shard = :shard, failures = :zero, company = :company, company_epoch = :company_epoch, {SET_PAIR}{} \
                 REMOVE attempt, lease_ends_at, standby, granted_from, {SEARCHED}, supposed, expires_at, token_wanted{over}{}",
                telling.set(),
                telling.add()
            ))
            .renewed(location, from, attempt, due_at)
            .expression_attribute_values(":zero", n(0))
            .expression_attribute_values(":company", s(source.company))
            .expression_attribute_values(":company_epoch", n(source.epoch))
            .send()
            .await;
        changed(written(result)?, committed_by(attempt))
    }

    /// Gives the lease back because no company that was asked has the app in the location, and notes what is known of
    /// that. The location's token is erased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle_absent(
        &self,
        location: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        absence: Absence,
    ) -> Result<Changed, StoreError> {
        let mark = match absence {
            Absence::Unmarked => None,
            Absence::Until(until) => Some((", absent_until = :mark", until)),
            Absence::Searching(since) => Some((", search_since = :mark", since)),
        };
        let mut write = self
            .change(location, version)
            .condition_expression("epoch = :epoch AND generation = :generation AND attempt = :attempt")
            .update_expression(format!(
                "SET #status = :active, failures = :zero{} REMOVE access_token, refresh_token, access_issued_at, \
                 access_expires_at, attempt, lease_ends_at, due_at, due_shard, absent_newest, search_after, search_left{}",
                mark.map_or("", |(set, _)| set),
                if matches!(absence, Absence::Searching(_)) { ", absent_until" } else { ", search_since" }
            ))
            .status(":active", Status::Active)
            .expression_attribute_values(":zero", n(0))
            .by(attempt);
        if let Some((_, at)) = mark {
            write = write.expression_attribute_values(":mark", n(at));
        }
        let result = write.send().await;
        changed(written(result)?, |stored| stored.version == version && stored.attempt.is_none())
    }

    /// Notes in a leased location that the schedule searches for its company, since `since`. The lease, the token and all
    /// else stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_search(
        &self,
        location: &Resource,
        version: TokenVersion,
        attempt: &LeaseOwner,
        since: Millis,
    ) -> Result<(), StoreError> {
        let result = self
            .change(location, version)
            .condition_expression("epoch = :epoch AND generation = :generation AND attempt = :attempt")
            .update_expression("SET search_since = :since REMOVE search_after, search_left")
            .expression_attribute_values(":since", n(since))
            .by(attempt)
            .send()
            .await;
        written(result).map(drop)
    }

    /// Takes a minted location from what is due: there is nothing to mint its token from.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rest(&self, location: &Resource, version: TokenVersion) -> Result<Changed, StoreError> {
        let result = self
            .change(location, version)
            .condition_expression("epoch = :epoch AND generation = :generation AND attribute_exists(minted)")
            .update_expression("REMOVE due_at, due_shard")
            .send()
            .await;
        changed(written(result)?, |_| false)
    }

    /// Erases a token that was minted from a company's installation before `epoch`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn erase_minted(&self, location: &Resource, company: &str, epoch: u64) -> Result<(), StoreError> {
        let result = self
            .update(location)
            .condition_expression(
                "attribute_exists(minted) AND attribute_exists(access_token) AND company = :company \
                 AND company_epoch < :company_epoch",
            )
            .update_expression(
                "REMOVE access_token, refresh_token, access_issued_at, access_expires_at, standby, due_at, due_shard",
            )
            .expression_attribute_values(":company", s(company))
            .expression_attribute_values(":company_epoch", n(epoch))
            .send()
            .await;
        written(result).map(drop)
    }

    /// A page of the locations that are known to belong to a company, after `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn locations_of(&self, company: &str, after: Option<&Resource>) -> Result<Vec<Resource>, StoreError> {
        let least = after.map_or_else(|| "installation#location#".to_owned(), installation_key);
        let answer = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("company")
            .key_condition_expression("company = :company AND pk > :least")
            .expression_attribute_values(":company", s(company))
            .expression_attribute_values(":least", s(least))
            .limit(500)
            .send()
            .await?;
        let key = |item| Attributes::of(item).text("pk").and_then(resource_of);
        Ok(answer.items().iter().filter_map(key).filter(|found| found.kind() == Kind::Location).collect())
    }
}
