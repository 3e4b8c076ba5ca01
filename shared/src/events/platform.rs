//! The platform's own events: publishes each verified webhook on the bus, with its body as it came.
//!
//! If the bus does not take an event, the event goes to the overflow queue. The queue's consumer publishes it later. So
//! an event that was passed on is on the bus or in the queue. If the answer of the bus or of the queue is lost, the
//! event may be published twice.

use std::time::Duration;

use aws_sdk_sqs::Client as Sqs;
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::bus::{Bus, Delivery, Entry, MOST, TOO_LARGE};
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::http_client::aws_error::describe;
use crate::http_client::within;

/// The `source` of the platform's events.
pub const SOURCE: &str = "hoopai.platform";

/// The longest `detail-type`, in characters (Amazon `EventBridge` API Reference, `PutEventsRequestEntry`).
const LONGEST_TYPE: usize = 128;
/// The longest wait for the bus, if there is an overflow queue.
const BUS_TIME: Duration = Duration::from_millis(1_500);
/// The time that is kept for the overflow queue.
const OVERFLOW_TIME: Duration = Duration::from_millis(1_200);
/// The number of requests to the bus at once, while the overflow queue is drained.
const REQUESTS_AT_ONCE: usize = 2;

/// One event of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformEvent {
    kind: String,
    body: String,
    resources: Vec<Resource>,
    at: Millis,
}

impl PlatformEvent {
    /// An event of a type, with the body of its webhook, the resources that it is about, and the time of its arrival.
    /// The body must be a JSON object.
    pub fn new(kind: &str, body: impl Into<String>, resources: &[Resource], at: Millis) -> Self {
        let kind = kind.chars().take(LONGEST_TYPE).collect();
        Self { kind, body: body.into(), resources: resources.to_vec(), at }
    }

    /// The type of the event, cut to the longest `detail-type`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The body of the webhook.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The resources that the event is about.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Returns true if the bus can take the event.
    pub fn fits(&self) -> bool {
        self.entry().size() < TOO_LARGE
    }

    fn entry(&self) -> Entry {
        Entry {
            source: SOURCE,
            detail_type: self.kind.clone(),
            detail: self.body.clone(),
            resources: self.resources.iter().map(ToString::to_string).collect(),
            time: self.at,
        }
    }
}

/// The place that has taken an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The bus.
    ByBus,
    /// The overflow queue.
    ByOverflowQueue,
}

/// Neither the bus nor the overflow queue is known to have taken an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither the bus nor the overflow queue has taken the event")]
pub struct NotTaken;

/// Publishes the platform's events.
#[derive(Clone)]
pub struct PlatformEvents {
    bus: Bus,
    overflow: Option<Overflow>,
}

#[derive(Clone)]
struct Overflow {
    client: Sqs,
    url: String,
}

impl PlatformEvents {
    /// Publishes events on the named bus, or else puts them on the overflow queue, if there is one.
    pub fn new(bus: (aws_sdk_eventbridge::Client, String), overflow: Option<(Sqs, String)>) -> Self {
        let overflow = overflow.map(|(client, url)| Overflow { client, url });
        Self { bus: Bus::new(bus.0, bus.1), overflow }
    }

    /// Passes an event on to the bus or to the overflow queue, until `deadline`.
    ///
    /// # Errors
    /// [`NotTaken`]: the event may have been published nevertheless, if an answer was lost.
    pub async fn pass_on(&self, event: &PlatformEvent, deadline: Instant) -> Result<Taken, NotTaken> {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = if self.overflow.is_some() { left.saturating_sub(OVERFLOW_TIME).min(BUS_TIME) } else { left };
        let error = match within(time, Box::pin(self.bus.put(vec![event.entry()]))).await {
            Ok(Ok(delivered)) => match delivered.first() {
                Some(Delivery::Taken) => return Ok(Taken::ByBus),
                Some(Delivery::Refused(code)) => {
                    tracing::error!(alarm = "events", kind = event.kind, code, "the bus refuses an event");
                    code.clone()
                }
                Some(Delivery::NotTaken) | None => "the bus failed".to_owned(),
            },
            Ok(Err(error)) => error,
            Err(_) => "no answer in time".to_owned(),
        };
        let Some(overflow) = &self.overflow else {
            tracing::error!(kind = event.kind, error, "the bus has not taken an event");
            return Err(NotTaken);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let sending = overflow.client.send_message().queue_url(&overflow.url).message_body(&event.body).send();
        let reason = match within(left, Box::pin(sending)).await {
            Ok(Ok(_)) => {
                tracing::warn!(kind = event.kind, error, EventsOverflowed = 1, "an event is on the overflow queue");
                return Ok(Taken::ByOverflowQueue);
            }
            Ok(Err(error)) => describe(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::error!(kind = event.kind, error, reason, "neither the bus nor the overflow queue has taken an event");
        Err(NotTaken)
    }

    /// Publishes events of the overflow queue, until `deadline`. Returns for each event if the bus has taken it.
    pub async fn publish_all(&self, events: Vec<PlatformEvent>, deadline: Instant) -> Vec<bool> {
        let requests = requests(events.iter().map(PlatformEvent::entry).collect());
        let put = requests.into_iter().map(|entries| self.put_until(entries, deadline));
        let taken = stream::iter(put).buffered(REQUESTS_AT_ONCE).concat().await;
        debug_assert_eq!(taken.len(), events.len(), "one answer for each event");
        taken
    }

    async fn put_until(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<bool> {
        let count = entries.len();
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match within(left, Box::pin(self.bus.put(entries))).await {
            Ok(Ok(delivered)) => {
                for delivery in &delivered {
                    if let Delivery::Refused(code) = delivery {
                        tracing::error!(alarm = "events", code, "the bus refuses an event of the overflow queue");
                    }
                }
                return delivered.iter().map(|delivery| *delivery == Delivery::Taken).collect();
            }
            Ok(Err(error)) => error,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(count, error, "events stay on the overflow queue");
        vec![false; count]
    }
}

/// Divides entries into requests that the bus takes. Keeps their order.
fn requests(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut requests: Vec<Vec<Entry>> = Vec::new();
    let mut size = 0;
    for entry in entries {
        let own = entry.size();
        match requests.last_mut() {
            Some(request) if request.len() < MOST && size + own < TOO_LARGE => {
                size += own;
                request.push(entry);
            }
            _ => {
                size = own;
                requests.push(vec![entry]);
            }
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, body_size: usize) -> PlatformEvent {
        let location = Resource::location("L1").expect("an id");
        PlatformEvent::new(kind, "x".repeat(body_size), &[location], Millis(1))
    }

    #[test]
    fn the_whole_entry_counts() {
        // The time counts 14 bytes, the source 15, the type 2, and the resource 11.
        let most = TOO_LARGE - 1 - 14 - 15 - 2 - 11;
        assert!(event("ab", most).fits());
        assert!(!event("ab", most + 1).fits() && !event("abc", most).fits());
        // A character of the type may have several bytes.
        assert!(!event("\u{e4}b", most).fits());
    }

    #[test]
    fn a_type_is_cut_to_what_the_bus_takes() {
        assert_eq!(event(&"\u{e4}".repeat(129), 2).entry().detail_type, "\u{e4}".repeat(128));
        let entry = event("ContactCreate", 2).entry();
        assert_eq!((&*entry.detail_type, entry.resources), ("ContactCreate", vec!["location:L1".to_owned()]));
    }

    #[test]
    fn requests_hold_ten_entries_and_less_than_a_megabyte() {
        let sizes = |bodies: &[usize]| -> Vec<usize> {
            let entries = bodies.iter().map(|size| event("ab", *size).entry()).collect();
            let requests = requests(entries);
            assert!(requests.iter().all(|request| request.iter().map(Entry::size).sum::<usize>() < TOO_LARGE));
            requests.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[100; 25]), [10, 10, 5]);
        assert_eq!(sizes(&[400_000; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[10, 1_000_000, 10, 600_000, 600_000]), [3, 1, 1]);
    }
}
