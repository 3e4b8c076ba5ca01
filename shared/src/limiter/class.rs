//! Classes of permits: those of callers that wait for their answers, and background permits of queued calls.
//!
//! Callers come first: background permits are given only if no caller of the process waits, and they leave places for the
//! callers of all processes. The item counts background permits by slot, so every process knows how many permits callers
//! have used. The queue keeps free the places that it has seen callers use within the last two intervals, and one more if they
//! used any, up to a part of the limit. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::domain::clock::Millis;

/// The class of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A caller waits for the answer.
    Caller,
    /// Nobody waits. `reserve` is the part of the limit that is kept for callers at most, in thousandths.
    Background { reserve: u32 },
}

/// Permits that are wanted in one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) callers: u32,
    pub(crate) background: u32,
    /// Places that background permits leave free, see [`CallersUse::kept`].
    pub(crate) kept: u32,
    /// The time within which the request of a background permit leaves, see [`Snapshot::quick_slot`].
    pub(crate) quick: Duration,
}

/// The time for which a place stays free for callers that wait in other processes, before a background permit takes it. A
/// waiting caller's process takes the place within some milliseconds.
pub(crate) const YIELD: Duration = Duration::from_millis(20);

/// The shortest time that a request of a background permit gets: for the write of the permit, the write of its intent
/// (`idempotency`), and the way to the connection.
pub(crate) const QUICKEST: Duration = Duration::from_millis(40);

/// The longest such time. The permits of a write that takes longer are lost.
const LONGEST_QUICK: Duration = Duration::from_millis(625);
/// The time that the first write is expected to take.
const FIRST_WRITE: Duration = Duration::from_millis(80);

/// The time that writes of one kind take in one process: about the longest of the last ten.
///
/// All permits of a write that takes too long are lost until they expire. A slot more than necessary costs a hundredth of
/// them. So a slow write is remembered for some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteTime(Duration);

impl Default for WriteTime {
    fn default() -> Self {
        Self(FIRST_WRITE)
    }
}

impl WriteTime {
    /// Notes that a write took so long.
    pub(crate) fn note(&mut self, took: Duration) {
        self.0 = took.max(self.0 * 15 / 16);
    }

    /// The time in which a request of a background permit leaves, after the write of the permit, which takes this time, and
    /// the write of its `intent`. It is twice the time of both, because the next ones may take longer.
    pub(crate) fn quick(self, intent: Self) -> Duration {
        ((self.0 + intent.0) * 2).clamp(QUICKEST, LONGEST_QUICK)
    }
}

impl From<u32> for Wanted {
    fn from(callers: u32) -> Self {
        Self { callers, ..Self::default() }
    }
}

impl Wanted {
    /// All permits that are wanted.
    pub(crate) fn count(self) -> u32 {
        self.callers.saturating_add(self.background)
    }

    /// The instant at which the background permits are taken: as soon as a place is free, but a slot later if a further place
    /// is free by then, so that one write takes both. The permits of one write become available again at the same time, so
    /// a backlog loses that slot only once.
    pub(crate) fn opens_at(self, snapshot: &Snapshot, now: Millis) -> Millis {
        let before = self.callers.max(self.kept);
        let free_at = |ahead| snapshot.next_available(before.saturating_add(ahead), now).at;
        let first = free_at(0);
        if first <= now {
            return now;
        }
        let slot_later = first + Duration::from_millis(snapshot.window().slot_ms().unsigned_abs());
        let last = (1..self.background).map(free_at).take_while(|at| *at <= slot_later).last();
        last.unwrap_or(first) + YIELD
    }

    /// The numbers of callers' permits and of background permits, if `free` places are free.
    pub(crate) fn granted(self, free: u32) -> (u32, u32) {
        let callers = self.callers.min(free);
        let left = (free - callers).saturating_sub(self.kept.saturating_sub(callers));
        (callers, self.background.min(left))
    }
}

/// Periods in an interval in which the use of callers is measured.
const PERIODS: u16 = 5;

/// The permits of a resource that callers had in use, by period.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallersUse {
    /// The number of each period, and the highest use that was seen in it.
    periods: VecDeque<(i64, u32)>,
}

impl CallersUse {
    fn period(interval: Duration, now: Millis) -> i64 {
        let length = i64::try_from((interval / u32::from(PERIODS)).as_millis()).unwrap_or(i64::MAX).max(1);
        now.0.div_euclid(length)
    }

    /// Remembers the use of callers in a snapshot that was just seen. Without background permits nothing is remembered,
    /// because then nothing is kept.
    pub(crate) fn note(&mut self, snapshot: &Snapshot, now: Millis) {
        if snapshot.counters().is_some_and(|counters| counters.background.is_some()) {
            self.add(snapshot.callers_live(now), snapshot.limits().interval, now);
        }
    }

    fn add(&mut self, used: u32, interval: Duration, now: Millis) {
        let period = Self::period(interval, now);
        match self.periods.back_mut() {
            Some((last, highest)) if *last == period => *highest = used.max(*highest),
            _ => self.periods.push_back((period, used)),
        }
        while self.periods.len() > usize::from(2 * PERIODS) {
            self.periods.pop_front();
        }
    }

    fn of_late(&self, interval: Duration, now: Millis) -> u32 {
        let first = Self::period(interval, now) - i64::from(2 * PERIODS);
        self.periods.iter().filter(|(period, _)| *period >= first).map(|(_, used)| *used).max().unwrap_or(0)
    }

    /// Places that are reserved for callers, up to `reserve` thousandths of the limit: the most that callers used within the
    /// last two intervals, and one more if they used any.
    ///
    /// The use of callers who call evenly differs by one from moment to moment, because the permit of a call ends a little
    /// later than its successor comes. A consumer sees only the moments of its own writes, so it may never see the higher
    /// number. Without the further place, a caller with one call a second was refused once in each interval.
    pub(crate) fn reserved(&self, reserve: u32, snapshot: &Snapshot, now: Millis) -> u32 {
        let limits = snapshot.limits();
        let most = u64::from(limits.burst) * u64::from(reserve) / 1_000;
        let used = self.of_late(limits.interval, now).max(snapshot.callers_live(now));
        // The further place is never the last one, for then no queued call would ever be sent.
        let further = u32::from(used > 0 && used + 1 < limits.burst);
        (used + further).min(u32::try_from(most).unwrap_or(limits.burst))
    }

    /// The reserved places that no caller has taken.
    pub(crate) fn kept(&self, reserve: u32, snapshot: &Snapshot, now: Millis) -> u32 {
        self.reserved(reserve, snapshot, now).saturating_sub(snapshot.callers_live(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::Limits;
    use crate::limiter::counters::{ClosedEndpoints, Counters, Day};
    use crate::limiter::window::Slot;

    const INTERVAL: Duration = Duration::from_secs(10);
    const NOW: Millis = Millis(1_800_000_000_000);

    /// Counters with these slots, the newest of which is the last.
    fn counters(slots: Vec<(Slot, u32)>, background: Option<Vec<(Slot, u32)>>) -> Counters {
        Counters {
            revision: 1,
            slot_ms: 125,
            newest: slots.last().expect("a slot").0,
            counted: slots.iter().map(|(_, count)| count).sum(),
            background,
            slots,
            day: Day { used: 6, ends: NOW + Duration::from_hours(1), end_confirmed: false },
            observed: None,
            proposal: None,
            lowered_at: None,
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        }
    }

    #[test]
    fn the_highest_use_of_two_intervals_counts() {
        let mut used = CallersUse::default();
        let at = |ms: i64| Millis(1_800_000_000_000 + ms);
        assert_eq!(used.of_late(INTERVAL, at(0)), 0);
        for (ms, count) in [(0, 30), (500, 28), (1_900, 31), (2_000, 12), (3_000, 20), (4_100, 0)] {
            used.add(count, INTERVAL, at(ms));
        }
        assert_eq!(used.of_late(INTERVAL, at(4_200)), 31);
        assert_eq!(used.of_late(INTERVAL, at(21_999)), 31);
        assert_eq!(used.of_late(INTERVAL, at(22_000)), 20);
        assert_eq!(used.of_late(INTERVAL, at(24_000)), 0);
        for ms in 0..1_000 {
            used.add(7, INTERVAL, at(ms * 2_000));
        }
        assert_eq!(used.periods.len(), 10, "a bounded memory");
    }

    #[test]
    fn one_place_more_is_kept_while_callers_have_permits() {
        let used = |callers: u32, now: Millis| {
            let (newest, background) = (now.0 / 125, 5);
            let counters = counters(vec![(newest, callers + background)], Some(vec![(newest, background)]));
            let limits = Limits { burst: 100, interval: INTERVAL, daily: 1_000 };
            Snapshot::of(Some(counters), limits.into(), now)
        };
        let mut callers_use = CallersUse::default();
        let kept =
            |callers_use: &CallersUse, reserve, callers, now| callers_use.kept(reserve, &used(callers, now), now);
        assert_eq!(kept(&callers_use, 500, 10, NOW), 1);
        assert_eq!(kept(&callers_use, 500, 0, NOW), 0, "no caller calls");
        assert_eq!(kept(&callers_use, 0, 10, NOW), 0, "nothing is reserved");
        callers_use.note(&used(11, NOW), NOW);
        let later = NOW + INTERVAL * 3 / 2;
        assert_eq!(kept(&callers_use, 500, 0, later), 12, "all callers of late may come back");
        assert_eq!(kept(&callers_use, 500, 11, later), 1);
        assert_eq!(kept(&callers_use, 500, 49, later), 1);
        assert_eq!(kept(&callers_use, 500, 50, later), 0, "the reserve is used up");
        assert_eq!(kept(&callers_use, 1_000, 98, later), 1);
        assert_eq!(kept(&callers_use, 1_000, 99, later), 0, "one place is left for a queued call");
    }

    #[test]
    fn a_slow_write_is_remembered_for_some_time() {
        let ms = Duration::from_millis;
        let mut writes = WriteTime::default();
        assert_eq!(writes.quick(writes), 4 * FIRST_WRITE, "the first write may be slow");
        let quickest = WriteTime(Duration::ZERO);
        let mut after = |count, took| {
            (0..count).for_each(|_| writes.note(ms(took)));
            writes.quick(quickest)
        };
        assert!((ms(80)..ms(88)).contains(&after(10, 5)));
        assert_eq!(after(100, 5), QUICKEST);
        assert_eq!(after(1, 200), ms(400));
        assert!((ms(200)..ms(220)).contains(&after(10, 5)));
        assert_eq!(after(1, 4_000), LONGEST_QUICK);
        assert_eq!(WriteTime(ms(50)).quick(WriteTime(ms(70))), ms(240));
    }

    #[test]
    fn places_that_are_free_within_a_slot_are_taken_together() {
        let slots: Vec<_> = [-9_000, -8_875, -8_750].map(|ms| ((NOW.0 + ms) / 125, 2)).into();
        let counters = counters(slots, None);
        let limits = Limits { burst: 6, interval: INTERVAL, daily: 1_000 };
        let snapshot = Snapshot::of(Some(counters), limits.into(), NOW);
        let opens_in = |callers, background, kept, ms| {
            let now = NOW + Duration::from_millis(ms);
            Wanted { callers, background, kept, ..Wanted::default() }.opens_at(&snapshot, now).since(NOW).as_millis()
        };
        assert_eq!([opens_in(0, 1, 0, 0), opens_in(0, 2, 0, 0)], [1_570; 2]);
        assert_eq!([opens_in(0, 3, 0, 0), opens_in(0, 4, 0, 0)], [1_695; 2]);
        assert_eq!([opens_in(0, 5, 0, 0), opens_in(0, 6, 0, 0)], [1_695; 2], "the third slot is too far");
        assert_eq!([opens_in(0, 1, 2, 0), opens_in(2, 1, 0, 0)], [1_695; 2], "callers come first");
        assert_eq!([opens_in(0, 6, 0, 1_549), opens_in(0, 6, 0, 1_550)], [1_695, 1_550], "a place is free");
    }

    #[test]
    fn callers_come_first_and_keep_their_places() {
        let granted =
            |callers, background, kept, free| Wanted { callers, background, kept, ..Wanted::default() }.granted(free);
        assert_eq!(granted(3, 9, 0, 5), (3, 2));
        assert_eq!(granted(9, 9, 0, 5), (5, 0));
        assert_eq!(granted(0, 9, 4, 5), (0, 1));
        assert_eq!(granted(3, 9, 4, 5), (3, 1), "the callers' own permits use up what is kept");
        assert_eq!(granted(0, 9, 9, 5), (0, 0));
        assert_eq!(granted(0, 2, 0, 5), (0, 2));
    }
}
