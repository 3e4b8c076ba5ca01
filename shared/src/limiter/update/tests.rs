//! Tests of the changes to a limiter item after an answer of the platform.

use http::{HeaderMap, StatusCode};

use super::*;
use crate::domain::limits::{LimitPolicy, StatedLimits};

const DEFAULT: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
const NOW: Millis = Millis(1_800_000_000_000);
const HOUR: i64 = 3_600_000;

fn counters(used: u32) -> Counters {
    let newest = NOW.0 / 125;
    let day = Day { used, ends: Millis(NOW.0 + 5 * HOUR), end_confirmed: true };
    Counters {
        revision: 1,
        slot_ms: 125,
        newest,
        slots: vec![(newest, 3)],
        counted: 3,
        background: None,
        day,
        observed: None,
        proposal: None,
        lowered_at: None,
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
    let answer = Answer { endpoint: CONTACTS, sent_at: NOW, headers };
    update(&Snapshot::of(Some(of.clone()), DEFAULT.into(), NOW), &answer, NOW)
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
    fn after(&mut self, status: u16, endpoint: Option<&str>, stated: (u32, u64, u32), now: Millis) -> (Limits, bool) {
        self.after_request(status, endpoint, stated, now, now)
    }

    /// The same for an answer to a request of `sent_at`.
    fn after_request(
        &mut self,
        status: u16,
        endpoint: Option<&str>,
        stated: (u32, u64, u32),
        sent_at: Millis,
        now: Millis,
    ) -> (Limits, bool) {
        let (burst, seconds, daily) = stated;
        let limits =
            StatedLimits { burst: Some(burst), interval: Some(Duration::from_secs(seconds)), daily: Some(daily) };
        let headers =
            RateLimitHeaders { limits, refused: status == 429, remaining: Some(1), ..RateLimitHeaders::default() };
        let item = &mut self.0;
        let update =
            update(&Snapshot::of(Some(item.clone()), POLICY, now), &Answer { endpoint, sent_at, headers }, now);
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
        item.lowered_at = update.lowered_at.or(item.lowered_at);
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
                (200, Some("opportunities"), (500, 10, DAY), (100, 20, DAY), true),
                (200, CONTACTS, (500, 10, DAY), (500, 10, DAY), true),
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
            let now = NOW + Duration::from_secs(3 * index as u64);
            let seen = item.after(*status, *endpoint, *stated, now);
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
    let day =
        |left: &str, used| after(200, &[("x-ratelimit-daily-remaining", left)], &counters(used)).and_then(|c| c.day);
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
    let ends = |ms: i64, used| Some(DayChange::Replaced(Day { used, ends: Millis(NOW.0 + ms), end_confirmed: true }));
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
    assert_eq!(burst, Closed { until: Millis(NOW.0 + 10_550), by: LimitKind::Burst });
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
        assert_eq!((confirmed.day, confirmed.closed), (Some(DayChange::Used(200_000)), None), "until the known end");
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
    assert_eq!(without["contacts"], Millis(NOW.0 + 10_550), "a full interval");
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
    assert_eq!(names, ["contacts", "e1", "e2", "e3", "e4", "e5", "e6", "e7"], "the closure that ends first is dropped");
}
