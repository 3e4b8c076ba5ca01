//! What to write for some permits, given what is known of the item. Pure.

use std::time::Duration;

use super::counters::{Counters, Day, Opening, Standing};
use super::limits::{Learnt, Limits};
use super::window::{Slot, slot_key};
use crate::clock::Millis;

/// Entries that the map may have before dead ones must go.
pub(crate) const MOST_SLOTS: usize = 100;
/// Slots that one [`Take`] drops at most; more are left to a [`Rewrite`], whose expression does not grow with them.
const MOST_DROPS: usize = 16;

/// What this process knows of an item.
#[derive(Clone, Debug, Default)]
pub(crate) enum Seen {
    /// Nothing.
    #[default]
    Never,
    /// That there was none.
    Absent,
    /// What it held when last seen.
    Item(Counters),
}

impl Seen {
    pub(crate) fn counters(&self) -> Option<&Counters> {
        if let Self::Item(counters) = self { Some(counters) } else { None }
    }
}

/// What to do for those who want permits.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// The common case.
    Take(Take),
    /// A new item, a new day, other slots, or too much that is dead.
    Rewrite(Rewrite),
    /// Nothing is free before then, whatever others do.
    Wait(Opening),
}

/// Counts permits on top of whatever the item holds. It needs no memory: without any it assumes that nothing was
/// learnt, and the condition fails if something was.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) permits: u32,
    pub(crate) slot: Slot,
    pub(crate) slot_ms: i64,
    pub(crate) limits: Limits,
    pub(crate) learnt: Option<Learnt>,
    pub(crate) now: Millis,
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

/// Writes the live slots, their sum and the new permits in one, if the item is still the one seen.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) permits: u32,
    pub(crate) slot: Slot,
    pub(crate) seen: Option<Counters>,
    pub(crate) next: Counters,
    pub(crate) now: Millis,
}

/// What to write so that up to `wanted` get a permit at `now`, in a write that takes `lead` longer than usual.
/// `own` are the slots that this process opened, see [`opened`].
pub(crate) fn plan(seen: &Seen, own: &[Slot], ceilings: Limits, now: Millis, lead: Duration, wanted: u32) -> Plan {
    let counters = match seen {
        Seen::Never => {
            let standing = Standing::of(None, ceilings, now);
            return Plan::Take(take(&standing, None, lead, wanted.min(standing.free()), Vec::new()));
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
        return Plan::Rewrite(rewrite(&standing, None, lead, permits));
    };
    match drops(&standing, counters, own, lead, permits) {
        Some(drops) => Plan::Take(take(&standing, counters.learnt, lead, permits, drops)),
        None => Plan::Rewrite(rewrite(&standing, Some(counters), lead, permits)),
    }
}

/// The dead slots that a take drops; `None` where a take will not do.
fn drops(
    standing: &Standing,
    counters: &Counters,
    own: &[Slot],
    lead: Duration,
    permits: u32,
) -> Option<Vec<(Slot, u32)>> {
    let fits = counters.slot_ms == standing.window.slot_ms()
        && counters.newest <= standing.slot(lead)
        && counters.day.ends == standing.day.ends
        && counters.closed.is_none_or(|closed| closed.until <= standing.now);
    if !fits {
        return None;
    }
    let target = slot_key(standing.slot(lead));
    if counters.slots.iter().any(|&(slot, _)| slot != standing.slot(lead) && slot_key(slot) == target) {
        // An entry so old that names have come round. One expression cannot both remove and set it.
        return None;
    }
    let is_dead = |slot: Slot| standing.window.dies_at(slot) <= standing.now;
    let full = counters.total.saturating_add(permits) > standing.limits.burst || counters.slots.len() >= MOST_SLOTS;
    let dead = counters.slots.iter().copied().filter(|&(slot, _)| is_dead(slot));
    if full {
        let dead: Vec<_> = dead.collect();
        return (dead.len() <= MOST_DROPS).then_some(dead);
    }
    Some(dead.filter(|(slot, _)| *slot < counters.newest && own.contains(slot)).take(MOST_DROPS).collect())
}

fn take(standing: &Standing, learnt: Option<Learnt>, lead: Duration, permits: u32, drops: Vec<(Slot, u32)>) -> Take {
    Take {
        permits,
        slot: standing.slot(lead),
        slot_ms: standing.window.slot_ms(),
        limits: standing.limits,
        learnt,
        now: standing.now,
        drops,
    }
}

fn rewrite(standing: &Standing, seen: Option<&Counters>, lead: Duration, permits: u32) -> Rewrite {
    let slot = standing.slot(lead);
    let mut slots = standing.live.clone();
    match slots.last_mut() {
        Some((last, count)) if *last == slot => *count = count.saturating_add(permits),
        _ => slots.push((slot, permits)),
    }
    Rewrite {
        permits,
        slot,
        next: Counters {
            slot_ms: standing.window.slot_ms(),
            newest: slot,
            total: standing.held().saturating_add(permits),
            slots,
            day: Day { used: standing.day.used.saturating_add(permits), ..standing.day },
            learnt: seen.and_then(|seen| seen.learnt),
            closed: None,
        },
        seen: seen.cloned(),
        now: standing.now,
    }
}

/// Whether a write of `permits` into `slot` that left `counters` behind was the first into that slot.
///
/// Whoever opened a slot drops it with its first take after the slot's death, unless a full item made somebody do it
/// sooner. So each dead slot has one process that drops it, and processes do not race for it.
pub(crate) fn opened(counters: &Counters, slot: Slot, permits: u32) -> bool {
    counters.slots.last() == Some(&(slot, permits))
}
