//! Lifecycle events, which tell a team's own functions about installations (transactional outbox).
//!
//! The write that changes an installation also puts the event into the item's `outbox`. So every published event is
//! about a stored state, and no event of a stored state is lost. The process that wrote the event publishes it at
//! once and acknowledges it. If the process dies in between, the schedule finds the event through a sparse index. So
//! each event is published at least once. Without a bus no event is stored.
//!
//! The number of events is small. An install and an uninstall have one event each, also for a company: the locations of
//! a company have no events of their own for it. An install in a location that the marketplace itself reports has one
//! event. A refresh publishes a state only if the state changes, and refreshes of one installation are hours apart. The
//! schedule publishes a bounded number of events in a tick.
//!
//! An event that the bus refuses for good (malformed, not authorized) is kept, raises an alarm, and is postponed for an
//! hour. So the event is not lost and does not block the events of other installations.

mod bus;
pub mod platform;

use std::time::Duration;

use aws_sdk_eventbridge::Client;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use self::bus::{Bus, Delivery, Entry, MOST};
use crate::domain::clock::{Clock, Millis};
use crate::domain::event::{Event, Name};
use crate::domain::installation::Installation;
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, Status};
use crate::table::installation::Release;
use crate::table::{StoreError, Table, Write};

/// The `source` of lifecycle events.
const SOURCE: &str = "hoopai.relay";
/// The time limit for the process that wrote an event to publish it. A caller may be waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// If less time than this is left, the schedule sends the event instead.
const LEAST: Duration = Duration::from_millis(200);
/// The age from which the schedule publishes an event. The process that wrote the event publishes it sooner.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// The highest number of installations whose events the schedule publishes in one tick.
const MOST_A_TICK: usize = 500;
/// The number of installations that are read or acknowledged at once.
const CONCURRENCY: usize = 16;
/// The pause before the bus is sent a refused event again. The cause must be removed first.
const PUT_OFF: Duration = Duration::from_hours(1);

/// Publishes lifecycle events of installations, if there is a bus.
#[derive(Clone)]
pub struct Events {
    bus: Option<Bus>,
    table: Table,
    clock: Clock,
}

impl Events {
    /// Publishes events of the installations in `table` on the named bus.
    pub fn new(bus: Option<(Client, String)>, table: Table, clock: Clock) -> Self {
        Self { bus: bus.map(|(client, name)| Bus::new(client, name)), table, clock }
    }

    /// Returns true if events are published, that is, if there is a bus.
    pub fn are_published(&self) -> bool {
        self.bus.is_some()
    }

    /// The event of an install that begins `epoch`.
    pub fn installed(&self, epoch: u64, at: Millis) -> Option<Event> {
        self.bus.as_ref().map(|_| Event { name: Name::Installed, at, epoch })
    }

    /// The event of an uninstall that is followed by `epoch`.
    pub fn uninstalled(&self, epoch: u64, at: Millis) -> Option<Event> {
        self.bus.as_ref().map(|_| Event { name: Name::Uninstalled, at, epoch })
    }

    /// The event of a change that the marketplace has reported.
    pub fn reported(&self, name: Name, epoch: u64, at: Millis) -> Option<Event> {
        self.bus.as_ref().map(|_| Event { name, at, epoch })
    }

    /// The event of a new token for `stored`, the installation as read by its claim.
    pub fn renewed(&self, stored: &Installation) -> Option<Event> {
        self.bus.as_ref().and_then(|_| of_renewal(stored, self.clock.now()))
    }

    /// Releases a lease without a new token ([`Table::release`]), and publishes the event of the release, if any.
    pub async fn release(
        &self,
        claimed: &Installation,
        owner: &LeaseOwner,
        to: Release,
        deadline: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let event = self.bus.as_ref().and_then(|_| of_failure(claimed, to.status, self.clock.now()));
        let released = self.table.release(&claimed.resource, claimed.version, owner, to, event).await?;
        if event.is_some()
            && let Write::Applied(stored) = &released
        {
            self.publish(stored, deadline).await;
        }
        Ok(released)
    }

    /// Publishes the events in an installation's outbox, within a time limit and before `deadline`. The schedule
    /// publishes the remaining events later, so no request fails because of them.
    pub async fn publish(&self, stored: &Installation, deadline: Millis) {
        let Some(bus) = &self.bus else { return };
        if stored.outbox.is_empty() {
            return;
        }
        let time = PATIENCE.min(deadline.since(self.clock.now()).saturating_sub(LEAST));
        if time < LEAST {
            return;
        }
        let sent = async {
            let events: Vec<_> = in_order(stored).into_iter().take(MOST).collect();
            let delivered = bus.put(entries(&events)).await?;
            self.acknowledge(stored, &events, &delivered).await.map_err(|error| error.to_string())
        };
        let error = match tokio::time::timeout(time, Box::pin(sent)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(resource = %stored.resource, error, "lifecycle events could not be sent; the schedule sends them later");
    }

    /// Reads one installation and publishes the events in its outbox.
    ///
    /// # Errors
    /// [`StoreError`] if the installation cannot be read.
    pub async fn publish_of(&self, resource: &Resource, deadline: Millis) -> Result<(), StoreError> {
        if self.bus.is_some()
            && let Some(stored) = self.table.installation(resource).await?
        {
            self.publish(&stored, deadline).await;
        }
        Ok(())
    }

    /// Publishes pending events of other processes, in an invocation that ends at `deadline`. If the bus takes no
    /// event, the bus is tried again in the next tick only.
    pub async fn publish_pending(&self, deadline: Millis) {
        let Some(bus) = &self.bus else { return };
        let left = self.table.pending_events(self.clock.now() - LEFT_ALONE, MOST_A_TICK).await;
        let left = match left {
            Ok(left) => left,
            Err(error) => return tracing::error!(alarm = "events", %error, "pending lifecycle events cannot be read"),
        };
        // Reads a few installations at a time, and publishes all events that were read.
        for some in left.chunks(MOST) {
            if self.clock.now() + PATIENCE * 2 > deadline {
                return tracing::warn!("no time is left to send lifecycle events; the next tick continues");
            }
            let read = stream::iter(some).map(|resource| self.table.installation(resource)).buffered(CONCURRENCY);
            let stored: Vec<Installation> = read.filter_map(async |read| read.ok().flatten()).collect().await;
            if let Err(error) = self.send_left(bus, &stored).await {
                return tracing::error!(
                    alarm = "events",
                    error,
                    left = left.len(),
                    "lifecycle events could not be sent; the next tick tries again"
                );
            }
        }
        if !left.is_empty() {
            tracing::info!(installations = left.len(), "lifecycle events were sent late");
        }
    }

    /// Sends the events of several installations, [`MOST`] in a request. An error if the bus takes no event at all.
    async fn send_left(&self, bus: &Bus, stored: &[Installation]) -> Result<(), String> {
        let events: Vec<_> = stored.iter().flat_map(in_order).collect();
        let mut delivered = Vec::new();
        for some in events.chunks(MOST) {
            delivered.extend(bus.put(entries(some)).await?);
        }
        let acknowledged = stream::iter(stored).map(|stored| self.acknowledge(stored, &events, &delivered));
        let acknowledged = acknowledged.buffer_unordered(CONCURRENCY);
        let failed = acknowledged.filter_map(async |done| done.err()).collect::<Vec<_>>().await;
        if let Some(error) = failed.first() {
            return Err(error.to_string());
        }
        if !events.is_empty() && delivered.iter().all(|delivery| *delivery == Delivery::NotTaken) {
            return Err("the bus takes no event".to_owned());
        }
        Ok(())
    }

    /// Removes the taken events from an installation's outbox, and postpones the refused ones.
    async fn acknowledge(
        &self,
        stored: &Installation,
        events: &[(&Installation, Event)],
        delivered: &[Delivery],
    ) -> Result<(), StoreError> {
        let (mut taken, mut put_off) = (Vec::new(), None);
        let own = events.iter().zip(delivered).filter(|((of, _), _)| of.resource == stored.resource);
        for ((_, event), delivery) in own {
            match delivery {
                Delivery::Taken => taken.push(*event),
                Delivery::NotTaken => {}
                Delivery::Refused(code) => {
                    tracing::error!(alarm = "events", resource = %stored.resource, event = event.name.as_str(), code,
                        "the bus refuses a lifecycle event; it is kept and tried again in an hour");
                    put_off = Some(self.clock.now() + PUT_OFF);
                }
            }
        }
        self.table.acknowledge_events(&stored.resource, &stored.outbox, &taken, put_off).await
    }
}

/// The events of an installation, oldest first.
fn in_order(stored: &Installation) -> Vec<(&Installation, Event)> {
    let mut events = stored.outbox.clone();
    events.sort_by_key(|event| (event.epoch, event.at));
    events.into_iter().map(|event| (stored, event)).collect()
}

/// The entries of the bus for these events.
fn entries(events: &[(&Installation, Event)]) -> Vec<Entry> {
    let entry = |(stored, event): &(&Installation, Event)| Entry {
        source: SOURCE,
        detail_type: event.name.as_str().to_owned(),
        detail: detail(event, stored).to_string(),
        resources: Vec::new(),
        time: event.at,
    };
    events.iter().map(entry).collect()
}

/// The `detail` of a lifecycle event, which the team's own functions read.
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
    match event.name {
        Name::NeedsReauthorization => detail["reinstall_url"] = json!(stored.reinstall_url()),
        Name::Updated => detail["version_id"] = json!(stored.details.version_id),
        Name::PlanChanged => detail["plan_id"] = json!(stored.details.plan_id),
        Name::Installed | Name::Uninstalled | Name::Suspended | Name::Resumed => {}
    }
    detail
}

/// The event of a change of `stored` to `status` without a new token. `None` if this state is the last published one.
fn of_failure(stored: &Installation, status: Status, at: Millis) -> Option<Event> {
    let name = match status {
        Status::Suspended => Name::Suspended,
        Status::NeedsReauthorization => Name::NeedsReauthorization,
        Status::Active | Status::Refreshing | Status::Uncertain | Status::Blocked | Status::Revoked => return None,
    };
    (stored.published != Some(status)).then_some(Event { name, at, epoch: stored.version.epoch })
}

/// The event of a new token for `stored`. `None` unless the last event reported that the installation has no token.
fn of_renewal(stored: &Installation, at: Millis) -> Option<Event> {
    stored.published.map(|_| Event { name: Name::Resumed, at, epoch: stored.version.epoch })
}
