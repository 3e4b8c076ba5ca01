//! The events of the function: a tick of the schedule, the request of an operator, or messages of the rescue queue.

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use serde::Deserialize;
use serde_json::Value;
use shared::domain::resource::Resource;

/// An event, told apart by its members.
#[derive(Debug)]
pub enum Event {
    /// Refresh what is due.
    Tick(Shards),
    /// Refresh one installation.
    One {
        /// Whose.
        resource: Resource,
        /// Even if its token is fresh.
        force: bool,
    },
    /// Store pairs that could not be stored.
    Rescue(Vec<SqsMessage>),
}

/// Which part of what is due: those of the index's shards whose number leaves the remainder `shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    shard: u32,
    shards: u32,
}

impl Shards {
    /// Returns true if a shard of the index is in this part.
    #[must_use]
    pub fn include(self, index_shard: u32) -> bool {
        index_shard % self.shards == self.shard
    }
}

/// The event cannot be understood; nothing was done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEvent(String);

#[derive(Deserialize)]
struct OneWire {
    resource: Resource,
    #[serde(default)]
    force: bool,
}

impl Event {
    /// Reads an event. Whatever EventBridge sends is a tick.
    ///
    /// # Errors
    /// [`BadEvent`] for a resource, shards or messages that are malformed.
    pub fn read(event: Value) -> Result<Self, BadEvent> {
        if event.get("Records").is_some() {
            let read: Result<SqsEvent, _> = serde_json::from_value(event);
            return read.map(|r| Self::Rescue(r.records)).map_err(|e| BadEvent(format!("not an SQS event: {e}")));
        }
        if event.get("resource").is_some_and(|resource| !resource.is_null()) {
            let read: Result<OneWire, _> = serde_json::from_value(event);
            return read
                .map(|one| Self::One { resource: one.resource, force: one.force })
                .map_err(|e| BadEvent(format!(r#"expected {{"resource":{{"location":"ID"}},"force":true}}: {e}"#)));
        }
        let number = |name| match event.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| BadEvent(format!("{name} must be a whole number"))),
        };
        let shards = Shards { shard: number("shard")?.unwrap_or(0), shards: number("shards")?.unwrap_or(1) };
        if shards.shard < shards.shards {
            Ok(Self::Tick(shards))
        } else {
            Err(BadEvent("shard must be less than shards".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_told_apart() {
        let tick = |event| match Event::read(event) {
            Ok(Event::Tick(shards)) => Some((shards.shard, shards.shards)),
            _ => None,
        };
        let scheduled =
            json!({"version":"0","detail-type":"Scheduled Event","source":"aws.events","resources":[],"detail":{}});
        assert_eq!(tick(scheduled), Some((0, 1)));
        assert_eq!(tick(json!({"shard":2,"shards":4})), Some((2, 4)));
        assert_eq!(tick(json!("anything")), Some((0, 1)));
        for bad in
            [json!({"shard":4,"shards":4}), json!({"shard":-1}), json!({"shards":0}), json!({"resource":{"team":"x"}})]
        {
            assert!(Event::read(bad.clone()).is_err(), "{bad}");
        }
        let one = json!({"resource":{"company":"C1"},"force":true});
        assert!(matches!(Event::read(one), Ok(Event::One { force: true, .. })));
        let sqs = json!({"Records":[
            {"messageId":"m1","body":"{}","eventSource":"aws:sqs"},
            {"messageId":"m2","body":"{}","receiptHandle":"r2","attributes":{"ApproximateReceiveCount":"12"}},
        ]});
        let Ok(Event::Rescue(messages)) = Event::read(sqs) else { panic!("messages") };
        let told: Vec<_> = messages.iter().map(|m| (m.message_id.as_deref(), m.receipt_handle.as_deref())).collect();
        assert_eq!(told, [(Some("m1"), None), (Some("m2"), Some("r2"))]);
    }

    #[test]
    fn parts_cover_every_shard_of_the_index_once() {
        for shards in [1, 2, 3, 8, 16] {
            for index_shard in 0..8 {
                let parts = (0..shards).filter(|shard| Shards { shard: *shard, shards }.include(index_shard));
                assert_eq!(parts.count(), 1, "{index_shard} of {shards}");
            }
        }
    }
}
