//! Decides the next write for waiters, given the snapshot of the item. Pure.

use std::time::Duration;

use super::class::Wanted;
use super::counters::{Closed, Counters, Day, LimitKind, Usage, Version};
use super::memory::Memory;
use super::permit::Permit;
use super::snapshot::{Snapshot, binds};
use super::window::{MOST_SLOTS, Slot};
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits};

/// The next write.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Add to the counters under conditions that writes of other processes in between do not break.
    Take(Take),
    /// Replace the item by compare-and-swap: a new item, a new day, slots of another length, too many slots, or the
    /// probe after a closure because of the day.
    Rewrite(Box<Rewrite>),
}

impl Plan {
    /// The permits that the write counts.
    pub(crate) fn permits(&self) -> Permits {
        match self {
            Self::Take(take) => take.permits,
            Self::Rewrite(rewrite) => rewrite.permits,
        }
    }
}

/// Permits of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permits {
    pub(crate) count: u32,
    /// The background permits among them.
    pub(crate) background: u32,
    /// The slot in which they are counted.
    pub(crate) slot: Slot,
    /// The last instant at which a request may leave on one of them.
    pub(crate) send_by: Millis,
    /// The limits under which they are taken.
    pub(crate) limits: Limits,
}

impl Permits {
    /// Makes one of these permits.
    pub(crate) fn permit(self, usage: Usage) -> Permit {
        Permit { usage, send_by: self.send_by, slot: self.slot, limits: self.limits }
    }
}

/// Adds permits to the counters.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) permits: Permits,
    pub(crate) basis: Basis,
    /// The slot from which one permit is removed in the same write, see [`exchange`].
    pub(crate) replaces: Option<Slot>,
}

/// The knowledge on which a take was planned. The condition of the write is that it still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// A snapshot of the item. Everything but the permits is as in the snapshot, and the permits of this take still fit
    /// beside its live permits. The count of the day shows the latter, because within a revision it grows with every
    /// permit and never shrinks. So expired permits need not be dropped before others take their places.
    Snapshot {
        revision: i64,
        /// The most that may have been used of the day before the permits of this take.
        used_at_most: u32,
        /// True if the item cannot have too many slots: every slot that was added since the snapshot lies between the newest
        /// one of the snapshot and the slot of this take.
        slots_fit: bool,
        /// The limits, if the snapshot is older than an interval. Others may have used more since then, so it is enough,
        /// too, that the sum of all slots leaves room.
        old_limits: Option<Limits>,
    },
    /// An assumption, without a snapshot: the item has the configured limits, is not closed, its day has not ended at
    /// `now`, and the sum of its slots, expired permits included, leaves room.
    Assumption { slot_ms: i64, limits: Limits, now: Millis },
}

/// Replaces the item by `next`, by compare-and-swap: if the item still has the version of the snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) permits: Permits,
    /// The version of the snapshot; `None` if there was no item.
    pub(crate) seen: Option<Version>,
    pub(crate) next: Counters,
}

/// Plans the write that gives the `wanted` permits at `now`, or some of them; `None` if no permit is available yet. The
/// write is expected to take `lead` longer than usual.
pub(crate) fn plan(memory: &Memory, now: Millis, lead: Duration, wanted: impl Into<Wanted>) -> Option<Plan> {
    decide(memory, now, lead, wanted.into(), None)
}

/// Plans the write that exchanges an unused permit of slot `of` for a permit of the current slot; `None` if no place is
/// available.
///
/// One write does both, so that no other request can take the place in between. A live permit keeps its place. The
/// place of an expired permit may be taken already, so its exchange needs an available one.
pub(crate) fn exchange(memory: &Memory, now: Millis, of: Slot) -> Option<Plan> {
    decide(memory, now, Duration::ZERO, 1.into(), Some(of))
}

fn decide(memory: &Memory, now: Millis, lead: Duration, wanted: Wanted, replaces: Option<Slot>) -> Option<Plan> {
    let nothing = || Snapshot::of(None, memory.policy(), now);
    let (snapshot, is_known) = match memory.snapshot(now) {
        Some(snapshot) => (snapshot, true),
        None => (&nothing(), false),
    };
    let slot = match wanted {
        Wanted { callers: 0, background: 1.., quick, .. } => snapshot.quick_slot(now, lead, quick),
        _ => snapshot.slot(now, lead),
    };
    let is_live = |of: &Slot| snapshot.live_slots(now).iter().any(|(live, _)| live == of);
    let replaces = replaces.filter(|of| *of != slot && (!is_known || is_live(of)));
    let replaced = u32::from(replaces.is_some());
    // Background permits need the item, to know what callers use.
    let wanted = if is_known { wanted } else { wanted.callers.into() };
    let free = snapshot.free(now, replaced);
    let kept = wanted.reserve.kept(snapshot.callers_live(now));
    let (mut callers, mut background) = wanted.granted(free, kept);
    if snapshot.needs_probe(now) {
        callers = callers.min(1);
        background = background.min(1 - callers);
    }
    let count = callers + background;
    if count == 0 {
        return None;
    }
    let limits = snapshot.limits();
    let permits = Permits { count, background, slot, send_by: snapshot.window().send_by(slot), limits };
    let counters = snapshot.counters();
    // Other processes may take background permits at the same time, so the condition of the write keeps the places, too.
    let kept = if background > 0 { kept.saturating_sub(callers) } else { 0 };
    let lacks_background = background > 0 && counters.is_some_and(|counters| counters.background.is_none());
    if is_known
        && (lacks_background || !counters.is_some_and(|counters| can_be_added_to(counters, snapshot, now, slot)))
    {
        return Some(Plan::Rewrite(Box::new(rewrite(snapshot, now, permits, replaces))));
    }
    let basis = match counters {
        Some(Counters { revision, day, newest, slots, .. }) => Basis::Snapshot {
            revision: *revision,
            used_at_most: day.used.saturating_add((free - count).saturating_sub(kept)),
            slots_fit: usize::try_from(slot - newest)
                .is_ok_and(|added| slots.len().saturating_add(added) <= MOST_SLOTS),
            old_limits: (now.since(snapshot.seen_at()) > limits.interval)
                .then(|| Limits { burst: limits.burst.saturating_sub(kept), ..limits }),
        },
        // Without a snapshot, `wanted` has no background permits.
        None => Basis::Assumption { slot_ms: snapshot.window().slot_ms(), limits, now },
    };
    Some(Plan::Take(Take { permits, basis, replaces }))
}

/// Returns true if permits can be added to the item without replacing it.
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
    let Permits { count: added, background: added_background, slot, .. } = permits;
    let mut slots = snapshot.live_slots(now).to_vec();
    if let Some((_, count)) = slots.iter_mut().find(|(live, _)| Some(*live) == replaces) {
        *count -= 1;
    }
    add(&mut slots, slot, added);
    let seen = snapshot.counters();
    let had_background = seen.is_some_and(|seen| seen.background.is_some());
    let background = (had_background || added_background > 0).then(|| {
        let mut background = snapshot.live_background(now).to_vec();
        if added_background > 0 {
            add(&mut background, slot, added_background);
        }
        background
    });
    let mut closed_endpoints = seen.map(|seen| seen.closed_endpoints.clone()).unwrap_or_default();
    closed_endpoints.retain(|_, until| binds(*until, now));
    let day = snapshot.day(now);
    let mut next = Counters {
        // A new item starts at revision `now`, so its revisions differ from those of an earlier item with this key.
        revision: seen.map_or(now.0, |seen| seen.revision),
        slot_ms: snapshot.window().slot_ms(),
        newest: slot,
        counted: slots.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count)),
        background,
        slots,
        day: Day { used: day.used.saturating_add(added), ..day },
        observed: observed_limits(snapshot, now),
        proposal: seen.and_then(|seen| seen.proposal.clone()),
        lowered_at: seen.and_then(|seen| seen.lowered_at),
        closed: snapshot
            .needs_probe(now)
            .then(|| Closed { until: snapshot.window().expires_at(slot), by: LimitKind::Burst }),
        closed_endpoints,
    };
    // If only permits differ, the takes of other processes hold as before.
    if seen.is_some_and(|seen| !seen.differs_in_permits_only(&next)) {
        next.revision = next.revision.saturating_add(1);
    }
    Rewrite { permits, next, seen: seen.map(Counters::version) }
}

/// Adds permits of `slot`, which is not before the last one.
fn add(slots: &mut Vec<(Slot, u32)>, slot: Slot, permits: u32) {
    match slots.last_mut() {
        Some((newest, count)) if *newest == slot => *count = count.saturating_add(permits),
        _ => slots.push((slot, permits)),
    }
}

/// The observed limits of the item, without those that have lapsed.
fn observed_limits(snapshot: &Snapshot, now: Millis) -> Option<ObservedLimits> {
    let observed = snapshot.counters()?.observed?;
    let holds = observed.confirmed_at.is_none() || observed.lapse_at(now).is_some();
    let left = if holds { observed } else { ObservedLimits::of(snapshot.limits(), snapshot.policy(), now) };
    (left != ObservedLimits::default()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::counters::ClosedEndpoints;

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: u32::MAX };
    const NOW: Millis = Millis(1_800_000_000_000);
    const SLOT: Slot = NOW.0 / 125;

    fn memory(slots: &[(Slot, u32)]) -> Memory {
        let slots: Vec<_> = slots.iter().map(|(back, count)| (SLOT - back, *count)).collect();
        let counters = Counters {
            revision: 1,
            slot_ms: 125,
            newest: slots.last().map_or(0, |(slot, _)| *slot),
            counted: slots.iter().map(|(_, count)| count).sum(),
            background: None,
            slots,
            day: Day { used: 7, ends: NOW + Duration::from_hours(1), end_confirmed: false },
            observed: None,
            proposal: None,
            lowered_at: None,
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        };
        let mut memory = Memory::new(LIMITS.into());
        memory.saw(Some(counters), NOW);
        memory
    }

    /// The slot that the exchange of a permit removes it from, and the headroom.
    fn exchanged(memory: &Memory, back: Slot) -> Option<(Option<Slot>, Option<u32>)> {
        let Plan::Take(take) = exchange(memory, NOW, SLOT - back)? else { panic!("nothing must be dropped") };
        assert_eq!((take.permits.count, take.permits.slot), (1, SLOT));
        let used_at_most = match take.basis {
            Basis::Snapshot { used_at_most, .. } => Some(used_at_most),
            Basis::Assumption { .. } => None,
        };
        Some((take.replaces.map(|slot| SLOT - slot), used_at_most))
    }

    #[test]
    fn slots_are_counted_by_the_write_only_where_the_snapshot_does_not_show_that_they_fit() {
        let fit = |slots: i64, since_newest: Slot| {
            let slots: Vec<_> = (since_newest..since_newest + slots).rev().map(|back| (back, 0)).collect();
            let Some(Plan::Take(Take { basis: Basis::Snapshot { slots_fit, .. }, .. })) =
                plan(&memory(&slots), NOW, Duration::ZERO, 1)
            else {
                panic!("nothing must be dropped")
            };
            slots_fit
        };
        let most = i64::try_from(MOST_SLOTS).expect("few");
        assert_eq!([fit(most, 0), fit(most, 1), fit(most - 7, 7), fit(most - 7, 8)], [true, false, true, false]);
    }

    #[test]
    fn an_exchanged_permit_keeps_its_place_while_it_is_live() {
        assert_eq!(exchanged(&memory(&[(30, 1), (9, 1)]), 30), Some((Some(30), Some(7))), "full, with its own");
        assert_eq!(exchanged(&memory(&[(30, 1)]), 30), Some((Some(30), Some(8))));
        assert_eq!(exchanged(&Memory::new(LIMITS.into()), 30), Some((Some(30), None)), "whatever the item holds");
        // Another process, whose clock is ahead, has taken the place already.
        assert_eq!(exchanged(&memory(&[(84, 1), (9, 2)]), 84), None);
        // It has expired: it needs an available place.
        assert_eq!(exchanged(&memory(&[(90, 1), (9, 1)]), 90), Some((None, Some(7))));
        assert_eq!(exchanged(&memory(&[(90, 1), (9, 2)]), 90), None);
        assert_eq!(exchanged(&memory(&[(9, 2)]), 90), None, "dropped by a rewrite");
    }
}
