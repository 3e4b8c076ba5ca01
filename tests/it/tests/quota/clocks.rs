//! Processes whose clocks differ.

use std::time::Duration;

use it::dynamo::Engine;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::limiter::clock_tolerance;

use crate::{START, location, most_in_any, process, report};

const LIMITS: Limits = Limits { burst: 20, interval: Duration::from_secs(10), daily: 200_000 };

pub(crate) async fn the_limit_holds_to_the_edge_of_the_clock_tolerance_and_not_beyond(engine: &Engine) {
    let tolerance = clock_tolerance(LIMITS);
    assert_eq!(tolerance, Duration::from_millis(300));
    for (apart, holds) in [(Duration::ZERO, true), (tolerance, true), (Duration::from_secs(1), false)] {
        let most = at_most(engine, apart).await;
        report(&format!("clocks {apart:?} apart: {most} of 20 in 10 s"));
        assert_eq!(most <= 20, holds, "{most} in 10 s, with clocks {apart:?} apart");
    }
}

/// The most requests that leave in any interval, measured by the platform's clock. Two processes take all permits that
/// they can. The process whose clock is behind sends its requests as late as allowed, the other one at once.
async fn at_most(engine: &Engine, apart: Duration) -> usize {
    let table = engine.table().await;
    let clocks = [Clock::manual(START), Clock::manual(START + apart)];
    let processes = clocks.each_ref().map(|clock| process(engine, &table, clock, LIMITS).0);
    let ahead = i64::try_from(apart.as_millis()).expect("short");
    let mut sent = Vec::new();
    for step in 0..1_600 {
        for number in [step % 2, (step + 1) % 2] {
            // A few permits at a time, so that both processes get permits of each window.
            for _ in 0..3 {
                let Ok(permit) = processes[number].take(&location(), None).await else { break };
                let Millis(at) = if number == 0 { permit.send_by } else { Millis(clocks[1].now().0 - ahead) };
                sent.push(at);
            }
        }
        for clock in &clocks {
            clock.advance(Duration::from_millis(20));
        }
    }
    sent.sort_unstable();
    assert!(sent.len() >= 60, "{} in 32 s", sent.len());
    most_in_any(&sent, 10_000)
}
