//! The clock of the fake platform. The clock is monotonic and takes the time of day once, at its start. Tests can move
//! the clock forwards, so that no test has to sleep for thirty seconds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A clock whose clones move together.
#[derive(Debug, Clone)]
pub struct Clock {
    anchor: Instant,
    anchor_since_epoch: Duration,
    ahead_ms: Arc<AtomicU64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            anchor: Instant::now(),
            anchor_since_epoch: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            ahead_ms: Arc::default(),
        }
    }
}

impl Clock {
    /// Returns the time since the Unix epoch.
    pub fn now(&self) -> Duration {
        self.anchor_since_epoch + self.anchor.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    /// Returns the milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX)
    }

    /// Moves this clock and its clones forwards.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}
