//! Decides the next write for some permits, given what is known of the item. Pure.

use std::time::Duration;

use super::Permit;
use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind, Usage};
use super::snapshot::{Snapshot, binds};
use super::window::{MOST_SLOTS, Slot};
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits};

/// The next step for callers that want permits.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Add to the counters. Writes of other processes in between do no harm.
    Take(Take),
    /// Replace the item: a new one, a new day, slots of another length, too many slots, or the probe after a closure by
    /// the day.
    Rewrite(Rewrite),
    /// Nothing is free yet, whatever others do.
    Wait,
}

impl Plan {
    /// The permits that the write counts.
    pub(crate) fn permits(&self) -> Option<Permits> {
        match self {
            Self::Take(Take { permits, .. }) | Self::Rewrite(Rewrite { permits, .. }) => Some(*permits),
            Self::Wait => None,
        }
    }
}

/// Permits of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permits {
    pub(crate) count: u32,
    /// The slot that they are counted in.
    pub(crate) slot: Slot,
    /// The last instant at which a request may leave on one of them.
    pub(crate) send_by: Millis,
}

impl Permits {
    /// One of them.
    pub(crate) fn permit(self, usage: Usage) -> Permit {
        Permit { usage, send_by: self.send_by, slot: self.slot }
    }
}

/// Counts permits on top of whatever the item holds. It needs no memory: without any it assumes that nothing was
/// observed and nothing is closed, and the condition fails if that is wrong.
///
/// There is room if the sum of all slots leaves room, expired ones included; or if what was [`Known`] leaves room.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) permits: Permits,
    pub(crate) slot_ms: i64,
    pub(crate) limits: Limits,
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) closed_endpoints: ClosedEndpoints,
    pub(crate) now: Millis,
    pub(crate) known: Option<Known>,
    /// The slot that one permit is taken out of in the same write, see [`renewal`].
    pub(crate) replaces: Option<Slot>,
}

/// The bound that a process with a snapshot relies on: since the snapshot, so few permits were taken that they fit
/// beside those of its slots that are still live. The day's count tells, because it grows with every permit and shrinks
/// only when `day_ends` changes. This looks through expired slots, so that nobody has to drop them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The most that may have been used of the day before the permits of this take.
    pub(crate) used_at_most: u32,
    pub(crate) day_ends: Millis,
}

/// Makes `next` of the item by compare-and-swap: if the item still has the revision that was seen.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) permits: Permits,
    /// The revision that was seen; `None` if there was no item.
    pub(crate) seen: Option<i64>,
    pub(crate) next: Counters,
}

/// Plans the write by which up to `wanted` get a permit at `now`. The write is expected to take `lead` longer than
/// usual.
pub(crate) fn plan(snapshot: Option<&Snapshot>, ceilings: Limits, now: Millis, lead: Duration, wanted: u32) -> Plan {
    decide(snapshot, ceilings, now, lead, wanted, None)
}

/// Plans the write by which a permit of slot `of`, on which nothing was sent, becomes a permit of the present.
///
/// It is one write and not two, so that no other request can take the place in between. As long as the old permit is
/// live the new one needs no other place; when it has expired, others may have taken its place.
pub(crate) fn renewal(snapshot: Option<&Snapshot>, ceilings: Limits, now: Millis, of: Slot) -> Plan {
    decide(snapshot, ceilings, now, Duration::ZERO, 1, Some(of))
}

fn decide(
    snapshot: Option<&Snapshot>,
    ceilings: Limits,
    now: Millis,
    lead: Duration,
    wanted: u32,
    replaces: Option<Slot>,
) -> Plan {
    let nothing = || Snapshot::of(None, ceilings, now);
    let (snapshot, is_known) = match snapshot {
        Some(snapshot) => (snapshot, true),
        None => (&nothing(), false),
    };
    let slot = snapshot.slot(now, lead);
    let is_live = |of: &Slot| snapshot.live_slots(now).iter().any(|(live, _)| live == of);
    let replaces = replaces.filter(|of| *of != slot && (!is_known || is_live(of)));
    let replaced = u32::from(replaces.is_some());
    let wanted = if snapshot.needs_probe(now) { wanted.min(1) } else { wanted };
    let count = wanted.min(snapshot.free(now, replaced));
    if count == 0 {
        return Plan::Wait;
    }
    let permits = Permits { count, slot, send_by: snapshot.window().send_by(slot) };
    let take = Take {
        permits,
        slot_ms: snapshot.window().slot_ms(),
        limits: snapshot.limits(),
        observed: None,
        closed_endpoints: ClosedEndpoints::new(),
        now,
        known: None,
        replaces,
    };
    if !is_known {
        return Plan::Take(take);
    }
    let Some(counters) = snapshot.counters().filter(|counters| can_be_added_to(counters, snapshot, now, slot)) else {
        return Plan::Rewrite(rewrite(snapshot, now, permits, replaces));
    };
    let spare = snapshot.free(now, replaced) - count;
    Plan::Take(Take {
        observed: counters.observed,
        closed_endpoints: counters.closed_endpoints.clone(),
        known: Some(Known { used_at_most: counters.day.used.saturating_add(spare), day_ends: counters.day.ends }),
        ..take
    })
}

/// True if a take will do for an item that holds `counters`.
fn can_be_added_to(counters: &Counters, snapshot: &Snapshot, now: Millis, slot: Slot) -> bool {
    counters.slot_ms == snapshot.window().slot_ms()
        && counters.newest <= slot
        && counters.day.ends == snapshot.day(now).ends
        && counters.closed.is_none_or(|closed| closed.until <= now)
        && !snapshot.needs_probe(now)
        && counters.closed_endpoints.values().all(|until| binds(*until, now))
        && counters.slots.len() <= MOST_SLOTS
}

fn rewrite(snapshot: &Snapshot, now: Millis, permits: Permits, replaces: Option<Slot>) -> Rewrite {
    let Permits { count: added, slot, .. } = permits;
    let mut slots = snapshot.live_slots(now).to_vec();
    if let Some((_, count)) = slots.iter_mut().find(|(live, _)| Some(*live) == replaces) {
        *count -= 1;
    }
    match slots.last_mut() {
        Some((newest, count)) if *newest == slot => *count = count.saturating_add(added),
        _ => slots.push((slot, added)),
    }
    let seen = snapshot.counters();
    let mut closed_endpoints = seen.map(|seen| seen.closed_endpoints.clone()).unwrap_or_default();
    closed_endpoints.retain(|_, until| binds(*until, now));
    let day = snapshot.day(now);
    Rewrite {
        permits,
        next: Counters {
            // A new item begins at the time, so that it never comes to a revision of one that was there before.
            revision: seen.map_or(now.0, |seen| seen.revision.saturating_add(1)),
            slot_ms: snapshot.window().slot_ms(),
            newest: slot,
            counted: slots.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count)),
            slots,
            day: Day { used: day.used.saturating_add(added), ..day },
            observed: seen.and_then(|seen| seen.observed),
            closed: snapshot
                .needs_probe(now)
                .then(|| Closed { until: snapshot.window().expires_at(slot), by: LimitKind::Burst }),
            closed_endpoints,
        },
        seen: seen.map(|seen| seen.revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: u32::MAX };
    const NOW: Millis = Millis(1_800_000_000_000);
    const SLOT: Slot = NOW.0 / 200;

    fn snapshot(slots: &[(Slot, u32)]) -> Snapshot {
        let slots: Vec<_> = slots.iter().map(|(back, count)| (SLOT - back, *count)).collect();
        let counters = Counters {
            revision: 1,
            slot_ms: 200,
            newest: slots.last().map_or(0, |(slot, _)| *slot),
            counted: slots.iter().map(|(_, count)| count).sum(),
            slots,
            day: Day { used: 7, ends: NOW + Duration::from_hours(1), told: false },
            observed: None,
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        };
        Snapshot::of(Some(counters), LIMITS, NOW)
    }

    fn renewed(snapshot: Option<&Snapshot>, back: Slot) -> Option<(Option<Slot>, Option<u32>)> {
        match renewal(snapshot, LIMITS, NOW, SLOT - back) {
            Plan::Take(take) => {
                assert_eq!((take.permits.count, take.permits.slot), (1, SLOT));
                Some((take.replaces.map(|slot| SLOT - slot), take.known.map(|known| known.used_at_most)))
            }
            Plan::Wait => None,
            Plan::Rewrite(_) => panic!("nothing must go"),
        }
    }

    #[test]
    fn a_permit_that_is_renewed_keeps_its_place_while_it_is_live() {
        assert_eq!(renewed(Some(&snapshot(&[(30, 1), (9, 1)])), 30), Some((Some(30), Some(7))), "full, with its own");
        assert_eq!(renewed(Some(&snapshot(&[(30, 1)])), 30), Some((Some(30), Some(8))));
        assert_eq!(renewed(None, 30), Some((Some(30), None)), "whatever the item holds");
        // Another process, whose clock is ahead, took the place of a permit that it saw expired.
        assert_eq!(renewed(Some(&snapshot(&[(53, 1), (9, 2)])), 53), None);
        // Expired here too: it needs a place that is free.
        assert_eq!(renewed(Some(&snapshot(&[(60, 1), (9, 1)])), 60), Some((None, Some(7))));
        assert_eq!(renewed(Some(&snapshot(&[(60, 1), (9, 2)])), 60), None);
        assert_eq!(renewed(Some(&snapshot(&[(9, 2)])), 60), None, "dropped by a rewrite");
    }
}
