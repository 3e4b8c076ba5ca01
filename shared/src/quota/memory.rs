//! What one process remembers of an item. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::counters::Counters;
use super::decision::Plan;
use super::window::Slot;
use crate::clock::Millis;

/// Slots whose opening is remembered.
const OWN_SLOTS: usize = 64;
/// Writes in a row between which nobody else wrote, after which a process takes itself to be alone. Whoever comes then
/// costs two calls: its own first, and the next of the one that was wrong. With `1 - q` the chance that the next write is
/// of the same process, this is `2 q (1 - q)^32` for each write, 0.023 at most, as long as their writes do not overlap;
/// where they do, a newcomer needs up to five.
const ALONE_AFTER: u32 = 32;
/// And for so long: 32 writes may take less time than a newcomer's single one, which could then never find the item open.
const ALONE_FOR: Duration = Duration::from_secs(1);

/// What is known of an item.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// Nothing.
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

/// An item as last seen, and what its past tells.
#[derive(Debug)]
pub(crate) struct Memory {
    seen: Seen,
    seen_at: Millis,
    /// The slots that this process opened.
    ///
    /// Whoever opened a slot drops it with its first take after the slot's death. So each dead slot has one process
    /// that drops it, and processes do not race for it. Those of a process that has ended stay until a rewrite.
    own: VecDeque<Slot>,
    /// Writes of this process since somebody else's.
    undisturbed: u32,
    /// When somebody else's write was noticed, or this memory began.
    disturbed_at: Millis,
    /// [`ALONE_AFTER`] and [`ALONE_FOR`], but in a simulation.
    alone_after: (u32, Duration),
}

impl Memory {
    /// Nothing is remembered.
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            seen: Seen::Never,
            seen_at: now,
            own: VecDeque::new(),
            undisturbed: 0,
            disturbed_at: now,
            alone_after: (ALONE_AFTER, ALONE_FOR),
        }
    }

    /// Nothing is remembered, and after so many writes it takes itself to be alone.
    #[cfg(test)]
    pub(crate) fn alone_after(writes: u32, now: Millis) -> Self {
        Self { alone_after: (writes, Duration::ZERO), ..Self::new(now) }
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    pub(crate) fn seen_at(&self) -> Millis {
        self.seen_at
    }

    pub(crate) fn opened(&self, slot: Slot) -> bool {
        self.own.contains(&slot)
    }

    /// Nobody else has written lately.
    pub(crate) fn is_alone(&self, now: Millis) -> bool {
        let (writes, time) = self.alone_after;
        self.undisturbed >= writes && now.since(self.disturbed_at) >= time
    }

    fn disturbed(&mut self, at: Millis) {
        (self.undisturbed, self.disturbed_at) = (0, at);
    }

    /// `counters` are what the `written` write, which was applied, left behind.
    pub(crate) fn applied(&mut self, written: &Plan, counters: Counters, at: Millis) {
        let before = self.seen.counters().map(|seen| seen.revision.saturating_add(1));
        if before == Some(counters.revision) {
            self.undisturbed = self.undisturbed.saturating_add(1);
        } else {
            self.disturbed(at);
        }
        if let Some((permits, slot)) = written.permits()
            && counters.slots.last() == Some(&(slot, permits))
        {
            if self.own.len() == OWN_SLOTS {
                self.own.pop_front();
            }
            self.own.push_back(slot);
        }
        self.saw(Seen::Item(counters), at);
    }

    /// A write was refused, as the item was not as assumed.
    pub(crate) fn refused(&mut self, found: Option<Counters>, at: Millis) {
        self.disturbed(at);
        self.saw(found.map_or(Seen::Absent, Seen::Item), at);
    }

    /// The item was seen.
    pub(crate) fn saw(&mut self, seen: Seen, at: Millis) {
        // Two writes of this process may answer in another order than they were applied.
        if let (Seen::Item(new), Seen::Item(old)) = (&seen, &self.seen)
            && new.revision < old.revision
        {
            return;
        }
        // More than one write since can't all be this process's own.
        if let (Seen::Item(new), Some(old)) = (&seen, self.seen.counters())
            && new.revision > old.revision.saturating_add(1)
        {
            self.disturbed(at);
        }
        self.seen = seen;
        self.seen_at = at;
    }
}
