//! Installations in the table: how one is read, and every write that changes one.
//!
//! Each write is one `UpdateItem` whose condition names the lineage that it starts from. A condition that fails is
//! an answer and brings the item as it is.

use std::fmt;
use std::time::Duration;

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure, Select};

use super::{Attributes, Item, StoreError, Table, Written, installation_key, n, s, written};
use crate::clock::Millis;
use crate::installation::state::{Attempt, Lineage, Status};
use crate::resource::{Kind, Resource};

/// In how many partitions the index of what is due is spread.
pub const DUE_SHARDS: u32 = 8;

/// Two sealed tokens and the life of the access token. `Debug` tells their lengths only.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPair {
    /// The sealed access token.
    pub access: Vec<u8>,
    /// The sealed refresh token.
    pub refresh: Option<Vec<u8>>,
    /// When the platform granted the access token.
    pub access_issued_at: Millis,
    /// When the access token ends.
    pub access_expires_at: Millis,
}

impl fmt::Debug for SealedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (access, refresh) = (self.access.len(), self.refresh.as_ref().map_or(0, Vec::len));
        write!(f, "SealedPair({access} and {refresh} bytes, until {})", self.access_expires_at)
    }
}

impl SealedPair {
    fn read(item: &Item) -> Option<Self> {
        let attributes = Attributes::of(item);
        Some(Self {
            access: attributes.bytes("access_token")?.to_vec(),
            refresh: attributes.bytes("refresh_token").map(<[u8]>::to_vec),
            access_issued_at: Millis(attributes.number("access_issued_at")?),
            access_expires_at: Millis(attributes.number("access_expires_at")?),
        })
    }

    fn to_map(&self) -> AttributeValue {
        let mut map = Item::from([
            ("access_token".to_owned(), b(&self.access)),
            ("access_issued_at".to_owned(), n(self.access_issued_at)),
            ("access_expires_at".to_owned(), n(self.access_expires_at)),
        ]);
        if let Some(refresh) = &self.refresh {
            map.insert("refresh_token".to_owned(), b(refresh));
        }
        AttributeValue::M(map)
    }
}

/// An installation as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Whose it is.
    pub resource: Resource,
    /// Its state.
    pub status: Status,
    /// Its lineage.
    pub lineage: Lineage,
    /// The current pair; a revoked installation has none.
    pub pair: Option<SealedPair>,
    /// A second pair that may be the live one, sealed under the same lineage.
    pub alternate: Option<SealedPair>,
    /// Who holds or held the lease.
    pub attempt: Option<String>,
    /// When the lease ends.
    pub lease_ends_at: Option<Millis>,
    /// The attempt that wrote the current pair.
    pub committed_by: Option<String>,
    /// When the exchange of its code was begun.
    pub installed_at: Millis,
    /// When it was uninstalled, as the platform says.
    pub revoked_at: Option<Millis>,
    /// When the schedule looks at it next.
    pub due_at: Option<Millis>,
    /// When a refresh was last forced by a refused access token.
    pub forced_at: Option<Millis>,
    /// When the refresh token was last tried.
    pub tried_at: Option<Millis>,
    /// The state that the last claim found.
    pub claimed_from: Option<Status>,
    /// Before this nobody tries again, since the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// How many tries in a row have failed.
    pub failures: u32,
    /// The company, where it is known.
    pub company: Option<String>,
    /// The public base URL of the deployment's pages, for a link to install again.
    pub home: Option<String>,
    /// A location without a grant of its own: its token is minted from its company's.
    pub minted: Option<Minted>,
}

/// What is known of a location whose token is minted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minted {
    /// The epoch of the company's installation that the stored token comes from.
    pub company_epoch: u64,
    /// No company has the app there, as the platform said; nobody asks again before this.
    pub absent_until: Option<Millis>,
    /// Nobody but a caller has ever named this location.
    pub supposed: bool,
}

impl Installation {
    fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let need = |name: &'static str| attributes.malformed(name);
        Ok(Self {
            resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
            status: attributes.text("status").and_then(Status::parse).ok_or_else(|| need("status"))?,
            lineage: Lineage {
                epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?,
                generation: attributes.number("generation").ok_or_else(|| need("generation"))?,
            },
            pair: SealedPair::read(item),
            alternate: attributes.map("alternate").and_then(SealedPair::read),
            attempt: attributes.text("attempt").map(str::to_owned),
            lease_ends_at: attributes.number("lease_ends_at").map(Millis),
            committed_by: attributes.text("committed_by").map(str::to_owned),
            installed_at: Millis(attributes.number("installed_at").ok_or_else(|| need("installed_at"))?),
            revoked_at: attributes.number("revoked_at").map(Millis),
            due_at: attributes.number("due_at").map(Millis),
            forced_at: attributes.number("forced_at").map(Millis),
            tried_at: attributes.number("tried_at").map(Millis),
            claimed_from: attributes.text("claimed_from").and_then(Status::parse),
            retry_at: attributes.number("retry_at").map(Millis),
            failures: attributes.number("failures").unwrap_or(0),
            company: attributes.text("company").map(str::to_owned),
            home: attributes.text("home").map(str::to_owned),
            minted: attributes.flag("minted").then(|| Minted {
                company_epoch: attributes.number("company_epoch").unwrap_or(0),
                absent_until: attributes.number("absent_until").map(Millis),
                supposed: attributes.flag("supposed"),
            }),
        })
    }

    /// The key of the item.
    #[must_use]
    pub fn key(&self) -> String {
        installation_key(&self.resource)
    }

    /// Where a human installs again, if the deployment's address is known.
    #[must_use]
    pub fn reinstall_url(&self) -> Option<String> {
        self.home.as_ref().map(|home| format!("{}/oauth/install", home.trim_end_matches('/')))
    }
}

/// One entry of the index of what is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whose installation.
    pub resource: Resource,
    /// The lineage that the index shows. It may lag behind the item; the claim's condition finds out.
    pub lineage: Lineage,
    /// Since when it is due.
    pub due_at: Millis,
}

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

/// What a write by lineage came to.
#[derive(Debug)]
pub enum Changed {
    /// It was applied, now or by an earlier try of the same attempt.
    Done(Box<Installation>),
    /// The condition did not hold, and this is how the installation stands.
    Not(Box<Installation>),
    /// There is no such installation.
    Gone,
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
}

/// What is stored about a new installation besides its tokens.
#[derive(Clone, Debug)]
pub struct NewInstallation<'a> {
    /// Whose it is.
    pub resource: &'a Resource,
    /// The attempt that exchanged the code.
    pub attempt: &'a Attempt,
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
}

pub(super) const SET_PAIR: &str = "access_token = :access, refresh_token = :refresh, access_issued_at = :issued, \
                        access_expires_at = :expires";

impl Table {
    /// Reads an installation as it is now (strongly consistent).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn installation(&self, resource: &Resource) -> Result<Option<Installation>, StoreError> {
        let answer = self
            .client
            .get_item()
            .table_name(&*self.name)
            .key("pk", s(installation_key(resource)))
            .consistent_read(true)
            .send()
            .await?;
        answer.item().map(Installation::read).transpose()
    }

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
        let mut set = "SET #status = :refreshing, attempt = :attempt, lease_ends_at = :ends, due_at = :ends, \
                       due_shard = :shard, tried_at = :now, claimed_from = #status"
            .to_owned();
        // Without leave the place is taken by a state that is in the list already.
        let given_up = if claim.given_up_too { Status::NeedsReauthorization } else { Status::Active }.as_str();
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
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":suspended", s(Status::Suspended.as_str()))
            .expression_attribute_values(":blocked", s(Status::Blocked.as_str()))
            .expression_attribute_values(":given_up", s(given_up))
            .expression_attribute_values(":refreshing", s(Status::Refreshing.as_str()))
            .expression_attribute_values(":uncertain", s(Status::Uncertain.as_str()))
            .expression_attribute_values(":attempt", s(claim.attempt.as_str()))
            .expression_attribute_values(":now", n(claim.now))
            .expression_attribute_values(":ends", n(claim.lease_ends_at))
            .expression_attribute_values(":shard", s(due_shard(claim.resource)))
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
        attempt: &Attempt,
        pair: &SealedPair,
        due_at: Millis,
        beside: &Beside,
    ) -> Result<Changed, StoreError> {
        let mut write = set_pair(self.change(resource, from), pair);
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
                 due_shard = :shard, failures = :zero, {SET_PAIR}{keep} REMOVE attempt, lease_ends_at{drop}"
            ))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":revoked", s(Status::Revoked.as_str()))
            .expression_attribute_values(":next", n(from.next().generation))
            .expression_attribute_values(":attempt", s(attempt.as_str()))
            .expression_attribute_values(":due", n(due_at))
            .expression_attribute_values(":shard", s(due_shard(resource)))
            .expression_attribute_values(":zero", n(0))
            .send()
            .await;
        changed(written(result)?, |stored| stored.committed_by.as_deref() == Some(attempt.as_str()))
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
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":given_up", s(Status::NeedsReauthorization.as_str()))
            .expression_attribute_values(":revoked", s(Status::Revoked.as_str()))
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
            .update_expression("SET alternate = :alternate, #status = :uncertain, due_at = :now, due_shard = :shard")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":given_up", s(Status::NeedsReauthorization.as_str()))
            .expression_attribute_values(":uncertain", s(Status::Uncertain.as_str()))
            .expression_attribute_values(":alternate", pair.to_map())
            .expression_attribute_values(":now", n(now))
            .expression_attribute_values(":shard", s(due_shard(resource)))
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
        let result = set_pair(self.change(resource, from), pair)
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND #status <> :revoked AND attribute_exists(alternate)",
            )
            .update_expression(format!(
                "SET #status = :active, generation = :next, committed_by = :attempt, due_at = :now, \
                 due_shard = :shard, {SET_PAIR} REMOVE attempt, lease_ends_at, alternate"
            ))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":revoked", s(Status::Revoked.as_str()))
            .expression_attribute_values(":next", n(from.next().generation))
            .expression_attribute_values(":attempt", s(attempt.as_str()))
            .expression_attribute_values(":now", n(now))
            .expression_attribute_values(":shard", s(due_shard(resource)))
            .send()
            .await;
        changed(written(result)?, |stored| stored.committed_by.as_deref() == Some(attempt.as_str()))
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
        let mut write = self.change(resource, lineage);
        if let Some(retry_at) = to.retry_at {
            write = write.expression_attribute_values(":retry_at", n(retry_at));
        }
        if let Some(due_at) = to.due_at {
            write = write
                .expression_attribute_values(":due", n(due_at))
                .expression_attribute_values(":shard", s(due_shard(resource)));
        }
        let result = write
            .condition_expression(condition)
            .update_expression(format!(
                "SET #status = :status, failures = :failures, settled_by = :attempt{due}{asked} \
                 REMOVE attempt, lease_ends_at{remove}{forced}"
            ))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":status", s(to.status.as_str()))
            .expression_attribute_values(":failures", n(to.failures))
            .expression_attribute_values(":attempt", s(attempt.as_str()))
            .send()
            .await;
        changed(written(result)?, |stored| {
            stored.lineage == lineage && stored.status == to.status && stored.attempt.is_none()
        })
    }

    /// Lets the schedule look again later at an installation that nobody has used for a while: only if it was installed
    /// before `cold_since`, and its pair is younger than `oldest`, for every grant must be renewed now and then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn defer(
        &self,
        due: &Due,
        until: Millis,
        cold_since: Millis,
        oldest: Millis,
    ) -> Result<Changed, StoreError> {
        let result = self
            .change(&due.resource, due.lineage)
            .condition_expression(
                "epoch = :epoch AND generation = :generation AND due_at = :seen AND #status = :active \
                 AND installed_at < :cold_since AND access_issued_at > :oldest",
            )
            .update_expression("SET due_at = :until")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":seen", n(due.due_at))
            .expression_attribute_values(":until", n(until))
            .expression_attribute_values(":cold_since", n(cold_since))
            .expression_attribute_values(":oldest", n(oldest))
            .send()
            .await;
        changed(written(result)?, |_| false)
    }

    /// Stores a new installation over `seen`, whose pair must be sealed under [`Lineage::reinstalled`] of it (of a
    /// lineage of zeros if there is none).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn install(
        &self,
        new: &NewInstallation<'_>,
        seen: Option<Lineage>,
        pair: &SealedPair,
    ) -> Result<Changed, StoreError> {
        let lineage = seen.unwrap_or(Lineage { epoch: 0, generation: 0 });
        let next = lineage.reinstalled();
        let optional = [("company", new.company), ("scope", new.scope)];
        let mut update = format!(
            "SET #status = :active, epoch = :next_epoch, generation = :next, committed_by = :attempt, \
             installed_at = :installed, due_at = :due, due_shard = :shard, failures = :zero, home = :home, {SET_PAIR}"
        );
        let mut write = set_pair(self.update(new.resource), pair);
        for (name, value) in optional {
            if let Some(value) = value {
                // `scope` is a reserved word of DynamoDB.
                update.extend([", #", name, " = :", name]);
                write = write
                    .expression_attribute_names(format!("#{name}"), name)
                    .expression_attribute_values(format!(":{name}"), s(value));
            }
        }
        update.push_str(
            " REMOVE attempt, lease_ends_at, alternate, revoked_at, forced_at, expires_at, minted, company_epoch, \
             absent_until, supposed",
        );
        write = match seen {
            None => write.condition_expression("attribute_not_exists(pk)"),
            Some(_) => write
                // A grant of its own is more than a minted token, whatever was heard of the location before.
                .condition_expression(
                    "epoch = :epoch AND generation = :generation AND (installed_at < :installed OR \
                     attribute_exists(minted))",
                )
                .expression_attribute_values(":epoch", n(lineage.epoch))
                .expression_attribute_values(":generation", n(lineage.generation)),
        };
        let result = write
            .update_expression(update)
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":active", s(Status::Active.as_str()))
            .expression_attribute_values(":next_epoch", n(next.epoch))
            .expression_attribute_values(":next", n(next.generation))
            .expression_attribute_values(":attempt", s(new.attempt.as_str()))
            .expression_attribute_values(":installed", n(new.installed_at))
            .expression_attribute_values(":due", n(new.due_at))
            .expression_attribute_values(":shard", s(due_shard(new.resource)))
            .expression_attribute_values(":home", s(new.home))
            .expression_attribute_values(":zero", n(0))
            .send()
            .await;
        changed(written(result)?, |stored| stored.committed_by.as_deref() == Some(new.attempt.as_str()))
    }

    /// Revokes an installation that is older than `at`, and erases its tokens.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn uninstall(&self, resource: &Resource, at: Millis) -> Result<Changed, StoreError> {
        let result = self
            .update(resource)
            .condition_expression("installed_at < :at AND #status <> :revoked")
            .update_expression(
                "SET #status = :revoked, epoch = epoch + :one, revoked_at = :at REMOVE access_token, refresh_token, \
                 access_issued_at, access_expires_at, alternate, attempt, lease_ends_at, due_at, due_shard",
            )
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":revoked", s(Status::Revoked.as_str()))
            .expression_attribute_values(":at", n(at))
            .expression_attribute_values(":one", n(1))
            .send()
            .await;
        changed(written(result)?, |stored| stored.status == Status::Revoked)
    }

    /// How many are due in one shard at `now`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_due(&self, shard: u32, now: Millis) -> Result<u64, StoreError> {
        let query = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("due")
            .select(Select::Count)
            .key_condition_expression("due_shard = :shard AND due_at <= :now")
            .expression_attribute_values(":shard", s(shard.to_string()))
            .expression_attribute_values(":now", n(now));
        let mut pages = query.into_paginator().send();
        let mut sum = 0;
        while let Some(page) = pages.next().await {
            sum += u64::try_from(page?.count()).unwrap_or_default();
        }
        Ok(sum)
    }

    /// What is due in one shard at `now`, longest due first, at most `limit` entries.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn due(&self, shard: u32, now: Millis, limit: i32) -> Result<Vec<Due>, StoreError> {
        let answer = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("due")
            .key_condition_expression("due_shard = :shard AND due_at <= :now")
            .expression_attribute_values(":shard", s(shard.to_string()))
            .expression_attribute_values(":now", n(now))
            .limit(limit)
            .send()
            .await?;
        // An item that cannot be read must not hide the others.
        let readable = |item| read_due(item).inspect_err(|error| tracing::error!(%error, "a due item is skipped")).ok();
        Ok(answer.items().iter().filter_map(readable).collect())
    }

    pub(super) fn update(&self, resource: &Resource) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(installation_key(resource)))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    pub(super) fn change(&self, resource: &Resource, lineage: Lineage) -> UpdateItemFluentBuilder {
        self.update(resource)
            .expression_attribute_values(":epoch", n(lineage.epoch))
            .expression_attribute_values(":generation", n(lineage.generation))
    }
}

pub(super) fn set_pair(write: UpdateItemFluentBuilder, pair: &SealedPair) -> UpdateItemFluentBuilder {
    let refresh = pair.refresh.as_deref().map_or(AttributeValue::Null(true), b);
    write
        .expression_attribute_values(":access", b(&pair.access))
        .expression_attribute_values(":refresh", refresh)
        .expression_attribute_values(":issued", n(pair.access_issued_at))
        .expression_attribute_values(":expires", n(pair.access_expires_at))
}

pub(super) fn changed(written: Written, mine: impl Fn(&Installation) -> bool) -> Result<Changed, StoreError> {
    Ok(match written {
        Written::Applied(item) => Changed::Done(Installation::read(&item)?.into()),
        Written::Refused(None) => Changed::Gone,
        Written::Refused(Some(item)) => {
            let stored = Installation::read(&item)?;
            if mine(&stored) { Changed::Done(stored.into()) } else { Changed::Not(stored.into()) }
        }
    })
}

fn read_due(item: &Item) -> Result<Due, StoreError> {
    let attributes = Attributes::of(item);
    let need = |name: &'static str| attributes.malformed(name);
    Ok(Due {
        resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
        lineage: Lineage {
            epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?,
            generation: attributes.number("generation").ok_or_else(|| need("generation"))?,
        },
        due_at: Millis(attributes.number("due_at").ok_or_else(|| need("due_at"))?),
    })
}

pub(super) fn resource_of(key: &str) -> Option<Resource> {
    let (kind, id) = key.strip_prefix("installation#")?.split_once('#')?;
    let kind = match kind {
        "location" => Kind::Location,
        "company" => Kind::Company,
        _ => return None,
    };
    Resource::new(kind, id).ok()
}

/// The shard of the index that an installation is in: any spread that does not change will do (FNV-1a).
pub(super) fn due_shard(resource: &Resource) -> String {
    let hash = installation_key(resource)
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % u64::from(DUE_SHARDS)).to_string()
}

fn b(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

/// How long a claim holds: time for two presentations and a commit, and short enough that whoever comes next can
/// still present the same token inside the platform's 30 s of grace.
pub const LEASE: Duration = Duration::from_secs(15);
