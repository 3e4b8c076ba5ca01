//! An access token in the clear, as a reader gets it.

use super::bearer::Bearer;
use super::clock::Millis;

/// An access token and the version that it belongs to.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Bearer,
    /// When the platform granted it.
    pub issued_at: Millis,
    /// When the platform stops taking it.
    pub expires_at: Millis,
    /// Epoch of the installation.
    pub epoch: u64,
    /// Generation of the token pair.
    pub generation: u64,
    /// It came of a renewal whose reason was a 401 that nobody has classified: such an answer is no reason to renew it
    /// again.
    pub doubted: bool,
}
