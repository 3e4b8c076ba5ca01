//! One process's view of an item, and the decisions that follow from it at an instant. Pure: every function takes
//! `now`.

use std::time::Duration;

use super::counters::{Closed, Counters, Day, LimitKind, Meter, Usage};
use super::window::{Slot, Window};
use crate::domain::clock::Millis;
use crate::domain::limits::FURTHEST_DAY;
use crate::domain::limits::Limits;

/// A day of which nothing is known is this long, from its first request.
const DAY: Duration = Duration::from_hours(24);

/// Instants further ahead than these were written by a broken clock and do not bind: a slot, a day's end, a closure.
const FURTHEST_SLOT: Duration = Duration::from_mins(1);
const LONGEST_CLOSURE: Duration = Duration::from_mins(20);

/// An item as it was when this process last saw it. It is made once for each answer of the store, and all decisions
/// until the next answer are made from it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The item; `None` if there was none.
    counters: Option<Counters>,
    ceilings: Limits,
    /// The limits that bind: the ceilings, and what was observed.
    limits: Limits,
    window: Window,
    /// Permits by slot of `window`, ascending, as long as they were live when the item was seen.
    slots: Vec<(Slot, u32)>,
    seen_at: Millis,
}

/// The first instant at which a permit is free, and the limit that is reached until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextAvailable {
    pub(crate) at: Millis,
    pub(crate) limit: LimitKind,
}

impl Snapshot {
    /// An item that was seen at `now`.
    pub(crate) fn of(counters: Option<Counters>, ceilings: Limits, now: Millis) -> Self {
        let observed = counters.as_ref().and_then(|c| c.observed).unwrap_or_default();
        let limits = observed.under(ceilings);
        let window = Window::new(limits.interval);
        let slots = counters.as_ref().map(|c| live_slots(c, window, now)).unwrap_or_default();
        Self { counters, ceilings, limits, window, slots, seen_at: now }
    }

    pub(crate) fn counters(&self) -> Option<&Counters> {
        self.counters.as_ref()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    pub(crate) fn seen_at(&self) -> Millis {
        self.seen_at
    }

    /// The slots whose permits have not expired.
    pub(crate) fn live_slots(&self, now: Millis) -> &[(Slot, u32)] {
        &self.slots[self.slots.partition_point(|(slot, _)| self.window.expires_at(*slot) <= now)..]
    }

    /// Permits that have not expired.
    pub(crate) fn live(&self, now: Millis) -> u32 {
        self.live_slots(now).iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The slot that a permit taken now is counted in. A clock behind the newest slot uses that slot: permits must not
    /// expire earlier than those taken before them. `lead` is how long the write is expected to take, beyond the usual.
    pub(crate) fn slot(&self, now: Millis, lead: Duration) -> Slot {
        let own = self.window.slot_at(now + lead);
        self.slots.last().map_or(own, |(newest, _)| own.max(*newest))
    }

    /// The current day; one that begins now if no current one is known.
    pub(crate) fn day(&self, now: Millis) -> Day {
        let day = self.counters.as_ref().map(|c| c.day).filter(|day| now < day.ends && day.ends <= now + FURTHEST_DAY);
        day.unwrap_or(Day { used: 0, ends: now + DAY, told: false })
    }

    /// The closure of the whole resource that is in force.
    pub(crate) fn closed(&self, now: Millis) -> Option<Closed> {
        self.counters.as_ref()?.closed.filter(|closed| binds(closed.until, now))
    }

    /// True if a closure by the day is over: a single request finds out whether the day's budget is still used up,
    /// while the others wait for an interval.
    pub(crate) fn needs_probe(&self, now: Millis) -> bool {
        let closed = self.counters.as_ref().and_then(|c| c.closed);
        closed.is_some_and(|closed| closed.by == LimitKind::Daily && !binds(closed.until, now))
    }

    /// Until when `endpoint` alone is closed, if it is.
    pub(crate) fn endpoint_closed_until(&self, endpoint: &str, now: Millis) -> Option<Millis> {
        let until = *self.counters.as_ref()?.closed_endpoints.get(endpoint)?;
        binds(until, now).then_some(until)
    }

    /// Permits that can be taken now, if `replaced` of the live ones are given up for them.
    pub(crate) fn free(&self, now: Millis, replaced: u32) -> u32 {
        if self.closed(now).is_some() {
            return 0;
        }
        let burst = self.limits.burst.saturating_add(replaced).saturating_sub(self.live(now));
        burst.min(self.limits.daily.saturating_sub(self.day(now).used))
    }

    /// When a permit is free for a request that lets `ahead` others go first, if nobody else takes any.
    pub(crate) fn next_available(&self, ahead: u32, now: Millis) -> NextAvailable {
        let mut next = NextAvailable { at: self.burst_available(ahead, now), limit: LimitKind::Burst };
        let day = self.day(now);
        if ahead >= self.limits.daily.saturating_sub(day.used) && next.at < day.ends {
            next = NextAvailable { at: day.ends, limit: LimitKind::Daily };
        }
        match self.closed(now) {
            Some(closed) if next.at < closed.until => NextAvailable { at: closed.until, limit: closed.by },
            _ => next,
        }
    }

    fn burst_available(&self, ahead: u32, now: Millis) -> Millis {
        let burst = self.limits.burst.max(1);
        // More than a window's worth ahead: permits that are taken as soon as they can be are free a lifetime later.
        let (turns, ahead) = (ahead / burst, ahead % burst);
        let mut missing = (i64::from(self.live(now)) + i64::from(ahead) + 1) - i64::from(burst);
        let mut at = now;
        for &(slot, count) in self.live_slots(now) {
            if missing <= 0 {
                break;
            }
            missing -= i64::from(count);
            at = self.window.expires_at(slot);
        }
        for _ in 0..turns.min(1_000) {
            at = self.window.expires_at(self.window.slot_at(at).max(self.slot(now, Duration::ZERO)));
        }
        at
    }

    /// Both meters.
    pub(crate) fn usage(&self, now: Millis) -> Usage {
        let day = self.day(now);
        let mut burst = Meter {
            limit: self.limits.burst,
            remaining: self.limits.burst.saturating_sub(self.live(now)),
            resets_at: self.live_slots(now).last().map_or(now, |(slot, _)| self.window.expires_at(*slot)),
        };
        let mut daily = Meter {
            limit: self.limits.daily,
            remaining: self.limits.daily.saturating_sub(day.used),
            resets_at: day.ends,
        };
        if let Some(closed) = self.closed(now) {
            let meter = if closed.by == LimitKind::Daily { &mut daily } else { &mut burst };
            meter.remaining = 0;
            meter.resets_at = meter.resets_at.max(closed.until);
        }
        Usage { burst, daily }
    }
}

/// True if a closure until `until` is in force.
pub(crate) fn binds(until: Millis, now: Millis) -> bool {
    now < until && until <= now + LONGEST_CLOSURE
}

/// The slots of `counters` that have not expired, in slots of `window`.
fn live_slots(counters: &Counters, window: Window, now: Millis) -> Vec<(Slot, u32)> {
    let furthest = now + FURTHEST_SLOT;
    let mut live: Vec<(Slot, u32)> = Vec::with_capacity(counters.slots.len());
    for &(slot, count) in &counters.slots {
        // Another slot length: the slot that holds the end of the old one, so that no permit expires early.
        let slot = if counters.slot_ms == window.slot_ms() {
            slot
        } else {
            window.slot_at(Millis(slot.saturating_add(1).saturating_mul(counters.slot_ms).saturating_sub(1)))
        };
        // A broken clock's slot: counted as if taken now, so that it expires within a window.
        let slot = if window.start(slot) > furthest { window.slot_at(now) } else { slot };
        if count > 0 && window.expires_at(slot) > now {
            live.push((slot, count));
        }
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

/// The newest snapshot of an item that a process has; nothing at first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Option<Snapshot>);

impl Memory {
    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        self.0.as_ref()
    }

    /// The item was seen, or that there is none. An answer that was overtaken by a newer one changes nothing.
    pub(crate) fn saw(&mut self, counters: Option<Counters>, ceilings: Limits, now: Millis) {
        let newest = self.0.as_ref().and_then(|snapshot| snapshot.counters.as_ref());
        if let (Some(new), Some(newest)) = (&counters, newest)
            && new.revision < newest.revision
        {
            return;
        }
        self.0 = Some(Snapshot::of(counters, ceilings, now));
    }

    /// Other ceilings hold from now on, if they are other ones.
    pub(crate) fn adopt(&mut self, ceilings: Limits) {
        if let Some(snapshot) = self.0.take_if(|snapshot| snapshot.ceilings != ceilings) {
            self.0 = Some(Snapshot::of(snapshot.counters, ceilings, snapshot.seen_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LIMITS: Limits = Limits { burst: 3, interval: Duration::from_secs(10), daily: 100 };
    const NOW: Millis = Millis(1_800_000_000_000);

    fn counters(slots: &[(i64, u32)], used: u32) -> Counters {
        let slots: Vec<_> = slots.iter().map(|(ms, count)| ((NOW.0 + ms) / 200, *count)).collect();
        Counters {
            revision: 1,
            slot_ms: 200,
            newest: slots.last().map_or(0, |(slot, _)| *slot),
            counted: slots.iter().map(|(_, count)| count).sum(),
            slots,
            day: Day { used, ends: NOW + Duration::from_hours(1), told: false },
            observed: None,
            closed: None,
            closed_endpoints: BTreeMap::new(),
        }
    }

    #[test]
    fn a_later_request_is_served_later() {
        let snapshot = Snapshot::of(Some(counters(&[(-9_000, 2), (-1_000, 1)], 3)), LIMITS, NOW);
        let at = |ahead| snapshot.next_available(ahead, NOW).at.since(NOW).as_millis();
        assert_eq!([at(0), at(1), at(2)], [1_700, 1_700, 9_700]);
        // A window further on: after those who take the first three as soon as they can.
        assert_eq!([at(3), at(4), at(5)], [12_300, 12_300, 20_300]);
        assert_eq!((snapshot.next_available(97, NOW).limit, at(97)), (LimitKind::Daily, 3_600_000));
    }

    #[test]
    fn permits_expire_while_a_snapshot_grows_old() {
        let snapshot = Snapshot::of(Some(counters(&[(-9_000, 2), (-1_000, 1)], 3)), LIMITS, NOW);
        let free = |ms| snapshot.free(NOW + Duration::from_millis(ms), 0);
        assert_eq!([free(0), free(1_699), free(1_700), free(9_699), free(9_700)], [0, 0, 2, 2, 3]);
    }

    #[test]
    fn a_clock_that_is_behind_uses_the_newest_slot() {
        let counters = counters(&[(30_000, 1)], 1);
        let snapshot = Snapshot::of(Some(counters.clone()), LIMITS, NOW);
        assert_eq!((snapshot.free(NOW, 0), snapshot.slot(NOW, Duration::ZERO)), (2, counters.newest));
    }

    #[test]
    fn what_a_broken_clock_wrote_binds_for_a_window_only() {
        let year = Duration::from_hours(24 * 365);
        let mut counters = counters(&[(-1_000, 1), (31_536_000_000, 2)], 99);
        counters.day.ends = NOW + year;
        counters.closed = Some(Closed { until: NOW + year, by: LimitKind::Burst });
        counters.closed_endpoints = [("contacts".to_owned(), NOW + year)].into();
        let snapshot = Snapshot::of(Some(counters), LIMITS, NOW);
        assert_eq!((snapshot.live(NOW), snapshot.day(NOW).used, snapshot.closed(NOW)), (3, 0, None));
        assert_eq!(snapshot.endpoint_closed_until("contacts", NOW), None);
        assert_eq!(snapshot.next_available(2, NOW).at, NOW + Duration::from_millis(10_700));
    }

    #[test]
    fn an_answer_that_was_overtaken_is_not_believed() {
        let mut memory = Memory::default();
        let seen = |revision, count| Some(Counters { revision, ..counters(&[(0, count)], count) });
        memory.saw(seen(5, 2), LIMITS, NOW);
        memory.saw(seen(4, 1), LIMITS, NOW);
        assert_eq!(memory.snapshot().map(|snapshot| snapshot.live(NOW)), Some(2));
        memory.adopt(Limits { burst: 9, ..LIMITS });
        assert_eq!(memory.snapshot().map(|snapshot| snapshot.free(NOW, 0)), Some(7));
    }
}
