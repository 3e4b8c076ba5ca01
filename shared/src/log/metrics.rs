//! The metrics, in CloudWatch's embedded metric format (EMF; CloudWatch User Guide, "Embedded metric format
//! specification").
//!
//! All values of a dimension are constants of the source: an outcome, a limit, the name of an alarm. No dimension is a
//! location, a company or a caller, because CloudWatch charges each combination as a metric per month. A test compares
//! the template's alarms and dashboard with this list.

use std::sync::LazyLock;

use serde::Serialize;

use crate::config::variable;
use crate::domain::clock::Millis;

/// The namespace of the metrics: `METRICS_NAMESPACE`, which each stack sets to a value of its own. The configuration
/// checks its form at start.
static NAMESPACE: LazyLock<String> = LazyLock::new(|| {
    let name = variable("METRICS_NAMESPACE").map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "HoopaiRelay".into())
});

/// One metric. A line's member of the same name holds its value.
#[derive(Debug)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    unit: &'static str,
    /// The sets of members that are its dimensions. The empty set is the sum over all lines.
    dimensions: &'static [&'static [&'static str]],
}

const WITHOUT_DIMENSIONS: &[&[&str]] = &[&[]];
const BY_OUTCOME: &[&[&str]] = &[&["outcome"]];

const fn metric(name: &'static str, unit: &'static str, dimensions: &'static [&'static [&'static str]]) -> Metric {
    Metric { name, unit, dimensions }
}

/// All metrics.
pub static METRICS: [Metric; 27] = [
    // function relay
    metric("Calls", "Count", &[&[], &["outcome"]]),
    metric("RelayErrors", "Count", WITHOUT_DIMENSIONS),
    metric("PlatformErrors", "Count", WITHOUT_DIMENSIONS),
    metric("PlatformLatency", "Milliseconds", WITHOUT_DIMENSIONS),
    metric("PermitsRefused", "Count", &[&["limit"]]),
    // function relay, for calls of the queue
    metric("CallsCompleted", "Count", &[&[], &["outcome"]]),
    metric("CallsParked", "Count", WITHOUT_DIMENSIONS),
    metric("QueueTime", "Milliseconds", WITHOUT_DIMENSIONS),
    // every function that renews tokens
    metric("Refreshes", "Count", BY_OUTCOME),
    // function refresh, once a scheduled run
    metric("Ticks", "Count", WITHOUT_DIMENSIONS),
    metric("Due", "Count", WITHOUT_DIMENSIONS),
    metric("Left", "Count", WITHOUT_DIMENSIONS),
    metric("OldestDueAge", "Seconds", WITHOUT_DIMENSIONS),
    metric("BreakerOpen", "Count", WITHOUT_DIMENSIONS),
    metric("RescueDepth", "Count", WITHOUT_DIMENSIONS),
    metric("TokenPaceUsed", "Percent", WITHOUT_DIMENSIONS),
    // function refresh, once a comparison of a company's list
    metric("LocationsNotStored", "Count", WITHOUT_DIMENSIONS),
    metric("LocationsNotListed", "Count", WITHOUT_DIMENSIONS),
    // function callback
    metric("Installs", "Count", BY_OUTCOME),
    metric("InstallFailures", "Count", WITHOUT_DIMENSIONS),
    // function webhook
    metric("Webhooks", "Count", BY_OUTCOME),
    metric("WebhookFailures", "Count", WITHOUT_DIMENSIONS),
    metric("WebhookEvents", "Count", &[&["family"]]),
    metric("EventsOverflowed", "Count", WITHOUT_DIMENSIONS),
    metric("OldestOverflowAge", "Seconds", WITHOUT_DIMENSIONS),
    // every function that sends requests to the API
    metric("LimitsChanged", "Count", &[&["change"]]),
    // every function
    metric("Alarm", "Count", &[&["alarm"]]),
];

/// The metric of that name.
pub fn of(name: &str) -> Option<&'static Metric> {
    // A cheap first test, because this runs for every field of every line. Names of other fields begin in lower case.
    if !name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return None;
    }
    METRICS.iter().find(|metric| metric.name == name)
}

/// The member `_aws` of a line. It tells CloudWatch which members of the line are metrics.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Directives {
    timestamp: i64,
    #[serde(rename = "CloudWatchMetrics")]
    sets: Vec<Directive>,
}

/// Metrics with the same dimensions.
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
            None => sets.push(Directive { namespace: NAMESPACE.as_str(), dimensions, metrics: vec![named] }),
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
