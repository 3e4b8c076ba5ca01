//! The metrics, in CloudWatch's embedded format (CloudWatch User Guide, "Embedded metric format specification").
//!
//! A dimension's values are written in the source: an outcome, a limit, the name of an alarm. None is a location, a
//! company or a caller, since each combination is a metric of its own that is paid for by the month. The template's
//! alarms and dashboard are compared with this list.

use serde::Serialize;

use crate::domain::clock::Millis;

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
    // As all metrics are and hardly any other field is, and every field of every line is asked for.
    if !name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return None;
    }
    METRICS.iter().find(|metric| metric.name == name)
}

/// What tells CloudWatch which members of a line are metrics.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Directives {
    timestamp: i64,
    #[serde(rename = "CloudWatchMetrics")]
    sets: Vec<Directive>,
}

/// Metrics that are told apart by the same members.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive {
    namespace: &'static str,
    dimensions: &'static [&'static [&'static str]],
    metrics: Vec<Named>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: &'static str,
    unit: &'static str,
}

/// The directives for the metrics of a line.
pub(super) fn directives(metrics: &[&Metric], now: Millis) -> Directives {
    let mut sets: Vec<Directive> = Vec::new();
    for &&Metric { name, unit, dimensions } in metrics {
        let named = Named { name, unit };
        match sets.iter_mut().find(|set| set.dimensions == dimensions) {
            Some(set) => set.metrics.push(named),
            None => sets.push(Directive { namespace: NAMESPACE, dimensions, metrics: vec![named] }),
        }
    }
    Directives { timestamp: now.0, sets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_found_by_its_name() {
        assert!(METRICS.iter().all(|metric| of(metric.name).is_some_and(|found| found.name == metric.name)));
        assert!(of("calls").is_none() && of("outcome").is_none());
    }
}
