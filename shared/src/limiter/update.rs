//! The change to an item that the rate-limit headers of an answer ask for, if it is worth a write. Pure.

use std::time::Duration;

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use super::snapshot::{Snapshot, binds};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits};
use crate::platform::rate_limits::RateLimitHeaders;

/// A day's end is written again when it has moved by more than this; the header counts milliseconds from an instant
/// that we only know roughly.
const DAY_END_TOLERANCE: Duration = Duration::from_mins(1);
/// That the day's budget is used up is believed for so long if the day's end is not known.
const UNTOLD_DAILY_CLOSURE: Duration = Duration::from_mins(15);
/// A closure by the day that is younger than this is not written again.
const DAILY_CLOSURE_TOLERANCE: Duration = Duration::from_mins(1);
/// A `Retry-After` is honoured up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(15);
/// Endpoints that an item can hold as closed. Of more, those that open first are forgotten.
const MOST_CLOSED_ENDPOINTS: usize = 8;

/// A change to an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitUpdate {
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) day: Option<DayChange>,
    pub(crate) closed: Option<Closed>,
    /// All endpoints that are closed from now on.
    pub(crate) closed_endpoints: Option<ClosedEndpoints>,
}

/// A change to the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayChange {
    /// Others use the same app: at least so many are used.
    Used(u32),
    /// The day is another one than we thought.
    Replaced(Day),
}

/// The change after which the item of `snapshot` agrees with `headers`, which answered a request to `endpoint`; `None`
/// if it already does. Without an `endpoint`, a 429 closes the whole resource.
pub(crate) fn update(
    snapshot: &Snapshot,
    ceilings: Limits,
    headers: &RateLimitHeaders,
    endpoint: Option<&str>,
    now: Millis,
) -> Option<LimitUpdate> {
    let counters = snapshot.counters()?;
    let observed = counters.observed.unwrap_or_default().updated_by(headers.limits);
    let limits = observed.under(ceilings);
    // Written only where it makes a difference: an app with the configured limits never pays for it.
    let observed = (limits != snapshot.limits()).then_some(observed);
    let mut update = LimitUpdate { observed, ..LimitUpdate::default() };

    // Without an end of the day, a full count of its requests would lock the resource until an end that we guess.
    let end_is_known = headers.daily_reset.is_some() || snapshot.day(now).told;
    if end_is_known {
        update.day = day_change(snapshot, limits, headers, now)
            .filter(|change| matches!(change, DayChange::Replaced(_)) || snapshot.day(now).ends == counters.day.ends);
    }
    if headers.out_of_day() {
        update.closed = (!end_is_known).then(|| untold_daily_closure(snapshot, now)).flatten();
    } else if headers.refused {
        let until = closed_until(headers, limits, now);
        match endpoint.filter(|_| headers.remaining.is_some_and(|left| left > 0)) {
            Some(endpoint) => update.closed_endpoints = with_closed(counters, endpoint, until, now),
            None => update.closed = later(snapshot, Closed { until, by: LimitKind::Burst }, now),
        }
    }
    (update != LimitUpdate::default()).then_some(update)
}

fn day_change(snapshot: &Snapshot, limits: Limits, headers: &RateLimitHeaders, now: Millis) -> Option<DayChange> {
    let day = snapshot.day(now);
    let left = headers.daily_remaining.map(|left| u32::try_from(left.max(0)).unwrap_or(u32::MAX));
    let mut used = day.used;
    if let Some(left) = left {
        let ours = limits.daily.saturating_sub(day.used);
        // Some tolerance while much is left, or another user of the app would cost us a write for each of its requests.
        if left < ours.saturating_sub(left / 100) {
            used = limits.daily - left;
        }
    }
    let told = headers.daily_reset.map(|reset| now + reset);
    let Some(ends) = told.filter(|&end| apart(end, day.ends) > DAY_END_TOLERANCE || (left == Some(0) && !day.told))
    else {
        return (used > day.used).then_some(DayChange::Used(used));
    };
    if apart(ends, day.ends) > DAY_END_TOLERANCE
        && ends > day.ends
        && let (Some(limit), Some(left)) = (headers.limits.daily, left)
    {
        // A day that began later than we thought: what we counted before its start is not in it, what may still be on
        // its way to the platform is.
        used = used.min(limit.saturating_sub(left).saturating_add(snapshot.live(now)));
    }
    Some(DayChange::Replaced(Day { used, ends, told: true }))
}

/// The day's budget is used up, and nobody knows until when: some minutes, then one request may find out.
fn untold_daily_closure(snapshot: &Snapshot, now: Millis) -> Option<Closed> {
    let until = (now + UNTOLD_DAILY_CLOSURE).min(snapshot.day(now).ends);
    let closed = later(snapshot, Closed { until, by: LimitKind::Daily }, now)?;
    let is_news = snapshot.closed(now).is_none_or(|old| old.until + DAILY_CLOSURE_TOLERANCE < until);
    is_news.then_some(closed)
}

/// `new`, unless the resource is closed for at least as long already.
fn later(snapshot: &Snapshot, new: Closed, now: Millis) -> Option<Closed> {
    snapshot.closed(now).is_none_or(|old| old.until < new.until).then_some(new)
}

/// How long a 429 closes: a full interval, as if the refused request had taken a permit, or longer if the platform says
/// so. The end is that of a slot, so that a volley of refusals is one write.
fn closed_until(headers: &RateLimitHeaders, limits: Limits, now: Millis) -> Millis {
    let window = Window::new(limits.interval);
    let asked = headers.retry_after.map_or(now, |after| now + after.min(LONGEST_RETRY_AFTER));
    window.round_up(asked).max(window.expires_at(window.slot_at(now)))
}

/// The closed endpoints with `endpoint`; `None` if it is closed for at least as long already.
fn with_closed(counters: &Counters, endpoint: &str, until: Millis, now: Millis) -> Option<ClosedEndpoints> {
    let mut closed = counters.closed_endpoints.clone();
    closed.retain(|_, until| binds(*until, now));
    if closed.get(endpoint).is_some_and(|old| *old >= until) {
        return None;
    }
    closed.insert(endpoint.to_owned(), until);
    while closed.len() > MOST_CLOSED_ENDPOINTS {
        let first = closed.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone())?;
        closed.remove(&first);
    }
    Some(closed)
}

fn apart(a: Millis, b: Millis) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    const CEILINGS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
    const NOW: Millis = Millis(1_800_000_000_000);
    const HOUR: i64 = 3_600_000;

    fn counters(used: u32) -> Counters {
        let newest = NOW.0 / 200;
        let day = Day { used, ends: Millis(NOW.0 + 5 * HOUR), told: true };
        Counters {
            revision: 1,
            slot_ms: 200,
            newest,
            slots: vec![(newest, 3)],
            counted: 3,
            day,
            observed: None,
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        }
    }

    fn says(status: u16, headers: &[(&'static str, &str)], of: &Counters) -> Option<LimitUpdate> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        let headers = RateLimitHeaders::read(StatusCode::from_u16(status).expect("a status"), &map);
        update(&Snapshot::of(Some(of.clone()), CEILINGS, NOW), CEILINGS, &headers, Some("contacts"), NOW)
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
    }

    #[test]
    fn lower_limits_are_observed_and_raised_again() {
        let sandbox = [("x-ratelimit-limit-daily", "10000"), ("x-ratelimit-max", "25")];
        let observed = says(200, &sandbox, &counters(3)).and_then(|c| c.observed).expect("new");
        assert_eq!((observed.burst, observed.interval, observed.daily), (Some(25), None, Some(10_000)));
        let knows = Counters { observed: Some(observed), ..counters(3) };
        assert_eq!(says(200, &sandbox, &knows), None);
        let raised = says(200, &[("x-ratelimit-max", "50")], &knows).and_then(|c| c.observed).expect("new");
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
    fn a_429_that_says_nothing_of_room_closes_for_an_interval() {
        let closed = |headers: &[(&'static str, &str)], of: &Counters| says(429, headers, of).expect("news");
        let burst = closed(&[], &counters(3)).closed.expect("closed");
        assert_eq!(burst, Closed { until: Millis(NOW.0 + 10_700), by: LimitKind::Burst });
        let already = Counters { closed: Some(burst), ..counters(3) };
        assert_eq!(says(429, &[], &already), None, "a volley is one write");
        let longer = closed(&[("retry-after", "30")], &counters(3)).closed.expect("closed");
        assert_eq!(longer.until, Millis(NOW.0 + 30_000));

        let dated = closed(&[("retry-after", "30"), ("x-ratelimit-remaining", "0")], &counters(3)).closed;
        assert_eq!(dated, Some(longer), "the headers say that the burst is used up");
    }

    #[test]
    fn a_day_that_is_used_up_never_locks_until_a_guessed_end() {
        let guessed = Counters { day: Day { told: false, ..counters(3).day }, ..counters(3) };
        let quarter = Closed { until: Millis(NOW.0 + 900_000), by: LimitKind::Daily };
        for status in [200, 201, 404, 429, 500] {
            let none_left = [("x-ratelimit-daily-remaining", "0"), ("x-ratelimit-limit-daily", "200000")];
            let told = says(status, &none_left, &counters(3)).expect("news");
            assert_eq!((told.day, told.closed), (Some(DayChange::Used(200_000)), None), "until the end that we know");
            let blind = says(status, &none_left, &guessed).expect("news");
            assert_eq!((blind.day, blind.closed), (None, Some(quarter)), "{status}: a guess must not lock for hours");
            let already = Closed { until: quarter.until - Duration::from_secs(50), ..quarter };
            let already = Counters { closed: Some(already), ..guessed.clone() };
            assert_eq!(says(status, &none_left, &already), None, "{status}: a volley is one write");
            // Of the last request before that, nothing is made that would lock either.
            assert_eq!(says(status, &[("x-ratelimit-daily-remaining", "1")], &guessed).and_then(|c| c.day), None);
        }
        let soon = Counters { day: Day { ends: NOW + Duration::from_mins(2), ..guessed.day }, ..guessed };
        let ends = says(200, &[("x-ratelimit-daily-remaining", "-1")], &soon).and_then(|c| c.closed).expect("closed");
        assert_eq!(ends.until, NOW + Duration::from_mins(2), "the guess, where it is sooner");
    }

    #[test]
    fn a_429_with_room_left_closes_its_endpoint_only() {
        let room = [("x-ratelimit-remaining", "80"), ("x-ratelimit-daily-remaining", "500"), ("retry-after", "60")];
        let day = Some(DayChange::Used(199_500));
        let until = Millis(NOW.0 + 60_000);
        let closed = says(429, &room, &counters(3)).expect("news");
        assert_eq!((closed.closed, closed.day), (None, day));
        let endpoints = closed.closed_endpoints.expect("closed");
        assert_eq!(endpoints, ClosedEndpoints::from([("contacts".to_owned(), until)]));
        let already =
            Counters { closed_endpoints: endpoints, day: Day { used: 199_500, ..counters(3).day }, ..counters(3) };
        assert_eq!(says(429, &room, &already), None, "a volley is one write");

        let without = says(429, &room[..2], &counters(3)).and_then(|c| c.closed_endpoints).expect("closed");
        assert_eq!(without["contacts"], Millis(NOW.0 + 10_700), "a full interval");
        for used_up in [("x-ratelimit-remaining", "0"), ("x-ratelimit-daily-remaining", "0")] {
            let headers = [room[0], used_up];
            let closed = says(429, &headers, &counters(3)).expect("news");
            assert_eq!(closed.closed_endpoints, None, "{used_up:?}");
            assert!(closed.closed.is_some() || closed.day == Some(DayChange::Used(200_000)), "{used_up:?}");
        }
        assert_eq!(says(200, &room, &counters(3)).and_then(|c| c.closed_endpoints), None, "no 429");

        let several = (0..8).map(|i| (format!("e{i}"), until + Duration::from_secs(i)));
        let full = Counters { closed_endpoints: several.collect(), ..counters(3) };
        let closed = says(429, &[room[0], ("retry-after", "90")], &full).and_then(|c| c.closed_endpoints);
        let names: Vec<_> = closed.expect("closed").into_keys().collect();
        assert_eq!(names, ["contacts", "e1", "e2", "e3", "e4", "e5", "e6", "e7"], "what opens first is forgotten");
    }
}
