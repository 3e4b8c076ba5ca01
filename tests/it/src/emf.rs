//! Metrics as CloudWatch reads them from a log line (CloudWatch User Guide, "Embedded metric format specification").

use std::collections::BTreeMap;

use serde_json::Value;

/// The value of one metric for one set of dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// The metric.
    pub name: String,
    /// Dimensions and their values.
    pub dimensions: BTreeMap<String, String>,
    /// The value of the metric.
    pub value: f64,
}

/// The metrics of a log line. Empty if the line contains no metrics.
///
/// # Panics
/// If CloudWatch would reject the metrics of the line, or would read other metrics than those that the line means.
pub fn metrics(line: &Value) -> Vec<Datum> {
    let Some(aws) = line.get("_aws") else { return Vec::new() };
    assert!(aws["Timestamp"].is_i64(), "{line}");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_else(|| panic!("a list in {line}"));
    let text = |value: &Value| value.as_str().map_or_else(|| panic!("a text in {line}"), str::to_owned);
    let mut data = Vec::new();
    for directive in list(&aws["CloudWatchMetrics"]) {
        // A deployed stack has a namespace of its own.
        let namespace = text(&directive["Namespace"]);
        assert!(namespace == "HoopaiRelay" || namespace.starts_with("HoopaiRelay/"), "{line}");
        for set in list(&directive["Dimensions"]) {
            let dimensions = list(&set).iter().map(|key| (text(key), text(&line[text(key)]))).collect();
            for metric in list(&directive["Metrics"]) {
                let name = text(&metric["Name"]);
                let value = line[&name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {line}"));
                data.push(Datum { name, dimensions: BTreeMap::clone(&dimensions), value });
            }
        }
    }
    assert!(!data.is_empty(), "{line}");
    data
}
