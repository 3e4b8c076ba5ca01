//! One JSON object a line on standard output, and metrics in CloudWatch's embedded format between them.

use std::io::Write as _;

use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock::{Clock, Millis};
use crate::config::variable;

/// Crates whose words may be logged below `ERROR`. Others, such as HTTP and AWS clients, would print headers and
/// bodies there, and with them tokens: no setting of `RUST_LOG` reaches them.
const OURS: [&str; 5] = ["shared", "callback", "refresh", "relay", "webhook"];

/// Sets the process's logging up. A second call changes nothing.
pub fn start() {
    let directives = variable("RUST_LOG").unwrap_or_default();
    let builder = || EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let (filter, fault) = match builder().parse(directives) {
        Ok(filter) => (filter, None),
        Err(error) => (builder().parse_lossy(""), Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_ansi(false)
        .with_filter(filter)
        .with_filter(filter_fn(is_told));
    let _already_set = tracing_subscriber::registry().with(lines).with(Alarms).try_init();
    if let Some(error) = fault {
        tracing::warn!(%error, "RUST_LOG is not understood; info is taken");
    }
}

/// Makes a metric of each event that has a member `alarm`: `Alarm`, counted by name. The names are few, since they are
/// written in the source.
struct Alarms;

impl<S: Subscriber> Layer<S> for Alarms {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut alarm = AlarmName::default();
        event.record(&mut alarm);
        if let Some(name) = alarm.0 {
            let mut line = alarm_metric(&name, Clock::system().now()).to_string();
            line.push('\n');
            // Standard output is the log; without it there is nobody to tell.
            let _ = std::io::stdout().lock().write_all(line.as_bytes());
        }
    }
}

#[derive(Default)]
struct AlarmName(Option<String>);

impl Visit for AlarmName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "alarm" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

fn is_told(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::ERROR || OURS.iter().any(|name| is_of(metadata.target(), name))
}

fn is_of(target: &str, name: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// One alarm as CloudWatch's embedded format has it (CloudWatch User Guide, "Embedded metric format specification").
fn alarm_metric(name: &str, now: Millis) -> Value {
    json!({
        "_aws": {
            "Timestamp": now.0,
            "CloudWatchMetrics": [{
                "Namespace": "HoopaiRelay",
                "Dimensions": [["Name"]],
                "Metrics": [{"Name": "Alarm", "Unit": "Count"}],
            }],
        },
        "Name": name,
        "Alarm": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_would_print_tokens_are_not_heard() {
        for (target, ours) in
            [("shared::token", true), ("relay", true), ("relayed", false), ("hyper::proto", false), ("aws_sdk", false)]
        {
            assert_eq!(OURS.iter().any(|name| is_of(target, name)), ours, "{target}");
        }
    }
}
