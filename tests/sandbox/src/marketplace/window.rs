//! The platform's two rate limits, and an exact count of the requests that arrived.
//!
//! The code is pure: the instant is an argument. There are two logs, for two purposes. The log of *admitted* requests
//! decides the platform's answer. The log of *arrivals* shows if the relay kept within the limit; a refused request
//! counts there too.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// The platform's limits for one app on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most requests within any `interval_ms`.
    pub burst: usize,
    /// Length of the burst window in milliseconds.
    pub interval_ms: u64,
    /// Most requests in the 24 hours that begin with the first request.
    pub daily: u64,
}

impl Default for Limits {
    /// The limits in production: 100 in 10 s, 200,000 a day.
    fn default() -> Self {
        Self { burst: 100, interval_ms: 10_000, daily: 200_000 }
    }
}

impl Limits {
    /// The limits of sandbox agencies: 25 in 10 s, 10,000 a day.
    pub fn sandbox_agency() -> Self {
        Self { burst: 25, interval_ms: 10_000, daily: 10_000 }
    }

    fn interval(self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }
}

/// The platform's decision about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The request is served.
    Admitted,
    /// 429: the burst limit is reached.
    Burst,
    /// 429: the daily limit is reached.
    Daily,
}

/// The values of the rate-limit headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Remaining {
    /// Requests left in the burst window.
    pub burst: usize,
    /// Requests left today.
    pub daily: u64,
    /// Milliseconds until the day ends.
    pub daily_reset_ms: u64,
}

const DAY: Duration = Duration::from_hours(24);

/// One resource's counts. Instants are durations since any fixed origin.
#[derive(Debug, Clone, Default)]
pub struct Window {
    admitted: VecDeque<Duration>,
    arrivals: VecDeque<Duration>,
    worst: usize,
    total: u64,
    day: Option<(Duration, u64)>,
}

impl Window {
    /// Counts a request that arrived at `now` and decides about it.
    pub fn arrive(&mut self, now: Duration, limits: Limits) -> Verdict {
        self.total += 1;
        forget_older(&mut self.arrivals, now, limits.interval());
        self.arrivals.push_back(now);
        self.worst = self.worst.max(self.arrivals.len());

        forget_older(&mut self.admitted, now, limits.interval());
        let (_, today) = self.today(now);
        if today >= limits.daily {
            return Verdict::Daily;
        }
        if self.admitted.len() >= limits.burst {
            return Verdict::Burst;
        }
        self.admitted.push_back(now);
        if let Some((_, count)) = &mut self.day {
            *count += 1;
        }
        Verdict::Admitted
    }

    /// Returns the requests that are left at `now`.
    pub fn remaining(&self, now: Duration, limits: Limits) -> Remaining {
        let in_window = self.admitted.iter().filter(|&&at| now.saturating_sub(at) < limits.interval()).count();
        let (ends, today) = match self.day {
            Some((started, count)) if now < started + DAY => (started + DAY, count),
            _ => (now + DAY, 0),
        };
        Remaining {
            burst: limits.burst.saturating_sub(in_window),
            daily: limits.daily.saturating_sub(today),
            daily_reset_ms: u64::try_from(ends.saturating_sub(now).as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the most requests that ever arrived within one interval, measured with a sliding window.
    pub fn worst(&self) -> usize {
        self.worst
    }

    /// Returns the number of requests within the window that ends with the last arrival.
    pub fn in_window(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of all requests that ever arrived.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Counts `count` more requests against the daily limit, as if they had been served today.
    pub fn spend_today(&mut self, now: Duration, count: u64) {
        self.today(now);
        if let Some((_, today)) = &mut self.day {
            *today += count;
        }
    }

    /// Returns the start and the count of the current day. A day begins with its first request.
    fn today(&mut self, now: Duration) -> (Duration, u64) {
        match self.day {
            Some((started, count)) if now < started + DAY => (started, count),
            _ => *self.day.insert((now, 0)),
        }
    }
}

/// Removes the instants that are outside the window. Two instants share a window if they are *less* than its length
/// apart.
fn forget_older(log: &mut VecDeque<Duration>, now: Duration, interval: Duration) {
    while log.front().is_some_and(|&at| now.saturating_sub(at) >= interval) {
        log.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { burst: 3, interval_ms: 10_000, daily: 5 };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    #[test]
    fn the_window_slides_and_does_not_snap_to_a_grid() {
        let mut window = Window::default();
        // Three requests at the end of one fixed window, and three at the start of the next: a fixed window would admit
        // all six.
        for ms in [9_000, 9_100, 9_200] {
            assert_eq!(window.arrive(at(ms), LIMITS), Verdict::Admitted);
        }
        assert_eq!(window.arrive(at(10_100), LIMITS), Verdict::Burst);
        assert_eq!(window.worst(), 4, "a refused arrival counts against the caller");
        assert_eq!(window.arrive(at(18_999), LIMITS), Verdict::Burst);
        assert_eq!(
            window.arrive(at(19_000), LIMITS),
            Verdict::Admitted,
            "exactly one interval later the first has left"
        );
        assert_eq!(window.worst(), 5, "9,100 to 18,999 holds four, and with 9,000 five");
        assert_eq!(window.total(), 6);
    }

    #[test]
    fn the_worst_window_is_the_maximum_over_all_windows() {
        let times = [0_u64, 1, 5_000, 9_999, 10_000, 10_001, 14_999, 20_000, 20_001, 29_998];
        let mut window = Window::default();
        for ms in times {
            window.arrive(at(ms), LIMITS);
        }
        let by_hand =
            times.iter().map(|from| times.iter().filter(|to| **to >= *from && **to - from < 10_000).count()).max();
        assert_eq!(Some(window.worst()), by_hand);
    }

    #[test]
    fn a_day_begins_with_its_first_request_and_lasts_24_hours() {
        let mut window = Window::default();
        for n in 0..5 {
            assert_eq!(window.arrive(at(n * 20_000), LIMITS), Verdict::Admitted);
        }
        assert_eq!(window.arrive(at(200_000), LIMITS), Verdict::Daily);
        assert_eq!(window.remaining(at(200_000), LIMITS).daily, 0);
        assert_eq!(window.remaining(at(200_000), LIMITS).daily_reset_ms, 86_400_000 - 200_000);
        assert_eq!(window.arrive(at(86_399_999), LIMITS), Verdict::Daily);
        assert_eq!(window.arrive(at(86_400_000), LIMITS), Verdict::Admitted);
        assert_eq!(window.remaining(at(86_400_000), LIMITS).daily, 4);
    }
}
