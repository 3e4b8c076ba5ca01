//! Simulates a week of a million installations of a hundred thousand agencies, with the schedule's own functions and a
//! simulated clock.

use std::collections::VecDeque;
use std::time::Duration;

use shared::domain::clock::Millis;
use shared::domain::pace::installations_carried;
use shared::domain::resource::Kind;
use shared::token::schedule::{Freshness, backoff, freshness, next_refresh, urgency};

use crate::pairs::float;
use crate::report::{Row, Target};

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const LIFE: Duration = Duration::from_secs(86_399);
const DAYS: usize = 7;
const MINUTES: usize = DAYS * 1_440;
/// The number of renewals that one invocation completes in a minute: 16 at once, each taking a second.
const CAPACITY: usize = 16 * 60;
/// The number of writes of a renewal: the claim and the commit, and what `refresh.writes` counts beside them.
const WRITES: f64 = 2.05;
/// The locations of an agency are installed together, within this time.
const BULK: i64 = 10 * MINUTE;
/// One in so many renewals fails, and is tried again by the rules of failures.
const FAILING: u32 = 100;

/// The simulated installations, and what serves them.
#[derive(Clone, Copy)]
struct World {
    /// Installations of all kinds.
    installations: u32,
    /// The agencies among them. Every second location has a token that is minted from its agency's token. All others have
    /// a refresh token of their own.
    agencies: u32,
    /// The invocations of a minute.
    invocations: usize,
    /// The agencies were installed within so many days, the last ones three days before the week begins.
    installed_within: i64,
    /// The token requests of a minute, if the token endpoint has a pace.
    pace: Option<u32>,
}

impl World {
    /// Returns true if a token of this installation costs a request to the token endpoint.
    fn uses_token_endpoint(self, installation: u32) -> bool {
        installation < self.agencies || installation.is_multiple_of(2)
    }
}

/// One installation that waits for its next renewal.
#[derive(Clone, Copy)]
struct Waiting {
    installation: u32,
    failures: u32,
    /// The instant at which its token ends, after the begin of the week.
    expires: i64,
}

/// The result of a week.
#[derive(Default)]
struct Week {
    /// The most renewals that fell due in one minute.
    busiest: usize,
    renewals: usize,
    token_requests: usize,
    /// The most token requests in one minute.
    most_token_requests: usize,
    late: usize,
    /// The agencies among the late ones.
    late_agencies: usize,
    /// The installations that the schedule has forgotten.
    lost: usize,
    longest_wait: usize,
}

/// Simulates installations of all ages, as they are after the first days. Each minute has a tick for the installations
/// that are due.
fn week(world: World) -> Week {
    let mut random = fastrand::Rng::with_seed(7);
    let mut agenda: Vec<Vec<Waiting>> = vec![Vec::new(); MINUTES + 2 * 1_440];
    let minute_of = |at: i64| usize::try_from(at / MINUTE).unwrap_or(0);
    // Before the week begins, every installation runs for at least three days by the rules, from an install at a random
    // instant.
    let begin = Millis((world.installed_within + 3) * DAY);
    let installs: Vec<i64> = (0..world.agencies).map(|_| random.i64(0..world.installed_within * DAY)).collect();
    for installation in 0..world.installations {
        let agency = installs[installation as usize % installs.len()];
        let is_agency = installation < world.agencies;
        let mut issued = Millis(if is_agency { agency } else { agency + random.i64(0..BULK) });
        let due = loop {
            let due = next_refresh(issued, issued + LIFE, random.f64());
            if due >= begin {
                break due;
            }
            issued = due;
        };
        let expires = (issued + LIFE).0 - begin.0;
        agenda[minute_of(due.0 - begin.0)].push(Waiting { installation, failures: 0, expires });
    }
    let mut week = Week::default();
    let mut waiting: VecDeque<(usize, Waiting)> = VecDeque::new();
    for minute in 0..MINUTES {
        let due = std::mem::take(&mut agenda[minute]);
        week.busiest = week.busiest.max(due.len());
        waiting.extend(due.into_iter().map(|due| (minute, due)));
        // The tick at the end of the minute.
        let tick = i64::try_from(minute + 1).expect("a week") * MINUTE;
        let mut token_requests = 0;
        if world.pace.is_some() {
            waiting.make_contiguous().sort_by_key(|(since, due)| {
                let kind = if due.installation < world.agencies { Kind::Company } else { Kind::Location };
                urgency(false, kind, Millis(i64::try_from(*since).expect("a week")))
            });
        }
        let mut without_a_place = VecDeque::new();
        for _ in 0..waiting.len().min(CAPACITY * world.invocations) {
            let Some((since, due)) = waiting.pop_front() else { break };
            let needs_a_place = world.uses_token_endpoint(due.installation);
            if needs_a_place && world.pace.is_some_and(|pace| token_requests >= pace as usize) {
                without_a_place.push_back((since, due));
                continue;
            }
            let now = Millis(tick + random.i64(0..MINUTE));
            week.longest_wait = week.longest_wait.max(minute + 1 - since);
            token_requests += usize::from(world.uses_token_endpoint(due.installation));
            if random.u32(..FAILING) == 0 {
                let failures = due.failures + 1;
                let next = backoff(now, failures, random.f64());
                agenda[minute_of(next.0)].push(Waiting { failures, ..due });
                continue;
            }
            let expires = Millis(due.expires);
            let is_late = freshness(expires - LIFE, expires, now) != Freshness::Fresh;
            week.late += usize::from(is_late);
            week.late_agencies += usize::from(is_late && due.installation < world.agencies);
            week.renewals += 1;
            let next = next_refresh(now, now + LIFE, random.f64());
            agenda[minute_of(next.0)].push(Waiting { failures: 0, expires: (now + LIFE).0, ..due });
        }
        without_a_place.append(&mut waiting);
        waiting = without_a_place;
        week.token_requests += token_requests;
        week.most_token_requests = week.most_token_requests.max(token_requests);
    }
    if world.pace.is_none() {
        week.late += waiting.len();
    }
    let scheduled = agenda[MINUTES..].iter().map(Vec::len).sum::<usize>() + waiting.len();
    week.lost = world.installations as usize - scheduled;
    week
}

/// The figures of a token endpoint that takes few requests: all installations that its pace carries are renewed in time, and
/// agencies are even if there are more.
fn paced() -> Vec<Row> {
    let rows = [60, 5].map(|pace| {
        let carried = u32::try_from(installations_carried(pace)).expect("few");
        // One in a hundred tries fails, and a pace is never used to its end.
        let alive = carried / 100 * 95;
        let world = |installations: u32| World {
            // Every installation has a refresh token of its own, if all are agencies; here a tenth are.
            installations,
            agencies: installations / 10,
            invocations: 2,
            installed_within: 30,
            pace: Some(pace),
        };
        // Half of those that are no agencies are minted and need no place.
        let of = |own: u32| own * 20 / 11;
        let [full, over] = [of(alive), of(carried * 2)].map(|installations| week(world(installations)));
        let row = |what: &str, measured: usize| {
            let what = format!("token endpoint at {pace} a minute: {what}");
            Row::count("schedule.paced", "none", &what, Target::Exactly(0.0), float(measured))
        };
        [
            row(&format!("renewals late of {alive} installations with a grant of their own"), full.late)
                .with_remark(format!("the pace carries {carried}; longest wait {} min", full.longest_wait)),
            row(&format!("agencies late of {} such installations", carried * 2), over.late_agencies)
                .with_remark(format!("{} of {} renewals late, all of locations", over.late, over.renewals)),
            row("installations lost", full.lost + over.lost),
        ]
    });
    rows.into_iter().flatten().collect()
}

/// The figures of the week, with a token endpoint that takes any number of requests, and with one that takes few.
pub(crate) fn simulate(quick: bool) -> Vec<Row> {
    // With fewer installations, chance alone makes the busiest minute of a week half as busy again.
    let (installations, agencies, invocations) = if quick { (400_000, 40_000, 1) } else { (1_000_000, 100_000, 2) };
    let world = World { installations, agencies, invocations, installed_within: 30, pace: None };
    let of_one_day = week(World { installed_within: 1, ..world });
    let week = week(world);
    let of = format!("{installations} installations of {agencies} agencies, all in use, for {DAYS} days");
    let installations = float(installations as usize);
    let over_mean = |week: &Week| float(week.busiest) / (float(week.renewals) / float(MINUTES));
    let mean = float(week.renewals) / float(MINUTES);
    let a_day = float(week.renewals) / float(DAYS) / installations;
    let row = |name, what: &str, target, measured| Row::count(name, "none", what, target, measured);
    let mut rows = vec![
        row(
            "schedule.busiest",
            &format!("{of}: busiest minute over the mean"),
            Target::AtMost(1.3),
            over_mean(&week),
        )
        .with_remark(format!("{} against {mean:.0} renewals, installed within 30 days", week.busiest)),
        row("schedule.day", "the same if all were installed within one day", Target::Told, over_mean(&of_one_day)),
        row(
            "schedule.lost",
            "the same: installations lost",
            Target::Exactly(0.0),
            float(week.lost + of_one_day.lost),
        ),
        row("schedule.late", "the same: renewals late", Target::Exactly(0.0), float(week.late + of_one_day.late))
            .with_remark(format!(
                "of {}, one in {FAILING} tries fails; done by {invocations} invocation(s) a minute of {CAPACITY} renewals \
                 each, by tick {} after it was due at the latest",
                week.renewals, week.longest_wait
            )),
        row(
            "schedule.tokens",
            "the same: token requests a minute",
            Target::Told,
            float(week.token_requests) / float(MINUTES),
        )
        .with_remark(format!("{} in the busiest; the other tokens are minted", week.most_token_requests)),
        row("schedule.writes", "the same: writes an installation and day, 2.05 a renewal", Target::Told, a_day * WRITES)
            .with_remark(format!("{a_day:.3} renewals")),
    ];
    rows.extend(paced());
    rows
}
