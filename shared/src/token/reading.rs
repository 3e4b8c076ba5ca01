//! The access token of a stored installation.

use super::TokenError;
use crate::domain::access::Access;
use crate::domain::installation::{Installation, SealedAccess};
use crate::seal::pair::{PairRole, place};
use crate::seal::vault::{Vault, VaultError};

/// Opens the current access token of an installation.
pub(super) async fn open(vault: &Vault, stored: &Installation, access: &SealedAccess) -> Result<Access, TokenError> {
    let item = stored.key();
    let token = vault.open(place(&item, stored.version, PairRole::Current.access()), &access.token).await;
    let token = token.map_err(|error| match error {
        VaultError::Secret(error) => TokenError::Secret(error),
        VaultError::Seal(error) => {
            tracing::error!(alarm = "unseal", resource = %stored.resource, %error, "a stored token does not open");
            TokenError::Misconfigured("a stored token does not open")
        }
    })?;
    Ok(Access {
        token: (&token).into(),
        issued_at: access.issued_at,
        expires_at: access.expires_at,
        epoch: stored.version.epoch,
        generation: stored.version.generation,
        doubted: stored.findings.is_doubted,
    })
}
