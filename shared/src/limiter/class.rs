//! Classes of permits: those of callers that wait for their answers, and background permits of queued calls.
//!
//! Callers come first: background permits are given after the waiting callers of the process, and they leave places for the
//! callers of all processes. The item counts background permits by slot, so every process knows how many permits callers
//! have used. The queue leaves callers as many places as they used at the same time within the last interval, and at least
//! one more than they use now, if they use any, up to a part of the limit. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::counters::Counters;
use super::snapshot::{NextAvailable, Snapshot, permits_of, sum};
use super::window::{Slot, Window};
use crate::domain::clock::Millis;
use crate::domain::limits::Limits;

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
    /// The places that background permits leave to callers.
    pub(crate) reserve: Reserve,
    /// The time within which the request of a background permit leaves, see [`Snapshot::quick_slot`].
    pub(crate) quick: Duration,
}

/// The time for which a place stays free for callers that wait in other processes, before a background permit takes it. A
/// waiting caller's process takes the place within some milliseconds.
pub(crate) const YIELD: Duration = Duration::from_millis(20);

/// Places that become free within so many slots are taken together by background permits.
const GATHERED: u32 = 2;

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

    /// The instant at which the background permits are taken: as soon as a place is free, but up to [`GATHERED`] slots later if
    /// further places are free by then, so that one write takes all of them. The permits of one write become available again
    /// at the same time, so a backlog loses that time only once.
    pub(crate) fn opens_at(self, snapshot: &Snapshot, now: Millis) -> Millis {
        let free_at = |background| {
            let ahead = Others { callers: self.callers, background };
            self.reserve.next_available(ahead, snapshot, now).at
        };
        let first = free_at(0);
        if first <= now {
            return now;
        }
        let latest = first + GATHERED * Duration::from_millis(snapshot.window().slot_ms().unsigned_abs());
        let last = (1..self.background).map(free_at).take_while(|at| *at <= latest).last();
        last.unwrap_or(first) + YIELD
    }

    /// The numbers of callers' permits and of background permits, if `free` places are free and `kept` of them are kept
    /// for callers.
    pub(crate) fn granted(self, free: u32, kept: u32) -> (u32, u32) {
        let callers = self.callers.min(free);
        let left = (free - callers).saturating_sub(kept.saturating_sub(callers));
        (callers, self.background.min(left))
    }
}

/// Requests that come before another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    pub(crate) callers: u32,
    pub(crate) background: u32,
}

impl Others {
    /// Counts one more request.
    pub(crate) fn add(&mut self, class: Class) {
        let count = match class {
            Class::Caller => &mut self.callers,
            Class::Background { .. } => &mut self.background,
        };
        *count = count.saturating_add(1);
    }
}

/// The places of a window that are reserved for callers, for any number of permits that they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserve {
    /// The most permits that callers had at the same time within the last interval.
    most: u32,
    /// The most places that may be reserved.
    allowed: u32,
}

impl Reserve {
    /// Places that are reserved while callers have `used` permits: as many as they had at the same time within the last
    /// interval, and at least one more than they have, if they have any: callers who need more get more.
    pub(crate) fn places(self, used: u32) -> u32 {
        used.saturating_add(u32::from(used > 0)).max(self.most).min(self.allowed)
    }

    /// The reserved places that no caller has taken.
    pub(crate) fn kept(self, used: u32) -> u32 {
        self.places(used).saturating_sub(used)
    }

    /// The instant at which a background permit is available for a request with `ahead` others before it, if nobody else takes
    /// any.
    ///
    /// If a permit of a caller expires, its place may be reserved from then on, and is none for the queue. So the rule of the
    /// reserve is applied at every instant at which permits expire. The highest use of late counts as it stands now, so the
    /// instant may be too late if callers have gone.
    pub(crate) fn next_available(self, ahead: Others, snapshot: &Snapshot, now: Millis) -> NextAvailable {
        let background_slots = snapshot.live_background(now);
        let (mut used, mut background, mut at) = (snapshot.callers_live(now), sum(background_slots), now);
        let mut expiring = snapshot.live_slots(now).iter();
        loop {
            let before = self.kept(used).max(ahead.callers).saturating_add(ahead.background);
            if used.saturating_add(background).saturating_add(before) < snapshot.limits().burst {
                return snapshot.not_before(at, before, now);
            }
            let Some(&(slot, count)) = expiring.next() else { return snapshot.next_available(before, now) };
            let of_background = permits_of(background_slots, slot);
            background = background.saturating_sub(of_background);
            used = used.saturating_sub(count.saturating_sub(of_background));
            at = snapshot.window().expires_at(slot);
        }
    }
}

/// True if the permits of `slot` were live within the last interval.
fn is_of_late(window: Window, slot: Slot, now: Millis) -> bool {
    now < window.expires_at(slot) + window.interval()
}

/// The permits of a resource that callers took of late, by slot, as far as this process has seen them.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallersUse {
    /// The window that the slots are numbered by.
    window: Option<Window>,
    slots: BTreeMap<Slot, u32>,
}

impl CallersUse {
    /// Remembers the permits of callers in a snapshot that was just seen, expired ones too. If the item has no background
    /// permits, nothing is remembered, because then nothing is kept.
    pub(crate) fn note(&mut self, snapshot: &Snapshot, now: Millis) {
        let window = snapshot.window();
        let Some(Counters { slot_ms, slots, background: Some(background), .. }) = snapshot.counters() else { return };
        if background.is_empty() {
            return;
        }
        if self.window.replace(window) != Some(window) {
            self.slots.clear();
        }
        if *slot_ms != window.slot_ms() {
            // The length of the interval has changed. The next write counts the permits by the new slots.
            return;
        }
        let furthest = window.slot_at(now + window.interval());
        for (slot, count) in slots {
            let of_callers = count.saturating_sub(permits_of(background, *slot));
            if of_callers > 0 && *slot <= furthest {
                self.slots.insert(*slot, of_callers);
            }
        }
        self.slots.retain(|slot, _| *slot <= furthest && is_of_late(window, *slot, now));
    }

    /// The most permits that callers had at the same time within the last interval.
    fn most(&self, now: Millis) -> u32 {
        let Some(window) = self.window else { return 0 };
        let slots: Vec<_> = self.slots.iter().filter(|(slot, _)| is_of_late(window, **slot, now)).collect();
        let (mut live, mut most, mut expired) = (0_u32, 0, 0);
        for (slot, count) in &slots {
            while window.expires_at(*slots[expired].0) <= window.start(**slot) {
                live = live.saturating_sub(*slots[expired].1);
                expired += 1;
            }
            live = live.saturating_add(**count);
            most = live.max(most);
        }
        most
    }

    /// The places that are reserved for callers, up to `part` thousandths of the limit.
    ///
    /// The slots tell the use at every moment. The moments at which this process looks are too few: a caller with one call a
    /// second has ten or eleven permits, and eleven only for a part of each second.
    pub(crate) fn reserve(&self, part: u32, limits: Limits, now: Millis) -> Reserve {
        let allowed = u64::from(limits.burst) * u64::from(part) / 1_000;
        // One place is the queue's, or no queued call would ever be sent.
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX).min(limits.burst.saturating_sub(1));
        Reserve { most: self.most(now), allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::counters::{ClosedEndpoints, Day};

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

    /// An item with permits of callers at these times after [`NOW`], and five background permits at `ms`, seen at `ms`.
    fn seen(callers_at: &[i64], ms: u64) -> (Snapshot, Millis) {
        let now = NOW + Duration::from_millis(ms);
        let mut slots = BTreeMap::from([(now.0 / 125, 5)]);
        for at in callers_at {
            *slots.entry((NOW.0 + at) / 125).or_default() += 1;
        }
        let counters = counters(slots.into_iter().collect(), Some(vec![(now.0 / 125, 5)]));
        let limits = Limits { burst: 100, interval: INTERVAL, daily: 1_000 };
        (Snapshot::of(Some(counters), limits.into(), now), now)
    }

    #[test]
    fn the_highest_use_of_the_last_interval_counts() {
        let mut used = CallersUse::default();
        assert_eq!(used.most(NOW), 0);
        let most_after = |used: &mut CallersUse, callers_at: &[i64], ms| {
            let (snapshot, now) = seen(callers_at, ms);
            used.note(&snapshot, now);
            used.most(now)
        };
        // One call a second. The first permit ends 10.55 s after the beginning of its slot, after the eleventh call.
        let even: Vec<_> = (0..11).map(|number| number * 1_000).collect();
        assert_eq!(most_after(&mut used, &even, 10_000), 11);
        let mut looks_late = CallersUse::default();
        assert_eq!(most_after(&mut looks_late, &even[1..], 10_900), 10, "the first permit is no longer in the item");
        assert_eq!(most_after(&mut looks_late, &[11_000], 11_000), 11, "a further call, before the second one ends");
        assert_eq!(most_after(&mut looks_late, &[20_000, 20_000], 21_200), 11, "one that it has seen before");
        assert_eq!(most_after(&mut used, &[], 30_500), 1, "the last permit ended within the last interval");
        assert_eq!(most_after(&mut used, &[], 30_550), 0);
        assert!(used.slots.is_empty(), "a bounded memory");
    }

    #[test]
    fn places_of_late_are_kept_and_one_more_than_are_used() {
        let mut callers_use = CallersUse::default();
        let kept = |callers_use: &CallersUse, reserve, callers, ms| {
            let (snapshot, now) = seen(&vec![i64::try_from(ms).expect("a time"); callers], ms);
            callers_use.reserve(reserve, snapshot.limits(), now).kept(snapshot.callers_live(now))
        };
        assert_eq!(kept(&callers_use, 500, 10, 0), 1);
        assert_eq!(kept(&callers_use, 500, 0, 0), 0, "no caller calls");
        assert_eq!(kept(&callers_use, 0, 10, 0), 0, "nothing is reserved");
        let (snapshot, now) = seen(&[0; 12], 0);
        callers_use.note(&snapshot, now);
        let later = 15_000;
        assert_eq!(kept(&callers_use, 500, 0, later), 12, "all callers of late may come back");
        assert_eq!([10, 11, 12, 49].map(|callers| kept(&callers_use, 500, callers, later)), [2, 1, 1, 1]);
        assert_eq!(kept(&callers_use, 500, 50, later), 0, "the reserve is used up");
        assert_eq!(kept(&callers_use, 1_000, 98, later), 1);
        assert_eq!(kept(&callers_use, 1_000, 99, later), 0, "one place is left for a queued call");
        let (snapshot, now) = seen(&[0; 95], 0);
        callers_use.note(&snapshot, now);
        assert_eq!(kept(&callers_use, 1_000, 0, later), 95);
        let (snapshot, now) = seen(&[10_500; 95], 10_500);
        callers_use.note(&snapshot, now);
        let (snapshot, now) = seen(&[15_000; 95], later);
        callers_use.note(&snapshot, now);
        assert_eq!(
            kept(&callers_use, 1_000, 0, later),
            99,
            "more than the limit were used, by the rules of another limit"
        );
    }

    #[test]
    fn slots_that_are_far_ahead_are_forgotten() {
        let mut used = CallersUse::default();
        let hour = 3_600_000;
        let (snapshot, now) = seen(&[i64::try_from(hour).expect("a time"); 40], hour);
        used.note(&snapshot, now);
        assert_eq!(used.most(now), 40);
        let (snapshot, now) = seen(&[0; 3], 0);
        used.note(&snapshot, now);
        assert_eq!(used.most(now), 3, "the clock was set back");
    }

    #[test]
    fn a_callers_place_that_becomes_free_is_not_the_queues() {
        // Two permits of callers expire at first, then three of the queue, of 12.
        let slots = vec![((NOW.0 - 9_000) / 125, 2), ((NOW.0 - 8_000) / 125, 3), (NOW.0 / 125, 7)];
        let background = Some(vec![((NOW.0 - 8_000) / 125, 3), (NOW.0 / 125, 5)]);
        let limits = Limits { burst: 12, interval: INTERVAL, daily: 1_000 };
        let snapshot = Snapshot::of(Some(counters(slots, background)), limits.into(), NOW);
        let opens_in = |most| {
            let wanted = Wanted { background: 3, reserve: Reserve { most, allowed: most }, ..Wanted::default() };
            wanted.opens_at(&snapshot, NOW).since(NOW).as_millis()
        };
        assert_eq!(opens_in(2), 1_570, "callers have more than is reserved");
        assert_eq!(opens_in(5), 2_570, "the queue has seven places, and eight permits");
    }

    #[test]
    fn the_foretold_instant_is_the_first_one_at_which_the_permit_is_granted() {
        let mut random = fastrand::Rng::with_seed(7);
        let ms = |ms: i64| NOW + Duration::from_millis(ms.unsigned_abs());
        for _ in 0..2_000 {
            let (mut slots, mut of_background) = (Vec::new(), Vec::new());
            for slot in (-84..=0).filter(|_| random.u32(..10) == 0).map(|back| NOW.0 / 125 + back).collect::<Vec<_>>() {
                let (callers, background) = (random.u32(..3), random.u32(..3));
                slots.push((slot, callers + background));
                of_background.push((slot, background));
            }
            if slots.is_empty() {
                continue;
            }
            let used: u32 = slots.iter().map(|(_, count)| count).sum();
            let limits = Limits { burst: used.max(12) + random.u32(..3), interval: INTERVAL, daily: 1_000 };
            let snapshot = Snapshot::of(Some(counters(slots, Some(of_background))), limits.into(), NOW);
            let reserve = Reserve { most: random.u32(..8), allowed: random.u32(..=8) };
            let ahead = Others { callers: random.u32(..3), background: random.u32(..2) };
            let is_granted = |at| {
                let wanted = Wanted { callers: ahead.callers, background: ahead.background + 1, ..Wanted::default() };
                let kept = reserve.kept(snapshot.callers_live(at));
                wanted.granted(snapshot.free(at, 0), kept).1 > ahead.background
            };
            let at = reserve.next_available(ahead, &snapshot, NOW).at;
            let first = (0..=10_800).map(ms).find(|at| is_granted(*at)).expect("all have expired");
            assert_eq!(at, first, "{reserve:?} {ahead:?} {snapshot:?}");
        }
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
    fn places_that_are_free_within_two_slots_are_taken_together() {
        let slots: Vec<_> = [-9_000, -8_750, -8_625].map(|ms| ((NOW.0 + ms) / 125, 2)).into();
        let counters = counters(slots.clone(), Some(slots));
        let limits = Limits { burst: 6, interval: INTERVAL, daily: 1_000 };
        let snapshot = Snapshot::of(Some(counters), limits.into(), NOW);
        let opens_in = |callers, background, kept, ms| {
            let (now, reserve) = (NOW + Duration::from_millis(ms), Reserve { most: kept, allowed: kept });
            let wanted = Wanted { callers, background, reserve, ..Wanted::default() };
            wanted.opens_at(&snapshot, now).since(NOW).as_millis()
        };
        assert_eq!([opens_in(0, 1, 0, 0), opens_in(0, 2, 0, 0)], [1_570; 2]);
        assert_eq!([opens_in(0, 3, 0, 0), opens_in(0, 4, 0, 0)], [1_820; 2]);
        assert_eq!([opens_in(0, 5, 0, 0), opens_in(0, 6, 0, 0)], [1_820; 2], "three slots are too far");
        assert_eq!([opens_in(0, 1, 2, 0), opens_in(2, 1, 0, 0)], [1_820; 2], "callers come first");
        assert_eq!([opens_in(0, 6, 0, 1_549), opens_in(0, 6, 0, 1_550)], [1_820, 1_550], "a place is free");
    }

    #[test]
    fn callers_come_first_and_keep_their_places() {
        let granted =
            |callers, background, kept, free| Wanted { callers, background, ..Wanted::default() }.granted(free, kept);
        assert_eq!(granted(3, 9, 0, 5), (3, 2));
        assert_eq!(granted(9, 9, 0, 5), (5, 0));
        assert_eq!(granted(0, 9, 4, 5), (0, 1));
        assert_eq!(granted(3, 9, 4, 5), (3, 1), "the callers' own permits use up what is kept");
        assert_eq!(granted(0, 9, 9, 5), (0, 0));
        assert_eq!(granted(0, 2, 0, 5), (0, 2));
    }
}
