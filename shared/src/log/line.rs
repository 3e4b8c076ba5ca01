//! One line of the log, as JSON.

use std::fmt;

use serde::{Serialize, Serializer};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::metrics;
use crate::domain::clock::{Clock, Millis};

/// The name of the span that the Runtime API's client opens for each invocation.
pub(super) const INVOCATION: &str = "Lambda runtime invoke";
/// The usual length of a relayed call's line, in bytes.
const USUAL_LENGTH: usize = 1_024;

/// Writes one line for each event of `tracing`.
pub(super) struct Lines<W> {
    write: W,
    clock: Clock,
}

impl<W: Fn(&[u8])> Lines<W> {
    pub(super) fn new(write: W) -> Self {
        Self { write, clock: Clock::system() }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&[u8]) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() == INVOCATION
            && let Some(span) = context.span(id)
        {
            let mut ids = Ids::default();
            attributes.record(&mut ids);
            span.extensions_mut().insert(ids);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let now = self.clock.now();
        let mut line = Line::new(now, event);
        event.record(&mut line);
        let spans = context.event_scope(event).into_iter().flatten();
        for span in spans {
            if let Some(ids) = span.extensions().get::<Ids>() {
                line.add_ids(ids);
            }
        }
        (self.write)(&line.finish(now));
    }
}

/// The ids of an invocation.
#[derive(Default)]
struct Ids {
    request: Option<String>,
    trace: Option<String>,
}

impl Visit for Ids {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "requestId" => self.request = Some(value.to_owned()),
            "xrayTraceId" => self.trace = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, format!("{value:?}").trim_matches('"'));
    }
}

/// A line that is being written. Each member is serialized straight into the text, because every relayed call writes a
/// line.
struct Line {
    text: Vec<u8>,
    has_request_id: bool,
    has_trace_id: bool,
    metrics: Vec<&'static metrics::Metric>,
}

impl Line {
    fn new(now: Millis, event: &Event<'_>) -> Self {
        let mut text = Vec::with_capacity(USUAL_LENGTH);
        text.push(b'{');
        let mut line = Self { text, has_request_id: false, has_trace_id: false, metrics: Vec::new() };
        line.write("timestamp", &now.rfc3339());
        line.write("level", event.metadata().level().as_str());
        line.write("target", event.metadata().target());
        line
    }

    fn add<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        match name {
            "request_id" => self.has_request_id = true,
            "trace_id" => self.has_trace_id = true,
            _ => {}
        }
        self.write(name, value);
        self.metrics.extend(metrics::of(name));
        // Every line with an alarm counts in the metric `Alarm`.
        if name == "alarm" {
            self.add("Alarm", &1);
        }
    }

    fn write<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        self.json(name);
        self.text.push(b':');
        self.json(value);
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) {
        let _infallible = serde_json::to_writer(&mut self.text, value);
    }

    fn add_ids(&mut self, ids: &Ids) {
        if let Some(request) = ids.request.as_ref().filter(|_| !self.has_request_id) {
            self.add("request_id", request);
        }
        if let Some(trace) = ids.trace.as_ref().filter(|_| !self.has_trace_id) {
            self.add("trace_id", trace);
        }
    }

    fn finish(mut self, now: Millis) -> Vec<u8> {
        if !self.metrics.is_empty() {
            let directives = metrics::directives(&self.metrics, now);
            self.write("_aws", &directives);
        }
        self.text.extend_from_slice(b"}\n");
        self.text
    }
}

/// A value that is serialized as its `Debug` text.
struct DebugText<'a>(&'a dyn fmt::Debug);

impl Serialize for DebugText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:?}", self.0))
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &DebugText(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt as _;

    fn lines(say: impl FnOnce()) -> Vec<Value> {
        let book = Arc::new(Mutex::new(Vec::new()));
        let kept = book.clone();
        let write = move |line: &[u8]| kept.lock().expect("a book").push(line.to_vec());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Lines::new(write)), say);
        let book = book.lock().expect("a book");
        book.iter().map(|line| serde_json::from_slice(line).expect("a JSON object")).collect()
    }

    #[test]
    fn a_line_has_its_fields_and_the_ids_of_its_invocation() {
        let lines = lines(|| {
            let span = tracing::info_span!("Lambda runtime invoke", requestId = "r-1", xrayTraceId = "t-1");
            let _in = span.enter();
            let none: Option<&str> = None;
            tracing::warn!(resource = %"location:L1", total_ms = 7_u64, ok = true, cause = none, "said \"so\"\n");
            tracing::info!(request_id = "mine", "again");
        });
        let line = &lines[0];
        assert_eq!((&line["level"], &line["message"]), (&json!("WARN"), &json!("said \"so\"\n")));
        assert_eq!((&line["request_id"], &line["trace_id"]), (&json!("r-1"), &json!("t-1")));
        assert_eq!(
            (&line["resource"], &line["total_ms"], &line["ok"]),
            (&json!("location:L1"), &json!(7), &json!(true))
        );
        assert!(line.get("cause").is_none() && line.get("_aws").is_none(), "{line}");
        assert_eq!(lines[1]["request_id"], "mine");
    }

    #[test]
    fn a_field_that_is_a_metric_makes_the_line_one() {
        let lines = lines(|| {
            tracing::info!(outcome = "answered", Calls = 1, RelayErrors = 0, PlatformLatency = 12, "relayed");
            tracing::error!(alarm = "clock", "off");
        });
        let directives = &lines[0]["_aws"]["CloudWatchMetrics"];
        assert_eq!(
            directives,
            &json!([
                {"Namespace": "HoopaiRelay", "Dimensions": [[], ["outcome"]], "Metrics": [{"Name": "Calls", "Unit": "Count"}]},
                {"Namespace": "HoopaiRelay", "Dimensions": [[]], "Metrics": [
                    {"Name": "RelayErrors", "Unit": "Count"}, {"Name": "PlatformLatency", "Unit": "Milliseconds"}]},
            ])
        );
        assert!(lines[0]["_aws"]["Timestamp"].is_i64());
        assert_eq!((&lines[1]["Alarm"], &lines[1]["alarm"]), (&json!(1), &json!("clock")));
        assert_eq!(lines[1]["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([["alarm"]]));
    }
}
