//! Events that are stored and not yet sent: an installation's `outbox`, and the sparse index `outbox` over those that
//! have one.
//!
//! The set is filled by the write that an event is about. It is emptied by whoever has sent the event, on condition that
//! it is as it was read: an event that was added meanwhile stays.

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::AttributeValue;

use super::installation::Changed;
use super::installation::writing::changed;
use super::{Attributes, StoreError, Table, n, s, written};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::resource_of;
use crate::domain::resource::Resource;

/// The index's one partition. Lifecycle events are far fewer than what a partition takes: 1,000 writes a second.
const PARTITION: &str = "0";
/// How often a set is looked at that changes while it is emptied.
const ROUNDS: u32 = 4;

/// What a write adds to its expression for the event that it makes true; nothing if nobody is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling(Option<(Event, Millis)>);

impl Telling {
    /// Of `event`, written at `now`.
    pub(super) fn of(event: Option<Event>, now: Millis) -> Self {
        Self(event.map(|event| (event, now)))
    }

    /// The end of the `SET` clause.
    pub(super) fn set(self) -> &'static str {
        if self.0.is_some() {
            // Also of an item whose older events are put off: the new one is not.
            ", outbox_shard = :outbox_shard, outbox_at = :outbox_at"
        } else {
            ""
        }
    }

    /// The `ADD` clause.
    pub(super) fn add(self) -> &'static str {
        if self.0.is_some() { " ADD outbox :outbox" } else { "" }
    }

    /// The values of both.
    pub(super) fn values(self, write: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
        let Some((event, now)) = self.0 else { return write };
        write
            .expression_attribute_values(":outbox", set(&[event]))
            .expression_attribute_values(":outbox_shard", s(PARTITION))
            .expression_attribute_values(":outbox_at", n(now))
    }
}

fn set(events: &[Event]) -> AttributeValue {
    AttributeValue::Ss(events.iter().map(ToString::to_string).collect())
}

impl Table {
    /// Installations with events that were written before `before`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unsent(&self, before: Millis, limit: usize) -> Result<Vec<Resource>, StoreError> {
        let answer = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("outbox")
            .key_condition_expression("outbox_shard = :shard AND outbox_at <= :before")
            .expression_attribute_values(":shard", s(PARTITION))
            .expression_attribute_values(":before", n(before))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await?;
        let resource = |item| Attributes::of(item).text("pk").and_then(resource_of);
        Ok(answer.items().iter().filter_map(resource).collect())
    }

    /// Removes events that were sent, all of them of this installation, from its outbox, which was read as `seen`. What
    /// stays in it is not found before `put_off`, if that is given.
    ///
    /// # Errors
    /// [`StoreError`]: they are sent again.
    pub async fn strike_events(
        &self,
        resource: &Resource,
        seen: &[Event],
        sent: &[Event],
        put_off: Option<Millis>,
    ) -> Result<(), StoreError> {
        let mut seen = seen.to_vec();
        for _ in 0..ROUNDS {
            let left: Vec<Event> = seen.iter().filter(|event| !sent.contains(event)).copied().collect();
            if left.len() == seen.len() && !seen.is_empty() && put_off.is_none() {
                return Ok(());
            }
            let write = self.update(resource);
            let write = if seen.is_empty() {
                write.condition_expression("attribute_exists(pk) AND attribute_not_exists(outbox)")
            } else {
                write.condition_expression("outbox = :seen").expression_attribute_values(":seen", set(&seen))
            };
            let write = if left.is_empty() {
                write.update_expression("REMOVE outbox, outbox_shard, outbox_at")
            } else {
                let write = write.expression_attribute_values(":left", set(&left));
                match put_off {
                    None => write.update_expression("SET outbox = :left"),
                    Some(at) => write
                        .update_expression("SET outbox = :left, outbox_at = :put_off")
                        .expression_attribute_values(":put_off", n(at)),
                }
            };
            match changed(written(write.send().await)?, |_| false)? {
                Changed::Done(_) | Changed::Gone => return Ok(()),
                Changed::Not(stored) if stored.outbox.is_empty() && seen.is_empty() => return Ok(()),
                Changed::Not(stored) => seen = stored.outbox,
            }
        }
        Err(StoreError::Unavailable("an outbox changes faster than it can be emptied".into()))
    }
}
