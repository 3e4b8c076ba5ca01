//! The token endpoint's answer to a code or a refresh token, in this crate's own form.

use std::time::Duration;

use super::redacted::Redacted;
use super::resource::Resource;

/// A grant of the token endpoint.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The resource of the token, from the answer's own `userType`, `locationId` and `companyId`.
    pub resource: Resource,
    /// The company of a location, or the company itself, if the answer names it.
    pub company: Option<String>,
    /// The access token.
    pub access: Redacted,
    /// The single-use refresh token. If the answer has none, the old refresh token stays valid.
    pub refresh: Option<Redacted>,
    /// The remaining life of the access token, already clamped to 60 s … 24 h.
    pub expires_in: Duration,
    /// The granted scopes, separated by spaces.
    pub scope: Option<String>,
    /// True if an agency installed the app for several locations at once.
    pub bulk: bool,
}
