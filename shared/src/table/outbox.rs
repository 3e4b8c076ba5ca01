//! The transactional outbox: the events of an installation that are stored and not yet acknowledged, and the sparse
//! index `outbox` of the installations with such events.
//!
//! The write that causes an event adds the event to the set. After the event was published, another write removes it,
//! on condition that the set is unchanged since it was read. So an event that was added in between stays.

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::resource_of;
use crate::domain::resource::Resource;

/// The only partition of the index. Lifecycle events are far fewer than the 1,000 writes per second that a partition
/// takes.
const PARTITION: &str = "0";
/// The number of tries to remove events from a set that changes at the same time.
const ROUNDS: u32 = 4;

impl Update {
    /// Adds an event to the outbox, as a part of the write that causes the event.
    pub(super) fn publish(&mut self, event: Option<Event>, now: Millis) -> &mut Self {
        let Some(event) = event else { return self };
        // The index entry is set even if the item's older events are postponed, because the new event is not postponed.
        self.add("outbox", set(&[event])).set("outbox_shard", s(PARTITION)).set("outbox_at", n(now))
    }
}

fn set(events: &[Event]) -> AttributeValue {
    AttributeValue::Ss(events.iter().map(ToString::to_string).collect())
}

impl Table {
    /// Installations with events that were written before `before`, oldest first, at most `limit`.
    pub async fn pending_events(&self, before: Millis, limit: usize) -> Result<Vec<Resource>, StoreError> {
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

    /// Acknowledges published events: removes them from an installation's outbox, which was read as `seen`. If
    /// `put_off` is given, the remaining events are found only after that time.
    ///
    /// # Errors
    /// [`StoreError`]: the events will be published again.
    pub async fn acknowledge_events(
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
            let mut write = Update::of_installation(resource);
            if seen.is_empty() {
                write.when("attribute_exists(pk)").when("attribute_not_exists(outbox)");
            } else {
                write.when_equal("outbox", set(&seen));
            }
            if left.is_empty() {
                write.remove(["outbox", "outbox_shard", "outbox_at"]);
            } else {
                write.set("outbox", set(&left));
                if let Some(at) = put_off {
                    write.set("outbox_at", n(at));
                }
            }
            match self.write_installation(write).await? {
                Write::Applied(_) | Write::NotFound => return Ok(()),
                Write::Conflict(stored) if stored.outbox.is_empty() && seen.is_empty() => return Ok(()),
                Write::Conflict(stored) => seen = stored.outbox,
            }
        }
        Err(StoreError::Unavailable("an outbox changes faster than it can be emptied".into()))
    }
}
