//! The answers to a request for a permit.

use super::counters::{LimitKind, Usage};
use super::window::Slot;
use crate::domain::clock::Millis;
use crate::domain::limits::Limits;
use crate::table::StoreError;

/// The right to send one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The limits as they stand with this permit taken.
    pub usage: Usage,
    /// The last instant at which the request may be handed to the connection. After it the request needs another
    /// permit: the limits are about the instants at which requests leave, not about those at which they were permitted.
    pub send_by: Millis,
    /// The slot in which it is counted.
    pub(super) slot: Slot,
    /// The limits under which it was taken.
    pub(super) limits: Limits,
}

/// No permit is available in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit that is reached.
    pub limit: LimitKind,
    /// The first instant at which a permit can be available. A permit is available then unless somebody else takes it.
    pub retry_at: Millis,
    /// The limits as they stand.
    pub usage: Usage,
}

/// The reasons for which there is no permit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LimiterError {
    /// A limit is reached.
    #[error("the {:?} limit is reached until {}", .0.limit, .0.retry_at.rfc3339())]
    Refused(Refusal),
    /// The counters cannot be read or written. No request is sent without being counted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LimiterError {
    /// Of two refusals the one that ends later.
    pub(super) fn or_later(self, other: Option<Refusal>) -> Self {
        match (self, other) {
            (Self::Refused(this), Some(other)) if this.retry_at < other.retry_at => Self::Refused(other),
            (this, _) => this,
        }
    }
}
