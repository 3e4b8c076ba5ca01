//! What is counted for one resource, and how it stands at an instant. Pure: every function takes `now`.

use std::time::Duration;

use super::limits::{Learnt, Limits};
use super::window::{Slot, Window};
use crate::clock::Millis;

/// A day that nothing is known of is this long, from its first request.
pub(crate) const DAY: Duration = Duration::from_hours(24);

/// Instants further ahead than these were written by a broken clock and do not bind: a slot, a day's end, a closure.
pub(crate) const FURTHEST_SLOT: Duration = Duration::from_mins(1);
pub(crate) const FURTHEST_DAY: Duration = Duration::from_hours(48);
pub(crate) const LONGEST_CLOSURE: Duration = Duration::from_mins(20);

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// The resource's requests in an interval.
    Burst,
    /// The resource's requests in a day.
    Daily,
    /// The caller's own share of the resource's requests in an interval.
    Caller,
}

impl LimitKind {
    /// How an item names the limit by which the platform closed its resource.
    pub(crate) fn to_text(self) -> &'static str {
        if self == Self::Daily { "daily" } else { "burst" }
    }

    /// What [`LimitKind::to_text`] wrote; `None` if it did not.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        match text {
            "daily" => Some(Self::Daily),
            "burst" => Some(Self::Burst),
            _ => None,
        }
    }
}

/// One limit as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// How many are allowed.
    pub limit: u32,
    /// How many are left now.
    pub remaining: u32,
    /// When all are free again, if no more are taken.
    pub resets_at: Millis,
}

/// Both limits of a resource as they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Requests in the interval.
    pub burst: Meter,
    /// Requests in the day.
    pub daily: Meter,
}

/// Requests counted in the current day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Day {
    pub(crate) used: u32,
    pub(crate) ends: Millis,
    /// Whether the platform said when it ends, or we assume it.
    pub(crate) told: bool,
}

/// The platform refused: nothing may be sent before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) until: Millis,
    pub(crate) by: LimitKind,
}

/// The item of one resource, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Grows with every write, so an item of the same revision is the same item. 0 in one that has none.
    pub(crate) revision: i64,
    /// Length of the slots that `newest` and `slots` are numbered in.
    pub(crate) slot_ms: i64,
    pub(crate) newest: Slot,
    /// Permits by slot, ascending; dead ones too, until somebody drops them.
    pub(crate) slots: Vec<(Slot, u32)>,
    /// The sum of `slots`.
    pub(crate) total: u32,
    pub(crate) day: Day,
    pub(crate) learnt: Option<Learnt>,
    pub(crate) closed: Option<Closed>,
    /// Whether the item holds all of this as one text, see [`packed`](super::packed).
    pub(crate) packed: bool,
}

impl Counters {
    /// With one permit less in `slot`; `None` where there is none.
    pub(crate) fn without_one(&self, slot: Slot, slot_ms: i64) -> Option<Self> {
        let mut next = Self { revision: self.revision.saturating_add(1), ..self.clone() };
        let (_, count) = next.slots.iter_mut().find(|(held, _)| *held == slot && slot_ms == self.slot_ms)?;
        *count = count.checked_sub(1)?;
        next.total = next.total.checked_sub(1)?;
        Some(next)
    }
}

/// The first instant at which a permit is free, and what holds it until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) at: Millis,
    pub(crate) limit: LimitKind,
}

/// How a resource stands at `now`: what is dead is gone, what is absurd is put right.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) now: Millis,
    pub(crate) limits: Limits,
    pub(crate) window: Window,
    pub(crate) live: Vec<(Slot, u32)>,
    pub(crate) day: Day,
    pub(crate) closed: Option<Closed>,
}

impl Standing {
    /// How `counters` (`None`: nothing was ever counted) stand under `ceilings`.
    pub(crate) fn of(counters: Option<&Counters>, ceilings: Limits, now: Millis) -> Self {
        let limits = counters.and_then(|c| c.learnt).unwrap_or_default().under(ceilings);
        let window = Window::new(limits.interval);
        let day = counters.map(|c| c.day).filter(|day| now < day.ends && day.ends <= now + FURTHEST_DAY);
        let closed = counters.and_then(|c| c.closed);
        Self {
            now,
            limits,
            window,
            live: counters.map(|c| live(c, window, now)).unwrap_or_default(),
            day: day.unwrap_or(Day { used: 0, ends: now + DAY, told: false }),
            closed: closed.filter(|closed| now < closed.until && closed.until <= now + LONGEST_CLOSURE),
        }
    }

    /// Permits that are held now.
    pub(crate) fn held(&self) -> u32 {
        self.live.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The slot that a permit taken now belongs to. A clock behind the newest slot uses that slot: permits must not be
    /// freed earlier than those taken before them. `lead` is how long the write is expected to take, beyond the usual.
    pub(crate) fn slot(&self, lead: Duration) -> Slot {
        let own = self.window.slot_at(self.now + lead);
        self.live.last().map_or(own, |(newest, _)| own.max(*newest))
    }

    /// Permits that can be taken now.
    pub(crate) fn free(&self) -> u32 {
        if self.closed.is_some() {
            return 0;
        }
        let burst = self.limits.burst.saturating_sub(self.held());
        burst.min(self.limits.daily.saturating_sub(self.day.used))
    }

    /// When a permit is free for somebody who lets `ahead` others go first, if nobody else takes any.
    pub(crate) fn opening(&self, ahead: u32) -> Opening {
        let mut opening = Opening { at: self.burst_opening(ahead), limit: LimitKind::Burst };
        if ahead >= self.limits.daily.saturating_sub(self.day.used) && opening.at < self.day.ends {
            opening = Opening { at: self.day.ends, limit: LimitKind::Daily };
        }
        match self.closed {
            Some(closed) if opening.at < closed.until => Opening { at: closed.until, limit: closed.by },
            _ => opening,
        }
    }

    fn burst_opening(&self, ahead: u32) -> Millis {
        let burst = self.limits.burst.max(1);
        // More than a window's worth ahead: permits that are taken as soon as they can be are free a life later.
        let (turns, ahead) = (ahead / burst, ahead % burst);
        let mut missing = (i64::from(self.held()) + i64::from(ahead) + 1) - i64::from(burst);
        let mut at = self.now;
        for &(slot, count) in &self.live {
            if missing <= 0 {
                break;
            }
            missing -= i64::from(count);
            at = self.window.dies_at(slot);
        }
        for _ in 0..turns.min(1_000) {
            at = self.window.dies_at(self.window.slot_at(at).max(self.slot(Duration::ZERO)));
        }
        at
    }

    /// Both meters.
    pub(crate) fn usage(&self) -> Usage {
        let held = self.held();
        let mut burst = Meter {
            limit: self.limits.burst,
            remaining: self.limits.burst.saturating_sub(held),
            resets_at: self.live.last().map_or(self.now, |(slot, _)| self.window.dies_at(*slot)),
        };
        let mut daily = Meter {
            limit: self.limits.daily,
            remaining: self.limits.daily.saturating_sub(self.day.used),
            resets_at: self.day.ends,
        };
        if let Some(closed) = self.closed {
            let meter = if closed.by == LimitKind::Daily { &mut daily } else { &mut burst };
            meter.remaining = 0;
            meter.resets_at = meter.resets_at.max(closed.until);
        }
        Usage { burst, daily }
    }
}

/// The slots of `counters` that are not dead, in slots of `window`.
fn live(counters: &Counters, window: Window, now: Millis) -> Vec<(Slot, u32)> {
    let furthest = now + FURTHEST_SLOT;
    let mut live: Vec<(Slot, u32)> = Vec::with_capacity(counters.slots.len());
    for &(slot, count) in &counters.slots {
        // Another slot length: the slot that holds the end of the old one, so that no permit is freed early.
        let slot = if counters.slot_ms == window.slot_ms() {
            slot
        } else {
            window.slot_at(Millis(slot.saturating_add(1).saturating_mul(counters.slot_ms).saturating_sub(1)))
        };
        // A broken clock's slot: held as if taken now, so that it frees itself within a window.
        let slot = if window.start(slot) > furthest { window.slot_at(now) } else { slot };
        if window.dies_at(slot) <= now {
            continue;
        }
        live.push((slot, count));
    }
    live.sort_unstable_by_key(|(slot, _)| *slot);
    live.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = earlier.1.saturating_add(later.1);
        }
        same
    });
    live
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { burst: 3, interval: Duration::from_secs(10), daily: 100 };
    const NOW: Millis = Millis(1_800_000_000_000);

    fn counters(slots: &[(i64, u32)], used: u32) -> Counters {
        let slots: Vec<_> = slots.iter().map(|(ms, count)| ((NOW.0 + ms) / 200, *count)).collect();
        let newest = slots.last().map_or(0, |(slot, _)| *slot);
        let total = slots.iter().map(|(_, count)| count).sum();
        let day = Day { used, ends: NOW + Duration::from_hours(1), told: false };
        Counters { revision: 1, slot_ms: 200, newest, slots, total, day, learnt: None, closed: None, packed: false }
    }

    #[test]
    fn whoever_comes_later_is_served_later() {
        let counters = counters(&[(-9_000, 2), (-1_000, 1)], 3);
        let standing = Standing::of(Some(&counters), LIMITS, NOW);
        let at = |ahead| standing.opening(ahead).at.since(NOW).as_millis();
        assert_eq!([at(0), at(1), at(2)], [1_700, 1_700, 9_700]);
        // A window further on: after those who take the first three as soon as they can.
        assert_eq!([at(3), at(4), at(5)], [12_300, 12_300, 20_300]);
        assert_eq!((standing.opening(97).limit, at(97)), (LimitKind::Daily, 3_600_000));
    }

    #[test]
    fn a_clock_that_is_behind_uses_the_newest_slot() {
        let counters = counters(&[(30_000, 1)], 1);
        let standing = Standing::of(Some(&counters), LIMITS, NOW);
        assert_eq!((standing.free(), standing.slot(Duration::ZERO)), (2, counters.newest));
    }

    #[test]
    fn what_a_broken_clock_wrote_binds_for_a_window_only() {
        let year = Duration::from_hours(24 * 365);
        let mut counters = counters(&[(-1_000, 1), (31_536_000_000, 2)], 99);
        counters.day.ends = NOW + year;
        counters.closed = Some(Closed { until: NOW + year, by: LimitKind::Burst });
        let standing = Standing::of(Some(&counters), LIMITS, NOW);
        assert_eq!((standing.held(), standing.day.used, standing.closed), (3, 0, None));
        assert_eq!(standing.opening(2).at, NOW + Duration::from_millis(10_700));
    }
}
