//! Events on their way to `EventBridge`.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use super::event::Event;
use crate::aws_error::describe;
use crate::table::installation::Installation;

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

    /// Sends at most [`MOST`] events. For each, whether the bus has taken it.
    pub(super) async fn put(&self, events: &[(&Installation, Event)]) -> Result<Vec<bool>, String> {
        let entry = |(stored, event): &(&Installation, Event)| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.name)
                .source(SOURCE)
                .detail_type(event.name.as_str())
                .time(DateTime::from_millis(event.at.0))
                .detail(event.detail(stored).to_string())
                .build()
        };
        let entries = events.iter().map(entry).collect();
        let answer = self.client.put_events().set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| describe(&error))?;
        let mut taken: Vec<bool> = answer.entries().iter().map(|entry| entry.error_code().is_none()).collect();
        taken.resize(events.len(), false);
        Ok(taken)
    }
}
