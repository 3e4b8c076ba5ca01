//! The three kinds of events, and the invocation's data from Lambda's context.

use std::time::Duration;

use lambda_runtime::Context;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use shared::domain::clock::Millis;
use shared::relay::Invocation;

/// The time between our deadline and Lambda's deadline. Within this time the answer is written and transferred.
const MARGIN: Duration = Duration::from_millis(500);
/// The longest time for an event of API Gateway, whose time limit is `TimeoutInMillis` of the template. An invocation
/// whose context states no deadline gets this time, too.
const LONGEST: Duration = Duration::from_secs(28);

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An event of API Gateway.
    Http,
    /// Messages of the queue of calls.
    Queue,
    /// Any other event. A malformed event has this kind, too.
    Direct,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marks {
    raw_path: Option<IgnoredAny>,
    request_context: Option<IgnoredAny>,
    #[serde(rename = "Records")]
    records: Option<Vec<IgnoredAny>>,
}

impl EventKind {
    /// The kind of a payload. Only events of API Gateway have `rawPath` or `requestContext`, and only those of SQS have
    /// `Records`.
    pub fn of(payload: &RawValue) -> Self {
        match serde_json::from_str(payload.get()) {
            Ok(Marks { raw_path, request_context, .. }) if raw_path.is_some() || request_context.is_some() => {
                Self::Http
            }
            Ok(Marks { records: Some(_), .. }) => Self::Queue,
            _ => Self::Direct,
        }
    }

    /// The request's ids and the deadline of an invocation of this kind.
    pub fn invocation(self, context: &Context, now: Millis) -> Invocation {
        let deadline = match (self, stated_deadline(context.deadline, now)) {
            (_, None) => now + LONGEST,
            (Self::Http, Some(stated)) => stated.min(now + LONGEST),
            (Self::Direct | Self::Queue, Some(stated)) => stated,
        };
        let (request_id, trace_id) = (context.request_id.clone(), context.xray_trace_id.clone());
        Invocation { request_id, trace_id, deadline }
    }
}

/// The deadline that the context states, less [`MARGIN`]. `None` if that time is past: some emulators state a deadline
/// that is no time since the epoch.
fn stated_deadline(deadline: u64, now: Millis) -> Option<Millis> {
    let stated = Millis(i64::try_from(deadline).unwrap_or(i64::MAX)) - MARGIN;
    (stated > now).then_some(stated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        serde_json::from_str(json).expect("JSON")
    }

    #[test]
    fn each_kind_of_event_is_recognised() {
        for (json, expected) in [
            (r#"{"version":"2.0","rawPath":"/x","requestContext":{}}"#, EventKind::Http),
            (r#"{"requestContext":{}}"#, EventKind::Http),
            (r#"{"rawPath":7}"#, EventKind::Http),
            (r#"{"resource":{"location":"a"},"method":"GET","path":"/"}"#, EventKind::Direct),
            (r#"{"requests":[]}"#, EventKind::Direct),
            (r#"{"Records":[{"messageId":"m"}]}"#, EventKind::Queue),
            (r#"{"Records":[]}"#, EventKind::Queue),
            (r#"{"Records":7}"#, EventKind::Direct),
            (r#"{"Records":null}"#, EventKind::Direct),
            ("null", EventKind::Direct),
            ("[]", EventKind::Direct),
            ("\"rawPath\"", EventKind::Direct),
            ("{}", EventKind::Direct),
        ] {
            assert_eq!(EventKind::of(&raw(json)), expected, "{json}");
        }
    }

    #[test]
    fn the_deadline_is_the_nearest_that_makes_sense() {
        let now = Millis(1_700_000_000_000);
        let at = |ms: i64| u64::try_from(now.0 + ms).expect("positive");
        let deadline = |kind: EventKind, deadline: u64| {
            let mut context = Context::default();
            context.deadline = deadline;
            kind.invocation(&context, now).deadline.0 - now.0
        };
        assert_eq!(deadline(EventKind::Http, at(10_000)), 9_500);
        assert_eq!(deadline(EventKind::Http, at(60_000)), 28_000);
        assert_eq!(deadline(EventKind::Direct, at(60_000)), 59_500);
        assert_eq!(deadline(EventKind::Direct, 600_000), 28_000, "not an epoch");
        assert_eq!(deadline(EventKind::Http, 0), 28_000);
        assert_eq!(deadline(EventKind::Http, u64::MAX), 28_000);
    }
}
