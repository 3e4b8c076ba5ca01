//! Limit updates: the change to an item that follows from the rate-limit headers of an answer. Pure.

use std::time::Duration;

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use super::snapshot::{LONGEST_CLOSURE, Snapshot, binds};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits};
use crate::platform::rate_limits::RateLimitHeaders;

/// The end of a day is written again if it has moved by more than this. The header counts from the instant at which the
/// platform wrote it, which is known only roughly.
const DAY_END_TOLERANCE: Duration = Duration::from_mins(1);
/// The length of a closure because of the day if the end of the day is not known.
const UNKNOWN_DAY_END_CLOSURE: Duration = Duration::from_mins(15);
/// A closure because of the day is written again if it would end later by more than this.
const DAILY_CLOSURE_TOLERANCE: Duration = Duration::from_mins(1);
/// A `Retry-After` is followed up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(15);
/// The most endpoints that an item lists as closed. If there are more, those whose closures end first are dropped.
const MOST_CLOSED_ENDPOINTS: usize = 8;

/// A closure that is as long as these binds.
const _: () = assert!(
    UNKNOWN_DAY_END_CLOSURE.as_secs() < LONGEST_CLOSURE.as_secs()
        && LONGEST_RETRY_AFTER.as_secs() < LONGEST_CLOSURE.as_secs()
);

/// A change to an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitUpdate {
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) day: Option<DayChange>,
    pub(crate) closed: Option<Closed>,
    /// All endpoints that are closed after the change.
    pub(crate) closed_endpoints: Option<ClosedEndpoints>,
}

/// A change to the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayChange {
    /// Other users of the app have sent requests, too: at least so many of the day are used.
    Used(u32),
    /// The day ends at another instant than was assumed.
    Replaced(Day),
}

/// The change after which the item of `snapshot` agrees with `headers`, which answered a request to `endpoint` at
/// `now`. `None` if the item agrees already, or if there is no item. Without an `endpoint`, a 429 closes the whole
/// resource.
pub(crate) fn update(
    snapshot: &Snapshot,
    headers: &RateLimitHeaders,
    endpoint: Option<&str>,
    now: Millis,
) -> Option<LimitUpdate> {
    let counters = snapshot.counters()?;
    let observed = counters.observed.unwrap_or_default().updated_by(headers.limits);
    let limits = observed.under(snapshot.ceilings());
    // Written only if other limits bind then: an app with the configured limits never pays for such a write.
    let observed = (limits != snapshot.limits()).then_some(observed);
    let mut update = LimitUpdate { observed, ..LimitUpdate::default() };

    // Until the end of the day is known, a full count of its requests would close the resource until an assumed end.
    let end_is_known = headers.daily_reset.is_some() || snapshot.day(now).end_confirmed;
    if end_is_known {
        update.day = day_change(snapshot, limits, headers, now)
            .filter(|change| matches!(change, DayChange::Replaced(_)) || snapshot.day(now).ends == counters.day.ends);
    }
    if headers.out_of_day() {
        update.closed = (!end_is_known).then(|| unknown_day_end_closure(snapshot, now)).flatten();
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
        // Tolerance: while much is left, the requests of other users of the app must not cost a write each.
        if left < ours.saturating_sub(left / 100) {
            used = limits.daily - left;
        }
    }
    let stated = headers.daily_reset.map(|reset| now + reset);
    let is_new = |end: &Millis| apart(*end, day.ends) > DAY_END_TOLERANCE || (left == Some(0) && !day.end_confirmed);
    let Some(ends) = stated.filter(is_new) else {
        return (used > day.used).then_some(DayChange::Used(used));
    };
    if apart(ends, day.ends) > DAY_END_TOLERANCE
        && ends > day.ends
        && let (Some(limit), Some(left)) = (headers.limits.daily, left)
    {
        // The day began later than assumed. Requests before its start do not count in it; requests that may still be on
        // their way to the platform do.
        used = used.min(limit.saturating_sub(left).saturating_add(snapshot.live(now)));
    }
    Some(DayChange::Replaced(Day { used, ends, end_confirmed: true }))
}

/// The closure if the day's budget is used up and the end of the day is not known: some minutes, then one request
/// probes.
fn unknown_day_end_closure(snapshot: &Snapshot, now: Millis) -> Option<Closed> {
    let until = (now + UNKNOWN_DAY_END_CLOSURE).min(snapshot.day(now).ends);
    let closed = later(snapshot, Closed { until, by: LimitKind::Daily }, now)?;
    let is_new = snapshot.closed(now).is_none_or(|old| old.until + DAILY_CLOSURE_TOLERANCE < until);
    is_new.then_some(closed)
}

/// `new`, unless the resource is closed for at least as long already.
fn later(snapshot: &Snapshot, new: Closed, now: Millis) -> Option<Closed> {
    snapshot.closed(now).is_none_or(|old| old.until < new.until).then_some(new)
}

/// The end of the closure after a 429: an interval later, as if the refused request had taken a permit, or later if
/// `Retry-After` says so. It is the end of a slot, so that many refusals at the same time cause one write.
fn closed_until(headers: &RateLimitHeaders, limits: Limits, now: Millis) -> Millis {
    let window = Window::new(limits.interval);
    let asked = headers.retry_after.map_or(now, |after| now + after.min(LONGEST_RETRY_AFTER));
    window.round_up(asked).max(window.expires_at(window.slot_at(now)))
}

/// The closed endpoints and `endpoint`; `None` if `endpoint` is closed for at least as long already.
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
        let day = Day { used, ends: Millis(NOW.0 + 5 * HOUR), end_confirmed: true };
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

    fn after(status: u16, headers: &[(&'static str, &str)], of: &Counters) -> Option<LimitUpdate> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        let headers = RateLimitHeaders::read(StatusCode::from_u16(status).expect("a status"), &map);
        update(&Snapshot::of(Some(of.clone()), CEILINGS, NOW), &headers, Some("contacts"), NOW)
    }

    #[test]
    fn headers_that_agree_cause_no_write() {
        let usual = [
            ("x-ratelimit-limit-daily", "200000"),
            ("x-ratelimit-daily-remaining", "199998"),
            ("x-ratelimit-interval-milliseconds", "10000"),
            ("x-ratelimit-max", "100"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-daily-reset", "17999000"),
        ];
        assert_eq!(after(200, &usual, &counters(3)), None);
    }

    #[test]
    fn lower_limits_are_observed_and_raised_again() {
        let sandbox = [("x-ratelimit-limit-daily", "10000"), ("x-ratelimit-max", "25")];
        let observed = after(200, &sandbox, &counters(3)).and_then(|c| c.observed).expect("an update");
        assert_eq!((observed.burst, observed.interval, observed.daily), (Some(25), None, Some(10_000)));
        let lowered = Counters { observed: Some(observed), ..counters(3) };
        assert_eq!(after(200, &sandbox, &lowered), None);
        let raised = after(200, &[("x-ratelimit-max", "50")], &lowered).and_then(|c| c.observed).expect("an update");
        assert_eq!((raised.burst, raised.daily), (Some(50), Some(10_000)), "a limit without a header stays");
    }

    #[test]
    fn requests_of_other_users_of_the_app_count() {
        let day = |left: &str, used| {
            after(200, &[("x-ratelimit-daily-remaining", left)], &counters(used)).and_then(|c| c.day)
        };
        assert_eq!(day("150000", 3), Some(DayChange::Used(50_000)));
        assert_eq!(day("199000", 900), None, "within the tolerance");
        assert_eq!(day("50", 199_949), Some(DayChange::Used(199_950)), "near the end each counts");
        assert_eq!(day("199999", 3), None, "our requests on their way still count");
    }

    #[test]
    fn the_end_of_the_day_is_taken_from_the_header() {
        let reset = |ms: i64| ("x-ratelimit-daily-reset", ms.to_string());
        let at = |ms: i64, more: &[(&'static str, &str)]| {
            let (name, value) = reset(ms);
            let mut headers = vec![(name, value.as_str())];
            headers.extend_from_slice(more);
            after(200, &headers, &counters(500)).and_then(|c| c.day)
        };
        let ends =
            |ms: i64, used| Some(DayChange::Replaced(Day { used, ends: Millis(NOW.0 + ms), end_confirmed: true }));
        assert_eq!(at(5 * HOUR - 59_000, &[]), None);
        assert_eq!(at(4 * HOUR, &[]), ends(4 * HOUR, 500));
        let fresh = [("x-ratelimit-limit-daily", "200000"), ("x-ratelimit-daily-remaining", "199999")];
        assert_eq!(
            at(24 * HOUR, &fresh),
            ends(24 * HOUR, 4),
            "a new day: the platform's count, and our requests on their way"
        );
    }

    #[test]
    fn a_429_without_a_remaining_count_closes_the_resource_for_an_interval() {
        let closed = |headers: &[(&'static str, &str)], of: &Counters| after(429, headers, of).expect("an update");
        let burst = closed(&[], &counters(3)).closed.expect("closed");
        assert_eq!(burst, Closed { until: Millis(NOW.0 + 10_700), by: LimitKind::Burst });
        let already = Counters { closed: Some(burst), ..counters(3) };
        assert_eq!(after(429, &[], &already), None, "many equal answers cause one write");
        let longer = closed(&[("retry-after", "30")], &counters(3)).closed.expect("closed");
        assert_eq!(longer.until, Millis(NOW.0 + 30_000));

        let dated = closed(&[("retry-after", "30"), ("x-ratelimit-remaining", "0")], &counters(3)).closed;
        assert_eq!(dated, Some(longer), "the headers say that the burst is used up");
    }

    #[test]
    fn a_used_up_day_never_closes_until_an_assumed_end() {
        let assumed = Counters { day: Day { end_confirmed: false, ..counters(3).day }, ..counters(3) };
        let quarter = Closed { until: Millis(NOW.0 + 900_000), by: LimitKind::Daily };
        for status in [200, 201, 404, 429, 500] {
            let none_left = [("x-ratelimit-daily-remaining", "0"), ("x-ratelimit-limit-daily", "200000")];
            let confirmed = after(status, &none_left, &counters(3)).expect("an update");
            assert_eq!(
                (confirmed.day, confirmed.closed),
                (Some(DayChange::Used(200_000)), None),
                "until the known end"
            );
            let unconfirmed = after(status, &none_left, &assumed).expect("an update");
            assert_eq!(
                (unconfirmed.day, unconfirmed.closed),
                (None, Some(quarter)),
                "{status}: an assumed end must not close for hours"
            );
            let already = Closed { until: quarter.until - Duration::from_secs(50), ..quarter };
            let already = Counters { closed: Some(already), ..assumed.clone() };
            assert_eq!(after(status, &none_left, &already), None, "{status}: many equal answers cause one write");
            // Nor does the answer before it change a day with an assumed end.
            assert_eq!(after(status, &[("x-ratelimit-daily-remaining", "1")], &assumed).and_then(|c| c.day), None);
        }
        let soon = Counters { day: Day { ends: NOW + Duration::from_mins(2), ..assumed.day }, ..assumed };
        let ends = after(200, &[("x-ratelimit-daily-remaining", "-1")], &soon).and_then(|c| c.closed).expect("closed");
        assert_eq!(ends.until, NOW + Duration::from_mins(2), "the assumed end, if it is earlier");
    }

    #[test]
    fn a_429_with_room_left_closes_its_endpoint_only() {
        let room = [("x-ratelimit-remaining", "80"), ("x-ratelimit-daily-remaining", "500"), ("retry-after", "60")];
        let day = Some(DayChange::Used(199_500));
        let until = Millis(NOW.0 + 60_000);
        let closed = after(429, &room, &counters(3)).expect("an update");
        assert_eq!((closed.closed, closed.day), (None, day));
        let endpoints = closed.closed_endpoints.expect("closed");
        assert_eq!(endpoints, ClosedEndpoints::from([("contacts".to_owned(), until)]));
        let already =
            Counters { closed_endpoints: endpoints, day: Day { used: 199_500, ..counters(3).day }, ..counters(3) };
        assert_eq!(after(429, &room, &already), None, "many equal answers cause one write");

        let without = after(429, &room[..2], &counters(3)).and_then(|c| c.closed_endpoints).expect("closed");
        assert_eq!(without["contacts"], Millis(NOW.0 + 10_700), "a full interval");
        for used_up in [("x-ratelimit-remaining", "0"), ("x-ratelimit-daily-remaining", "0")] {
            let headers = [room[0], used_up];
            let closed = after(429, &headers, &counters(3)).expect("an update");
            assert_eq!(closed.closed_endpoints, None, "{used_up:?}");
            assert!(closed.closed.is_some() || closed.day == Some(DayChange::Used(200_000)), "{used_up:?}");
        }
        assert_eq!(after(200, &room, &counters(3)).and_then(|c| c.closed_endpoints), None, "no 429");

        let several = (0..8).map(|i| (format!("e{i}"), until + Duration::from_secs(i)));
        let full = Counters { closed_endpoints: several.collect(), ..counters(3) };
        let closed = after(429, &[room[0], ("retry-after", "90")], &full).and_then(|c| c.closed_endpoints);
        let names: Vec<_> = closed.expect("closed").into_keys().collect();
        assert_eq!(
            names,
            ["contacts", "e1", "e2", "e3", "e4", "e5", "e6", "e7"],
            "the closure that ends first is dropped"
        );
    }
}
