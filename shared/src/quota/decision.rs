//! What to write for some permits, given what is known of the item. Pure.

use std::time::Duration;

use super::counters::{Counters, Day, Opening, Standing};
use super::limits::{Learnt, Limits};
use super::memory::{Memory, Seen};
use super::window::{Slot, slot_key};
use crate::clock::Millis;

/// Entries that the map may have before dead ones must go, and with them the bound of an item's size.
pub(crate) const MOST_SLOTS: usize = 80;
/// What a write that does not look at the map leaves for others that do not look either.
const MARGIN_SLOTS: usize = 20;
/// Slots since the newest after which an item was not seen a moment ago: others may have taken many permits.
const RECENT: Slot = 10;
/// Slots that one [`Take`] drops at most.
const MOST_DROPS: usize = 16;

/// What to do for those who want permits.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// What needs no memory, and bears that others write as well.
    Take(Take),
    /// A new item, a new day, other slots, or too many of them; and whatever is to be written while nobody else writes,
    /// or after that.
    Rewrite(Rewrite),
    /// Nothing is free before then, whatever others do.
    Wait(Opening),
}

impl Plan {
    /// The permits that the write counts, and their slot.
    pub(crate) fn permits(&self) -> Option<(u32, Slot)> {
        match self {
            Self::Take(Take { permits, slot, .. }) | Self::Rewrite(Rewrite { permits, slot, .. }) => {
                Some((*permits, *slot))
            }
            Self::Wait(_) => None,
        }
    }
}

/// Counts permits on top of whatever the item holds. It needs no memory: without any it assumes that nothing was
/// learnt, and the condition fails if something was.
///
/// Two bounds say that there is room, and each alone is enough, see [`Room`].
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) permits: u32,
    pub(crate) slot: Slot,
    pub(crate) slot_ms: i64,
    pub(crate) limits: Limits,
    pub(crate) learnt: Option<Learnt>,
    pub(crate) now: Millis,
    pub(crate) room: Room,
    /// Whether the slot is later than the newest that was seen.
    pub(crate) is_later: bool,
    /// Dead slots that go with it. The condition holds only while they are what they were when seen, so two
    /// processes cannot subtract the same permits twice.
    pub(crate) drops: Vec<(Slot, u32)>,
}

impl Take {
    /// Permits that the dropped slots held.
    pub(crate) fn dropped(&self) -> u32 {
        self.drops.iter().map(|(_, count)| count).sum()
    }
}

/// What a take relies on for there to be room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The sum of all slots that stand in the item leaves room. Dead ones may be among them.
    Sum,
    /// So few permits were taken since the item was seen that they fit beside those which were live in it and still
    /// are. This looks through dead slots, so a process with a memory never fails for want of somebody to drop them.
    /// It also is the cheapest to check, since nothing else may have changed either: for when the item was seen a
    /// moment ago and there is plenty of room.
    Known(Known),
    /// Either of them.
    Either(Known),
}

/// What a process that has seen the item may rely on: in the day that ends at `day_ends`, up to `used_at_most` may
/// have been used before the permits of this take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) used_at_most: u32,
    pub(crate) day_ends: Millis,
}

/// Makes `next` of the item, with the live slots, their sum and the new permits, if it still is the one seen. One
/// comparison decides, and what it leaves behind is known before.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) permits: u32,
    pub(crate) slot: Slot,
    pub(crate) seen: Option<Counters>,
    pub(crate) next: Counters,
}

/// What to write so that up to `wanted` get a permit at `now`, in a write that takes `lead` longer than usual.
pub(crate) fn plan(memory: &Memory, ceilings: Limits, now: Millis, lead: Duration, wanted: u32) -> Plan {
    let counters = match memory.seen() {
        Seen::Never => {
            let standing = Standing::of(None, ceilings, now);
            let permits = wanted.min(standing.free());
            return Plan::Take(Take { permits, ..take(&standing, lead) });
        }
        Seen::Absent => None,
        Seen::Item(counters) => Some(counters),
    };
    let standing = Standing::of(counters, ceilings, now);
    let permits = wanted.min(standing.free());
    if permits == 0 {
        return Plan::Wait(standing.opening(0));
    }
    let Some(counters) = counters else {
        return Plan::Rewrite(rewrite(&standing, None, lead, permits, false));
    };
    let target = standing.slot(lead);
    let is_recent = target - counters.newest <= RECENT;
    let is_alone = memory.is_alone(now);
    if !fits(&standing, counters, lead) || (is_recent && is_alone) {
        return Plan::Rewrite(rewrite(&standing, Some(counters), lead, permits, is_alone));
    }
    let spare = standing.limits.burst - standing.held() - permits;
    let used_at_most = counters.day.used.saturating_add(spare);
    let known = Known { used_at_most, day_ends: counters.day.ends };
    let is_roomy = spare >= standing.limits.burst / 2 && counters.slots.len() <= MOST_SLOTS - MARGIN_SLOTS;
    let room = if is_recent && is_roomy && counters.closed.is_none() {
        Room::Known(Known { used_at_most: used_at_most.min(standing.limits.daily - permits), ..known })
    } else {
        Room::Either(known)
    };
    let is_dead = |slot: Slot| standing.window.dies_at(slot) <= now;
    let drops = counters.slots.iter().filter(|(slot, _)| is_dead(*slot) && memory.opened(*slot));
    Plan::Take(Take {
        permits,
        learnt: counters.learnt,
        room,
        is_later: target > counters.newest,
        drops: drops.take(MOST_DROPS).copied().collect(),
        ..take(&standing, lead)
    })
}

/// Whether a take will do for an item that holds `counters`.
fn fits(standing: &Standing, counters: &Counters, lead: Duration) -> bool {
    let target = standing.slot(lead);
    let key = slot_key(target);
    !counters.packed
        && counters.slot_ms == standing.window.slot_ms()
        && counters.newest <= target
        && counters.day.ends == standing.day.ends
        && counters.closed.is_none_or(|closed| closed.until <= standing.now)
        && counters.slots.len() <= MOST_SLOTS
        // An entry so old that names have come round: one expression cannot both remove and set it.
        && counters.slots.iter().all(|&(slot, _)| slot == target || slot_key(slot) != key)
}

fn take(standing: &Standing, lead: Duration) -> Take {
    Take {
        permits: 0,
        slot: standing.slot(lead),
        slot_ms: standing.window.slot_ms(),
        limits: standing.limits,
        learnt: None,
        now: standing.now,
        room: Room::Sum,
        is_later: true,
        drops: Vec::new(),
    }
}

fn rewrite(standing: &Standing, seen: Option<&Counters>, lead: Duration, permits: u32, packed: bool) -> Rewrite {
    let slot = standing.slot(lead);
    let mut slots = standing.live.clone();
    match slots.last_mut() {
        Some((newest, count)) if *newest == slot => *count = count.saturating_add(permits),
        _ => slots.push((slot, permits)),
    }
    Rewrite {
        permits,
        slot,
        next: Counters {
            // A new item begins at the time, so that it never comes to a revision of one that was there before.
            revision: seen.map_or(standing.now.0, |seen| seen.revision.saturating_add(1)),
            slot_ms: standing.window.slot_ms(),
            newest: slot,
            total: standing.held().saturating_add(permits),
            slots,
            day: Day { used: standing.day.used.saturating_add(permits), ..standing.day },
            learnt: seen.and_then(|seen| seen.learnt),
            closed: None,
            packed,
        },
        seen: seen.cloned(),
    }
}
