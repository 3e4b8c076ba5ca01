//! The platform's answer to a code or a refresh token, as this crate understands it.

use std::time::Duration;

use super::redacted::Redacted;
use super::resource::Resource;

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
    pub expires_in: Duration,
    /// The scopes granted, space separated.
    pub scope: Option<String>,
    /// Whether an agency installed for several locations at once.
    pub bulk: bool,
}
