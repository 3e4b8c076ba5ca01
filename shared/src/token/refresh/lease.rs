//! The time that is left for an attempt to refresh a token.

use std::time::{Duration, Instant};

use crate::domain::clock::Millis;
use crate::platform::token_endpoint::PRESENTATION;
use crate::table::installation::LEASE;
pub(super) use crate::token::COMMIT;

/// The part of [`COMMIT`] that sending to the rescue queue needs if the table takes no write.
pub(super) const RESCUE: Duration = Duration::from_secs(1);

/// The time that is left for an attempt, by two clocks. Only the wall clock shows that a frozen execution environment
/// woke up late. Only the monotonic clock is right if the wall clock is set back.
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

    /// The time since the claim, in milliseconds.
    pub(super) fn held_ms(&self) -> u64 {
        u64::try_from(self.claimed_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn allows_presentation(&self, now: Millis) -> bool {
        self.left(now) >= PRESENTATION + COMMIT
    }
}
