//! The results of a refresh or a mint, from the token endpoint to the caller's code.

use std::time::Duration;

use super::{Company, schedule};
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, State};
use crate::domain::status::{Status, TokenVersion};
use crate::secrets::SecretError;
use crate::table::StoreError;

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
    #[must_use]
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
    Failed(Failure),
}

/// The reasons for which there is no new pair.
#[derive(Debug)]
pub enum Failure {
    /// The attempt had no outcome. Another try is worthwhile at this instant.
    TryAgain(Millis),
    /// The token was presented and no answer is known. Another try is worthwhile at this instant, within the platform's
    /// grace.
    Unanswered(Millis),
    /// The platform has paused the location.
    Suspended(Millis),
    /// The platform refused the refresh token for good. The value is the link to install again, if the link is known.
    NeedsReauthorization(Option<String>),
    /// No known company has the app in the location.
    NotInstalled,
    /// The platform refused the company's token from which a location's token was to be minted. The text of the refusal
    /// is classified ([`Why::Forced`]) or not ([`Why::Doubted`]).
    CompanyRefused(Box<Company>, Why),
    /// The app's credentials, a parameter or a sealed token are wrong, or refreshing is stopped.
    Misconfigured(&'static str),
    /// The last forced refresh was less than a minute ago.
    ForcedRecently,
    /// Too little time is left in the invocation to begin.
    NoTime,
    /// A secret cannot be read. Nothing was sent.
    Secret(SecretError),
    /// The table does not answer. Nothing was sent.
    Store(StoreError),
}

/// The reason for which a claim was not granted, decided from the item that the claim found.
pub(super) fn not_claimed(stored: &Installation, seen: TokenVersion, why: Why, now: Millis) -> Refreshed {
    if stored.version != seen {
        return Refreshed::Moved;
    }
    match &stored.state {
        State::Refreshing(lease) if lease.ends_at > now => Refreshed::Held(lease.ends_at),
        State::NeedsReauthorization => Refreshed::Failed(Failure::NeedsReauthorization(stored.reinstall_url())),
        State::Revoked { .. } => Refreshed::Moved,
        _ if why.forced_apart().is_some() => Refreshed::Failed(Failure::ForcedRecently),
        // The claim came a moment too early: by this clock the item can be claimed now.
        _ => Refreshed::Held(now),
    }
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
