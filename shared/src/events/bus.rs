//! The event bus: sends lifecycle events to `EventBridge`.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use serde_json::{Value, json};

use crate::domain::event::{Event, Name};
use crate::domain::installation::Installation;
use crate::domain::resource::Kind;
use crate::http_client::aws_error::describe;

/// The `source` of all events.
const SOURCE: &str = "hoopai.relay";
/// The highest number of entries in one request (Amazon `EventBridge` API Reference, `PutEvents`).
pub(super) const MOST: usize = 10;

/// The bus that receives the events.
#[derive(Clone)]
pub(super) struct Bus {
    client: Client,
    name: String,
}

impl Bus {
    pub(super) fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// Sends at most [`MOST`] events. Returns the bus's answer to each event, or an error if the bus took no event and
    /// gave no answers.
    pub(super) async fn put(&self, events: &[(&Installation, Event)]) -> Result<Vec<Delivery>, String> {
        let entry = |(stored, event): &(&Installation, Event)| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.name)
                .source(SOURCE)
                .detail_type(event.name.as_str())
                .time(DateTime::from_millis(event.at.0))
                .detail(detail(event, stored).to_string())
                .build()
        };
        let entries = events.iter().map(entry).collect();
        let answer = self.client.put_events().set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| describe(&error))?;
        let mut delivered: Vec<_> = answer.entries().iter().map(|entry| Delivery::of(entry.error_code())).collect();
        delivered.resize(events.len(), Delivery::NotTaken);
        Ok(delivered)
    }
}

/// The `detail` of an event, which the team's own functions read.
fn detail(event: &Event, stored: &Installation) -> Value {
    let company = match stored.resource.kind() {
        Kind::Company => Some(stored.resource.id()),
        Kind::Location => stored.company.as_deref(),
    };
    let mut detail = json!({
        "resource": stored.resource,
        "company": company,
        "at": event.at.rfc3339(),
        "epoch": event.epoch,
    });
    if event.name == Name::NeedsReauthorization {
        detail["reinstall_url"] = json!(stored.reinstall_url());
    }
    detail
}

/// The bus's answer to one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The bus took the event.
    Taken,
    /// The bus failed or throttled the event. The event can be sent again.
    NotTaken,
    /// The bus refuses this event for good, with this error code. Other events are not affected.
    Refused(String),
}

impl Delivery {
    /// Reads the error code of an entry. Only these two codes are worth an immediate retry (Amazon `EventBridge` API
    /// Reference, `PutEventsResultEntry`).
    fn of(code: Option<&str>) -> Self {
        match code {
            None => Self::Taken,
            Some("InternalFailure" | "InternalException" | "ThrottlingException") => Self::NotTaken,
            Some(code) => Self::Refused(code.to_owned()),
        }
    }
}
