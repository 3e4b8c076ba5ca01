//! The life of a token pair: the token endpoint, the one refresh path, and what a reader gets.

pub mod alarm;
pub mod bearer;
pub mod breaker;
pub mod company_api;
pub mod endpoint;
pub mod mint;
mod minted;
pub mod pair;
pub mod parts;
pub mod presence;
pub mod refresh;
pub mod rescue;
pub mod reseal;
pub mod schedule;
pub mod search;
pub mod tokens;

use self::bearer::Bearer;
use crate::clock::Millis;
use crate::redacted::Redacted;
use crate::resource::Resource;
use crate::secrets::SecretError;
use crate::table::StoreError;

/// An access token and the lineage that it belongs to.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Bearer,
    /// When the platform granted it.
    pub issued_at: Millis,
    /// When the platform stops taking it.
    pub expires_at: Millis,
    /// Lineage of the installation.
    pub epoch: u64,
    /// Lineage of the token pair.
    pub generation: u64,
    /// It came of a renewal whose reason was a 401 that nobody has classified: such an answer is no reason to renew it
    /// again.
    pub doubted: bool,
}

/// Why there is no access token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No installation is known.
    #[error("not installed")]
    NotInstalled,
    /// The app was uninstalled.
    #[error("uninstalled")]
    Revoked,
    /// The grant is gone; a human must install again, at this link if it is known.
    #[error("a human must install again")]
    ReauthorizationRequired {
        /// Where to install again.
        reinstall_url: Option<String>,
    },
    /// The platform has paused the location; nothing is tried before this instant.
    #[error("the location is paused until at least {retry_at}")]
    Suspended {
        /// When it is tried again.
        retry_at: Millis,
    },
    /// The token is being renewed, or the renewal failed and is tried again at this instant.
    #[error("the renewal is not finished; worth another try at {retry_at}")]
    InProgress {
        /// When to ask again.
        retry_at: Millis,
    },
    /// The app's credentials are refused by the platform, or a stored token does not open.
    #[error("misconfigured: {0}")]
    Misconfigured(&'static str),
    /// A refresh was forced less than a minute ago and did not help: the platform's own answer is passed on.
    #[error("a refresh was forced a moment ago")]
    RecentlyForced,
    /// A secret cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the token endpoint granted.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Whose token it is, by the answer's own `userType`, `locationId` and `companyId`.
    pub resource: Resource,
    /// The company of a location, or the company itself, where the answer names it.
    pub company: Option<String>,
    /// The access token.
    pub access: Redacted,
    /// The single-use refresh token. An answer without one leaves the old one in force.
    pub refresh: Option<Redacted>,
    /// From now to the access token's end, already clamped to 60 s … 24 h.
    pub expires_in: std::time::Duration,
    /// The scopes granted, space separated.
    pub scope: Option<String>,
    /// Whether an agency installed for several locations at once.
    pub bulk: bool,
}
