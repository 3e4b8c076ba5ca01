//! The results of a refresh or a mint, from the token endpoint to the caller's code.

use std::time::Duration;

use super::{Company, schedule};
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, State};
use crate::domain::status::{Status, TokenVersion};
use crate::secrets::SecretError;
use crate::table::StoreError;

/// Why a refresh is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The schedule says so, or the token is stale.
    Due,
    /// The platform refused an access token that was thought to be good.
    Forced,
    /// The platform answered 401 with a text that nobody has classified: it may be about the token.
    Doubted,
    /// An operator says so.
    Operator,
}

impl Why {
    /// How long ago the last forced refresh must be, if that matters.
    #[must_use]
    pub fn forced_apart(self) -> Option<Duration> {
        match self {
            Self::Forced => Some(schedule::FORCED_APART),
            Self::Doubted => Some(schedule::DOUBTED_APART),
            Self::Due | Self::Operator => None,
        }
    }
}

/// What came of a refresh.
#[derive(Debug)]
pub enum Refreshed {
    /// A new pair is stored, or on its way into the store.
    Renewed(Access),
    /// Somebody else holds the lease until this instant.
    Held(Millis),
    /// The installation is not as it was seen: read it again.
    Moved,
    /// It has no refresh token: its token is minted.
    IsMinted,
    /// There is no such installation.
    Gone,
    /// It was tried, or could not be tried.
    Failed(Failure),
}

/// Why there is no new pair.
#[derive(Debug)]
pub enum Failure {
    /// There was no outcome. Worth another try then.
    TryAgain(Millis),
    /// The token was presented and no answer is known. Worth another try then, within the platform's grace.
    Unanswered(Millis),
    /// The platform has paused the location.
    Suspended(Millis),
    /// The platform refused the refresh token for good.
    NeedsReauthorization(Option<String>),
    /// No known company has the app in the location.
    NotInstalled,
    /// The platform does not take the company's token, which a location's was to be minted from. It said so in words
    /// that are known ([`Why::Forced`]) or not ([`Why::Doubted`]).
    CompanyRefused(Box<Company>, Why),
    /// The app's credentials, a parameter or a sealed token are wrong, or refreshing is stopped.
    Misconfigured(&'static str),
    /// The last forced refresh was less than a minute ago.
    ForcedRecently,
    /// The invocation ends too soon to begin.
    NoTime,
    /// A secret cannot be read. Nothing was sent.
    Secret(SecretError),
    /// The table does not answer. Nothing was sent.
    Store(StoreError),
}

/// Why a claim was not granted, from the item that it found.
pub(super) fn not_claimed(stored: &Installation, seen: TokenVersion, why: Why, now: Millis) -> Refreshed {
    if stored.version != seen {
        return Refreshed::Moved;
    }
    match &stored.state {
        State::Refreshing(lease) if lease.ends_at > now => Refreshed::Held(lease.ends_at),
        State::NeedsReauthorization => Refreshed::Failed(Failure::NeedsReauthorization(stored.reinstall_url())),
        State::Revoked { .. } => Refreshed::Moved,
        _ if why.forced_apart().is_some() => Refreshed::Failed(Failure::ForcedRecently),
        // It was claimable a moment later than this clock says.
        _ => Refreshed::Held(now),
    }
}

/// The name of an attempt without a new token in the log and in its metric.
pub(super) fn outcome_of(left: Status) -> &'static str {
    match left {
        Status::Active | Status::Refreshing | Status::Revoked => "unchanged",
        Status::Uncertain => "uncertain",
        Status::Suspended => "suspended",
        Status::Blocked => "blocked",
        Status::NeedsReauthorization => "needs_reauthorization",
    }
}
