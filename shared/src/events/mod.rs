//! Lifecycle events: a team's own functions learn from them about installations (transactional outbox).
//!
//! The write that makes an event true puts it into the item's `outbox`. So no event is published of a state that is not
//! stored, and no event of a stored state is lost. The process that wrote the event publishes it at once and acknowledges
//! it. If the process dies in between, the schedule finds the event through a sparse index. So each event is published at
//! least once. Without a bus none is stored.
//!
//! The number of events is small. An install and an uninstall are one event each, also those of a company: its locations
//! come and go with it without events of their own. A location that the marketplace itself reports has one. A refresh
//! publishes a state only when it changes, and refreshes of one installation are hours apart. The schedule publishes a
//! bounded number in a tick.
//!
//! An event that the bus refuses for good (malformed, not authorized) is kept, with an alarm, and put off for an hour, so
//! that it neither is lost nor blocks the events of other installations.

mod bus;

use std::time::Duration;

use aws_sdk_eventbridge::Client;
use futures_util::{StreamExt as _, stream};

use self::bus::{Bus, Delivery, MOST};
use crate::domain::clock::{Clock, Millis};
use crate::domain::event::{Event, Name};
use crate::domain::installation::Installation;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status};
use crate::table::installation::Release;
use crate::table::{StoreError, Table, Write};

/// The time in which the process that wrote an event tries to publish it. A caller may be waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// With less time than this, sending is left to the schedule.
const LEAST: Duration = Duration::from_millis(200);
/// The schedule publishes events that are at least so old: the process that wrote them publishes them sooner.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// The number of installations whose events the schedule publishes in one tick.
const MOST_A_TICK: usize = 500;
/// The number of installations that are read or acknowledged at once.
const CONCURRENCY: usize = 16;
/// The time until an event is tried again that the bus has refused. Its cause must be removed first.
const PUT_OFF: Duration = Duration::from_hours(1);

/// Publishes events of installations, if there is a bus.
#[derive(Clone)]
pub struct Events {
    bus: Option<Bus>,
    table: Table,
    clock: Clock,
}

impl Events {
    /// Events of the installations in `table`, for the bus of that name.
    #[must_use]
    pub fn new(bus: Option<(Client, String)>, table: Table, clock: Clock) -> Self {
        Self { bus: bus.map(|(client, name)| Bus::new(client, name)), table, clock }
    }

    /// Whether events are published at all: whether there is a bus.
    #[must_use]
    pub fn are_published(&self) -> bool {
        self.bus.is_some()
    }

    /// The event of an installation that begins with `epoch`.
    #[must_use]
    pub fn installed(&self, epoch: u64, at: Millis) -> Option<Event> {
        self.bus.as_ref().map(|_| Event { name: Name::Installed, at, epoch })
    }

    /// The event of the end of an installation, after which its epoch is `epoch`.
    #[must_use]
    pub fn uninstalled(&self, epoch: u64, at: Millis) -> Option<Event> {
        self.bus.as_ref().map(|_| Event { name: Name::Uninstalled, at, epoch })
    }

    /// The event of a new token for an installation as its claim has found it.
    #[must_use]
    pub fn renewed(&self, stored: &Installation) -> Option<Event> {
        self.bus.as_ref().and_then(|_| of_renewal(stored, self.clock.now()))
    }

    /// Releases a lease without a new token ([`Table::release`]) and publishes the event of that, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
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

    /// Sends what an installation has in its outbox, in bounded time and before `deadline`. What cannot be sent now is
    /// sent by the schedule: nobody's request fails for it.
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
            let delivered = bus.put(&events).await?;
            self.acknowledge(stored, &events, &delivered).await.map_err(|error| error.to_string())
        };
        let error = match tokio::time::timeout(time, Box::pin(sent)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(resource = %stored.resource, error, "a lifecycle event is left to the schedule");
    }

    /// Sends what is in the outbox of one installation, which is read for that.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub async fn publish_of(&self, resource: &Resource, deadline: Millis) -> Result<(), StoreError> {
        if self.bus.is_some()
            && let Some(stored) = self.table.installation(resource).await?
        {
            self.publish(&stored, deadline).await;
        }
        Ok(())
    }

    /// Sends what others have left behind, in an invocation that ends at `deadline`. A bus that takes nothing is not
    /// asked again before the next tick.
    pub async fn publish_pending(&self, deadline: Millis) {
        let Some(bus) = &self.bus else { return };
        let left = self.table.pending_events(self.clock.now() - LEFT_ALONE, MOST_A_TICK).await;
        let left = match left {
            Ok(left) => left,
            Err(error) => return tracing::error!(alarm = "events", %error, "pending lifecycle events cannot be read"),
        };
        // A few at a time: what is read is what is sent.
        for some in left.chunks(MOST) {
            if self.clock.now() + PATIENCE * 2 > deadline {
                return tracing::warn!("lifecycle events are left to the next tick");
            }
            let read = stream::iter(some).map(|resource| self.table.installation(resource)).buffered(CONCURRENCY);
            let stored: Vec<Installation> = read.filter_map(async |read| read.ok().flatten()).collect().await;
            if let Err(error) = self.send_left(bus, &stored).await {
                return tracing::error!(alarm = "events", error, left = left.len(), "lifecycle events are not sent");
            }
        }
        if !left.is_empty() {
            tracing::info!(installations = left.len(), "lifecycle events were sent late");
        }
    }

    /// Sends the events of some installations, [`MOST`] in a request. An error if the bus takes nothing at all.
    async fn send_left(&self, bus: &Bus, stored: &[Installation]) -> Result<(), String> {
        let events: Vec<_> = stored.iter().flat_map(in_order).collect();
        let mut delivered = Vec::new();
        for some in events.chunks(MOST) {
            delivered.extend(bus.put(some).await?);
        }
        let acknowledged = stream::iter(stored).map(|stored| self.acknowledge(stored, &events, &delivered));
        let acknowledged = acknowledged.buffer_unordered(CONCURRENCY);
        let failed = acknowledged.filter_map(async |done| done.err()).collect::<Vec<_>>().await;
        if let Some(error) = failed.first() {
            return Err(error.to_string());
        }
        if !events.is_empty() && delivered.iter().all(|delivery| *delivery == Delivery::NotTaken) {
            return Err("the bus takes none".to_owned());
        }
        Ok(())
    }

    /// Removes from an installation's outbox those of its events that were taken, and puts those off that were refused.
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

/// An installation's events, oldest first.
fn in_order(stored: &Installation) -> Vec<(&Installation, Event)> {
    let mut events = stored.outbox.clone();
    events.sort_by_key(|event| (event.epoch, event.at));
    events.into_iter().map(|event| (stored, event)).collect()
}

/// The event that is published if `stored` comes to `status` without a new token. A state that was published last is not
/// published again.
fn of_failure(stored: &Installation, status: Status, at: Millis) -> Option<Event> {
    let name = match status {
        Status::Suspended => Name::Suspended,
        Status::NeedsReauthorization => Name::NeedsReauthorization,
        _ => return None,
    };
    (stored.published != Some(status)).then_some(Event { name, at, epoch: stored.version.epoch })
}

/// The event that is published when `stored` has a new token: none, unless the last event said that it has no token.
fn of_renewal(stored: &Installation, at: Millis) -> Option<Event> {
    stored.published.map(|_| Event { name: Name::Resumed, at, epoch: stored.version.epoch })
}
