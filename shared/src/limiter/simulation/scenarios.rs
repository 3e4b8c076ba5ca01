//! Chosen worlds: the cost of a permit in calls, load near the limit, clocks that differ, and shares.

use std::time::Duration;

use super::START;
use super::world::{Arrival, World, four_processes};
use crate::domain::limits::Limits;

/// `count` requests at the same instant, in turns over `processes`.
fn volley(at: i64, count: usize, processes: usize, within_share: bool) -> impl Iterator<Item = Arrival> + Clone {
    (0..count).map(move |i| Arrival { at, process: i % processes, within_share })
}

/// The choice of the process, of four, that a request comes to.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    InTurns,
    ByChance,
    /// One process, except for this part of the requests.
    MostlyOne(f64),
}

/// Requests at `per_second`, evenly or by chance, over four processes.
fn traffic(per_second: f64, seconds: f64, choice: Choice) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(5);
    let (mut at, mut arrivals) = (0.0, Vec::new());
    while at < seconds {
        at += if choice == Choice::InTurns { 1.0 } else { -(1.0 - random.f64()).ln() } / per_second;
        let process = match choice {
            Choice::InTurns => arrivals.len() % 4,
            Choice::ByChance => random.usize(0..4),
            Choice::MostlyOne(others) => {
                if random.f64() < others {
                    random.usize(1..4)
                } else {
                    0
                }
            }
        };
        let at = Duration::from_secs_f64(at).as_millis().try_into().expect("short");
        arrivals.push(Arrival { at, process, within_share: false });
    }
    arrivals
}

#[test]
fn an_admitted_request_costs_little_more_than_one_call() {
    let bursts = (0..20).flat_map(|i| volley(i * 11_000, 100, 4, false)).collect();
    let spread = (0..20).flat_map(|i| (0..10).flat_map(move |j| volley(i * 11_000 + j * 40, 10, 4, false))).collect();
    for (name, arrivals, most) in [
        ("sparse, even", traffic(8.0, 300.0, Choice::InTurns), 1.05),
        ("sparse, by chance", traffic(8.0, 300.0, Choice::ByChance), 1.05),
        ("near the limit, even", traffic(9.5, 300.0, Choice::InTurns), 1.05),
        ("near the limit, by chance", traffic(9.5, 300.0, Choice::ByChance), 1.10),
        ("a few", traffic(0.3, 300.0, Choice::ByChance), 1.05),
        ("mostly one, 1 of 10 others", traffic(8.0, 300.0, Choice::MostlyOne(0.1)), 1.05),
        ("mostly one, 1 of 100 others", traffic(8.0, 300.0, Choice::MostlyOne(0.01)), 1.05),
        ("bursts of 100", bursts, 1.05),
        ("bursts of 100 within half a second", spread, 1.05),
    ] {
        let is_even = name.ends_with("even");
        let record = four_processes(arrivals, false).run();
        let calls = record.calls_per_admitted();
        assert!(calls <= most, "{name}: {calls:.3} calls, {} failed", record.failed);
        assert!(record.most_in_any(10_000) <= 100, "{name}");
        assert!(!is_even || record.refused * 50 < record.sent.len(), "{name}: {} refused", record.refused);
    }
}

#[test]
fn more_processes_than_the_limit_cost_little_more_than_one_call() {
    let mut random = fastrand::Rng::with_seed(5);
    let arrivals =
        (0..600_000).step_by(500).map(|at| Arrival { at, process: random.usize(0..300), within_share: false });
    let record = World { clocks: vec![0; 300], ..four_processes(arrivals.collect(), false) }.run();
    let calls = record.calls_per_admitted();
    assert!(calls <= 1.35 && record.refused == 0, "{calls:.3} calls, {} failed", record.failed);
}

/// Requests of one process, one each `every` ms, that pauses for `pause` ms after each `run` ms.
fn steady(every: usize, run: i64, pause: i64, length: i64) -> Vec<Arrival> {
    let within = |at: &i64| at % (run + pause) < run;
    let arrival = |at| Arrival { at, process: 0, within_share: false };
    (0..length).step_by(every).filter(within).map(arrival).collect()
}

#[test]
fn a_steady_process_takes_permits_ahead_of_need_and_wastes_few() {
    let thousand = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 200_000 };
    for (name, arrivals, most, most_waited) in [
        // Only those of the first second and a few later ones wait for a write.
        ("12 a second", steady(83, 120_000, 0, 120_000), 0.18, 0.01),
        ("8 a second", steady(125, 120_000, 0, 120_000), 0.26, 0.01),
        // Permits lapse in each pause. The credit for them bounds the saving.
        ("12 a second, with pauses of 2 s after 3 s", steady(83, 3_000, 2_000, 300_000), 0.9, 0.9),
        ("one volley after the other", (0..60).flat_map(|i| volley(i * 1_900, 30, 1, false)).collect(), 0.2, 1.0),
    ] {
        let world = World { limits: thousand, clocks: vec![0], ..four_processes(arrivals, false) };
        let record = world.run();
        let (calls, sent) = (record.calls_per_admitted(), record.sent.len());
        assert!(calls <= most, "{name}: {calls:.3} calls for each request");
        let lapsed = record.counted as usize - sent;
        assert!(lapsed <= 8 + sent / 50, "{name}: {lapsed} of {sent} lapsed");
        assert_eq!(record.refused, 0, "{name}");
        let waited =
            f64::from(u32::try_from(record.waited).expect("few")) / f64::from(u32::try_from(sent).expect("few"));
        assert!(waited <= most_waited, "{name}: {waited:.3} of the requests waited for a write");
    }
    // Processes that only seem to call steadily lose few permits.
    let straggle = |process: usize| {
        let volley = (0..12).map(|n| n * 80).chain([2_000]);
        (0..15).flat_map(move |round| {
            volley.clone().map(move |at| Arrival { at: round * 4_000 + at, process, within_share: false })
        })
    };
    let record = World { limits: thousand, ..four_processes((0..4).flat_map(straggle).collect(), false) }.run();
    let lapsed = record.counted as usize - record.sent.len();
    assert!(lapsed <= 4 * 8 + record.sent.len() / 50, "{lapsed} of {} lapsed", record.sent.len());
    // A steady process does not make the writes of the others fail.
    for others in [1_000, 500, 200] {
        let other = |process| (0..60_000).step_by(others).map(move |at| Arrival { at, process, within_share: false });
        let arrivals = steady(83, 60_000, 0, 60_000).into_iter().chain((1..4).flat_map(other)).collect();
        let record = World { limits: thousand, ..four_processes(arrivals, false) }.run();
        let (failed, sent) = (record.failed, record.sent.len());
        assert!(failed * 20 <= sent, "{failed} writes for {sent} requests failed, one each {others} ms");
        assert!(record.ahead * 3 > sent, "{} of {sent} taken ahead", record.ahead);
    }
    // Of a small limit nothing is taken ahead.
    let record = four_processes(steady(400, 60_000, 0, 60_000), false).run();
    assert_eq!((record.counted as usize, record.ahead), (record.sent.len(), 0));
}

#[test]
fn under_pressure_nearly_all_that_may_leave_does() {
    let arrivals = (0..40).flat_map(|at| volley(at, 10, 4, false)).collect();
    let record = four_processes(arrivals, true).run();
    let first = record.sent[0].at;
    let in_25_seconds = record.sent.iter().filter(|sent| sent.at < first + 25_000).count();
    assert_eq!((in_25_seconds, record.most_in_any(10_000)), (300, 100));
    assert!(record.failed > 0, "the processes did not compete");

    // A permit is counted for 10.4 to 10.6 s instead of 10, so about 95 of 100 evenly spread requests are admitted.
    let steady = four_processes(traffic(12.0, 120.0, Choice::InTurns), false).run();
    assert!(steady.sent.len() >= 1_120, "{} of 1200", steady.sent.len());
    assert!(steady.most_in_any(10_000) <= 100);
}

/// The most requests in any 10 s from two processes whose clocks are `apart` ms apart and that always want permits.
fn at_most_with_clocks_apart(apart: i64) -> usize {
    let arrivals = (0..60_000).step_by(5).flat_map(|at| volley(at, 2, 2, false)).collect();
    let worlds = (0..20).map(|seed| {
        let clocks = vec![-apart / 2, apart - apart / 2];
        World { clocks, latency: 40, seed, ..four_processes(Vec::clone(&arrivals), false) }
    });
    worlds.map(|world| world.run().most_in_any(10_000)).max().expect("some")
}

#[test]
fn the_limit_holds_to_the_edge_of_the_clock_tolerance_and_not_beyond() {
    let edge = four_processes(Vec::new(), false).clock_tolerance();
    assert_eq!(edge, 300);
    assert_eq!(at_most_with_clocks_apart(0), 100);
    assert_eq!(at_most_with_clocks_apart(edge), 100);
    let beyond = at_most_with_clocks_apart(1_000);
    assert!(beyond > 100, "{beyond} with clocks that are 1 s apart: the oracle is blind");
}

#[test]
fn a_share_holds_for_requests_that_waited_behind_a_full_resource() {
    // Others use up the resource. Ten requests of the share wait for it, and nine more wait for the share, whose first
    // permits expire 0.2 s before the resource has places.
    let full = volley(0, 100, 1, false);
    for waited in [100, 300, 1_000, 5_000, 9_000, 10_000] {
        let arrivals = full.clone().chain(volley(waited, 10, 2, true)).chain(volley(waited + 50, 9, 2, true));
        let world = World { clocks: vec![0; 2], ..four_processes(arrivals.collect(), true) };
        let record = world.run();
        assert_eq!((record.sent.len(), record.most_of_share()), (119, 10), "{waited}: {record:?}");
        assert!(record.exchanged > 0, "{waited}: no permit of the share was too old");
    }
}

#[test]
fn a_share_wastes_no_permit_of_its_resource() {
    let arrivals = (0..60_000).step_by(150).flat_map(|at| volley(at, 1, 3, true)).collect();
    let world = World { clocks: vec![0; 3], share: 10, ..four_processes(arrivals, false) };
    let record = world.run();
    assert!(record.refused > 300 && record.sent.len() > 50, "{} sent, {} refused", record.sent.len(), record.refused);
    assert_eq!((record.counted as usize, record.most_of_share()), (record.sent.len(), 10));
}

#[test]
fn a_raised_limit_is_used_and_a_lowered_one_is_kept_from_its_write_on() {
    // 500 in 10 s are stated for 40 s, then 25, then 100.
    let stated = vec![(0, 500), (40_000, 25), (80_000, 100)];
    let world = World { stated, ..four_processes(traffic(60.0, 120.0, Choice::ByChance), false) };
    let record = world.run();
    assert_eq!(record.first_above_limit(10_000, 800), None, "{:?}", record.limits);
    let sent = |from: i64, to: i64| record.sent.iter().filter(|sent| (from..to).contains(&(sent.at - START))).count();
    let counts = [sent(10_000, 40_000), sent(50_000, 80_000), sent(90_000, 120_000)];
    assert!(counts[0] >= 1_300 && counts[1] >= 50 && counts[2] >= 200, "{counts:?}");
    let mut limits: Vec<_> = record.limits.iter().map(|(_, limit)| *limit).collect();
    limits.dedup();
    assert_eq!(limits, [100, 500, 25, 100]);
    assert!(record.updates <= 10, "{} updates: answers that were on their way propose the old limit", record.updates);
    assert!(record.calls_per_admitted() <= 1.1, "{:.3} calls, with updates", record.calls_per_admitted());
}
