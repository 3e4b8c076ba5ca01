//! The time that an attempt has.

use std::time::{Duration, Instant};

use crate::domain::clock::Millis;
use crate::platform::token_endpoint::PRESENTATION;
use crate::table::installation::LEASE;

/// What must be left of the lease after a presentation: the time of a commit.
pub(super) const COMMIT: Duration = Duration::from_secs(2);
/// What the rescue queue needs of that, where the table takes nothing.
pub(super) const RESCUE: Duration = Duration::from_secs(1);

/// The time that an attempt has, by two clocks: a frozen execution environment wakes up late, and only the wall clock
/// knows; a wall clock that is set back is seen through by the monotonic one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) ends_at: Millis,
    pub(super) claimed_at: Instant,
    pub(super) deadline: Millis,
}

impl Lease {
    pub(super) fn left(&self, now: Millis) -> Duration {
        let by_wall = self.ends_at.min(self.deadline).since(now);
        by_wall.min(LEASE.saturating_sub(self.claimed_at.elapsed()))
    }

    /// For so long, in milliseconds.
    pub(super) fn held_ms(&self) -> u64 {
        u64::try_from(self.claimed_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn allows_presentation(&self, now: Millis) -> bool {
        self.left(now) >= PRESENTATION + COMMIT
    }
}
