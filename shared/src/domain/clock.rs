//! Time as a value. Pure code takes `now: Millis` as an argument; only a [`Clock`] reads the time.

mod offset;

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::offset::Offset;
pub use self::offset::TOLERATED_MS;

/// The longest duration of an answer that counts as evidence of the time. During a longer one, the process may have
/// been stopped or the clock set.
const EVIDENCE_WITHIN: Duration = Duration::from_secs(1);

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// Time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whole seconds since the Unix epoch, rounded down: the unit of DynamoDB's TTL attribute.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// RFC 3339, UTC, with milliseconds.
    pub fn rfc3339(self) -> String {
        time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
            .unwrap_or_else(|| self.0.to_string())
    }
}

impl Add<Duration> for Millis {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Millis {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A source of the time: the machine's clock, corrected by the evidence of the store's answers, or a manual clock of a
/// test.
///
/// The burst limit needs the clocks of all processes to be within 300 ms of each other. Lambda's clocks are within
/// milliseconds. The correction is for machines whose clock is not synchronized.
#[derive(Clone, Debug)]
pub struct Clock(Arc<TimeSource>);

#[derive(Debug)]
enum TimeSource {
    System { correction: AtomicI64, offset: Mutex<Offset> },
    Manual { now: AtomicI64 },
}

/// The machine's wall clock and monotonic clock at one instant, uncorrected.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    wall: Millis,
    monotonic: Instant,
}

impl Reading {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { wall: wall_clock(), monotonic: Instant::now() }
    }
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(TimeSource::System { correction: AtomicI64::new(0), offset: Mutex::default() }))
    }

    /// The machine's clock with an error of so many milliseconds, for tests and benchmarks.
    pub fn system_off_by(ms: i64) -> Self {
        Self(Arc::new(TimeSource::System { correction: AtomicI64::new(ms), offset: Mutex::default() }))
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    pub fn manual(start: Millis) -> Self {
        Self(Arc::new(TimeSource::Manual { now: AtomicI64::new(start.0) }))
    }

    /// The current time.
    pub fn now(&self) -> Millis {
        match &*self.0 {
            TimeSource::System { correction, .. } => {
                Millis(wall_clock().0.saturating_add(correction.load(Ordering::Relaxed)))
            }
            TimeSource::Manual { now } => Millis(now.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward. Has no effect on a system clock.
    pub fn advance(&self, by: Duration) {
        if let TimeSource::Manual { now } = &*self.0 {
            now.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Takes the evidence of an answer of the store: its `Date`, which is cut to the second, and the readings before
    /// the request was sent and after the answer was received. The clock is corrected if at least two answers prove an
    /// error of more than 100 ms.
    ///
    /// Returns the correction in milliseconds if the correction has changed, and zero if the machine's clock is used
    /// uncorrected again.
    pub fn observe(&self, date: Millis, sent: Reading, received: Reading) -> Option<i64> {
        let TimeSource::System { correction, offset } = &*self.0 else { return None };
        let by_wall = received.wall.0.checked_sub(sent.wall.0).and_then(|ms| u64::try_from(ms).ok())?;
        let by_monotonic = received.monotonic.saturating_duration_since(sent.monotonic);
        if Duration::from_millis(by_wall).max(by_monotonic) >= EVIDENCE_WITHIN {
            return None;
        }
        // The readings are cut to the millisecond.
        let (low, high) = (date.0 - received.wall.0 - 1, date.0 + 1000 - sent.wall.0);
        let mut offset = offset.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = offset.observe(low, high, received.wall);
        correction.store(offset.correction(), Ordering::Relaxed);
        changed
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn wall_clock() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// An answer that took `wall_took` by the wall clock and `monotonic_took` by the monotonic clock, and was received
    /// now. The server's clock is ahead by `ahead`.
    fn answer(clock: &Clock, ahead: i64, wall_took: i64, monotonic_took: u64) -> Option<i64> {
        let received = Reading::now();
        let sent = Reading {
            wall: Millis(received.wall.0 - wall_took),
            monotonic: received
                .monotonic
                .checked_sub(Duration::from_millis(monotonic_took))
                .expect("a running machine"),
        };
        let date = (sent.wall.0 + 1 + ahead).div_euclid(1000) * 1000;
        clock.observe(Millis(date), sent, received)
    }

    #[test]
    fn two_answers_correct_a_gross_offset_and_a_clock_that_was_set_right_is_believed() {
        let clock = Clock::system();
        assert_eq!(answer(&clock, -HOUR, 3, 3), None, "one answer is no proof");
        assert!(answer(&clock, -HOUR, 3, 3).is_some());
        let off = wall_clock().0 - clock.now().0;
        assert!((HOUR - 1_010..HOUR + 1_010).contains(&off), "off by {off} ms");
        let corrections: Vec<_> = (0..3).filter_map(|_| answer(&clock, 0, 3, 3)).collect();
        assert_eq!(corrections, [0], "a clock that was set right again is believed");
        assert!((clock.now().0 - wall_clock().0).abs() < 100);
    }

    /// A process that was stopped reads an old answer late. By the wall clock, the answer took long. If the whole
    /// machine was frozen, only the wall clock shows that.
    #[test]
    fn an_answer_that_took_long_by_either_clock_is_no_evidence() {
        for (wall_took, monotonic_took) in [(8_000, 8_000), (8_000, 2), (1_000, 2), (2, 1_000), (-5, 2)] {
            let clock = Clock::system();
            for _ in 0..10 {
                assert_eq!(answer(&clock, -HOUR, wall_took, monotonic_took), None, "{wall_took} {monotonic_took}");
            }
        }
    }

    #[test]
    fn instants_print_as_rfc_3339() {
        assert_eq!(Millis(1_700_000_000_123).rfc3339(), "2023-11-14T22:13:20.123Z");
    }
}
