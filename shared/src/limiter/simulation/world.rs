//! Worlds to simulate, and the oracle: the record of the requests that left.

use std::time::Duration;

use crate::domain::limits::{LimitPolicy, Limits};
use crate::limiter::window::Window;

/// A request that comes to a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Milliseconds after the start.
    pub(super) at: i64,
    pub(super) process: usize,
    /// True if it needs a permit of the share, too.
    pub(super) within_share: bool,
}

/// A world to simulate. Times in milliseconds.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// The default limits.
    pub(super) limits: Limits,
    /// The burst limits that the platform's headers state, each from so many milliseconds after the start on. No headers
    /// are sent before the first one.
    pub(super) stated: Vec<(i64, u32)>,
    /// The burst limit of the share, in 10 s.
    pub(super) share: u32,
    /// Difference between the clock of each process and true time.
    pub(super) clocks: Vec<i64>,
    pub(super) arrivals: Vec<Arrival>,
    /// The longest way to the store and back.
    pub(super) latency: i64,
    /// Of a hundred answers of the store, this many are lost.
    pub(super) lost: u32,
    /// Of a hundred writes, this many are planned without a memory.
    pub(super) forgetful: u32,
    /// True if requests wait; else they are refused if no permit is available.
    pub(super) patient: bool,
    pub(super) seed: u64,
}

/// Four processes whose clocks agree, with 100 requests in 10 s.
pub(super) fn four_processes(arrivals: Vec<Arrival>, patient: bool) -> World {
    let limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
    World {
        limits,
        stated: vec![],
        share: 10,
        clocks: vec![0; 4],
        arrivals,
        latency: 6,
        lost: 0,
        forgetful: 0,
        patient,
        seed: 11,
    }
}

impl World {
    /// The limits of a share.
    pub(super) fn share_limits(&self) -> Limits {
        Limits { burst: self.share, interval: Duration::from_secs(10), daily: u32::MAX }
    }

    /// No stated limit is above the bound.
    pub(super) fn policy(&self) -> LimitPolicy {
        let most = self.stated.iter().map(|(_, burst)| *burst).max().unwrap_or(0).max(self.limits.burst);
        LimitPolicy { default: self.limits, bounds: Limits { burst: most, ..self.limits } }
    }

    pub(super) fn clock_tolerance(&self) -> i64 {
        Window::new(self.limits.interval).clock_tolerance_ms()
    }
}

/// A request that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sent {
    /// In true time.
    pub(super) at: i64,
    pub(super) within_share: bool,
}

/// The record of a run.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Ascending.
    pub(super) sent: Vec<Sent>,
    pub(super) refused: usize,
    /// Writes that the store received.
    pub(super) calls: usize,
    /// Writes of waiter queues whose condition failed.
    pub(super) failed: usize,
    /// Permits of the share that were too old to send on, and were exchanged.
    pub(super) exchanged: usize,
    /// Permits whose requests waited for the write.
    pub(super) waited: usize,
    /// Permits that no request wanted when they were granted.
    pub(super) ahead: usize,
    /// Permits of the resource that the day counts.
    pub(super) counted: u32,
    /// The burst limits of the resource that the store had, each with the time from which on it had them. Ascending.
    pub(super) limits: Vec<(i64, u32)>,
    /// Limit updates that the store received.
    pub(super) updates: usize,
}

impl Record {
    /// The most requests that left in any `interval`.
    pub(super) fn most_in_any(&self, interval: i64) -> usize {
        most_in_any(interval, self.sent.iter())
    }

    /// The first request that left when more than the limit had left in the `interval` up to it. The limit is the highest
    /// one that the store had in that interval. A request may leave up to `late` after its permit was counted.
    pub(super) fn first_above_limit(&self, interval: i64, late: i64) -> Option<(Sent, usize, u32)> {
        self.sent.iter().enumerate().find_map(|(i, sent)| {
            let count = i + 1 - self.sent.partition_point(|other| other.at <= sent.at - interval);
            let begins = self.limits.partition_point(|(at, _)| *at <= sent.at - interval - late).saturating_sub(1);
            let in_force = self.limits[begins..].iter().take_while(|(at, _)| *at <= sent.at);
            let limit = in_force.map(|(_, limit)| *limit).max().expect("the default at the start");
            (count > limit as usize).then_some((*sent, count, limit))
        })
    }

    /// The most requests of the share that left in any 10 s.
    pub(super) fn most_of_share(&self) -> usize {
        most_in_any(10_000, self.sent.iter().filter(|sent| sent.within_share))
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio of small numbers")]
    pub(super) fn calls_per_admitted(&self) -> f64 {
        self.calls as f64 / self.sent.len() as f64
    }
}

fn most_in_any<'a>(interval: i64, sent: impl Iterator<Item = &'a Sent>) -> usize {
    let sent: Vec<i64> = sent.map(|sent| sent.at).collect();
    let within = |(i, at): (usize, &i64)| i + 1 - sent.partition_point(|sent| *sent <= at - interval);
    sent.iter().enumerate().map(within).max().unwrap_or(0)
}
