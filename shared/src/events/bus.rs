//! The event bus: sends entries to `EventBridge`.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use crate::domain::clock::Millis;
use crate::http_client::aws_error::describe;

/// The highest number of entries in one request (Amazon `EventBridge` API Reference, `PutEvents`).
pub(super) const MOST: usize = 10;
/// The number of bytes that the entries of one request must stay below, together (Amazon `EventBridge` User Guide,
/// "`PutEvents` event entry size").
pub(super) const TOO_LARGE: usize = 1024 * 1024;
/// The number of bytes that the time of an entry counts (the same page).
const TIME_SIZE: usize = 14;

/// One event as the bus takes it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) source: &'static str,
    pub(super) detail_type: String,
    /// A JSON object.
    pub(super) detail: String,
    /// The resources that the event is about.
    pub(super) resources: Vec<String>,
    pub(super) time: Millis,
}

impl Entry {
    /// The number of bytes of the entry, as the bus counts them.
    pub(super) fn size(&self) -> usize {
        let resources: usize = self.resources.iter().map(String::len).sum();
        TIME_SIZE + self.source.len() + self.detail_type.len() + self.detail.len() + resources
    }
}

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

    /// Sends at most [`MOST`] entries, below [`TOO_LARGE`] bytes together. Returns the bus's answer to each entry, or an
    /// error if the bus took no entry and gave no answers.
    pub(super) async fn put(&self, entries: Vec<Entry>) -> Result<Vec<Delivery>, String> {
        let count = entries.len();
        let entry = |entry: Entry| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.name)
                .source(entry.source)
                .detail_type(entry.detail_type)
                .time(DateTime::from_millis(entry.time.0))
                .detail(entry.detail)
                .set_resources((!entry.resources.is_empty()).then_some(entry.resources))
                .build()
        };
        let entries = entries.into_iter().map(entry).collect();
        let answer = self.client.put_events().set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| describe(&error))?;
        let mut delivered: Vec<_> = answer.entries().iter().map(|entry| Delivery::of(entry.error_code())).collect();
        delivered.resize(count, Delivery::NotTaken);
        Ok(delivered)
    }
}

/// The bus's answer to one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The bus took the event.
    Taken,
    /// The bus failed or throttled the event. It can be sent again.
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
