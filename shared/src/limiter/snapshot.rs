//! Snapshot: an item as one process saw it, and the facts that follow from it at an instant. Pure: every function takes
//! `now`.

use std::time::Duration;

use super::counters::{Closed, Counters, Day, LimitKind, Meter, Usage};
use super::window::{Slot, Window};
use crate::domain::clock::Millis;
use crate::domain::limits::{FURTHEST_DAY, LimitPolicy, Limits};

/// The assumed length of a day from its first request, until the platform names the day's end.
const DAY: Duration = Duration::from_hours(24);

/// Slots and ends of closures that are further ahead were written by a process whose clock is wrong, and do not bind.
/// The same holds for days ([`FURTHEST_DAY`]).
pub(crate) const FURTHEST_SLOT: Duration = Duration::from_mins(1);
pub(crate) const LONGEST_CLOSURE: Duration = Duration::from_mins(20);
/// The same holds for an instant at which limits were lowered.
const FURTHEST_LOWERING: Duration = Duration::from_mins(1);

/// An item as a process saw it. One snapshot is made for each answer of the store, and all decisions until the next
/// answer are made from it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The item; `None` if there was none.
    counters: Option<Counters>,
    policy: LimitPolicy,
    /// The limits that bind: the observed limits, and the default where none was observed.
    limits: Limits,
    /// The instant from which stricter limits bind, because nothing has confirmed the limits above the default.
    limits_lapse_at: Option<Millis>,
    window: Window,
    /// Permits by slot of `window`, ascending, as long as they were live when the item was seen.
    slots: Vec<(Slot, u32)>,
    /// The background permits among them.
    background: Vec<(Slot, u32)>,
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
    pub(crate) fn of(counters: Option<Counters>, policy: LimitPolicy, now: Millis) -> Self {
        let observed = counters.as_ref().and_then(|c| c.observed).unwrap_or_default();
        let limits = observed.limits(policy, now);
        let window = Window::new(limits.interval);
        let live = |slots: &[(Slot, u32)], slot_ms| live_slots(slots, slot_ms, window, now);
        let slots = counters.as_ref().map(|c| live(&c.slots, c.slot_ms)).unwrap_or_default();
        let background = counters.as_ref().and_then(|c| Some(live(c.background.as_ref()?, c.slot_ms)));
        let (background, limits_lapse_at) = (background.unwrap_or_default(), observed.lapse_at(now));
        Self { counters, policy, limits, limits_lapse_at, window, slots, background, seen_at: now }
    }

    /// The same item, seen at the same instant, under another policy.
    pub(crate) fn under(self, policy: LimitPolicy) -> Self {
        Self::of(self.counters, policy, self.seen_at)
    }

    /// False if other limits than those of this snapshot bind at `now`.
    pub(crate) fn has_limits_of(&self, now: Millis) -> bool {
        self.limits_lapse_at.is_none_or(|at| now < at)
    }

    pub(crate) fn counters(&self) -> Option<&Counters> {
        self.counters.as_ref()
    }

    pub(crate) fn policy(&self) -> LimitPolicy {
        self.policy
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

    /// The slots whose background permits have not expired.
    pub(crate) fn live_background(&self, now: Millis) -> &[(Slot, u32)] {
        &self.background[self.background.partition_point(|(slot, _)| self.window.expires_at(*slot) <= now)..]
    }

    /// Permits that have not expired.
    pub(crate) fn live(&self, now: Millis) -> u32 {
        sum(self.live_slots(now))
    }

    /// Permits of callers that have not expired.
    pub(crate) fn callers_live(&self, now: Millis) -> u32 {
        self.live(now).saturating_sub(sum(self.live_background(now)))
    }

    /// The slot in which a permit that is taken now is counted. A process whose clock is behind the newest slot uses
    /// that slot: no permit may expire before one that was taken earlier. `lead` is the time by which the write is
    /// expected to take longer than usual.
    pub(crate) fn slot(&self, now: Millis, lead: Duration) -> Slot {
        let own = self.window.slot_at(now + lead);
        self.slots.last().map_or(own, |(newest, _)| own.max(*newest))
    }

    /// The earliest slot of permits whose requests leave within `quick`. The permits of a slot may leave for one more slot,
    /// so requests that leave at once are counted in the slot before, and expire a slot earlier. Requests whose write takes
    /// long are counted in a later slot, because a permit that comes too late is lost.
    pub(crate) fn quick_slot(&self, now: Millis, lead: Duration, quick: Duration) -> Slot {
        let own = self.window.slot_at(now + lead + quick - Duration::from_millis(1)) - 1;
        self.slots.last().map_or(own, |(newest, _)| own.max(*newest))
    }

    /// The current day; one that begins now if the item has none.
    pub(crate) fn day(&self, now: Millis) -> Day {
        let day = self.counters.as_ref().map(|c| c.day).filter(|day| now < day.ends && day.ends <= now + FURTHEST_DAY);
        day.unwrap_or(Day { used: 0, ends: now + DAY, end_confirmed: false })
    }

    /// The closure of the whole resource that is in force.
    pub(crate) fn closed(&self, now: Millis) -> Option<Closed> {
        self.counters.as_ref()?.closed.filter(|closed| binds(closed.until, now))
    }

    /// True if a closure because of the day has just ended. Then a single request probes whether the day's budget is
    /// still used up, and the others wait for an interval.
    pub(crate) fn needs_probe(&self, now: Millis) -> bool {
        let closed = self.counters.as_ref().and_then(|c| c.closed);
        closed.is_some_and(|closed| closed.by == LimitKind::Daily && !binds(closed.until, now))
    }

    /// The end of the closure of `endpoint` that is in force.
    pub(crate) fn endpoint_closed_until(&self, endpoint: &str, now: Millis) -> Option<Millis> {
        let until = *self.counters.as_ref()?.closed_endpoints.get(endpoint)?;
        binds(until, now).then_some(until)
    }

    /// Returns true if the limits were lowered after `sent_at`, by the clock of any process.
    pub(crate) fn is_lowered_since(&self, sent_at: Millis, now: Millis) -> bool {
        let tolerance = Duration::from_millis(self.window.clock_tolerance_ms().unsigned_abs());
        let lowered_at = self.counters.as_ref().and_then(|counters| counters.lowered_at);
        lowered_at.is_some_and(|at| sent_at <= at + tolerance && at <= now + FURTHEST_LOWERING)
    }

    /// The instant to store if an answer that came at `now` lowers a limit. Another process may have lowered it later, or
    /// have stored an instant that no clock can show.
    pub(crate) fn lowered_by(&self, now: Millis) -> Millis {
        let before = self.counters.as_ref().and_then(|counters| counters.lowered_at);
        before.filter(|at| *at <= now + FURTHEST_LOWERING).map_or(now, |at| at.max(now))
    }

    /// Permits that can be taken now, if `replaced` of the live ones are given up for them.
    pub(crate) fn free(&self, now: Millis, replaced: u32) -> u32 {
        if self.closed(now).is_some() {
            return 0;
        }
        let burst = self.limits.burst.saturating_add(replaced).saturating_sub(self.live(now));
        burst.min(self.limits.daily.saturating_sub(self.day(now).used))
    }

    /// The instant at which a permit is available for a request with `ahead` others before it, if nobody else takes
    /// any.
    pub(crate) fn next_available(&self, ahead: u32, now: Millis) -> NextAvailable {
        self.not_before(self.burst_available(ahead, now), ahead, now)
    }

    /// The first instant from `at` on at which neither the day nor a closure is in the way of a request with `ahead` others
    /// before it.
    pub(crate) fn not_before(&self, at: Millis, ahead: u32, now: Millis) -> NextAvailable {
        let mut next = NextAvailable { at, limit: LimitKind::Burst };
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
        // A permit that is taken as soon as it is available expires and is available again: one turn.
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
        Usage { burst, interval: self.limits.interval, daily }
    }
}

/// True if a closure until `until` is in force.
pub(crate) fn binds(until: Millis, now: Millis) -> bool {
    now < until && until <= now + LONGEST_CLOSURE
}

/// The permits of `slot` among `slots`.
pub(crate) fn permits_of(slots: &[(Slot, u32)], slot: Slot) -> u32 {
    slots.binary_search_by_key(&slot, |(slot, _)| *slot).map_or(0, |at| slots[at].1)
}

/// All permits of `slots`.
pub(crate) fn sum(slots: &[(Slot, u32)]) -> u32 {
    slots.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// Those of `slots`, each `slot_ms` long, that have not expired, in slots of `window`.
fn live_slots(slots: &[(Slot, u32)], slot_ms: i64, window: Window, now: Millis) -> Vec<(Slot, u32)> {
    let furthest = now + FURTHEST_SLOT;
    let mut live: Vec<(Slot, u32)> = Vec::with_capacity(slots.len());
    for &(slot, count) in slots {
        // Another slot length: the slot that contains the last instant at which a request may leave on a permit of the
        // old slot ([`Window::send_by`]), so that no permit expires early.
        let slot = if slot_ms == window.slot_ms() {
            slot
        } else {
            window.slot_at(Millis(slot.saturating_add(2).saturating_mul(slot_ms).saturating_sub(1)))
        };
        // Written by a clock that is wrong: counted as if taken now, so that it expires within a window.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LIMITS: Limits = Limits { burst: 3, interval: Duration::from_secs(10), daily: 100 };
    const NOW: Millis = Millis(1_800_000_000_000);

    fn counters(slots: &[(i64, u32)], used: u32) -> Counters {
        let slots: Vec<_> = slots.iter().map(|(ms, count)| ((NOW.0 + ms) / 125, *count)).collect();
        Counters {
            revision: 1,
            slot_ms: 125,
            newest: slots.last().map_or(0, |(slot, _)| *slot),
            counted: slots.iter().map(|(_, count)| count).sum(),
            background: None,
            slots,
            day: Day { used, ends: NOW + Duration::from_hours(1), end_confirmed: false },
            observed: None,
            proposal: None,
            lowered_at: None,
            closed: None,
            closed_endpoints: BTreeMap::new(),
        }
    }

    #[test]
    fn a_request_with_others_before_it_is_served_later() {
        let snapshot = Snapshot::of(Some(counters(&[(-9_000, 2), (-1_000, 1)], 3)), LIMITS.into(), NOW);
        let at = |ahead| snapshot.next_available(ahead, NOW).at.since(NOW).as_millis();
        assert_eq!([at(0), at(1), at(2)], [1_550, 1_550, 9_550]);
        // One turn later: behind three requests that leave as soon as they can.
        assert_eq!([at(3), at(4), at(5)], [12_050, 12_050, 20_050]);
        assert_eq!((snapshot.next_available(97, NOW).limit, at(97)), (LimitKind::Daily, 3_600_000));
    }

    #[test]
    fn permits_of_an_old_snapshot_expire() {
        let snapshot = Snapshot::of(Some(counters(&[(-9_000, 2), (-1_000, 1)], 3)), LIMITS.into(), NOW);
        let free = |ms| snapshot.free(NOW + Duration::from_millis(ms), 0);
        assert_eq!([free(0), free(1_549), free(1_550), free(9_549), free(9_550)], [0, 0, 2, 2, 3]);
    }

    #[test]
    fn a_queued_call_is_counted_in_the_earliest_slot_in_which_it_can_leave() {
        let (slot, of) = (NOW.0 / 125, |slots: &[_]| Snapshot::of(Some(counters(slots, 3)), LIMITS.into(), NOW));
        let quick = |snapshot: &Snapshot, ms, quick| {
            let slot =
                snapshot.quick_slot(NOW + Duration::from_millis(ms), Duration::ZERO, Duration::from_millis(quick));
            (slot - NOW.0 / 125, snapshot.window().send_by(slot).0 - NOW.0)
        };
        let idle = of(&[(-9_000, 2)]);
        assert_eq!(quick(&idle, 70, 55), (-1, 125), "it leaves before its slot ends");
        assert_eq!(quick(&idle, 70, 56), (0, 250));
        assert_eq!([quick(&idle, 70, 180), quick(&idle, 70, 181)], [(0, 250), (1, 375)], "the write takes long");
        let taken = of(&[(0, 1)]);
        assert_eq!(taken.slots.last().map(|(newest, _)| *newest), Some(slot));
        assert_eq!(quick(&taken, 70, 55), (0, 250), "no permit expires before one that was taken earlier");
    }

    #[test]
    fn a_clock_that_is_behind_uses_the_newest_slot() {
        let counters = counters(&[(30_000, 1)], 1);
        let snapshot = Snapshot::of(Some(counters.clone()), LIMITS.into(), NOW);
        assert_eq!((snapshot.free(NOW, 0), snapshot.slot(NOW, Duration::ZERO)), (2, counters.newest));
    }

    #[test]
    fn counters_of_a_wrong_clock_bind_for_a_window_only() {
        let year = Duration::from_hours(24 * 365);
        let mut counters = counters(&[(-1_000, 1), (31_536_000_000, 2)], 99);
        counters.day.ends = NOW + year;
        counters.closed = Some(Closed { until: NOW + year, by: LimitKind::Burst });
        counters.closed_endpoints = [("contacts".to_owned(), NOW + year)].into();
        counters.lowered_at = Some(NOW + year);
        let snapshot = Snapshot::of(Some(counters), LIMITS.into(), NOW);
        assert_eq!((snapshot.live(NOW), snapshot.day(NOW).used, snapshot.closed(NOW)), (3, 0, None));
        assert_eq!(snapshot.endpoint_closed_until("contacts", NOW), None);
        assert!(!snapshot.is_lowered_since(NOW, NOW));
        assert_eq!(snapshot.next_available(2, NOW).at, NOW + Duration::from_millis(10_550));
    }
}
