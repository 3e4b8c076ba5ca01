//! The freshness of a token, and the next time at which the schedule looks at an installation. All functions are pure;
//! randomness is a parameter. The schedule's own times have jitter, so that many installations that were stored or that
//! failed together are not tried together (thundering herd).

use std::time::Duration;

use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, SealedAccess};
use crate::domain::resource::Kind;
use crate::domain::status::Status;

/// An access token with more than this time left is fresh.
const MARGIN: Duration = Duration::from_mins(1);
/// For a token with a short life, its whole life divided by this number takes the place of [`MARGIN`].
const MARGIN_PART: u32 = 5;

/// The schedule keeps installations fresh that were used or installed within this time ("hot" installations).
pub const HOT: Duration = Duration::from_hours(168);
/// The time between two renewals of other ("cold") installations. The time is long because each rotation is an
/// exposure, and a refresh token lives for a year.
const COLD: Duration = Duration::from_hours(1440);
/// A cold installation is refreshed if its pair is older than this.
pub const OLDEST_COLD: Duration = Duration::from_hours(45 * 24);
/// The least time between two tries of a paused or blocked installation on callers' requests. The schedule tries far
/// more seldom.
pub const RETRY_ON_DEMAND: Duration = Duration::from_mins(1);
/// The least time between two refreshes that are forced by a refused access token.
pub const FORCED_APART: Duration = Duration::from_mins(1);

/// The least time between two refreshes that are forced by a refusal with an unclassified text.
pub const DOUBTED_APART: Duration = Duration::from_hours(1);
/// An access token that has worked within this time is not renewed because of a refusal with an unclassified text.
pub const WORKED_LATELY: Duration = Duration::from_mins(5);
/// A location or company that the platform does not know is given up after this time at the earliest.
const GONE: Duration = Duration::from_hours(24);
/// A location or company is given up only after the platform has said this many times that it does not know it.
const GONE_TRIES: u32 = 3;

/// The platform's grace. For this time the platform answers again to a refresh token that it has already taken (its
/// changelog: "30 seconds").
pub const GRACE: Duration = Duration::from_secs(30);
/// The time after which a caller may come back during a search: by then about the next tick has asked some companies.
pub(super) const SEARCH_RETRY: Duration = Duration::from_secs(30);
/// A search older than this is over, whatever its outcome.
pub(super) const SEARCH_OVER: Duration = Duration::from_mins(15);

/// The freshness of an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The token may be used.
    Fresh,
    /// The token still works, but is renewed before it is used if a renewal is possible.
    Stale,
    /// The token may no longer be used.
    Expired,
}

/// The freshness at `now` of a token that was granted at `issued` and ends at `expires`.
pub fn freshness(issued: Millis, expires: Millis, now: Millis) -> Freshness {
    let margin = MARGIN.min(expires.since(issued) / MARGIN_PART);
    if now >= expires {
        Freshness::Expired
    } else if expires.since(now) <= margin {
        Freshness::Stale
    } else {
        Freshness::Fresh
    }
}

/// The access token of an installation if it is fresh.
pub fn fresh_access(stored: &Installation, now: Millis) -> Option<&SealedAccess> {
    stored.access().filter(|access| freshness(access.issued_at, access.expires_at, now) == Freshness::Fresh)
}

/// The end of the platform's grace, if the refresh token was, as far as is known, presented a moment ago and its answer
/// is missing. The platform repeats the answer for a short time only, so the token is presented again although the access
/// token still works.
#[must_use]
pub fn unanswered_until(stored: &Installation, now: Millis) -> Option<Millis> {
    let is_open = match stored.status() {
        Status::Uncertain => true,
        Status::Refreshing => stored.lease().is_none_or(|lease| lease.ends_at <= now),
        Status::Active | Status::Suspended | Status::Blocked | Status::NeedsReauthorization | Status::Revoked => false,
    };
    stored.schedule().tried_at.map(|at| at + GRACE).filter(|until| is_open && now < *until)
}

/// After so many failures in a row, the presentations of a token have no priority over others any more: the answers are
/// probably not lost on their way, and one location must not take the places of all.
const MOST_URGENT: u32 = 3;

/// Returns true if a presentation of a token after so many failures in a row may be the urgent one whose answer is lost.
#[must_use]
pub fn is_urgent(failures: u32) -> bool {
    failures < MOST_URGENT
}

/// The order of due renewals while the token endpoint has a pace, the least first: refresh tokens whose answer was lost a
/// moment ago, then companies, because the tokens of many locations depend on them, then those that have been due for longest.
pub fn urgency(is_lost: bool, kind: Kind, due_at: Millis) -> impl Ord {
    (!is_lost, kind != Kind::Company, due_at)
}

/// Returns true if the platform has said for long enough and often enough that it does not know a location or company.
pub fn is_gone(since: Millis, tries: u32, now: Millis) -> bool {
    tries >= GONE_TRIES && now.since(since) >= GONE
}

/// A uniformly random instant between two parts (in hundredths) of a span that begins at `from`.
fn within(from: Millis, span: Duration, hundredths: std::ops::Range<u32>, random: f64) -> Millis {
    let (start, end) = (f64::from(hundredths.start) / 100.0, f64::from(hundredths.end) / 100.0);
    from + span.mul_f64(start + (end - start) * random.clamp(0.0, 1.0))
}

/// The time of a hot installation's next refresh: at 60–80 % of the token's life. Installations that were installed in
/// one hour are thus not refreshed in one hour.
pub fn next_refresh(issued: Millis, expires: Millis, random: f64) -> Millis {
    within(issued, expires.since(issued), 60..80, random)
}

/// The time of an imported installation's first refresh. Many pairs of one import may be due already, so their refreshes
/// are distributed over `spread` (thundering herd).
pub fn first_refresh(issued: Millis, expires: Millis, now: Millis, spread: Duration, random: f64) -> Millis {
    let due_at = next_refresh(issued, expires, random);
    if due_at > now { due_at } else { within(now, spread, 0..100, random) }
}

/// The time of a cold installation's next refresh: after about 60 days.
pub fn next_cold(now: Millis, random: f64) -> Millis {
    within(now, COLD, 90..110, random)
}

/// The time of the next try after a failure: 1 to 30 minutes, doubling, full jitter (AWS Architecture Blog,
/// "Exponential Backoff And Jitter"). A floor of a tenth keeps the next try from following at once.
pub fn backoff(now: Millis, failures: u32, random: f64) -> Millis {
    let span = Duration::from_mins(1).saturating_mul(1 << failures.saturating_sub(1).min(5));
    within(now, span.min(Duration::from_mins(30)), 10..100, random)
}

/// The time from which a caller's request may try again after `failures` in a row: after 1 s, doubling up to 30 s. The
/// schedule waits longer, but a caller has nothing without the token.
pub fn on_demand(tried: Millis, failures: u32) -> Millis {
    if failures == 0 {
        tried
    } else {
        tried + Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
    }
}

/// The time at which the schedule presents a refresh token again whose answer is missing. The first time is at once,
/// inside the platform's 30 s of grace. Later times are those of any failure.
pub fn after_unknown(now: Millis, failures: u32, random: f64) -> Millis {
    if failures <= 1 { now + Duration::from_secs(1) } else { backoff(now, failures - 1, random) }
}

/// The time of the next try of a refused installation that must not be marked now: after 2.5 to 5 minutes, doubling up
/// to 30.
pub fn after_refused(now: Millis, failures: u32, random: f64) -> Millis {
    let span = Duration::from_mins(5).saturating_mul(1 << failures.saturating_sub(1).min(3));
    within(now, span.min(Duration::from_mins(30)), 50..100, random)
}

/// The time of the next try of a refused installation whose live pair may be on the rescue queue. The first delay is 10
/// to 20 s, because a rescued pair is stored in seconds. Later delays are those of any failure.
pub fn after_rescue(now: Millis, failures: u32, random: f64) -> Millis {
    if failures <= 1 { within(now, Duration::from_secs(20), 50..100, random) } else { backoff(now, failures, random) }
}

/// The time of a paused installation's next try: after 6 to 24 hours.
pub fn after_suspended(now: Millis, random: f64) -> Millis {
    within(now, Duration::from_hours(24), 25..100, random)
}

/// The time of the next try after an unclassified answer: after 1 to 4 hours.
pub fn after_blocked(now: Millis, random: f64) -> Millis {
    within(now, Duration::from_hours(4), 25..100, random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn a_token_is_stale_in_its_last_minute_or_the_last_fifth_of_a_short_life() {
        for (life, left, freshness_) in [
            (DAY, 60_001, Freshness::Fresh),
            (DAY, 60_000, Freshness::Stale),
            (DAY, 1, Freshness::Stale),
            (DAY, 0, Freshness::Expired),
            (DAY, -1, Freshness::Expired),
            (60_000, 60_000, Freshness::Fresh),
            (60_000, 12_000, Freshness::Stale),
        ] {
            assert_eq!(freshness(Millis(0), Millis(life), Millis(life - left)), freshness_, "{life} {left}");
        }
    }

    #[test]
    fn what_the_platform_does_not_know_is_given_up_after_a_day_of_it() {
        for (hours, tries, gone) in [(0, 1, false), (24, 2, false), (23, 9, false), (24, 3, true), (99, 3, true)] {
            assert_eq!(is_gone(Millis(0), tries, Millis(hours * HOUR)), gone, "{hours} h, {tries} times");
        }
    }

    #[test]
    fn instants_stay_within_their_bounds() {
        let minutes = |m: i64| m * 60_000;
        for random in [0.0, 0.5, 1.0] {
            let refresh = next_refresh(Millis(0), Millis(DAY), random).0;
            assert!((DAY * 6 / 10 - 1..=DAY * 8 / 10).contains(&refresh), "{refresh}");
            for (failures, least, most) in
                [(0, 6_000, minutes(1)), (1, 6_000, minutes(1)), (3, 24_000, minutes(4)), (40, minutes(3), minutes(30))]
            {
                let after = backoff(Millis(0), failures, random).0;
                assert!((least - 1..=most).contains(&after), "{failures} failures: {after}");
            }
        }
        assert!(after_unknown(Millis(0), 1, 1.0).0 < 30_000, "inside the grace");
        for (failures, least, most) in
            [(1, 150_000, minutes(5)), (2, minutes(5), minutes(10)), (9, minutes(15), minutes(30))]
        {
            for random in [0.0, 1.0] {
                let after = after_refused(Millis(0), failures, random).0;
                assert!((least - 1..=most).contains(&after), "{failures} refusals: {after}");
            }
        }
    }

    #[test]
    fn the_first_refreshes_of_an_import_are_spread() {
        let (now, spread) = (Millis(10 * DAY), Duration::from_hours(6));
        for (random, after) in [(0.0, 0), (0.5, 3 * HOUR), (1.0, 6 * HOUR)] {
            assert_eq!(first_refresh(Millis(0), Millis(0), now, spread, random), Millis(now.0 + after), "{random}");
            let issued = Millis(now.0 - HOUR);
            let expires = Millis(issued.0 + DAY);
            let due_at = first_refresh(issued, expires, now, spread, random);
            assert_eq!(due_at, next_refresh(issued, expires, random), "a pair that is not due yet");
        }
    }

    const HOUR: i64 = 3_600_000;

    /// The number of instants in the busiest stretch of `length` that begins with one of the instants.
    fn busiest(instants: &mut [i64], length: i64) -> usize {
        instants.sort_unstable();
        let within = |i: usize| instants.partition_point(|at| *at < instants[i] + length) - i;
        (0..instants.len()).map(within).max().unwrap_or(0)
    }

    #[test]
    fn a_hundred_thousand_installs_in_an_hour_are_no_herd_the_next_days() {
        let mut random = fastrand::Rng::with_seed(19);
        let mut issued: Vec<i64> = (0..100_000).map(|i| i * HOUR / 100_000).collect();
        for day in 1..=3 {
            let next = |at: &i64| next_refresh(Millis(*at), Millis(at + DAY), random.f64()).0;
            let mut due: Vec<i64> = issued.iter().map(next).collect();
            let most = busiest(&mut due, 60_000);
            assert!(most <= 500, "day {day}: {most} in a minute; 100,000 over 4 h are 417");
            assert!(due[99_000] - due[1_000] >= 4 * HOUR, "day {day}");
            issued = due;
        }
    }

    #[test]
    fn after_eight_hours_without_the_platform_nothing_has_expired_and_nobody_stampedes() {
        let mut random = fastrand::Rng::with_seed(8);
        // The worst moment: all were installed within an hour, and the platform fails when the first are due.
        let (down, up) = (DAY * 6 / 10, DAY * 6 / 10 + 8 * HOUR);
        let mut recovered = Vec::new();
        for i in 0..100_000_i64 {
            let issued = i * HOUR / 100_000;
            let expires = issued + DAY;
            let mut at = next_refresh(Millis(issued), Millis(expires), random.f64());
            let mut failures = 0;
            while (down..up).contains(&at.0) {
                failures += 1;
                at = backoff(at, failures, random.f64());
            }
            assert!(at.0 < expires, "installed at {issued}, renewed at {at}");
            recovered.push(at.0);
        }
        let most = busiest(&mut recovered, 60_000);
        assert!(most <= 7_000, "{most} in a minute; evenly spread over the longest pause of 30 min they were 3,333");
    }
}
