//! At most so many requests in any interval and in a day, for each resource.

use std::time::Duration;

/// The ceilings of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any [`Limits::interval`].
    pub burst: u32,
    /// The length of the burst window.
    pub interval: Duration,
    /// Requests in a day.
    pub daily: u32,
}
