//! Limit updates: the change to an item that follows from the rate-limit headers of an answer. Pure.

use std::time::Duration;

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use super::snapshot::{LONGEST_CLOSURE, Snapshot, binds};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits, Proposal};
use crate::platform::rate_limits::RateLimitHeaders;

/// A proposal is replaced by one that does not agree with it after this time at the earliest.
const PROPOSAL_STANDS: Duration = Duration::from_secs(10);
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

/// Closures of these lengths are shorter than [`LONGEST_CLOSURE`], so they are not ignored.
const _: () = assert!(
    UNKNOWN_DAY_END_CLOSURE.as_secs() < LONGEST_CLOSURE.as_secs()
        && LONGEST_RETRY_AFTER.as_secs() < LONGEST_CLOSURE.as_secs()
);

/// A change to an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitUpdate {
    /// The observed limits after the change. If they are empty, all limits are the default again.
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) proposal: Option<ProposalChange>,
    pub(crate) day: Option<DayChange>,
    pub(crate) closed: Option<Closed>,
    /// All endpoints that are closed after the change.
    pub(crate) closed_endpoints: Option<ClosedEndpoints>,
}

/// A change to the proposal of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProposalChange {
    /// An answer has stated higher limits.
    Made(Proposal),
    /// The limits were raised.
    Ended,
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
    let LimitChange { limits, observed, proposal } = limit_change(snapshot, counters, headers, endpoint, now);
    let mut update = LimitUpdate { observed, proposal, ..LimitUpdate::default() };

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

/// The limits after an answer, and the changes to an item that lead to them.
struct LimitChange {
    limits: Limits,
    observed: Option<ObservedLimits>,
    proposal: Option<ProposalChange>,
}

/// Stricter limits hold at once. Higher limits need answers of two endpoints that agree, because an endpoint may state a
/// limit of its own. A 429 neither proposes nor confirms higher limits.
fn limit_change(
    snapshot: &Snapshot,
    counters: &Counters,
    headers: &RateLimitHeaders,
    endpoint: Option<&str>,
    now: Millis,
) -> LimitChange {
    let (policy, current) = (snapshot.policy(), snapshot.limits());
    let stated = policy.bounded(headers.limits.or(current));
    let lowered = current.stricter(stated);
    let (mut limits, mut proposal) = (lowered, None);
    if let Some(endpoint) = endpoint.filter(|_| !headers.refused) {
        let higher = Proposal::new(stated.looser_than(lowered), endpoint, now);
        let old = counters.proposal.as_ref().filter(|old| old.is_recent(now));
        let other = old.filter(|old| old.endpoint != higher.endpoint);
        let agreed = other.map(|other| higher.stated.agreed(other.stated)).unwrap_or_default();
        limits = agreed.or(lowered);
        let left = Proposal { stated: higher.stated.without(agreed), ..higher };
        proposal = match old {
            _ if left.stated.is_empty() => (!agreed.is_empty()).then_some(ProposalChange::Ended),
            // An answer that lowers a limit may state a limit of its endpoint. It must not be in the way of a proposal.
            _ if lowered != current => None,
            // Endpoints that never agree must not cost a write for each answer.
            Some(old) if agreed.is_empty() && (old.stated == left.stated || now < old.at + PROPOSAL_STANDS) => None,
            _ => Some(ProposalChange::Made(left)),
        };
    }
    let raised = limits.looser_than(policy.default);
    let before = counters.observed.unwrap_or_default();
    let is_confirmed = !headers.refused && headers.limits.covers(raised);
    let confirmed_at = if is_confirmed { None } else { before.confirmed_at };
    let mut observed = ObservedLimits::of(limits, policy, now);
    observed.confirmed_at = observed.confirmed_at.map(|now| confirmed_at.unwrap_or(now));
    // Written only if other limits bind then, or for a confirmation: an app with the default limits never pays for it.
    let confirms = is_confirmed && before.is_due_for_confirmation(now);
    LimitChange { limits, observed: (limits != current || confirms).then_some(observed), proposal }
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
    use crate::domain::limits::{LimitPolicy, StatedLimits};

    const DEFAULT: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
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
            proposal: None,
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
        update(&Snapshot::of(Some(of.clone()), DEFAULT.into(), NOW), &headers, Some("contacts"), NOW)
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

    const POLICY: LimitPolicy = LimitPolicy {
        default: DEFAULT,
        bounds: Limits { burst: 1_000, interval: Duration::from_secs(1), daily: 10_000_000 },
    };
    const CONTACTS: Option<&str> = Some("contacts");
    const CALENDARS: Option<&str> = Some("calendars");

    /// An answer's status, endpoint and stated limits; the limits that bind after it, and true if it caused a write.
    type Step = (u16, Option<&'static str>, (u32, u64, u32), (u32, u64, u32), bool);

    /// An item that answers are observed for, one after the other.
    struct Observed(Counters);

    impl Observed {
        /// The limits that bind after an answer of `endpoint`, and true if the answer caused a write.
        fn after(
            &mut self,
            status: u16,
            endpoint: Option<&str>,
            stated: (u32, u64, u32),
            now: Millis,
        ) -> (Limits, bool) {
            let (burst, seconds, daily) = stated;
            let limits =
                StatedLimits { burst: Some(burst), interval: Some(Duration::from_secs(seconds)), daily: Some(daily) };
            let headers =
                RateLimitHeaders { limits, refused: status == 429, remaining: Some(1), ..RateLimitHeaders::default() };
            let item = &mut self.0;
            let update = update(&Snapshot::of(Some(item.clone()), POLICY, now), &headers, endpoint, now);
            let is_written = update.is_some();
            let update = update.unwrap_or_default();
            if let Some(observed) = update.observed {
                item.observed = Some(observed).filter(|observed| *observed != ObservedLimits::default());
            }
            match update.proposal {
                Some(ProposalChange::Made(proposal)) => item.proposal = Some(proposal),
                Some(ProposalChange::Ended) => item.proposal = None,
                None => {}
            }
            (Snapshot::of(Some(item.clone()), POLICY, now).limits(), is_written)
        }
    }

    fn limits(burst: u32, seconds: u64, daily: u32) -> Limits {
        Limits { burst, interval: Duration::from_secs(seconds), daily }
    }

    #[test]
    fn limits_are_lowered_at_once_and_raised_by_two_endpoints_that_agree() {
        const DAY: u32 = 200_000;
        let (usual, sandbox, high) = ((100, 10, DAY), (25, 10, 10_000), (500, 10, 1_000_000));
        let cases: &[(&str, &[Step])] = &[
            ("the default costs nothing", &[(200, CONTACTS, usual, usual, false)]),
            ("a sandbox agency", &[(200, CONTACTS, sandbox, sandbox, true), (200, CALENDARS, sandbox, sandbox, false)]),
            (
                "a lower limit and back",
                &[
                    (404, CONTACTS, sandbox, sandbox, true),
                    (200, CONTACTS, usual, sandbox, true),
                    (200, CONTACTS, usual, sandbox, false),
                    (200, CALENDARS, usual, usual, true),
                    (200, CONTACTS, usual, usual, false),
                ],
            ),
            (
                "a higher limit",
                &[
                    (200, CONTACTS, high, usual, true),
                    (200, CONTACTS, high, usual, false),
                    (201, CALENDARS, high, high, true),
                    (200, CONTACTS, high, high, false),
                    (200, CONTACTS, usual, usual, true),
                ],
            ),
            (
                "above the bounds",
                &[
                    (200, CONTACTS, (5_000, 10, 99_000_000), usual, true),
                    (200, CALENDARS, (6_000, 10, 98_000_000), (1_000, 10, 10_000_000), true),
                ],
            ),
            (
                "answers that do not agree",
                &[
                    (200, CONTACTS, (500, 10, DAY), usual, true),
                    (200, CALENDARS, (400, 10, DAY), usual, false),
                    (200, CALENDARS, (500, 20, DAY), (100, 20, DAY), true),
                    (200, Some("opportunities"), (500, 10, DAY), (500, 10, DAY), true),
                ],
            ),
            (
                "one limit of two agrees",
                &[
                    (200, CONTACTS, (500, 10, 300_000), usual, true),
                    (200, CALENDARS, (500, 10, 400_000), (500, 10, DAY), true),
                    (200, CONTACTS, (500, 10, 400_000), (500, 10, 400_000), true),
                ],
            ),
            (
                "an endpoint with a limit of its own",
                &[
                    (200, CONTACTS, (300, 60, DAY), (100, 60, DAY), true),
                    (200, CALENDARS, usual, (100, 60, DAY), true),
                    (200, Some("opportunities"), usual, usual, true),
                ],
            ),
            (
                "a shorter interval",
                &[
                    (200, CONTACTS, (10, 1, DAY), (10, 10, DAY), true),
                    (200, CONTACTS, (10, 1, DAY), (10, 10, DAY), true),
                    (200, CALENDARS, (10, 1, DAY), (10, 1, DAY), true),
                ],
            ),
            (
                "a 429 and an unknown endpoint",
                &[
                    (200, CONTACTS, high, usual, true),
                    (429, CALENDARS, high, usual, true),
                    (200, None, high, usual, false),
                    (429, CALENDARS, sandbox, sandbox, true),
                ],
            ),
        ];
        for (name, steps) in cases {
            let mut item = Observed(counters(3));
            for (index, (status, endpoint, stated, binding, is_written)) in steps.iter().enumerate() {
                let seen = item.after(*status, *endpoint, *stated, NOW);
                let (burst, seconds, daily) = *binding;
                assert_eq!(seen, (limits(burst, seconds, daily), *is_written), "{name}, answer {index}");
            }
        }
    }

    #[test]
    fn endpoints_that_disagree_cause_few_writes() {
        let mut item = Observed(counters(3));
        let writes = (0..100).filter(|second| {
            let now = NOW + Duration::from_secs(*second);
            let contacts = item.after(200, CONTACTS, (500, 10, 200_000), now).1;
            let calendars = item.after(200, CALENDARS, (400, 10, 200_000), now).1;
            contacts || calendars
        });
        assert_eq!(writes.count(), 10);
        // Endpoints that agree replace the proposal of the third one when it has stood for a while.
        let later = NOW + Duration::from_secs(200);
        assert_eq!(item.after(200, CONTACTS, (600, 10, 200_000), later).0.burst, 100);
        assert_eq!(item.after(200, CALENDARS, (600, 10, 200_000), later).0.burst, 600);
    }

    #[test]
    fn a_raised_limit_that_no_answer_confirms_falls_back_after_a_day() {
        const HIGH: (u32, u64, u32) = (500, 10, 200_000);
        let hours = |hours| NOW + Duration::from_hours(hours);
        let raised = || {
            let mut item = Observed(counters(3));
            item.after(200, CONTACTS, HIGH, NOW);
            assert_eq!(item.after(200, CALENDARS, HIGH, NOW).0.burst, 500);
            item
        };
        let mut item = raised();
        assert_eq!(item.after(429, CONTACTS, HIGH, hours(23)).0.burst, 500);
        assert_eq!(item.after(429, CONTACTS, HIGH, hours(24)).0.burst, 100, "a 429 does not confirm");
        assert_eq!(item.after(200, CONTACTS, HIGH, hours(24)), (limits(100, 10, 200_000), true));
        assert_eq!(item.after(200, CALENDARS, HIGH, hours(24)).0.burst, 500);

        let mut item = raised();
        let writes = (1..100).filter(|hour| item.after(200, CONTACTS, HIGH, hours(*hour)).1).count();
        assert_eq!((writes, item.after(200, CONTACTS, HIGH, hours(100)).0.burst), (16, 500), "four writes a day");

        let mut item = Observed(counters(3));
        item.after(200, CONTACTS, HIGH, NOW);
        assert_eq!(item.after(200, CALENDARS, HIGH, hours(24)).0.burst, 100, "a proposal of yesterday");
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
