//! The events of this function: a tick of the schedule, a request of an operator (a renewal or an uninstall), or messages
//! of the rescue queue.

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use serde::Deserialize;
use serde_json::Value;
use shared::domain::resource::Resource;

/// An event. Its members tell the kinds apart.
#[derive(Debug)]
pub enum RefreshEvent {
    /// Renew the tokens that are due in these shards.
    Tick(Shards),
    /// Renew one installation's token.
    One {
        /// The location or company.
        resource: Resource,
        /// True to renew the token even if it is fresh.
        force: bool,
    },
    /// Uninstall the app from one location, or from a company and all its locations.
    Uninstall {
        /// The location or company.
        resource: Resource,
        /// The reason, for the platform's records.
        reason: String,
    },
    /// Store the token pairs of these messages of the rescue queue.
    Rescue(Vec<SqsMessage>),
}

/// A part of the index's shards: those whose number modulo `shards` is `shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    shard: u32,
    shards: u32,
}

impl Shards {
    /// Returns true if this part contains the shard of the index.
    pub fn include(self, index_shard: u32) -> bool {
        index_shard % self.shards == self.shard
    }
}

/// The event is malformed. Nothing was done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEvent(String);

#[derive(Deserialize)]
struct OneWire {
    resource: Resource,
    #[serde(default)]
    force: bool,
    uninstall: Option<UninstallWire>,
}

#[derive(Deserialize)]
struct UninstallWire {
    reason: String,
}

impl RefreshEvent {
    /// Reads an event. Every event without `Records` and `resource` is a tick, so any event of EventBridge is one.
    ///
    /// # Errors
    /// [`BadEvent`] if the resource, the shards or the messages are malformed.
    pub fn read(event: Value) -> Result<Self, BadEvent> {
        if event.get("Records").is_some() {
            let read: Result<SqsEvent, _> = serde_json::from_value(event);
            return read.map(|r| Self::Rescue(r.records)).map_err(|e| BadEvent(format!("not an SQS event: {e}")));
        }
        if event.get("resource").is_some_and(|resource| !resource.is_null()) {
            let read: Result<OneWire, _> = serde_json::from_value(event);
            return read
                .map(|OneWire { resource, force, uninstall }| match uninstall {
                    Some(UninstallWire { reason }) => Self::Uninstall { resource, reason },
                    None => Self::One { resource, force },
                })
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
    fn each_kind_of_event_is_recognised() {
        let tick = |event| match RefreshEvent::read(event) {
            Ok(RefreshEvent::Tick(shards)) => Some((shards.shard, shards.shards)),
            _ => None,
        };
        let scheduled =
            json!({"version":"0","detail-type":"Scheduled Event","source":"aws.events","resources":[],"detail":{}});
        assert_eq!(tick(scheduled), Some((0, 1)));
        assert_eq!(tick(json!({"shard":2,"shards":4})), Some((2, 4)));
        assert_eq!(tick(json!("anything")), Some((0, 1)));
        for bad in [
            json!({"shard":4,"shards":4}),
            json!({"shard":-1}),
            json!({"shards":0}),
            json!({"resource":{"team":"x"}}),
            json!({"resource":{"company":"C1"},"uninstall":true}),
        ] {
            assert!(RefreshEvent::read(bad.clone()).is_err(), "{bad}");
        }
        let one = json!({"resource":{"company":"C1"},"force":true});
        assert!(matches!(RefreshEvent::read(one), Ok(RefreshEvent::One { force: true, .. })));
        let uninstall = json!({"resource":{"location":"L1"},"uninstall":{"reason":"because"}});
        let read = RefreshEvent::read(uninstall);
        assert!(matches!(read, Ok(RefreshEvent::Uninstall { reason, .. }) if reason == "because"));
        let sqs = json!({"Records":[
            {"messageId":"m1","body":"{}","eventSource":"aws:sqs"},
            {"messageId":"m2","body":"{}","receiptHandle":"r2","attributes":{"ApproximateReceiveCount":"12"}},
        ]});
        let Ok(RefreshEvent::Rescue(messages)) = RefreshEvent::read(sqs) else { panic!("messages") };
        let ids: Vec<_> = messages.iter().map(|m| (m.message_id.as_deref(), m.receipt_handle.as_deref())).collect();
        assert_eq!(ids, [(Some("m1"), None), (Some("m2"), Some("r2"))]);
    }

    #[test]
    fn the_parts_contain_each_shard_of_the_index_once() {
        for shards in [1, 2, 3, 8, 16] {
            for index_shard in 0..8 {
                let parts = (0..shards).filter(|shard| Shards { shard: *shard, shards }.include(index_shard));
                assert_eq!(parts.count(), 1, "{index_shard} of {shards}");
            }
        }
    }
}
