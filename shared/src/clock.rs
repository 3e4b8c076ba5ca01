//! Time as a value. Pure code takes `now: Millis`; only a [`Clock`] reads it.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// Time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whole seconds since the Unix epoch, rounded down: the unit of DynamoDB's TTL attribute.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// RFC 3339, UTC, with milliseconds.
    #[must_use]
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

/// Where the time comes from: the machine, corrected by what the store's answers say, or a test's hand.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System { correction: AtomicI64 },
    Manual { now: AtomicI64 },
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Source::System { correction: AtomicI64::new(0) }))
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(start: Millis) -> Self {
        Self(Arc::new(Source::Manual { now: AtomicI64::new(start.0) }))
    }

    /// The present instant.
    #[must_use]
    pub fn now(&self) -> Millis {
        match &*self.0 {
            Source::System { correction } => Millis(wall_clock().0.saturating_add(correction.load(Ordering::Relaxed))),
            Source::Manual { now } => Millis(now.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on. A system clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { now } = &*self.0 {
            now.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Takes the store's idea of the present, which has a resolution of one second (the `Date` header, RFC 9110
    /// section 6.6.1). A difference of more than two seconds is corrected, since a clock that is ahead would free
    /// permits too early. Returns the correction where it changed.
    #[must_use]
    pub fn correct(&self, store: Millis) -> Option<Duration> {
        const TOLERANCE_MS: i64 = 2_000;
        let Source::System { correction } = &*self.0 else { return None };
        // The header was cut to the second: its middle is the best guess.
        let wanted = store.0 + 500 - wall_clock().0;
        let current = correction.load(Ordering::Relaxed);
        if (wanted - current).abs() <= TOLERANCE_MS {
            return None;
        }
        let next = if wanted.abs() <= TOLERANCE_MS { 0 } else { wanted };
        correction.store(next, Ordering::Relaxed);
        Some(Duration::from_millis(next.unsigned_abs()))
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

    #[test]
    fn a_gross_offset_is_corrected_and_a_small_one_left() {
        let clock = Clock::system();
        assert_eq!(clock.correct(Millis(wall_clock().0 - 1_000)), None);
        let hour = 3_600_000;
        assert!(clock.correct(Millis(wall_clock().0 - hour)).is_some());
        let off = wall_clock().0 - clock.now().0;
        assert!((hour - 1_000..hour + 1_000).contains(&off), "off by {off} ms");
        assert!(clock.correct(wall_clock()).is_some(), "a clock that was set right again is believed");
        assert!((clock.now().0 - wall_clock().0).abs() < 100);
    }

    #[test]
    fn instants_print_as_rfc_3339() {
        assert_eq!(Millis(1_700_000_000_123).rfc3339(), "2023-11-14T22:13:20.123Z");
    }
}
