//! The item as this process saw it last. Pure.

use std::time::Duration;

use super::counters::Counters;
use super::snapshot::Snapshot;
use crate::domain::clock::Millis;
use crate::domain::limits::LimitPolicy;

/// The age up to which a process refuses by a snapshot. Only a change of the limits or of the day by another process
/// can make permits available earlier than the snapshot says; such a change is noticed after this time at the latest.
const LONGEST_REFUSAL_BY_SNAPSHOT: Duration = Duration::from_secs(70);

/// The newest snapshot of an item that this process has, and the policy that holds for it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    policy: LimitPolicy,
    snapshot: Option<Snapshot>,
}

impl Memory {
    /// Nothing was seen yet.
    pub(crate) fn new(policy: LimitPolicy) -> Self {
        Self { policy, snapshot: None }
    }

    pub(crate) fn policy(&self) -> LimitPolicy {
        self.policy
    }

    /// The snapshot. One whose limits have lapsed counts as none: the next answer of the store shows the limits.
    pub(crate) fn snapshot(&self, now: Millis) -> Option<&Snapshot> {
        self.snapshot.as_ref().filter(|snapshot| snapshot.has_limits_of(now))
    }

    /// The snapshot, if the item existed.
    pub(crate) fn of_existing(&self, now: Millis) -> Option<&Snapshot> {
        self.snapshot(now).filter(|snapshot| snapshot.counters().is_some())
    }

    /// The snapshot, if the item existed and the snapshot is recent enough to refuse by.
    pub(crate) fn recent(&self, now: Millis) -> Option<&Snapshot> {
        let snapshot = self.of_existing(now)?;
        (now.since(snapshot.seen_at()) <= LONGEST_REFUSAL_BY_SNAPSHOT).then_some(snapshot)
    }

    /// Remembers the item that an answer contained, or that there was none, and returns the newest snapshot. Answers
    /// can overtake each other: one with an older version changes nothing.
    pub(crate) fn saw(&mut self, counters: Option<Counters>, now: Millis) -> &Snapshot {
        let newest = self.snapshot.take().filter(|snapshot| match (snapshot.counters(), &counters) {
            (Some(newest), Some(seen)) => seen.version() < newest.version(),
            _ => false,
        });
        self.snapshot.insert(newest.unwrap_or_else(|| Snapshot::of(counters, self.policy, now)))
    }

    /// Forgets the item.
    pub(crate) fn forget(&mut self) {
        self.snapshot = None;
    }

    /// Changes the policy, if it differs.
    pub(crate) fn adopt(&mut self, policy: LimitPolicy) {
        if self.policy != policy {
            self.policy = policy;
            self.snapshot = self.snapshot.take().map(|snapshot| snapshot.under(policy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::Limits;
    use crate::limiter::counters::{ClosedEndpoints, Day};

    const LIMITS: Limits = Limits { burst: 3, interval: Duration::from_secs(10), daily: 100 };
    const NOW: Millis = Millis(1_800_000_000_000);

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let newest = NOW.0 / 125;
        let mut memory = Memory::new(LIMITS.into());
        let mut saw = |revision, count| {
            let counters = Counters {
                revision,
                slot_ms: 125,
                newest,
                slots: vec![(newest, count)],
                counted: count,
                background: None,
                day: Day { used: count, ends: NOW + Duration::from_hours(1), end_confirmed: false },
                observed: None,
                proposal: None,
                lowered_at: None,
                closed: None,
                closed_endpoints: ClosedEndpoints::new(),
            };
            memory.saw(Some(counters), NOW).live(NOW)
        };
        assert_eq!((saw(5, 2), saw(4, 1)), (2, 2));
        memory.adopt(Limits { burst: 9, ..LIMITS }.into());
        assert_eq!(memory.snapshot(NOW).map(|snapshot| snapshot.free(NOW, 0)), Some(7));
    }
}
