//! What the platform's answers teach, and when that is worth a write. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::counters::{Closed, Counters, Day, FURTHEST_DAY, LimitKind, Standing};
use super::limits::{Learnt, Limits};
use super::window::Window;
use crate::clock::Millis;

/// A day's end is written again when it has moved by more than this; the header counts milliseconds from an instant
/// that we only know roughly.
const DAY_END_TOLERANCE: Duration = Duration::from_mins(1);
/// A daily refusal that does not say when the day ends is believed for so long.
const UNTOLD_DAILY_CLOSURE: Duration = Duration::from_mins(15);
/// A `Retry-After` is honoured up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(15);
/// Windows outside of this are taken for a mistake.
const PLAUSIBLE_INTERVALS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// What one answer of the platform says about its limits.
///
/// `X-RateLimit-Remaining` is not used: it also counts what others send for the same app, in a window whose shape is
/// not documented, and a request of ours that is on its way is not in it. A 429 says the same without doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    learnt: Learnt,
    daily_remaining: Option<i64>,
    daily_reset: Option<Duration>,
    refused: bool,
    retry_after: Option<Duration>,
}

impl Heard {
    /// Reads the headers; one that is absent, negative, zero or garbage teaches nothing.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let positive = |name: &str| number(name).filter(|&n| n > 0);
        let count = |name: &str| positive(name).and_then(|n| u32::try_from(n).ok());
        let interval = positive("x-ratelimit-interval-milliseconds").and_then(|n| u64::try_from(n).ok());
        let length = |name: &str, unit: fn(u64) -> Duration| positive(name)?.try_into().ok().map(unit);
        Self {
            learnt: Learnt {
                burst: count("x-ratelimit-max"),
                interval: interval.filter(|ms| PLAUSIBLE_INTERVALS.contains(ms)).map(Duration::from_millis),
                daily: count("x-ratelimit-limit-daily"),
            },
            daily_remaining: number("x-ratelimit-daily-remaining"),
            daily_reset: length("x-ratelimit-daily-reset", Duration::from_millis).filter(|&reset| reset < FURTHEST_DAY),
            refused: status == StatusCode::TOO_MANY_REQUESTS,
            retry_after: length("retry-after", Duration::from_secs),
        }
    }

    /// Whether there is anything to learn at all.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A change to an item that the platform's word asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Correction {
    pub(crate) learnt: Option<Learnt>,
    pub(crate) day: Option<DayChange>,
    pub(crate) closed: Option<Closed>,
}

impl Correction {
    /// What it makes of `counters`.
    pub(crate) fn applied_to(&self, counters: &Counters) -> Counters {
        let mut next = Counters { revision: counters.revision.saturating_add(1), ..counters.clone() };
        next.learnt = self.learnt.or(next.learnt);
        next.closed = self.closed.or(next.closed);
        match self.day {
            None => {}
            Some(DayChange::Used(used)) => next.day.used = used,
            Some(DayChange::Replaced(day)) => next.day = day,
        }
        next
    }
}

/// A change to the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayChange {
    /// Others use the same app: at least so many are used.
    Used(u32),
    /// The day is another one than we thought.
    Replaced(Day),
}

/// What must be written so that `counters` agree with what was heard; `None` if they already do.
pub(crate) fn correction(counters: &Counters, ceilings: Limits, heard: &Heard, now: Millis) -> Option<Correction> {
    let known = counters.learnt.unwrap_or_default();
    let learnt = known.updated_by(heard.learnt);
    let standing = Standing::of(Some(counters), ceilings, now);
    let limits = learnt.under(ceilings);
    // Written only where it makes a difference: an app with the configured limits never pays for it.
    let learnt = (limits != standing.limits).then_some(learnt);

    let out_of_day = heard.refused && heard.daily_remaining.is_some_and(|left| left <= 0);
    // Without an end for the day, a full counter would be a guess that locks the resource for up to a day.
    let end_is_known = heard.daily_reset.is_some() || standing.day.told;
    let day = if out_of_day && !end_is_known { None } else { day_change(&standing, limits, heard) };
    let day = day.filter(|change| matches!(change, DayChange::Replaced(_)) || standing.day.ends == counters.day.ends);
    let closed = heard.refused.then(|| closure(&standing, heard, limits, out_of_day, end_is_known)).flatten();
    let closed = closed.filter(|new| standing.closed.is_none_or(|old| old.until < new.until));
    let correction = Correction { learnt, day, closed };
    (correction != Correction::default()).then_some(correction)
}

fn day_change(standing: &Standing, limits: Limits, heard: &Heard) -> Option<DayChange> {
    let day = standing.day;
    let left = heard.daily_remaining.map(|left| u32::try_from(left.max(0)).unwrap_or(u32::MAX));
    let mut used = day.used;
    if let Some(left) = left {
        let ours = limits.daily.saturating_sub(day.used);
        // Some tolerance while much is left, or another user of the app would cost us a write for each of its requests.
        if left < ours.saturating_sub(left / 100) {
            used = limits.daily - left;
        }
    }
    let told = heard.daily_reset.map(|reset| standing.now + reset);
    let Some(ends) = told.filter(|&end| apart(end, day.ends) > DAY_END_TOLERANCE || (left == Some(0) && !day.told))
    else {
        return (used > day.used).then_some(DayChange::Used(used));
    };
    if apart(ends, day.ends) > DAY_END_TOLERANCE
        && ends > day.ends
        && let (Some(limit), Some(left)) = (heard.learnt.daily, left)
    {
        // A day that began later than we thought: what we counted before its start is not in it, what may still be on
        // its way to the platform is.
        used = used.min(limit.saturating_sub(left).saturating_add(standing.held()));
    }
    Some(DayChange::Replaced(Day { used, ends, told: true }))
}

fn closure(standing: &Standing, heard: &Heard, limits: Limits, out_of_day: bool, end_is_known: bool) -> Option<Closed> {
    let now = standing.now;
    if out_of_day {
        let until = (now + UNTOLD_DAILY_CLOSURE).min(standing.day.ends);
        return (!end_is_known).then_some(Closed { until, by: LimitKind::Daily });
    }
    // A full interval, as if the refused request had taken a permit: all refusals of a slot ask for the same instant,
    // so that a volley of them is one write.
    let window = Window::new(limits.interval);
    let until = window.dies_at(window.slot_at(now));
    let asked = heard.retry_after.map_or(until, |after| now + after.min(LONGEST_RETRY_AFTER));
    Some(Closed { until: asked.max(until), by: LimitKind::Burst })
}

fn apart(a: Millis, b: Millis) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
    const NOW: Millis = Millis(1_800_000_000_000);
    const HOUR: i64 = 3_600_000;

    fn counters(used: u32) -> Counters {
        let newest = NOW.0 / 200;
        let day = Day { used, ends: Millis(NOW.0 + 5 * HOUR), told: true };
        let slots = vec![(newest, 3)];
        Counters { revision: 1, slot_ms: 200, newest, slots, total: 3, day, learnt: None, closed: None, packed: false }
    }

    fn heard(status: u16, headers: &[(&'static str, &str)]) -> Heard {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        Heard::read(StatusCode::from_u16(status).expect("a status"), &map)
    }

    fn says(status: u16, headers: &[(&'static str, &str)], of: &Counters) -> Option<Correction> {
        correction(of, CEILINGS, &heard(status, headers), NOW)
    }

    #[test]
    fn an_answer_that_agrees_costs_nothing() {
        let usual = [
            ("x-ratelimit-limit-daily", "200000"),
            ("x-ratelimit-daily-remaining", "199998"),
            ("x-ratelimit-interval-milliseconds", "10000"),
            ("x-ratelimit-max", "100"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-daily-reset", "17999000"),
        ];
        assert_eq!(says(200, &usual, &counters(3)), None);
        assert!(heard(200, &[]).is_empty());
        let garbage =
            [("x-ratelimit-max", "-5"), ("x-ratelimit-limit-daily", "many"), ("x-ratelimit-daily-reset", "0")];
        assert!(heard(200, &garbage).is_empty());
        assert!(heard(200, &[("x-ratelimit-interval-milliseconds", "99999999999")]).is_empty());
    }

    #[test]
    fn lower_limits_are_learnt_and_raised_again() {
        let sandbox = [("x-ratelimit-limit-daily", "10000"), ("x-ratelimit-max", "25")];
        let learnt = says(200, &sandbox, &counters(3)).and_then(|c| c.learnt).expect("new");
        assert_eq!((learnt.burst, learnt.interval, learnt.daily), (Some(25), None, Some(10_000)));
        let knows = Counters { learnt: Some(learnt), ..counters(3) };
        assert_eq!(says(200, &sandbox, &knows), None);
        let raised = says(200, &[("x-ratelimit-max", "50")], &knows).and_then(|c| c.learnt).expect("new");
        assert_eq!((raised.burst, raised.daily), (Some(50), Some(10_000)), "what is not said stays");
    }

    #[test]
    fn the_use_that_others_make_counts() {
        let day =
            |left: &str, used| says(200, &[("x-ratelimit-daily-remaining", left)], &counters(used)).and_then(|c| c.day);
        assert_eq!(day("150000", 3), Some(DayChange::Used(50_000)));
        assert_eq!(day("199000", 900), None, "a hundred of so many is no news");
        assert_eq!(day("50", 199_949), Some(DayChange::Used(199_950)), "near the end each counts");
        assert_eq!(day("199999", 3), None, "ours on their way are not taken back");
    }

    #[test]
    fn the_end_of_the_day_is_learnt() {
        let reset = |ms: i64| ("x-ratelimit-daily-reset", ms.to_string());
        let at = |ms: i64, more: &[(&'static str, &str)]| {
            let (name, value) = reset(ms);
            let mut headers = vec![(name, value.as_str())];
            headers.extend_from_slice(more);
            says(200, &headers, &counters(500)).and_then(|c| c.day)
        };
        let ends = |ms: i64, used| Some(DayChange::Replaced(Day { used, ends: Millis(NOW.0 + ms), told: true }));
        assert_eq!(at(5 * HOUR - 59_000, &[]), None);
        assert_eq!(at(4 * HOUR, &[]), ends(4 * HOUR, 500));
        let fresh = [("x-ratelimit-limit-daily", "200000"), ("x-ratelimit-daily-remaining", "199999")];
        assert_eq!(at(24 * HOUR, &fresh), ends(24 * HOUR, 4), "a new day: theirs, and what is on its way");
    }

    #[test]
    fn a_429_closes_for_an_interval_or_the_day() {
        let closed = |headers: &[(&'static str, &str)], of: &Counters| says(429, headers, of).expect("news");
        let burst = closed(&[], &counters(3)).closed.expect("closed");
        assert_eq!(burst, Closed { until: Millis(NOW.0 + 10_700), by: LimitKind::Burst });
        let already = Counters { closed: Some(burst), ..counters(3) };
        assert_eq!(says(429, &[], &already), None, "a volley is one write");
        let longer = closed(&[("retry-after", "30")], &counters(3)).closed.expect("closed");
        assert_eq!(longer.until, Millis(NOW.0 + 30_000));

        let none_left = [("x-ratelimit-daily-remaining", "0")];
        let told = closed(&none_left, &counters(3));
        assert_eq!((told.day, told.closed), (Some(DayChange::Used(200_000)), None), "until the end that we know");
        let guessed = Counters { day: Day { told: false, ..counters(3).day }, ..counters(3) };
        let blind = closed(&none_left, &guessed);
        let quarter = Closed { until: Millis(NOW.0 + 900_000), by: LimitKind::Daily };
        assert_eq!((blind.day, blind.closed), (None, Some(quarter)), "a guess must not lock for hours");
    }
}
