//! Permits ahead of need (prefetching): a process that calls one resource steadily takes the permits of its next calls
//! in the write that it makes anyway, or in a write beside a request that is on its way. Pure.
//!
//! All permits of such a write are counted in the slot of the last instant at which one of them may leave. So they expire
//! later than permits that are taken one by one, and the burst limit holds without any further rule. The newest slot only
//! moves forwards, so a write in an earlier slot fails. Therefore all processes count that far ahead, whether they take
//! permits ahead or not, as long as less than half of the window is used.
//!
//! A permit that is not used in time lapses: it stays counted, and nobody can use it. Two rules bound this loss. Permits
//! are taken ahead only while less than half of the window is used, so that nobody misses a lapsed permit. And each lapsed
//! permit costs credit, which used permits earn: after the first [`LOAN`] at most one permit in [`LAPSE_RATIO`] lapses, and
//! at most one [`LAPSE_RATIO`]th of the burst limit and of the daily limit at once.
//!
//! Only callers' permits are taken ahead. Background permits (`class`) have a schedule of their own, and none is taken
//! ahead in a write for them.

use std::time::Duration;

use super::snapshot::Snapshot;
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::Limits;

/// Permits that are taken ahead must be used within this time.
const HORIZON: Duration = Duration::from_secs(1);
/// The most slots by which a write lies ahead.
const MOST_SLOTS: u32 = 5;
/// One in so many permits may lapse.
const LAPSE_RATIO: u32 = 50;
/// Fewer permits are not taken ahead. A process that has permits does not write, so it learns up to a second later that
/// the platform has closed a resource or an endpoint. That is not worth a saving of two writes in three. So permits are
/// taken ahead only of limits of 200 and more.
const FEWEST: u32 = 4;
/// The permits that a new process may let lapse before it has used any.
const LOAN: u32 = 8;

/// The recent demand of one process for permits of one item, and its credit for permits that lapse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// The second of the last arrival, since the Unix epoch.
    second: i64,
    arrivals: u32,
    /// The arrivals of the second before.
    arrivals_before: u32,
    /// The permits that were used, less [`LAPSE_RATIO`] for each that has lapsed; at most the limit.
    earned: u32,
}

impl Default for Demand {
    fn default() -> Self {
        Self { second: 0, arrivals: 0, arrivals_before: 0, earned: LOAN * LAPSE_RATIO }
    }
}

/// Permits to take ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) count: u32,
    /// The time by which the slot of the write lies ahead.
    pub(crate) lead: Duration,
}

impl Demand {
    /// Notes that a caller wants a permit.
    pub(crate) fn arrived(&mut self, now: Millis) {
        let second = now.seconds();
        if second != self.second {
            self.arrivals_before = if second == self.second + 1 { self.arrivals } else { 0 };
            (self.second, self.arrivals) = (second, 0);
        }
        self.arrivals = self.arrivals.saturating_add(1);
    }

    /// Notes that a caller has a permit that was taken under `limits`.
    pub(crate) fn used(&mut self, limits: Limits) {
        let most = limits.burst.min(limits.daily).max(LOAN * LAPSE_RATIO);
        self.earned = self.earned.saturating_add(1).min(most);
    }

    /// Notes that so many permits have lapsed.
    pub(crate) fn lapsed(&mut self, count: u32) {
        self.earned = self.earned.saturating_sub(count.saturating_mul(LAPSE_RATIO));
    }

    /// The permits to take ahead of need in a write at `now` that takes `wanted` permits for waiters, and the lead of the
    /// write. None without a snapshot, because the usage of the window is not known.
    pub(crate) fn ahead(&self, snapshot: Option<&Snapshot>, wanted: u32, now: Millis) -> Ahead {
        let Some(snapshot) = snapshot else { return Ahead::default() };
        let Limits { burst, daily, .. } = snapshot.limits();
        let until_half = |limit: u32, used: u32| (limit / 2).saturating_sub(used.saturating_add(wanted));
        let room = until_half(burst, snapshot.live(now)).min(until_half(daily, snapshot.day(now).used));
        let most = burst.min(daily);
        // After a closure because of the day, the only permit is for a request that probes.
        let is_closed = snapshot.closed(now).is_some() || snapshot.needs_probe(now);
        if is_closed || room == 0 || most / LAPSE_RATIO < FEWEST {
            return Ahead::default();
        }
        let credit = most.min(self.earned) / LAPSE_RATIO;
        let slot = Duration::from_millis(snapshot.window().slot_ms().unsigned_abs());
        // A permit may be used until the end of the slot after its own. The last slot is for its request to leave.
        let slots = u32::try_from(HORIZON.as_millis() / slot.as_millis().max(1)).unwrap_or(u32::MAX);
        let lead = slot * slots.saturating_sub(2).min(MOST_SLOTS);
        // A permit counts for the day in which it is taken, so it must not wait until the next one.
        let is_of_today = now + HORIZON < snapshot.day(now).ends;
        // The arrivals within the lead, at the rate of the last whole second. The calls of that second may lie as far apart
        // as one call less in a second.
        let needed = u128::from(self.arrivals_before.saturating_sub(1)) * lead.as_millis() / 1_000;
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        let count = needed.min(credit).min(room);
        Ahead { count: if count >= FEWEST && is_of_today { count } else { 0 }, lead }
    }
}

/// Returns true if a permit that was taken under `limits` may be kept for the next caller. It needs time for its request
/// to leave, and no stricter limit, no used-up day and no closure may have become known since it was taken. `snapshot` is
/// the newest one.
pub(crate) fn can_wait(send_by: Millis, limits: Limits, snapshot: Option<&Snapshot>, now: Millis) -> bool {
    let is_in_time = now + Duration::from_millis(Window::new(limits.interval).slot_ms().unsigned_abs()) <= send_by;
    is_in_time
        && snapshot.is_none_or(|snapshot| {
            let known = snapshot.limits();
            let is_no_stricter = limits.stricter(known) == limits;
            is_no_stricter && snapshot.day(now).used < known.daily && snapshot.closed(now).is_none()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};

    const NOW: Millis = Millis(1_800_000_000_000);

    fn snapshot(burst: u32) -> Snapshot {
        let limits = Limits { burst, interval: Duration::from_secs(10), daily: 200_000 };
        Snapshot::of(None, limits.into(), NOW)
    }

    fn steady(per_second: u32) -> Demand {
        let mut demand = Demand::default();
        for second in 0..2 {
            (0..per_second).for_each(|_| demand.arrived(NOW + Duration::from_secs(second)));
        }
        demand
    }

    #[test]
    fn permits_are_taken_ahead_for_less_than_a_second() {
        let count = |per_second, burst| steady(per_second).ahead(Some(&snapshot(burst)), 1, NOW).count;
        // Fewer than eight calls in a second are not steady enough: four permits are for 0.625 s.
        assert_eq!([count(0, 1_000), count(7, 1_000), count(8, 1_000), count(13, 1_000)], [0, 0, 4, 7]);
        assert_eq!([count(40, 1_000), count(40, 200)], [8, 4], "at most the loan, and a fiftieth of the limit");
        assert_eq!(count(40, 199), 0);
        assert_eq!(steady(13).ahead(None, 1, NOW).count, 0);
        let mut paused = steady(13);
        paused.arrived(NOW + Duration::from_secs(3));
        assert_eq!(paused.ahead(Some(&snapshot(1_000)), 1, NOW).count, 0, "it does not call steadily");
    }

    #[test]
    fn all_processes_count_in_the_same_slot_ahead() {
        let lead = |per_second, burst| steady(per_second).ahead(Some(&snapshot(burst)), 1, NOW).lead;
        let five_slots = Duration::from_millis(625);
        assert_eq!([lead(0, 200), lead(7, 200), lead(40, 1_000)], [five_slots; 3]);
        assert_eq!(lead(40, 199), Duration::ZERO);
    }

    /// A snapshot of an item with `live` permits in the window and `used` of the day.
    fn used(limits: Limits, live: u32, used: u32, closed: Option<Closed>) -> Snapshot {
        let newest = NOW.0 / 125;
        let counters = Counters {
            revision: 1,
            slot_ms: 125,
            newest,
            slots: vec![(newest, live)],
            counted: live,
            background: None,
            day: Day { used, ends: NOW + Duration::from_hours(1), end_confirmed: true },
            observed: None,
            proposal: None,
            lowered_at: None,
            closed,
            closed_endpoints: ClosedEndpoints::new(),
        };
        Snapshot::of(Some(counters), limits.into(), NOW)
    }

    #[test]
    fn no_permit_is_taken_ahead_for_the_next_day() {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 2_000 };
        let ends = NOW + Duration::from_hours(1);
        let count = |before: Duration| steady(13).ahead(Some(&used(limits, 0, 0, None)), 1, ends - before).count;
        assert_eq!((count(HORIZON + Duration::from_millis(1)), count(HORIZON)), (7, 0));
    }

    #[test]
    fn permits_are_taken_ahead_only_of_the_first_half_of_a_limit() {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 2_000 };
        let count = |live, day| steady(13).ahead(Some(&used(limits, live, day, None)), 1, NOW).count;
        assert_eq!([count(492, 0), count(493, 0), count(495, 0), count(496, 0)], [7, 6, 4, 0]);
        assert_eq!([count(0, 992), count(0, 993), count(0, 995), count(0, 996)], [7, 6, 4, 0]);
    }

    #[test]
    fn a_permit_waits_until_it_must_leave_or_until_its_limits_no_longer_hold() {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 2_000 };
        let in_time = NOW + Duration::from_millis(125);
        let waits = |known: Limits, day, closed| can_wait(in_time, limits, Some(&used(known, 9, day, closed)), NOW);
        assert!(waits(limits, 1_999, None));
        assert!(can_wait(in_time, limits, None, NOW));
        assert!(!can_wait(in_time - Duration::from_millis(1), limits, None, NOW), "no time to leave");
        let looser = Limits { burst: 1_001, interval: Duration::from_secs(9), daily: 2_001 };
        assert!(waits(looser, 1_999, None));
        for stricter in [
            Limits { burst: 999, ..limits },
            Limits { interval: Duration::from_secs(11), ..limits },
            Limits { daily: 1_999, ..limits },
        ] {
            assert!(!waits(stricter, 0, None), "{stricter:?}");
        }
        assert!(!waits(limits, 2_000, None), "the day is used up");
        let closed = Closed { until: NOW + Duration::from_millis(1), by: LimitKind::Burst };
        assert!(!waits(limits, 0, Some(closed)));
    }

    #[test]
    fn nothing_is_taken_ahead_of_a_closed_resource() {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 2_000 };
        let count =
            |until: Millis, by| steady(13).ahead(Some(&used(limits, 0, 0, Some(Closed { until, by }))), 0, NOW).count;
        let (past, future) = (NOW, NOW + Duration::from_millis(1));
        assert_eq!([count(past, LimitKind::Burst), count(future, LimitKind::Burst)], [7, 0]);
        assert_eq!([count(past, LimitKind::Daily), count(future, LimitKind::Daily)], [0, 0], "one request probes");
    }

    #[test]
    fn nothing_is_taken_ahead_of_a_small_day() {
        let limits = Limits { daily: 49, ..snapshot(1_000).limits() };
        let small = Snapshot::of(None, limits.into(), NOW);
        assert_eq!(steady(13).ahead(Some(&small), 1, NOW).count, 0);
    }

    #[test]
    fn a_lapsed_permit_is_paid_by_fifty_used_ones() {
        let mut demand = steady(40);
        let limits = snapshot(1_000).limits();
        let count = |demand: &Demand| demand.ahead(Some(&snapshot(1_000)), 1, NOW).count;
        demand.lapsed(3);
        assert_eq!(count(&demand), 5);
        (0..50).for_each(|_| demand.used(limits));
        assert_eq!(count(&demand), 6);
        demand.lapsed(3);
        assert_eq!(count(&demand), 0);
        (0..5_000).for_each(|_| demand.used(limits));
        assert_eq!(count(&demand), 20);
        demand.lapsed(20);
        assert_eq!(count(&demand), 0, "the credit is a fiftieth of the limit, whatever was used before");
    }
}
