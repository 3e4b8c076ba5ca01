//! The sparse index `due`, in which the schedule finds due installations.

use aws_sdk_dynamodb::types::Select;

use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, resource_of};
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};
use crate::table::{Attributes, Item, Page, StoreError, Table, Update, Write, n, s};

/// An entry of the index `due`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The location or company.
    pub resource: Resource,
    /// The version that the index shows. It may be older than the item's version; the condition of the claim detects
    /// this.
    pub version: TokenVersion,
    /// The time since which the installation has been due.
    pub due_at: Millis,
}

impl Table {
    /// The number of installations that are due in one shard at `now`.
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

    /// A page of the installations of one shard that became due between `from` and `now`, longest due first: at most
    /// `limit` entries after `after`.
    pub async fn due(
        &self,
        shard: u32,
        from: Millis,
        now: Millis,
        after: Option<Item>,
        limit: i32,
    ) -> Result<Page<Due>, StoreError> {
        let answer = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("due")
            .key_condition_expression("due_shard = :shard AND due_at BETWEEN :from AND :now")
            .expression_attribute_values(":shard", s(shard.to_string()))
            .expression_attribute_values(":from", n(from))
            .expression_attribute_values(":now", n(now))
            .set_exclusive_start_key(after)
            .limit(limit)
            .send()
            .await?;
        // An unreadable item must not hide the other items.
        let readable = |item| {
            read_due(item)
                .inspect_err(|error| tracing::error!(%error, "a due installation cannot be read and is not renewed"))
                .ok()
        };
        let items = answer.items().iter().filter_map(readable).collect();
        Ok(Page { items, next: answer.last_evaluated_key })
    }

    /// Makes an installation due now, even if it had no recent calls, because work other than a call waits for its
    /// access token. The next commit removes this request.
    pub async fn want_token(
        &self,
        resource: &Resource,
        version: TokenVersion,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(resource, version);
        write.when_status(|status| !status.has_ended());
        write.set_due(resource, now).set("token_wanted", n(now));
        self.write_installation(write).await
    }

    /// Postpones the scheduled refresh of an installation without recent calls. The write is applied only if the app
    /// was installed before `cold_since`, the pair was granted after `oldest` (every grant must be renewed now and
    /// then), and no work waits for the token ([`Table::want_token`]).
    pub async fn defer(
        &self,
        due: &Due,
        until: Millis,
        cold_since: Millis,
        oldest: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(&due.resource, due.version);
        write.when_equal("due_at", n(due.due_at)).when_status(Status::has_live_pair);
        write.when("installed_at < :cold_since AND access_issued_at > :oldest AND attribute_not_exists(token_wanted)");
        write.value(":cold_since", n(cold_since)).value(":oldest", n(oldest)).set("due_at", n(until));
        self.write_installation(write).await
    }
}

fn read_due(item: &Item) -> Result<Due, StoreError> {
    let attributes = Attributes::of(item);
    let need = |name: &'static str| attributes.malformed(name);
    Ok(Due {
        resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
        version: TokenVersion {
            epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?,
            generation: attributes.number("generation").ok_or_else(|| need("generation"))?,
        },
        due_at: Millis(attributes.number("due_at").ok_or_else(|| need("due_at"))?),
    })
}
