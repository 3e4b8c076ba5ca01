//! The metrics, in CloudWatch's embedded format (CloudWatch User Guide, "Embedded metric format specification").
//!
//! A dimension's values are written in the source: an outcome, a limit, the name of an alarm. None is a location, a
//! company or a caller, since each combination is a metric of its own that is paid for by the month. The template's
//! alarms and dashboard are compared with this list.

use serde_json::{Value, json};

use crate::clock::Millis;

const NAMESPACE: &str = "HoopaiRelay";

/// One metric: the member of a line that holds it.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    unit: &'static str,
    /// The members that it is told apart by, each set of them for itself; the empty set is the sum of all.
    dimensions: &'static [&'static [&'static str]],
}

const ALONE: &[&[&str]] = &[&[]];
const BY_OUTCOME: &[&[&str]] = &[&["outcome"]];

const fn metric(name: &'static str, unit: &'static str, dimensions: &'static [&'static [&'static str]]) -> Metric {
    Metric { name, unit, dimensions }
}

/// All of them.
pub static METRICS: [Metric; 17] = [
    // relay
    metric("Calls", "Count", &[&[], &["outcome"]]),
    metric("RelayErrors", "Count", ALONE),
    metric("PlatformErrors", "Count", ALONE),
    metric("PlatformLatency", "Milliseconds", ALONE),
    metric("PermitsRefused", "Count", &[&["limit"]]),
    // every function that renews tokens
    metric("Refreshes", "Count", BY_OUTCOME),
    // refresh, once a tick
    metric("Ticks", "Count", ALONE),
    metric("Due", "Count", ALONE),
    metric("Left", "Count", ALONE),
    metric("OldestDueAge", "Seconds", ALONE),
    metric("BreakerOpen", "Count", ALONE),
    metric("RescueDepth", "Count", ALONE),
    // callback
    metric("Installs", "Count", BY_OUTCOME),
    metric("InstallFailures", "Count", ALONE),
    // webhook
    metric("Webhooks", "Count", BY_OUTCOME),
    metric("WebhookFailures", "Count", ALONE),
    // every function
    metric("Alarm", "Count", &[&["alarm"]]),
];

/// The metric of that name.
#[must_use]
pub fn of(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// What tells CloudWatch which members of a line are metrics.
pub(super) fn directives(metrics: &[&Metric], now: Millis) -> Value {
    let mut sets: Vec<(&[&[&str]], Vec<Value>)> = Vec::new();
    for metric in metrics {
        let told = json!({ "Name": metric.name, "Unit": metric.unit });
        match sets.iter_mut().find(|(dimensions, _)| *dimensions == metric.dimensions) {
            Some((_, metrics)) => metrics.push(told),
            None => sets.push((metric.dimensions, vec![told])),
        }
    }
    let directive = |(dimensions, metrics): (&[&[&str]], Vec<Value>)| json!({ "Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics });
    let directives: Vec<_> = sets.into_iter().map(directive).collect();
    json!({ "Timestamp": now.0, "CloudWatchMetrics": directives })
}
