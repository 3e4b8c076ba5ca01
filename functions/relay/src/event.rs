//! The two kinds of events, and what both have from Lambda.

use std::time::Duration;

use lambda_runtime::Context;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use shared::domain::clock::Millis;
use shared::relay::Invocation;

/// Time between our deadline and Lambda's, for the answer to be written and carried.
const MARGIN: Duration = Duration::from_millis(500);
/// API Gateway gives up after 30 s. Also the time of an invocation that does not say when it ends.
const LONGEST: Duration = Duration::from_secs(28);

/// Which kind an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// API Gateway's.
    Http,
    /// Everything else, malformed events included.
    Direct,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marks {
    raw_path: Option<IgnoredAny>,
    request_context: Option<IgnoredAny>,
}

impl Event {
    /// Tells by members that only API Gateway's events have.
    #[must_use]
    pub fn of(payload: &RawValue) -> Self {
        match serde_json::from_str(payload.get()) {
            Ok(Marks { raw_path, request_context }) if raw_path.is_some() || request_context.is_some() => Self::Http,
            _ => Self::Direct,
        }
    }

    /// What the operation needs to know of the invocation.
    #[must_use]
    pub fn invocation(self, context: &Context, now: Millis) -> Invocation {
        let deadline = match (self, told_deadline(context.deadline, now)) {
            (_, None) => now + LONGEST,
            (Self::Http, Some(told)) => told.min(now + LONGEST),
            (Self::Direct, Some(told)) => told,
        };
        let (request_id, trace_id) = (context.request_id.clone(), context.xray_trace_id.clone());
        Invocation { request_id, trace_id, deadline }
    }
}

/// An emulator's deadline may be nonsense: one that is past is taken for unknown.
fn told_deadline(deadline: u64, now: Millis) -> Option<Millis> {
    let told = Millis(i64::try_from(deadline).unwrap_or(i64::MAX)) - MARGIN;
    (told > now).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        serde_json::from_str(json).expect("JSON")
    }

    #[test]
    fn kinds_are_told_apart() {
        for (json, expected) in [
            (r#"{"version":"2.0","rawPath":"/x","requestContext":{}}"#, Event::Http),
            (r#"{"requestContext":{}}"#, Event::Http),
            (r#"{"rawPath":7}"#, Event::Http),
            (r#"{"resource":{"location":"a"},"method":"GET","path":"/"}"#, Event::Direct),
            (r#"{"requests":[]}"#, Event::Direct),
            ("null", Event::Direct),
            ("[]", Event::Direct),
            ("\"rawPath\"", Event::Direct),
            ("{}", Event::Direct),
        ] {
            assert_eq!(Event::of(&raw(json)), expected, "{json}");
        }
    }

    #[test]
    fn the_deadline_is_the_nearest_that_makes_sense() {
        let now = Millis(1_700_000_000_000);
        let at = |ms: i64| u64::try_from(now.0 + ms).expect("positive");
        let deadline = |kind: Event, deadline: u64| {
            let mut context = Context::default();
            context.deadline = deadline;
            kind.invocation(&context, now).deadline.0 - now.0
        };
        assert_eq!(deadline(Event::Http, at(10_000)), 9_500);
        assert_eq!(deadline(Event::Http, at(60_000)), 28_000);
        assert_eq!(deadline(Event::Direct, at(60_000)), 59_500);
        assert_eq!(deadline(Event::Direct, 600_000), 28_000, "not an epoch");
        assert_eq!(deadline(Event::Http, 0), 28_000);
        assert_eq!(deadline(Event::Http, u64::MAX), 28_000);
    }
}
