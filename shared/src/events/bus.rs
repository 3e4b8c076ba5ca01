//! Events on their way to `EventBridge`.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use serde_json::{Value, json};

use crate::domain::event::{Event, Name};
use crate::domain::installation::Installation;
use crate::domain::resource::Kind;
use crate::http_client::aws_error::describe;

/// Who sends them.
const SOURCE: &str = "hoopai.relay";
/// The most entries of one request (Amazon `EventBridge` API Reference, `PutEvents`).
pub(super) const MOST: usize = 10;

/// The bus that takes the events.
#[derive(Clone)]
pub(super) struct Bus {
    client: Client,
    name: String,
}

impl Bus {
    pub(super) fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// Sends at most [`MOST`] events. For each, what the bus has made of it; an error if it has taken none of them and
    /// says nothing of any.
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

/// The `detail` of an event, for a team's own functions.
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

/// What the bus has made of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It has taken the event.
    Taken,
    /// Not now: a fault of the bus, or too much at once.
    NotTaken,
    /// It will not take this event as it is, with this error code. Others are not concerned.
    Refused(String),
}

impl Delivery {
    /// From the error code of an entry (Amazon `EventBridge` API Reference, `PutEventsResultEntry`: only these two codes
    /// are worth an immediate retry).
    fn of(code: Option<&str>) -> Self {
        match code {
            None => Self::Taken,
            Some("InternalFailure" | "InternalException" | "ThrottlingException") => Self::NotTaken,
            Some(code) => Self::Refused(code.to_owned()),
        }
    }
}
