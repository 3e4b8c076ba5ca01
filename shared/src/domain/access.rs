//! An access token in the clear, as returned to readers.

use super::bearer::Bearer;
use super::clock::Millis;

/// An access token, and the version of its token pair.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Bearer,
    /// The time at which the platform granted the token.
    pub issued_at: Millis,
    /// The time at which the token expires.
    pub expires_at: Millis,
    /// The epoch of the installation.
    pub epoch: u64,
    /// The generation of the token pair.
    pub generation: u64,
    /// True if the token comes from a renewal because of an unclassified 401. Another unclassified 401 must not renew
    /// this token again.
    pub doubted: bool,
}
