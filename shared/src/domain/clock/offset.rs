//! The evidence about the offset of a clock, from the `Date` headers of answers.
//!
//! The offset is the number that must be added to the machine's clock to get the true time. A server cuts its time to
//! the second (RFC 9110 section 6.6.1). Take an answer with the date *d*, whose request was sent at *s* and which was
//! received at *r* by the machine's clock. The server wrote the date after *s* and before *r*, so the offset lies
//! between *d - r* and *d + 1000 - s*. One answer proves little. Answers on both sides of the edge of a second together
//! bound the offset to about the time that an answer takes.
//!
//! A bound counts only if a second answer proves it too. So a single server with a wrong clock changes nothing.

use std::time::Duration;

use super::Millis;

/// The time for which an answer is evidence. In this time a clock drifts by less than 60 ms (100 parts in a million).
const MEMORY: Duration = Duration::from_mins(10);
/// The number of tightest bounds that are remembered on each side.
const REMEMBERED: usize = 8;
/// A clock is corrected only if a larger offset than this is proven, in milliseconds. The limits hold while two
/// clocks differ by less than 300 ms. Two machines that are both just below this tolerance stay within that difference.
pub const TOLERATED_MS: i64 = 100;

/// The evidence of recent answers, and the correction that follows from it.
#[derive(Debug, Default)]
pub(super) struct Offset {
    /// Lower bounds of the offset.
    low: Bounds,
    /// Lower bounds of the negated offset.
    negated_high: Bounds,
    correction: i64,
}

impl Offset {
    /// The number of milliseconds that must be added to the machine's clock.
    pub(super) fn correction(&self) -> i64 {
        self.correction
    }

    /// Takes the evidence of one answer that was received at `now` by the machine's clock: the offset lies between
    /// `low` and `high` (milliseconds). Returns the correction if the correction has changed.
    pub(super) fn observe(&mut self, low: i64, high: i64, now: Millis) -> Option<i64> {
        self.low.add(low, now);
        self.negated_high.add(-high, now);
        let (low, high) = self.agreed()?;
        if low > high {
            // No offset fits all answers, so the machine's clock was set in between. Only this answer counts.
            let newest = (self.low.newest, self.negated_high.newest);
            (self.low, self.negated_high) = (Bounds::default(), Bounds::default());
            self.low.add(newest.0, now);
            self.negated_high.add(newest.1, now);
            return None;
        }
        let correction = corrected(self.correction, low, high);
        (std::mem::replace(&mut self.correction, correction) != correction).then_some(correction)
    }

    /// The lowest and the highest offset, each confirmed by a second answer.
    fn agreed(&self) -> Option<(i64, i64)> {
        Some((self.low.agreed()?, -self.negated_high.agreed()?))
    }
}

/// The correction that follows from an offset between `low` and `high`.
///
/// The current correction stays if it is still possible. Otherwise the machine's clock is used uncorrected unless its
/// error is proven. The correction is then the middle of the range, but at most twice the proven error, so that the
/// error never grows.
fn corrected(current: i64, low: i64, high: i64) -> i64 {
    let middle = i64::midpoint(low, high);
    if (low..=high).contains(&current) {
        current
    } else if low > TOLERATED_MS {
        middle.min(low.saturating_mul(2))
    } else if high < -TOLERATED_MS {
        middle.max(high.saturating_mul(2))
    } else {
        0
    }
}

/// The tightest lower bounds, tightest first, each with the time at which it was found.
#[derive(Debug, Default)]
struct Bounds {
    tightest: Vec<(i64, Millis)>,
    newest: i64,
}

impl Bounds {
    fn add(&mut self, bound: i64, now: Millis) {
        self.newest = bound;
        self.tightest.retain(|(_, at)| now.since(*at) <= MEMORY);
        let place = self.tightest.partition_point(|(other, _)| *other >= bound);
        if place < REMEMBERED {
            self.tightest.truncate(REMEMBERED - 1);
            self.tightest.insert(place, (bound, now));
        }
    }

    /// The tightest bound that a second answer confirms.
    fn agreed(&self) -> Option<i64> {
        self.tightest.get(1).map(|(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine whose clock is off by `offset`, and a server whose clock is right.
    struct Machine {
        evidence: Offset,
        offset: i64,
        /// The true time.
        now: i64,
    }

    impl Machine {
        fn off_by(offset: i64) -> Self {
            Self { evidence: Offset::default(), offset, now: 1_790_000_000_000 }
        }

        /// Makes one request after a pause. `there` is the time to the server, and `back` the time of the answer.
        fn ask(&mut self, pause: i64, there: i64, back: i64) -> Option<i64> {
            let sent = self.now + pause;
            let date = (sent + there).div_euclid(1000) * 1000;
            self.now = sent + there + back;
            let (sent, received) = (sent - self.offset, self.now - self.offset);
            self.evidence.observe(date - received, date + 1000 - sent, Millis(received))
        }

        fn ask_for(&mut self, seconds: i64, every: i64) {
            let until = self.now + seconds * 1000;
            while self.now < until {
                self.ask(every, 2, 2);
            }
        }

        fn error(&self) -> i64 {
            (self.offset - self.evidence.correction()).abs()
        }
    }

    #[test]
    fn one_answer_changes_nothing_and_two_that_agree_correct_a_gross_offset() {
        for offset in [3_600_000, -3_600_000, 5_000, -5_000] {
            let mut machine = Machine::off_by(offset);
            assert_eq!(machine.ask(0, 1, 1), None, "{offset}");
            assert!(machine.ask(5, 1, 1).is_some(), "{offset}");
            assert!(machine.error() <= 1_000, "{offset}: {}", machine.error());
        }
    }

    #[test]
    fn an_offset_is_found_to_the_time_that_an_answer_takes_and_small_ones_are_tolerated() {
        for offset in [-5_000, -700, -300, -150, -110, -90, -20, 0, 20, 90, 110, 150, 300, 700, 5_000] {
            let mut machine = Machine::off_by(offset);
            machine.ask_for(20, 37);
            let allowed = if offset.abs() <= TOLERATED_MS { offset.abs() } else { 60 };
            assert!(machine.error() <= allowed.max(60), "{offset}: corrected by {}", machine.evidence.correction());
            if offset.abs() <= TOLERATED_MS {
                assert_eq!(machine.evidence.correction(), 0, "{offset}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_is_believed_again() {
        for (before, after) in [(5_000, 0), (-5_000, 0), (700, 0), (-400, 0), (0, 5_000), (0, -400), (2_000, -2_000)] {
            let mut machine = Machine::off_by(before);
            machine.ask_for(20, 37);
            machine.offset = after;
            machine.ask_for(20, 37);
            assert!(machine.error() <= 60, "{before} to {after}: corrected by {}", machine.evidence.correction());
            if after == 0 {
                assert_eq!(machine.evidence.correction(), 0, "{before}");
            }
        }
    }

    #[test]
    fn one_answer_that_is_wrong_moves_nothing() {
        for wrong in [-3_600_000, -700, 700, 3_600_000] {
            let mut machine = Machine::off_by(0);
            machine.ask_for(10, 37);
            let truth = machine.offset;
            machine.offset = wrong;
            machine.ask(5, 1, 1);
            machine.offset = truth;
            machine.ask_for(10, 37);
            assert_eq!(machine.evidence.correction(), 0, "{wrong}");
        }
    }

    #[test]
    fn evidence_grows_old() {
        let mut machine = Machine::off_by(0);
        machine.ask_for(10, 37);
        assert_eq!(machine.evidence.low.tightest.len(), REMEMBERED);
        machine.ask(i64::try_from(MEMORY.as_millis()).expect("small") + 1, 1, 1);
        assert_eq!(machine.evidence.low.tightest.len(), 1);
    }

    proptest! {
        /// Requests of any length at any time. The true offset always lies within the bounds, and the error of the
        /// corrected clock is never larger than the error of the machine's clock.
        #[test]
        fn the_truth_stays_within_the_bounds(
            offset in prop_oneof![-10_000_i64..10_000, -300_i64..300],
            requests in prop::collection::vec((0_i64..3_000, 0_i64..900, 0_i64..900), 1..200),
        ) {
            let mut machine = Machine::off_by(offset);
            for (pause, there, back) in requests {
                machine.ask(pause, there, back);
                if let Some((low, high)) = machine.evidence.agreed() {
                    prop_assert!(low <= offset && offset <= high, "{offset} not in {low}..={high}");
                }
                prop_assert!(machine.error() <= offset.abs(), "corrected by {}", machine.evidence.correction());
            }
        }
    }
}
