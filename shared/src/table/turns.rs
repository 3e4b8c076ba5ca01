//! Turns: the schedule of a resource's queued calls. Each turn is an instant.
//!
//! The limits are a sliding window, so the permits of one window come back one window later, in the same pattern. A
//! schedule therefore consists of windows with the same pattern: groups of turns. All turns of a group share an instant,
//! because SQS counts in seconds and one write of the limiter serves several calls.
//!
//! The item of a resource has the beginning of its schedule and the part of it that is taken. Each turn takes a part of a
//! window, as large as the limits of the moment say.
//!
//! The last group of a window comes before its middle: a backlog ends that much earlier. On the other hand, a caller that
//! finds no place waits for the next group.

use std::time::Duration;

use super::{Attributes, Item, StoreError, Table, Update, Write, n};
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;

/// Failed conditions in a row after which the store counts as out of order.
const MOST_ATTEMPTS: usize = 20;
/// The time for which an item is kept after its last write. No schedule is longer.
const KEPT: Duration = Duration::from_hours(24 * 14);
/// A window in the unit of the item.
const WINDOW: u64 = 1_000_000;
/// The groups of turns in a window.
const GROUPS: u64 = 5;
/// The groups of a window begin within so many parts of it, one part apart.
const PARTS: u32 = 10;

/// The pattern of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The number of turns in a window.
    pub calls: u32,
    /// The length of a window.
    pub within: Duration,
}

impl Pattern {
    /// The part of a window that a turn takes.
    fn turn(self) -> u64 {
        WINDOW / u64::from(self.calls.max(1))
    }
}

/// A schedule as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    began_at: Millis,
    /// The part that is taken, in [`WINDOW`]s.
    taken: u64,
    within: Duration,
}

impl Schedule {
    fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let began_at = attributes.number("began_at").ok_or_else(|| attributes.malformed("began_at"))?;
        let within = attributes.number("within_ms").ok_or_else(|| attributes.malformed("within_ms"))?;
        let taken = attributes.number("taken").ok_or_else(|| attributes.malformed("taken"))?;
        Ok(Self { began_at: Millis(began_at), taken, within: Duration::from_millis(within) })
    }

    /// The beginning of the window of a position.
    fn window_of(&self, position: u64) -> Millis {
        self.began_at + self.within * u32::try_from(position / WINDOW).unwrap_or(u32::MAX)
    }

    /// The instant of a position.
    fn at(&self, position: u64) -> Millis {
        let group = u32::try_from(position % WINDOW * GROUPS / WINDOW).unwrap_or_default();
        self.window_of(position) + self.within * group / PARTS
    }

    /// True if the window of a position is over at `earliest`.
    fn is_over(&self, position: u64, earliest: Millis) -> bool {
        self.window_of(position) + self.within <= earliest
    }
}

impl Table {
    /// Takes `count` turns in the schedule of a resource, none of them before `earliest`. A `caller` with a share of its own
    /// has a schedule of its own. A schedule that is over, or whose windows have another length, is followed by a new one.
    ///
    /// # Errors
    /// [`StoreError`]: the turns may have been taken. Nobody uses them then, so others wait for longer.
    pub async fn take_turns(
        &self,
        resource: &Resource,
        caller: Option<&str>,
        count: usize,
        pattern: Pattern,
        earliest: Millis,
        now: Millis,
    ) -> Result<Vec<Millis>, StoreError> {
        let mut key = format!("turns#{}#{}", resource.kind().as_str(), resource.id());
        if let Some(caller) = caller {
            key.extend(["#", caller]);
        }
        let turns = |from: u64| (from..).step_by(usize::try_from(pattern.turn()).unwrap_or(usize::MAX)).take(count);
        let part = pattern.turn().saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
        let kept_until = n((now + KEPT).seconds());
        for _ in 0..MOST_ATTEMPTS {
            let mut next = Update::of(&key);
            next.when_equal("within_ms", n(pattern.within.as_millis()));
            next.add("taken", n(part)).set("expires_at", kept_until.clone());
            let (seen, begin) = match self.write(next).await?.read(Schedule::read)? {
                Write::Applied(schedule) => {
                    let first = schedule.taken - part;
                    if !schedule.is_over(first, earliest) {
                        return Ok(turns(first).map(|turn| schedule.at(turn).max(earliest)).collect());
                    }
                    (Some(schedule), earliest)
                }
                Write::Conflict(schedule) => (Some(schedule), schedule.at(schedule.taken).max(earliest)),
                Write::NotFound => (None, earliest),
            };
            let schedule = Schedule { began_at: begin, taken: part, within: pattern.within };
            let mut first = Update::of(&key);
            match seen {
                None => first.when("attribute_not_exists(pk)"),
                Some(seen) => first.when_equal("taken", n(seen.taken)).when_equal("began_at", n(seen.began_at)),
            };
            first.set("began_at", n(begin)).set("taken", n(part));
            first.set("within_ms", n(pattern.within.as_millis())).set("expires_at", kept_until.clone());
            if self.write(first).await?.is_applied() {
                return Ok(turns(0).map(|turn| schedule.at(turn)).collect());
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
        let within = Duration::from_secs(8);
        let schedule = Schedule { began_at: Millis(1_000), taken: 0, within };
        let at = |calls, turns| {
            let turn = Pattern { calls, within }.turn();
            (0..turns).map(|number| schedule.at(number * turn).0).collect::<Vec<_>>()
        };
        assert_eq!(at(1, 3), [1_000, 9_000, 17_000]);
        assert_eq!(at(8, 9), [1_000, 1_000, 1_800, 1_800, 2_600, 3_400, 3_400, 4_200, 9_000]);
        assert_eq!(at(10, 12), [1_000, 1_000, 1_800, 1_800, 2_600, 2_600, 3_400, 3_400, 4_200, 4_200, 9_000, 9_000]);
        assert!(!schedule.is_over(WINDOW - 1, Millis(8_999)) && schedule.is_over(WINDOW - 1, Millis(9_000)));
        assert!(!schedule.is_over(WINDOW, Millis(9_000)));
    }
}
