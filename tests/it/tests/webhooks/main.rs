//! Webhooks of every type: their signatures, and their way to the bus.

mod changes;
mod faults;
mod overflow;
mod publishing;
mod signatures;

use std::time::Duration;

use it::sender::Sender;
use it::world::World;
use sandbox::event_bridge::{self, Put};
use serde_json::{Value, json};
use shared::config::WebhookSettings;

/// The name of the bus, as a variable of the function.
const BUS: [(&str, &str); 1] = [("EVENT_BUS_NAME", event_bridge::NAME)];
/// The time within which each webhook is answered, whatever is slow.
const ANSWERED: Duration = Duration::from_secs(5);

/// A webhook function with a bus and without an overflow queue.
async fn publisher(world: &World) -> Sender {
    Sender::with(world, &BUS, WebhookSettings::default()).await
}

/// A webhook function with a bus and an overflow queue.
async fn with_overflow(world: &World) -> Sender {
    let overflow_queue_url = Some(world.overflow.url());
    Sender::with(world, &BUS, WebhookSettings { overflow_queue_url, ..WebhookSettings::default() }).await
}

/// The platform's events on the bus.
fn published(world: &World) -> Vec<Put> {
    world.event_bridge.events().into_iter().filter(|put| put.source == "hoopai.platform").collect()
}

/// A `ContactCreate` with this id.
fn contact(id: &str) -> Value {
    json!({"type": "ContactCreate", "locationId": "L1", "id": "nmFmQEsNgz6AVpgLVUJ0", "webhookId": id})
}
