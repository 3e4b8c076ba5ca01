//! Token pairs: refreshing and minting them, and the access tokens that readers get.

pub mod alarm;
pub mod breaker;
mod companies;
mod decision;
pub mod exchange;
mod leased;
pub mod mint;
mod minted;
pub mod outcome;
pub mod pace;
pub mod parts;
pub mod presence;
mod probe;
mod reading;
pub mod refresh;
pub mod rescue;
pub mod reseal;
pub mod schedule;
pub mod search;
pub mod tokens;
pub mod uninstall;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::secrets::SecretError;
use crate::table::StoreError;

/// A company and its token.
#[derive(Clone, Debug)]
pub struct Company {
    /// The company.
    pub resource: Resource,
    /// Its token.
    pub access: Access,
}

/// The reason of [`TokenError::Misconfigured`] while an operator has paused all refreshing.
pub const PAUSED: &str = "paused";

/// The time for a commit. This much of the lease must be left after a presentation or a minting.
const COMMIT: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reasons for which there is no access token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No installation is known.
    #[error("not installed")]
    NotInstalled,
    /// The app was uninstalled.
    #[error("uninstalled")]
    Revoked,
    /// The grant is gone. A human must install the app again, at this link if the link is known.
    #[error("a human must install again")]
    ReauthorizationRequired {
        /// The link to install again.
        reinstall_url: Option<String>,
    },
    /// The platform has paused the location. No renewal is tried before `retry_at`.
    #[error("the location is paused until at least {retry_at}")]
    Suspended {
        /// The time of the next try.
        retry_at: Millis,
    },
    /// The token is being renewed, or the renewal failed and is tried again at `retry_at`.
    #[error("the renewal is not finished; worth another try at {retry_at}")]
    InProgress {
        /// The time at which the caller should ask again.
        retry_at: Millis,
    },
    /// The refresh token was presented, and no answer is known. The token is worth another presentation at `retry_at`,
    /// while the platform still repeats the answer.
    #[error("the platform's answer to a renewal is missing; worth another try at {retry_at}")]
    Unanswered {
        /// The time of the next presentation.
        retry_at: Millis,
        /// The end of the time for which the platform repeats an answer to this attempt.
        until: Millis,
        /// False if so many answers are missing in a row that the next presentation gets no place in a pace soon.
        is_urgent: bool,
    },
    /// The pace of the token endpoint has no place for the renewal before `retry_at`. The installation is unchanged.
    #[error("the pace of the token endpoint has no place before {retry_at}")]
    Paced {
        /// The time at which a place is free.
        retry_at: Millis,
    },
    /// Too little time is left in the invocation to begin a renewal.
    #[error("too little time is left for a renewal")]
    NoTime,
    /// The configuration or the whole app has a fault: the credentials, the token request, a missing scope, an open circuit
    /// breaker, or a stored token that does not open. The text names the fault.
    #[error("misconfigured: {0}")]
    Misconfigured(&'static str),
    /// A refresh was forced less than a minute ago and did not help: the caller gets the platform's own answer.
    #[error("a refresh was forced a moment ago")]
    RecentlyForced,
    /// A secret cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}
