//! Companies as the readers of their locations remember them.

use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::domain::status::Status;

/// The head of the list of companies.
#[derive(Clone, Debug)]
pub(super) struct Roster {
    pub(super) read_at: Millis,
    /// The companies with the latest install notices, newest first.
    pub(super) newest: Vec<Resource>,
    /// When the newest of them was listed.
    pub(super) newest_at: Option<Millis>,
    /// True if there are others.
    pub(super) more: bool,
}

/// A company as its locations' readers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agency {
    pub(super) status: Status,
    pub(super) epoch: u64,
    pub(super) read_at: Millis,
}
