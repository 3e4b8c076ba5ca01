//! Snapshots of companies in memory, for the readers of their locations.

use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::domain::status::Status;

/// The most companies that a call asks about a location with an unknown company. The schedule asks the other companies.
pub(super) const MOST_ASKED: usize = 5;

/// Snapshot of the head of the list of companies.
#[derive(Clone, Debug)]
pub(super) struct Roster {
    pub(super) read_at: Millis,
    /// The companies with the latest install notices, newest first.
    pub(super) newest: Vec<Resource>,
    /// The time at which the newest of these companies was listed.
    pub(super) newest_at: Option<Millis>,
    /// True if the list holds more companies than these.
    pub(super) more: bool,
}

/// Snapshot of a company, for the readers of its locations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agency {
    pub(super) status: Status,
    pub(super) epoch: u64,
    pub(super) read_at: Millis,
}
