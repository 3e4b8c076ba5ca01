//! The results of a refresh or a mint, from the token endpoint to the caller's code.

use std::time::Duration;

use super::{TokenError, schedule};
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::status::Status;

/// The reason for a refresh or a mint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The refresh is due by the schedule, or the token is stale.
    Due,
    /// The platform refused an access token that was thought to be good.
    Forced,
    /// The platform answered 401 with an unclassified text. The text may mean that the token is invalid.
    Doubted,
    /// An operator has asked for the refresh.
    Operator,
}

impl Why {
    /// The least time since the last forced refresh. `None` if the last forced refresh does not matter.
    pub fn forced_apart(self) -> Option<Duration> {
        match self {
            Self::Forced => Some(schedule::FORCED_APART),
            Self::Doubted => Some(schedule::DOUBTED_APART),
            Self::Due | Self::Operator => None,
        }
    }
}

/// The outcome of a refresh or a mint.
#[derive(Debug)]
pub enum Refreshed {
    /// A new pair is stored, or on its way into the table.
    Renewed(Access),
    /// Another attempt holds the lease until this instant.
    Held(Millis),
    /// The installation has changed since it was read: the caller must read it again.
    Moved,
    /// The installation has no refresh token: its access token is minted from its company's.
    IsMinted,
    /// There is no such installation.
    Gone,
    /// The attempt failed, or could not begin.
    Failed(TokenError),
}

/// The name, in the log and in the metric, of the outcome of an attempt that brought no new token.
pub(super) fn outcome_of(left: Status) -> &'static str {
    match left {
        Status::Active | Status::Refreshing | Status::Revoked => "unchanged",
        Status::Uncertain => "uncertain",
        Status::Suspended => "suspended",
        Status::Blocked => "blocked",
        Status::NeedsReauthorization => "needs_reauthorization",
    }
}
