//! Simulates a week of a million installations with the schedule's own functions and a simulated clock.

use std::time::Duration;

use shared::domain::clock::Millis;
use shared::token::schedule::{Freshness, freshness, next_refresh};

use crate::pairs::float;
use crate::report::{Row, Target};

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const LIFE: Duration = Duration::from_secs(86_399);
const DAYS: usize = 7;
const MINUTES: usize = DAYS * 1_440;
/// The number of refreshes that one invocation completes in a minute: 16 at once, each taking a second.
const CAPACITY: usize = 16 * 60;
/// The number of writes of a refresh: the claim and the commit.
const WRITES: f64 = 2.0;

/// The result of a week.
struct Week {
    busiest: usize,
    refreshes: usize,
    late: usize,
    longest_wait: usize,
}

/// Simulates installations of all ages, as they are after the first days. Each minute has a tick for the installations
/// that are due. In a minute at most as many refreshes are done as `shards` invocations can complete.
fn week(installations: usize, shards: usize) -> Week {
    let mut random = fastrand::Rng::with_seed(7);
    let mut agenda: Vec<Vec<(i64, u32)>> = vec![Vec::new(); MINUTES + 2 * 1_440];
    let minute_of = |at: Millis| usize::try_from(at.0 / MINUTE).unwrap_or(0);
    // Before the week begins, every installation runs for three days by the rules, from an install at a random instant.
    // The ages are then those of a running system.
    let begin = Millis(4 * DAY);
    for installation in 0..u32::try_from(installations).expect("a million") {
        let mut issued = Millis(random.i64(0..DAY));
        let due = loop {
            let due = next_refresh(issued, issued + LIFE, random.f64());
            if due >= begin {
                break due;
            }
            issued = due;
        };
        let _ = installation;
        let expires = (issued + LIFE).0 - begin.0;
        agenda[minute_of(Millis(due.0 - begin.0))].push((expires, installation));
    }
    let (mut busiest, mut refreshes, mut late, mut longest_wait) = (0, 0, 0, 0);
    let mut waiting: std::collections::VecDeque<(usize, i64, u32)> = std::collections::VecDeque::new();
    for minute in 0..MINUTES {
        let due = std::mem::take(&mut agenda[minute]);
        busiest = busiest.max(due.len());
        waiting.extend(due.into_iter().map(|(expires, installation)| (minute, expires, installation)));
        // The tick at the end of the minute.
        let tick = i64::try_from(minute + 1).expect("a week") * MINUTE;
        for _ in 0..waiting.len().min(CAPACITY * shards) {
            let Some((since, expires, installation)) = waiting.pop_front() else { break };
            let now = Millis(tick + random.i64(0..MINUTE));
            longest_wait = longest_wait.max(minute + 1 - since);
            let issued = Millis(expires) - LIFE;
            late += usize::from(freshness(issued, Millis(expires), now) != Freshness::Fresh);
            refreshes += 1;
            let next = next_refresh(now, now + LIFE, random.f64());
            agenda[minute_of(next)].push(((now + LIFE).0, installation));
        }
    }
    Week { busiest, refreshes, late: late + waiting.len(), longest_wait }
}

/// The figures of the week.
pub(crate) fn simulate(quick: bool) -> Vec<Row> {
    // With fewer installations, chance alone makes the busiest minute of a week half as busy again.
    let (installations, shards) = if quick { (400_000, 1) } else { (1_000_000, 2) };
    let week = week(installations, shards);
    let mean = float(week.refreshes) / float(MINUTES);
    let a_day = float(week.refreshes) / float(DAYS) / float(installations);
    let of = format!("{installations} installations, all in use, for {DAYS} days");
    vec![
        Row::count(
            "schedule.busiest",
            "none",
            &format!("{of}: busiest minute over the mean"),
            Target::AtMost(1.5),
            float(week.busiest) / mean,
        )
        .with_remark(format!("{} against {mean:.0} refreshes", week.busiest)),
        Row::count("schedule.late", "none", "the same: refreshes late", Target::Exactly(0.0), float(week.late)).with_remark(
            format!(
                "of {}, done by {shards} invocation(s) a minute of {CAPACITY} refreshes each, by tick {} after it was due at the latest",
                week.refreshes, week.longest_wait
            ),
        ),
        Row::count("schedule.writes", "none", "the same: writes an installation and day, 2.05 a refresh", Target::Told, a_day * WRITES)
            .with_remark(format!("{a_day:.3} refreshes")),
    ]
}
