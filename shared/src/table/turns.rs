//! Turns: the schedule of a resource's queued calls. Each turn is an instant.
//!
//! The limits are a sliding window, so the permits of one window come back one window later, in the same pattern. A
//! schedule therefore consists of windows with the same pattern: so many turns, spread over three quarters of the window.
//! The item of a resource has the beginning of its schedule and the number of turns that were taken.

use std::time::Duration;

use super::{Attributes, Item, StoreError, Table, Update, Write, n};
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;

/// Failed conditions in a row after which the store counts as out of order.
const MOST_ATTEMPTS: usize = 20;
/// The time for which an item is kept after its last write. No schedule is longer.
const KEPT: Duration = Duration::from_hours(24 * 14);

/// The pattern of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The number of turns in a window.
    pub calls: u32,
    /// The length of a window.
    pub within: Duration,
}

/// A schedule as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    began_at: Millis,
    taken: u64,
    pattern: Pattern,
}

impl Schedule {
    fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let number = |name: &'static str| attributes.number(name).ok_or_else(|| attributes.malformed(name));
        let calls = attributes.number("calls").ok_or_else(|| attributes.malformed("calls"))?;
        let within = attributes.number("within_ms").map(Duration::from_millis);
        let within = within.ok_or_else(|| attributes.malformed("within_ms"))?;
        let taken = attributes.number("taken").ok_or_else(|| attributes.malformed("taken"))?;
        Ok(Self { began_at: Millis(number("began_at")?), taken, pattern: Pattern { calls, within } })
    }

    /// The beginning of the window of a turn.
    fn window_of(&self, turn: u64) -> Millis {
        let windows = turn / u64::from(self.pattern.calls.max(1));
        self.began_at + self.pattern.within * u32::try_from(windows).unwrap_or(u32::MAX)
    }

    /// The instant of a turn.
    fn at(&self, turn: u64) -> Millis {
        let calls = self.pattern.calls.max(1);
        let number = u32::try_from(turn % u64::from(calls)).unwrap_or_default();
        self.window_of(turn) + self.pattern.within * 3 / 4 * number / calls
    }

    /// True if the window of a turn is over at `earliest`.
    fn is_over(&self, turn: u64, earliest: Millis) -> bool {
        self.window_of(turn) + self.pattern.within <= earliest
    }
}

impl Table {
    /// Takes `count` turns in the schedule of a resource, none of them before `earliest`. A schedule that is over, or that
    /// has another pattern, is followed by a new one.
    ///
    /// # Errors
    /// [`StoreError`]: the turns may have been taken. Nobody uses them then, so others wait for longer.
    pub async fn take_turns(
        &self,
        resource: &Resource,
        count: usize,
        pattern: Pattern,
        earliest: Millis,
        now: Millis,
    ) -> Result<Vec<Millis>, StoreError> {
        let key = format!("turns#{}#{}", resource.kind().as_str(), resource.id());
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let kept_until = n((now + KEPT).seconds());
        for _ in 0..MOST_ATTEMPTS {
            let mut next = Update::of(&key);
            next.when_equal("calls", n(pattern.calls)).when_equal("within_ms", n(pattern.within.as_millis()));
            next.add("taken", n(count)).set("expires_at", kept_until.clone());
            let (seen, begin) = match self.write(next).await?.read(Schedule::read)? {
                Write::Applied(schedule) => {
                    let first = schedule.taken - count;
                    if !schedule.is_over(first, earliest) {
                        return Ok((first..schedule.taken).map(|turn| schedule.at(turn).max(earliest)).collect());
                    }
                    (Some(schedule), earliest)
                }
                Write::Conflict(schedule) => (Some(schedule), schedule.at(schedule.taken).max(earliest)),
                Write::NotFound => (None, earliest),
            };
            let schedule = Schedule { began_at: begin, taken: count, pattern };
            let mut first = Update::of(&key);
            match seen {
                None => first.when("attribute_not_exists(pk)"),
                Some(seen) => first.when_equal("taken", n(seen.taken)).when_equal("began_at", n(seen.began_at)),
            };
            first.set("began_at", n(begin)).set("taken", n(count)).set("calls", n(pattern.calls));
            first.set("within_ms", n(pattern.within.as_millis())).set("expires_at", kept_until.clone());
            if self.write(first).await?.is_applied() {
                return Ok((0..count).map(|turn| schedule.at(turn)).collect());
            }
        }
        Err(StoreError::Unavailable(format!("{MOST_ATTEMPTS} writes of a schedule in a row failed")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_has_the_same_pattern() {
        let pattern = Pattern { calls: 4, within: Duration::from_secs(8) };
        let schedule = Schedule { began_at: Millis(1_000), taken: 0, pattern };
        let at: Vec<_> = (0..9).map(|turn| schedule.at(turn).0).collect();
        assert_eq!(at, [1_000, 2_500, 4_000, 5_500, 9_000, 10_500, 12_000, 13_500, 17_000]);
        assert!(!schedule.is_over(3, Millis(8_999)) && schedule.is_over(3, Millis(9_000)));
        assert!(!schedule.is_over(4, Millis(9_000)));
    }
}
